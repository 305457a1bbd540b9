"""Lists of named files on the command line: `A@0.8,B`, where a path that exists wins over both marks."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffleak.errors import UserError, shown

MARK, COMMA = "@", ","


def split_named(text: str, flag: str) -> list[tuple[str, str | None]]:
    """The names in a list, each with what stands behind its last @.

    A path may hold both marks: of the ways to read the list, the one with the longest path that is there is taken, from the left. Raises
    `UserError` for a list with a name left out.
    """
    pieces, found = text.split(COMMA), []
    while pieces:
        ends = range(len(pieces), 0, -1)
        end = next((end for end in ends if os.path.exists(_at_mark(COMMA.join(pieces[:end]).strip())[0])), 1)
        name, value = _at_mark(COMMA.join(pieces[:end]).strip())
        if not name:
            raise UserError(f"{flag} must name something before and after each comma; got {shown(text)}")
        found.append((name, value))
        pieces = pieces[end:]
    return found


def _at_mark(text: str) -> tuple[str, str | None]:
    name, mark, value = text.rpartition(MARK)
    return (name, value) if mark and name and COMMA not in value and not os.path.exists(text) else (text, None)


def join_named(value: Any, flag: str) -> Any:
    """A list of names, or of pairs of a name and its value, as the command line writes it; anything but a list as it is.

    Raises `UserError` for items that are neither.
    """
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        return value
    return COMMA.join(_written(item, flag) for item in value) or None


def _written(item: Any, flag: str) -> str:
    if isinstance(item, str | Path):
        return str(item)
    if isinstance(item, Sequence) and len(item) == 2 and isinstance(item[0], str | Path) and isinstance(item[1], str | int | float):
        return f"{item[0]}{MARK}{item[1]}"
    raise UserError(f"{flag} must list names, or pairs of a name and a value; got {shown(repr(item))}")


def strength_of(text: str) -> float | None:
    """The number after the @ of a name; None for other text, which belongs to the name."""
    try:
        return float(text)
    except ValueError:
        return None
