"""Code of the user's own, imported because the user names it: `package.module:Name`. Nothing else in this package runs other code."""

import hashlib
import importlib
import inspect
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffleak.errors import DiffleakError, UserError, first_lines
from diffleak.work.memory import out_of_memory


def imported(name: str, what: str) -> Any:
    """Imports `package.module:Name`, also from a module in the current folder.

    what: the beginning of the message if that fails. Raises `UserError` for every error, also one that the user's own module raises.
    """
    module, _, attribute = name.partition(":")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:
        said = first_lines(error)
        raise UserError(f"{what}, and lies in {os.getcwd()} or is installed; {name} cannot be imported ({said})") from None


@contextmanager
def called(name: str, must: str, given: str = "") -> Iterator[None]:
    """Turns an error of the user's own function into a `UserError`, with its traceback for callers from Python.

    must: the arguments that the function must take, named in the message for a `TypeError`. given: what it was called with. Errors of
    this package and errors of memory pass unchanged.
    """
    try:
        yield
    except DiffleakError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        takes = f"{name} must take {must}; " if isinstance(error, TypeError) else ""
        raise UserError(f"{takes}{name} fails{given} with {type(error).__name__}: {first_lines(error)}") from error


def source_hash(things: Iterable[Any]) -> str | None:
    """A hash of the modules that define these classes or functions; None if one was typed into an interpreter or a notebook."""
    try:
        files = sorted({Path(inspect.getfile(each)) for each in things if inspect.getsource(each)})
        return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    except (OSError, TypeError):
        return None
