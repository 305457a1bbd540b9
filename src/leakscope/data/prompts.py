"""Prompts that belong to no image: a list of texts in a file."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from leakscope.data.captions import read_captions, whole_rows
from leakscope.errors import UserError, unknown

COLUMN = "text"


def read_prompts(path: Path) -> list[str]:
    """The prompts of a text file, one a line but for empty ones, of the column `text` of a .csv or .jsonl, or those of a captions .json.

    Raises `UserError` for a file that cannot be read, holds none, or has an empty one.
    """
    if path.suffix.lower() == ".json":
        return [texts[0] for texts in read_captions(path).values() if texts]
    readers: dict[str, Callable[[str, Path], list[Any]]] = {".csv": _csv, ".jsonl": _jsonl}
    try:
        content = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"FILE must be a text file with a prompt on each line, .csv, .jsonl or .json; found nothing at {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error})") from None
    prompts = readers.get(path.suffix.lower(), lambda text, _: [line.strip() for line in text.split("\n") if line.strip()])(content, path)
    for number, prompt in enumerate(prompts, 1):
        if not isinstance(prompt, str) or not prompt.strip():
            raise UserError(f"{path} must hold a prompt in every row; that of row {number} is empty: leave the row out")
    if not prompts:
        raise UserError(f"{path} must hold at least one prompt; it has none")
    return prompts


def _csv(content: str, path: Path) -> list[Any]:
    try:
        rows = list(whole_rows(io.StringIO(content, newline="")))
    except (csv.Error, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error})") from None
    _check_column(list(rows[0]) if rows else [], bool(rows), path)
    return [row[COLUMN] for row in rows]


def _jsonl(content: str, path: Path) -> list[Any]:
    rows = []
    for number, line in enumerate(content.rstrip("\n").split("\n"), 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path} must hold a JSON object on every line; line {number} is none ({error.msg})") from None
        if not isinstance(row, dict):
            raise UserError(f"{path} must hold a JSON object on every line; line {number} is a {type(row).__name__}")
        _check_column([str(key) for key in row], True, path)
        told = row[COLUMN]
        rows.append(told[0] if isinstance(told, list) and told else told)  # a captions file: the image's own comes first
    return rows


def _check_column(names: list[str], any_rows: bool, path: Path) -> None:
    if any_rows and COLUMN not in names:
        raise unknown(f"layout of {path}: the prompts must be in a column", COLUMN, names)
