"""Batches that fit into memory: where it runs out, the batch is halved and done again, and so are those that follow.

A batch of another size changes the last digits of a forward and nothing else, so work goes on; that it did is said, and recorded by
those whose records say so.
"""

from collections.abc import Callable, Iterator
from threading import Lock
from typing import Any, TypeVar, final

from diffleak.work.memory import ALONE, out_of_memory
from diffleak.work.progress import say
from diffleak.work.threads import Tick

T = TypeVar("T")


@final
class Room:
    """How many rows of one kind of work fit into memory at once, as far as is known; several threads may share it.

    what: the rows in words, as "images". release: is called when memory has run out, before the next attempt.
    """

    def __init__(self, what: str, release: Callable[[], object] = lambda: None) -> None:
        self.most: int | None = None  # rows, once memory has run out
        self._what, self._release, self._guard = what, release, Lock()

    def each(
        self, n: int, size: int, compute: Callable[[slice, Tick], T], tick: Tick = lambda *done: None, full: bool = False
    ) -> Iterator[tuple[slice, T]]:
        """compute(rows, tick) of all n rows, batch by batch of `size` or, where memory runs out, fewer; with the rows of each batch.

        compute gets a `tick` whose counts are taken back where it has to begin again. A single row that does not fit raises what it raises.
        full: the last batch is as large as the others, so that its rows may end after n.
        """
        start = 0
        while start < n:
            stop = start + min(size, self.most or size)
            rows = slice(start, stop if full else min(stop, n))
            found = self._attempt(rows, compute, tick)
            if found:
                yield rows, found[0]
                start = rows.stop

    def fitting(self, n: int, compute: Callable[[int], T]) -> T:
        """compute(m) of as many rows as fit, n or fewer."""
        return next(self.each(n, n, lambda rows, tick: compute(rows.stop - rows.start)))[1]

    def _attempt(self, rows: slice, compute: Callable[[slice, Tick], T], tick: Tick) -> tuple[T] | None:
        """What compute makes of the rows, or nothing where memory runs out; then `most` is less."""
        done = 0

        def counting(n: int, *more: Any) -> None:
            nonlocal done
            done += n
            tick(n, *more)

        try:
            return (compute(rows, counting),)
        except (RuntimeError, MemoryError) as error:
            whose, size = out_of_memory(error), rows.stop - rows.start
            if whose is not None and size == 1:
                error.add_note(ALONE)
            if whose is None or size == 1:
                raise
        self._release()  # not above: there the error still holds what was in memory
        tick(-done)
        self._halve(size, whose)
        return None

    def _halve(self, size: int, whose: str) -> None:
        with self._guard:
            if self.most is None or size // 2 < self.most:
                self.most = size // 2
                from_here = f"{self.most:,} at once from here on, which changes the last digits"
                say(f"{whose} has too little memory for {size:,} {self._what}: {from_here}")
