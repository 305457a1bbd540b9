"""What an image folder says of its images in metadata files (the Hugging Face imagefolder convention).

A metadata.jsonl, metadata.csv or metadata.parquet may lie in any folder. Its `file_name`s are relative to that folder and may be
spelled in another way (`diffleak.data.names`). Of several files above an image the nearest counts.
"""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from posixpath import join, normpath
from typing import Any, NamedTuple

from diffleak.data.names import Names, UnclearName, matched
from diffleak.errors import UserError, listed, nearest, shown
from diffleak.work.reading import load_lines, load_parquet, load_table, parsing

FORMS = {
    ".jsonl": "a JSON object with file_name per line",
    ".csv": "a header with file_name, and a line per image",
    ".parquet": "a column file_name, and a row per image",
}


class Row(NamedTuple):
    """One row of a metadata file: the file, the id of the image, or where it names none of them that name, and every column."""

    file: Path
    image: str
    values: dict[str, Any]


def metadata_rows(root: Path, ids: Sequence[str], holding: str) -> list[Row]:
    """The rows of every metadata file above the images `ids`: for an image, those of its nearest file. Some may be of other images.

    Raises `UserError` for a file that cannot be read, for two in one folder, and for a name of which it is not clear which image it
    means. `holding` says what the columns must hold.
    """
    files = {folder: file for folder in sorted(_folders(ids)) if (file := _file(root / folder))}
    rows: list[tuple[str, Row]] = []
    for folder, file in files.items():
        try:
            rows += [(folder, Row(file, normpath(join(folder, _name(row, i))), row)) for i, row in enumerate(_read(file), 1)]
        except ValueError as error:  # also `Unreadable`
            raise malformed(file, holding, error) from None
    meant = matched(said_by(root, files.values()), (row.image for _, row in rows), ids, [(root, "")])
    found = [(folder, row._replace(image=meant.get(row.image, row.image))) for folder, row in rows]
    return [row for folder, row in found if _nearest(row.image, files) == folder]


def names_in_metadata(root: Path, ids: Sequence[str]) -> Names | None:
    """The names and columns in the metadata files of a folder; None where it has no row."""
    rows = metadata_rows(root, ids, "captions or labels")
    columns = dict.fromkeys(str(column) for row in rows for column in row.values)
    where = said_by(root, {row.file for row in rows})
    return Names.of(where, (row.image for row in rows), ids, tuple(columns)) if rows else None


def column_of(root: Path, ids: Sequence[str], column: str) -> tuple[Any, ...] | None:
    """What a column of the metadata files holds for each image, None for an image without a value; None alone where no file has it.

    Raises `UserError` as `metadata_rows` does, and for two values of one image.
    """
    rows = [row for row in metadata_rows(root, ids, f"values of {shown(column)}") if column in row.values]
    found: dict[str, Any] = {}
    for row in rows:
        value = row.values[column]
        if found.setdefault(row.image, value) != value:
            both = f"{shown(row.image)} has {shown(found[row.image])} and {shown(value)}"
            raise UnclearName(f"{row.file} must give each image one value of {shown(column)}; {both}: keep the right one")
    return tuple(found.get(image_id) for image_id in ids) if rows else None


def said_by(root: Path, files: Iterable[Path]) -> str:
    """What messages call several metadata files."""
    files = [*files]
    return str(files[0]) if len(files) == 1 else f"the metadata in {root}"


def malformed(file: Path, holding: str, error: Exception) -> UserError:
    """The error for a metadata file that does not hold what it must."""
    reason = shown(" ".join(str(error).split()), 200) or type(error).__name__
    return UserError(f"{file} must hold {FORMS[file.suffix]}, {holding} ({reason})")


def needed(row: Any, *columns: str, where: str = "it") -> Any:
    """What a row has in the first of some columns that it has at all; raises `ValueError` with what it has instead."""
    if not isinstance(row, dict):
        raise ValueError(f"{where} is {shown(json.dumps(row, default=str))}")
    column = next((column for column in columns if column in row), None)
    if column is None:
        names = [*map(str, row)]
        near = next((f"; is '{near}' meant for {column}?" for column in columns if (near := nearest(column, names))), "")
        raise ValueError(f"{where} has {listed(names, 120) or 'nothing'}, and no {' or '.join(columns)}{near}")
    return row[column]


def _folders(ids: Sequence[str]) -> set[str]:
    """Every folder above an image, as text below the root, "" for the root itself."""
    found = {""}
    for folder in {image_id.rpartition("/")[0] for image_id in ids}:
        while folder not in found:
            found.add(folder)
            folder = folder.rpartition("/")[0]
    return found


def _file(folder: Path) -> Path | None:
    found = [path for kind in FORMS if os.path.lexists(path := folder / f"metadata{kind}")]
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


def _read(file: Path) -> list[Any]:
    if file.suffix == ".jsonl":
        return load_lines(file)
    if file.suffix == ".csv":
        return load_table(file)
    table = load_parquet(file)
    with parsing():
        return table.to_pylist()  # type: ignore[no-any-return]


def _name(row: Any, number: int) -> str:
    name = needed(row, "file_name", where=f"row {number}")
    if name in (None, ""):
        raise ValueError(f"row {number} has no file_name: {shown(json.dumps(row, default=str))}")
    return str(name)
