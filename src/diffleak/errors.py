"""What can go wrong because of the user's input, and the exit code each case carries.

Every message says what must hold, what was found and what to do. The command line prints it as one line; any other
exception is a bug and shows its traceback.
"""

import difflib
from collections.abc import Iterable
from typing import ClassVar

LONGEST, LONGEST_END = 400, 150  # characters of a message, and of its end where it had to be cut
LONGEST_VALUE = 60  # characters of a value that a message shows
NAME = "diffleak"  # of the distribution, the import and the command


class DiffleakError(Exception):
    """A condition with a one-line message; `exit_code` is what the command line returns for it."""

    exit_code: ClassVar[int] = 1


class UserError(DiffleakError):
    """The input cannot be used as it is (exit code 2)."""

    exit_code = 2


class GateFailed(DiffleakError):
    """The audit is sound and its result is above a limit that the user set (exit code 3)."""

    exit_code = 3


class InvalidAudit(DiffleakError):
    """The numbers were computed, but they do not measure membership (exit code 4)."""

    exit_code = 4


def unknown(what: str, name: str, options: Iterable[str]) -> UserError:
    """The error for a name that is not among `options`, naming the nearest one."""
    options = sorted(options)
    near = difflib.get_close_matches(name[:LONGEST_VALUE], options, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"known: {cut(', '.join(options), LONGEST // 2)}"
    return UserError(f"unknown {what} '{cut(name)}'; {hint}")


def first_lines(error: Exception) -> str:
    """Enough of a library's message to act on, on one line."""
    return " ".join([line.strip() for line in str(error).splitlines() if line.strip()][:2])


def pip_install(extra: str) -> str:
    """The command that installs an optional part of this package, for messages: `pip install 'diffleak[text]'`."""
    return f"pip install '{NAME}[{extra}]'"


def cut(text: str, limit: int = LONGEST_VALUE) -> str:
    """`text` with an ellipsis for what goes beyond `limit` characters; for values of a user's file in a message."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def one_line(message: str) -> str:
    """A message as it is printed: on one line of at most LONGEST characters, without what could move the cursor of a terminal.

    What is cut from a longer one is its middle: what went wrong stands at its beginning, what to do at its end.
    """
    line = visible(message)
    return line if len(line) <= LONGEST else f"{line[: LONGEST - LONGEST_END - 3]} … {line[-LONGEST_END:]}"


def visible(text: str) -> str:
    """`text` with everything that does not print spelled out: control codes, direction marks, undecodable bytes.

    Ids come from file names, and a file name must not be able to move the cursor, break a line or stop a file from being
    written.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode("ascii") for c in text)
