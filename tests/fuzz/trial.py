"""One input: a valid example is copied, one of its files is spoilt, what reads it is called, and what comes of it is judged.

refused   a `UserError`, printed as one line of at most 400 characters without control characters
same      the answer for the whole file
redone    the same answer, after a damaged file of finished work was moved aside and its work done again
other     another answer, which is right for this file where the kind can tell
failure   anything else: a traceback, a hang, too much memory, another answer where none may be
"""

import faulthandler
import io
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal, NamedTuple

import numpy as np

from fuzz.mutations import mutate, replace

SECONDS = 5.0  # that an input may take
STUCK = 8  # times as long, and the process is given up
MEMORY = 3 * 2**30  # bytes beyond what the process has
REPLACED = 0.06  # share of inputs where another kind of file is in the place of the file
LONGEST = 400  # characters of a message

Result = Literal["refused", "same", "redone", "other", "failure"]
Read = Callable[[Path], Any]


def finite(folder: Path, answer: Any) -> None:
    """The least that another answer must be."""
    assert all(np.isfinite(part).all() for part in leaves(answer) if isinstance(part, float | np.ndarray)), "it is not finite"


@dataclass(frozen=True)
class Kind:
    """A kind of file and what reads it.

    example(folder) writes a valid one and returns what reads it. files: patterns of those that may be spoilt. right(folder, answer)
    raises where another answer is not what the file says; None where there is no other right answer, because the file carries a
    checksum or belongs to a plan. weight: how often, beside other kinds.
    """

    name: str
    example: Callable[[Path], Read]
    files: tuple[str, ...]
    right: Callable[[Path, Any], None] | None = finite
    weight: int = 4


@dataclass(frozen=True, eq=False)
class Example:
    """A kind with its example and the answer for it."""

    kind: Kind
    folder: Path
    read: Read
    answer: Any


class Outcome(NamedTuple):
    """What came of one input: `what` was done to it, and for a failure why it is one and where."""

    result: Result
    what: str
    why: str = ""


class TooLong(BaseException):
    """An input took more than its time; not an `Exception`, so that nothing takes it for a damaged file."""


def make_example(kind: Kind, root: Path) -> Example:
    """Writes the example of a kind below `root` and reads it once."""
    folder = root / kind.name.replace(" ", "-").replace("/", "-") / "example"
    folder.mkdir(parents=True)
    with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
        read = kind.example(folder)
        return Example(kind, folder, read, read(_copied(folder)))


def in_turn(kinds: Sequence[Kind]) -> list[Kind]:
    """The kinds in a fixed mixed order, each as often as its weight."""
    order = [kind for kind in kinds for _ in range(kind.weight)]
    Random(0).shuffle(order)
    return order


def try_input(example: Example, seed: int, number: int) -> Outcome:
    """The outcome of one input, which its kind, seed and number decide."""
    kind, rng = example.kind, Random(f"{example.kind.name} {seed} {number}")
    folder = _copied(example.folder)
    files = sorted({path for pattern in kind.files for path in folder.glob(pattern) if path.is_file()})
    assert files, f"the example of {kind.name} has no {kind.files}"
    path = rng.choice(files)
    if rng.random() < REPLACED:
        what = replace(rng, path)
    else:
        what, content = mutate(rng, path.read_bytes(), path.suffix)
        path.write_bytes(content)
    return outcome_of(kind, folder, example.read, example.answer, f"{path.relative_to(folder)}: {what}")


def outcome_of(kind: Kind, folder: Path, read: Read, whole: Any, what: str) -> Outcome:
    """Reads a spoilt folder and judges what comes of it."""
    from diffleak.errors import UserError, one_line  # not before the tests have put their hook on imports

    failure = lambda why: Outcome("failure", what, why)
    said = io.StringIO()
    try:
        with limits(SECONDS), redirect_stderr(said), redirect_stdout(io.StringIO()):
            answer = read(folder)
    except UserError as error:
        printed = one_line(str(error))
        clean = printed.isprintable() and 0 < len(printed) <= LONGEST
        return Outcome("refused", what) if clean else failure(f"not one clean line: {printed!r:.200}")
    except TooLong as error:
        return failure(f"more than {SECONDS:g} seconds, {_where(error)}")
    except Exception as error:
        return failure(f"{type(error).__name__}: {str(error)[:200]!r}, {_where(error)}")
    if dirty := next((line for line in said.getvalue().splitlines() if not line.isprintable()), None):
        return failure(f"a line on stderr with control characters: {dirty[:200]!r}")
    if alike(answer, whole):
        return Outcome("redone" if any(folder.rglob("*.damaged")) else "same", what)
    if kind.right is None:
        return failure(f"another answer, without a word: {difference(answer, whole)}")
    try:
        with limits(SECONDS):
            kind.right(folder, answer)
    except (Exception, TooLong) as error:
        return failure(f"a wrong answer: {type(error).__name__} {str(error)[:200]}; {difference(answer, whole)}")
    return Outcome("other", what)


def _copied(folder: Path) -> Path:
    """A fresh copy beside an example."""
    copy = folder.with_name("case")
    if copy.exists():
        shutil.rmtree(copy)
    return Path(shutil.copytree(folder, copy, symlinks=True))


def _where(error: BaseException) -> str:
    """The last line of the package that an error came through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/diffleak/" in frame.filename] or list(frames)
    place = own[-1].filename.rpartition("/diffleak/")[2]
    return f"in {place}:{own[-1].lineno} {own[-1].name}"


@contextmanager
def limits(seconds: float) -> Iterator[None]:
    """Raises `TooLong` after so many seconds, and lets memory run out before the machine's does."""

    def stop(*_: object) -> None:
        raise TooLong

    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if Path("/proc/self/statm").exists() else None
    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, stop)
    if now is not None:
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, before[1]))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(STUCK * seconds, exit=True, file=sys.__stderr__)  # code that no signal stops
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


def leaves(answer: Any) -> Iterator[Any]:
    """The parts of an answer that are no containers."""
    parts = answer.values() if isinstance(answer, dict) else answer if isinstance(answer, list | tuple | set) else None
    if parts is None:
        yield answer
    else:
        for part in parts:
            yield from leaves(part)


def alike(one: Any, other: Any) -> bool:
    """Whether two answers are the same to the last bit."""
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        both = isinstance(one, np.ndarray) and isinstance(other, np.ndarray) and one.dtype == other.dtype
        return both and np.array_equal(one, other, equal_nan=one.dtype.kind in "fc")
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    return bool(one == other) or (one != one and other != other)


def difference(one: Any, other: Any) -> str:
    """The first part in which two answers differ."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        key = next(key for key in one if not alike(one[key], other[key]))
        return f"{key}: {difference(one[key], other[key])}"
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        i = next(i for i, pair in enumerate(zip(one, other, strict=True)) if not alike(*pair))
        return f"[{i}] {difference(one[i], other[i])}"
    return f"{one!r:.80} and not {other!r:.80}"
