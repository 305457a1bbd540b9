"""What an image folder says of its images in metadata files (the Hugging Face imagefolder convention).

A metadata.jsonl, metadata.csv or metadata.parquet may lie in any folder. Its `file_name`s are relative to that folder, and
of several files above an image the nearest counts.
"""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from posixpath import normpath
from typing import Any, NamedTuple

from diffleak.errors import UserError

FORMS = {
    ".jsonl": "a JSON object with file_name per line",
    ".csv": "a header with file_name, and a line per image",
    ".parquet": "a column file_name, and a row per image",
}


class Row(NamedTuple):
    """One row of a metadata file: the file, the id of the image, and every column."""

    file: Path
    image: str
    values: dict[str, Any]


def metadata_rows(root: Path, ids: Sequence[str], holding: str) -> list[Row]:
    """The rows of every metadata file above the images `ids`: for an image, those of its nearest file. Some may be of other images.

    Raises `UserError` for a file that cannot be read, and for two in one folder. `holding` says what the columns must hold.
    """
    files = {folder: file for folder in sorted(_folders(ids)) if (file := _file(root / folder))}
    rows = []
    for folder, file in files.items():
        try:
            found = [Row(file, normpath(f"{folder}/{_name(row)}" if folder else _name(row)), row) for row in _read(file)]
        except Exception as error:  # json, csv and pyarrow each raise their own; all mean a file that cannot be used
            raise malformed(file, holding, error) from None
        rows += [row for row in found if _nearest(row.image, files) == folder]
    return rows


def malformed(file: Path, holding: str, error: Exception) -> UserError:
    """The error for a metadata file that does not hold what it must."""
    return UserError(f"{file} must hold {FORMS[file.suffix]}, {holding} ({' '.join(str(error).split()) or type(error).__name__})")


def read_lines(path: Path) -> list[Any]:
    """The JSON values in the lines of a file; raises `OSError`, or `ValueError` for what is no JSON."""
    # not splitlines: it would also cut at the other line separators of Unicode, which JSON has inside its texts
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except RecursionError:
        raise ValueError("a line is nested too deeply") from None


def whole_rows(file: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The rows of a CSV file with a header; raises `ValueError` for one with more fields than that, as an unquoted comma makes."""
    reader = csv.DictReader(file)
    for row in reader:
        if None in row:
            raise ValueError(f"line {reader.line_num} has more fields than the header: put texts with commas in double quotes")
        yield row


def _folders(ids: Sequence[str]) -> set[str]:
    """Every folder above an image, as text below the root, "" for the root itself."""
    found = {""}
    for folder in {image_id.rpartition("/")[0] for image_id in ids}:
        while folder not in found:
            found.add(folder)
            folder = folder.rpartition("/")[0]
    return found


def _file(folder: Path) -> Path | None:
    found = [path for kind in FORMS if (path := folder / f"metadata{kind}").is_file()]
    if len(found) > 1:
        raise UserError(
            f"{folder} must have one metadata file; it has {' and '.join(path.name for path in found)}: keep the one that counts"
        )
    return found[0] if found else None


def _nearest(image: str, files: dict[str, Path]) -> str:
    folder = image.rpartition("/")[0]
    while folder and folder not in files:
        folder = folder.rpartition("/")[0]
    return folder


def _read(file: Path) -> list[dict[str, Any]]:
    if file.suffix == ".jsonl":
        return read_lines(file)
    if file.suffix == ".parquet":
        import pyarrow.parquet as pq

        return pq.read_table(file.absolute()).to_pylist()  # type: ignore[no-any-return]
    with file.open(encoding="utf-8-sig", newline="") as lines:
        return list(whole_rows(lines))


def _name(row: Any) -> str:
    if not isinstance(row, dict) or row.get("file_name") in (None, ""):
        raise ValueError(f"got {json.dumps(row, default=str)[:60]}, without a file_name")
    return str(row["file_name"])
