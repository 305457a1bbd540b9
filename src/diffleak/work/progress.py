"""Progress for everything a person waits for: a bar on a terminal, plain lines elsewhere, always on stderr."""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from diffleak.errors import visible

FIRST_LINE_AFTER = 2.0  # seconds; shorter work prints nothing in a log
LINE_EVERY = 15.0  # seconds between plain lines


def say(line: str, every: bool = False) -> None:
    """A line on stderr, beside the bars; from the first of the processes that a launcher started, or from every one.

    What a file or its name could do to a terminal is spelled out.
    """
    if every or os.environ.get("RANK", "0") == "0":
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
    with Progress(*columns, console=Console(stderr=True)) as bars:
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

    def advance(n: int = 1, note: str = "") -> None:
        nonlocal completed, last, latest_note
        completed, latest_note = completed + n, note or latest_note
        now = time.monotonic()
        if now - last >= (LINE_EVERY if last > start else FIRST_LINE_AFTER):
            last = now
            show(now)

    yield advance
    if last > start and said != completed:
        show(time.monotonic())
