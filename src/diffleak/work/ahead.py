"""Reading ahead: threads read what comes next while the network runs.

    read 0 | read 1 | read 2          a few items ahead, never more than `most` in memory
           | work 0 | work 1 | ...    the same items in the same order, as if each were read when it is needed

What is read, and what an error says, is what reading on the spot would give: an error is raised where its item is taken.
"""

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock
from types import TracebackType
from typing import Any, Generic, TypeVar, final

K = TypeVar("K", bound=Hashable)
P = TypeVar("P")
V = TypeVar("V")

Read = Callable[[], P]
READERS = 8  # at most: more threads wait for each other in the parts of a decoder that hold the interpreter's lock


@dataclass
class _Begun:
    """An item whose pieces are being read."""

    pieces: "list[Future[Any]]"
    joining: Any = field(default_factory=Lock)
    value: Any = None
    ready: bool = False


@final
class Ahead(Generic[K, P, V]):
    """The items of `order`, each made by `join` of its `pieces`, which `threads` threads read one by one; a context manager.

    `most` items are in memory at once: those that are in use and those ahead of them. An item that is taken out of turn is read at once.
    On the way out what is not read yet is left unread, and no thread is left.
    """

    def __init__(
        self, order: Iterable[K], pieces: Callable[[K], Sequence[Read[P]]], join: Callable[[list[P]], V], *, threads: int, most: int
    ) -> None:
        self._waiting, self._pieces, self._join, self._most = deque(order), pieces, join, most
        self._begun: dict[K, _Begun] = {}
        self._guard = Lock()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="ahead")

    def __enter__(self) -> "Ahead[K, P, V]":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def take(self, key: K, pause: Callable[[], object] = lambda: None) -> V:
        """The item; raises what reading it raises. `pause` is called between two pieces, and may raise to stop."""
        with self._guard:
            begun = self._begun.get(key) or self._begin(key)
            self._fill()
        with begun.joining:
            if not begun.ready:
                parts = []
                for piece in begun.pieces:
                    parts.append(piece.result())
                    pause()
                begun.value, begun.ready, begun.pieces = self._join(parts), True, []
            return begun.value  # type: ignore[no-any-return]

    def drop(self, key: K) -> None:
        """Forgets an item that nothing needs any more, which makes room for the next."""
        with self._guard:
            self._begun.pop(key, None)
            self._fill()

    def _fill(self) -> None:
        while self._waiting and len(self._begun) < self._most:
            self._begin(self._waiting[0])

    def _begin(self, key: K) -> _Begun:
        if key in self._waiting:
            self._waiting.remove(key)
        begun = self._begun[key] = _Begun([self._pool.submit(piece) for piece in self._pieces(key)])
        return begun


def in_order(reads: Sequence[Read[P]], threads: int, most: int) -> Iterator[P]:
    """What each of some functions returns, one after the other, `most` of them ahead; raises what one raises in its place."""
    with Ahead(range(len(reads)), lambda i: [reads[i]], lambda parts: parts[0], threads=threads, most=most) as ahead:
        for i in range(len(reads)):
            item = ahead.take(i)
            ahead.drop(i)
            yield item
