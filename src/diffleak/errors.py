"""What can go wrong because of the user's input, and the exit code each case carries.

Every message says what must hold, what was found and what to do. The command line prints it as one line; any other
exception is a bug and shows its traceback.
"""

import difflib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import ClassVar

LONGEST, LONGEST_END = 400, 150  # characters of a message, and of its end where it had to be cut
NAME = "diffleak"  # of the distribution, the import and the command
SHOWN = 60  # characters of a user's value in a message
COMPARED = 1000  # names that a misspelled one is compared with
WHY = "\0"  # stands for the reason in a message that is written before anything has failed


class DiffleakError(Exception):
    """A condition with a one-line message; `exit_code` is what the command line returns for it."""

    exit_code: ClassVar[int] = 1


class UserError(DiffleakError):
    """The input cannot be used as it is (exit code 2)."""

    exit_code = 2


class SettingError(UserError):
    """A setting has a wrong value: `said` is what must hold and what was given.

    The message begins with the config key, which is the name in Python too, or with the second name by which it was given; the command
    line puts the flag in its place (`diffleak.options`).
    """

    def __init__(self, key: str, said: str, name: str | None = None) -> None:
        self.key, self.said, self.name = key, said, name or key
        super().__init__(f"{self.name} {said}")


class GateFailed(DiffleakError):
    """The audit is sound and its result is above a limit that the user set (exit code 3)."""

    exit_code = 3


class InvalidAudit(DiffleakError):
    """The numbers were computed, but they do not measure membership (exit code 4)."""

    exit_code = 4


@contextmanager
def refusing(
    kinds: type[Exception] | tuple[type[Exception], ...],
    message: str,
    said: Callable[[Exception], str] = str,
    raises: Callable[[str], UserError] = UserError,
) -> Iterator[None]:
    """Raises a `UserError` in the place of errors of these kinds: the message, with what is `said` of the error where it has WHY.

    A `UserError` passes as it is where the kind is Exception, all that a library may raise.
    """
    try:
        yield
    except kinds as error:
        if kinds is Exception and isinstance(error, UserError):
            raise
        raise raises(message.replace(WHY, said(error))) from None


def one_or_more(n: int, one: str, more: str = "") -> str:
    """A number and what is said of so many: 1 image, 1,600 images; more: where that is not `one` with an s, as with a verb."""
    return f"{n:,} {one if n == 1 else more or f'{one}s'}"


def of_them(n: int, all_of: str, one: str = "is", more: str = "are") -> str:
    """How many of all, with the verb: 1 of 12 images is, 3 of 12 images are."""
    return one_or_more(n, f"of {all_of} {one}", f"of {all_of} {more}")


def unknown(what: str, name: str, options: Iterable[str]) -> UserError:
    """The error for a name that is not among `options`, naming the nearest one."""
    options = sorted(options)
    near = nearest(name, options)
    hint = f"did you mean '{near}'?" if near else f"known: {listed(options, 280)}"
    return UserError(f"unknown {what} '{shown(name)}'; {hint}")


def nearest(name: str, options: Iterable[str]) -> str | None:
    """The option that is spelled most like `name`, ready to be shown; None where none is like it."""
    short = [shown(option) for option in islice(options, COMPARED)]
    return next(iter(difflib.get_close_matches(shown(name), short, n=1, cutoff=0.5)), None)


def listed(names: Iterable[str], limit: int = 300) -> str:
    """Names with commas between them, as many of them as fit into `limit` characters, and how many more there are."""
    names, parts = list(names), list[str]()
    for name in names:
        parts.append(shown(name))
        if len(parts) > 1 and len(", ".join(parts)) > limit:
            return f"{', '.join(parts[:-1])} and {len(names) - len(parts) + 1:,} more"
    return ", ".join(parts)


def shown(value: object, limit: int = SHOWN) -> str:
    """A value of a user's file as one short piece of a message: what does not print spelled out, the end cut off with "…"."""
    spelled = visible(str(value)[: limit + 1])
    return spelled if len(spelled) <= limit else spelled[: limit - 1] + "…"


def is_text(text: str) -> bool:
    """True for what UTF-8 can hold; False where a file name of other bytes, or half a character of JSON, is in it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def refuse_other_bytes(path: str) -> None:
    """Raises `UserError` for a path that is not UTF-8: no record, report or table could name it."""
    if not is_text(path):
        raise UserError(f"the path of a file or folder must be UTF-8; {shown(path, 200)} is not: rename it")


def first_lines(error: Exception) -> str:
    """Enough of a library's message to act on, on one line; the kind of error where it says nothing."""
    return " ".join([line.strip() for line in str(error).splitlines() if line.strip()][:2]) or type(error).__name__


def of_system(error: Exception) -> str:
    """What the system says of a file that it refuses, without the number and the file of the whole message."""
    return getattr(error, "strerror", None) or str(error)


def pip_install(extra: str) -> str:
    """The command that installs an optional part of this package, for messages: `pip install 'diffleak[text]'`."""
    return f"pip install '{NAME}[{extra}]'"


def install() -> str:
    """The command that installs all that is required, for messages."""
    return f"pip install {NAME}"


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
