"""Progress for everything a person waits for: a bar on a terminal, plain lines elsewhere, always on stderr.

`progress` is for work that is counted, `doing` for a call that cannot be, such as loading a model. While either is open a thread looks
at the clock, so that no more than two seconds pass in silence before the first line, however long one call takes.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from diffleak.errors import visible

FIRST_LINE_AFTER = 2.0  # seconds; shorter work prints nothing in a log
LINE_EVERY = 15.0  # seconds between plain lines
SILENT = 1.5  # seconds without a line after which the clock says what is being done
LOOK_EVERY = 0.2  # seconds between two looks at the clock: with SILENT less than two seconds


@dataclass(eq=False)
class _Task:
    """Something that is being done: since when, and what says so; None while a bar shows it."""

    began: float
    show: Callable[[float], None] | None
    said: bool = False


@dataclass(eq=False)
class _Watch:
    """What is being done, the innermost last, when a line was said last, and the thread that looks at the clock while there is anything."""

    tasks: list[_Task] = field(default_factory=list)
    last: float = float("-inf")
    lock: Any = field(default_factory=threading.RLock)
    ended: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def during(self, show: Callable[[float], None] | None) -> Iterator[None]:
        task = _Task(time.monotonic(), show)
        with self.lock:
            self.tasks.append(task)
            if len(self.tasks) == 1:
                self.start()
        try:
            yield
        finally:
            with self.lock:
                self.tasks.remove(task)
                if not self.tasks:
                    self.ended.set()

    def start(self) -> None:
        self.ended = threading.Event()
        threading.Thread(target=self.run, args=(self.ended,), name="diffleak-clock", daemon=True).start()

    def run(self, ended: threading.Event) -> None:
        while not ended.wait(LOOK_EVERY):
            with suppress(OSError, ValueError):  # nobody reads stderr any more: the work itself goes on
                self.look(time.monotonic())

    def look(self, now: float) -> None:
        """Says what is being done if nothing was said for too long."""
        with self.lock:
            if not self.tasks or (task := self.tasks[-1]).show is None:
                return
            began = self.tasks[0].began
            silent, own = now - max(self.last, began), now - max(self.last, task.began)
            if silent >= LINE_EVERY or (own >= SILENT and not task.said) or (silent >= SILENT and self.last < began):
                self.last, task.said = now, True
                task.show(now)

    def spoke(self) -> None:
        with self.lock:
            self.last = time.monotonic()


_watch = _Watch()


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Says that this is being done, within two seconds and then at times, unless something else was said meanwhile."""
    start = time.monotonic()
    with _watch.during(lambda now: _print(f"{what}: {now - start:.0f} s so far")):
        yield


def say(line: str, every: bool = False) -> None:
    """A line on stderr, beside the bars; from the first of the processes that a launcher started, or from every one.

    What a file or its name could do to a terminal is spelled out.
    """
    if every or os.environ.get("RANK", "0") == "0":
        _print(line)
        _watch.spoke()


def _print(line: str) -> None:
    print(visible(line), file=sys.stderr, flush=True)


@contextmanager
def retrying_quietly(library: str = "huggingface_hub") -> Iterator[None]:
    """Leaves out what a library warns of meanwhile: a line each time it tries the network again, where the error at the end is enough."""
    logger = logging.getLogger(library)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def progress(description: str, total: int, unit: str, done: int = 0) -> Iterator[Callable[..., None]]:
    """Yields `advance(n, note="")`; shows how much of `total` is done and about how long the rest will take.

    `done` counts work finished by an earlier run, which must not flatter the estimate.
    """
    shown = _bar if sys.stderr.isatty() else _lines
    with shown(description, total, unit, done) as advance:
        yield advance


@contextmanager
def _bar(description: str, total: int, unit: str, done: int) -> Iterator[Callable[..., None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} {task.fields[unit]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars, _watch.during(None):
        task = bars.add_task(description, total=total, completed=done, unit=unit, note="")

        def advance(n: int = 1, note: str = "") -> None:
            bars.advance(task, n)
            if note:
                bars.update(task, note=note)

        yield advance


@contextmanager
def _lines(description: str, total: int, unit: str, done: int) -> Iterator[Callable[..., None]]:
    start = last = time.monotonic()
    completed, latest_note, said = done, "", done

    def show(now: float) -> None:
        nonlocal said
        said = completed
        rate = (completed - done) / max(now - start, 1e-9)
        left = f", about {(total - completed) / rate:.0f} s left" if rate > 0 and completed < total else ""
        note = f" {latest_note}" if latest_note else ""
        print(f"{description}: {completed:,}/{total:,} {unit}, {now - start:.0f} s{left}{note}", file=sys.stderr, flush=True)

    def look(now: float) -> None:
        nonlocal last
        last = now
        show(now)

    def advance(n: int = 1, note: str = "") -> None:
        nonlocal completed, latest_note
        completed, latest_note = completed + n, note or latest_note
        if due(now := time.monotonic()):
            with _watch.lock:  # the thread may be saying the same line
                if due(now):
                    look(now)
                    _watch.spoke()

    def due(now: float) -> bool:
        return now - last >= (LINE_EVERY if last > start else FIRST_LINE_AFTER)

    with _watch.during(look):
        yield advance
    if last > start and said != completed:
        show(time.monotonic())
