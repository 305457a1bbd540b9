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
    """What `package.module:Name` stands for; modules in the current folder are found too.

    what: the beginning of the message where it cannot be imported. Raises `UserError` then, whatever the user's own module raises.
    """
    module, _, attribute = name.partition(":")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:
        said = first_lines(error)
        raise UserError(f"{what}, to be found from {os.getcwd()} or installed; {name} cannot be imported ({said})") from None


@contextmanager
def called(name: str, must: str, given: str = "") -> Iterator[None]:
    """Turns what a function of the user's own raises into a `UserError`, with its traceback for callers from Python.

    must: what it must take, said where it raises a `TypeError`. given: what it was given. Errors of this package and running out of
    memory pass as they are.
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
    """A hash of the modules that classes or functions are written in; None for some typed into an interpreter, or into a notebook."""
    try:
        files = sorted({Path(inspect.getfile(each)) for each in things if inspect.getsource(each)})
        return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    except (OSError, TypeError):
        return None
