"""Prompts that belong to no image: a list of texts in a file."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffleak.data.captions import IDS, read_captions
from diffleak.data.image_source import not_blank
from diffleak.data.names import spelling
from diffleak.errors import WHY, UserError, listed, refusing
from diffleak.work.reading import found_at, load_lines, load_table, load_text, opened_parquet

COLUMNS = ("text", "caption", "prompt")


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file: a text file with one a line, or a .csv, .jsonl or .parquet with `text`, `caption` or `prompt`; a captions file
    is one too.

    Of several texts of one image (file_name or id), in a list or in several rows, or in a captions .json, the first counts: its
    own caption. What is blank is no prompt. Raises `UserError` for a file that cannot be read or holds none.
    """
    readers: dict[str, Callable[[Path], list[str]]] = {".csv": _csv, ".jsonl": _jsonl, ".json": _json, ".parquet": _parquet}
    if (found := found_at(path)) != "a file":
        raise UserError(f"FILE must be a text file with a prompt on each line, .csv, .jsonl, .json or .parquet; found {found} at {path}")
    with refusing(ValueError, f"{path} cannot be read ({WHY})"):  # also `Unreadable`
        prompts = readers.get(path.suffix.lower(), _lines)(path)
    if not prompts:
        raise UserError(f"{path} must hold at least one prompt; it has none")
    return prompts


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in load_text(path).split("\n") if line.strip()]


def _json(path: Path) -> list[str]:
    return _first_of_each((name, texts[0]) for name, texts in read_captions(path).items() if texts)


def _jsonl(path: Path) -> list[str]:
    rows = load_lines(path)
    odd = next((row for row in rows if not isinstance(row, dict)), None)
    if odd is not None:
        raise ValueError(f"every line must be a JSON object; one is a {type(odd).__name__}")
    return _first_texts(rows, path)


def _csv(path: Path) -> list[str]:
    return _first_texts(load_table(path), path)


def _parquet(path: Path) -> list[str]:
    with opened_parquet(path) as file:
        wanted = [name for name in file.schema_arrow.names if name in (*COLUMNS, *IDS)]
        if not {*COLUMNS} & {*wanted}:
            raise _without_prompts(path, file.schema_arrow.names)
        rows = file.read(columns=wanted).to_pylist()  # of a table of images, not the images
    return _first_texts(rows, path)


def _first_texts(rows: Sequence[Mapping[str, Any]], path: Path) -> list[str]:
    """The first text of every image, or of every row that names none."""
    found: list[tuple[str | int, str]] = []
    for number, row in enumerate(rows):
        column = next((column for column in COLUMNS if column in row), None)
        if column is None:
            raise _without_prompts(path, map(str, row))
        if column != "prompt" and "prompt" in row:
            raise UserError(f"{path} must have its prompts in one column; it has {column} and prompt: remove the one that is not meant")
        texts = not_blank(row[column])
        if texts:
            found.append((next((str(row[key]) for key in IDS if row.get(key) not in (None, "")), number), texts[0].strip()))
    return _first_of_each(found)


def _without_prompts(path: Path, columns: Iterable[str]) -> UserError:
    *first, last = COLUMNS
    must = f"{path} must have its prompts in a column {', '.join(first)} or {last}"
    return UserError(f"{must}; it has {listed(columns, 120) or 'none'}: rename the one that is meant")


def _first_of_each(prompts: Iterable[tuple[str | int, str]]) -> list[str]:
    """The first prompt of every image, whose name may be spelled in several ways, and every prompt that has a row number instead."""
    found: dict[str | int, str] = {}
    for image, text in prompts:
        found.setdefault(spelling(image) if isinstance(image, str) else image, text)
    return list(found.values())
