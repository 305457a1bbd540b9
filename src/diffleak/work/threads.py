"""One CPU thread a forward, several forwards side by side: why is in docs/design/004-threads.md."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event, Lock
from typing import Any

Tick = Callable[..., None]  # called with the work that is done


@contextmanager
def threads_kept() -> Iterator[None]:
    """The number of torch's CPU threads afterwards is that of before: it belongs to the caller's process."""
    import torch

    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Every forward runs on one CPU thread; speed comes from chunks side by side.

    The last bits of a convolution depend on how many threads share it, so a thread count that follows the number of
    workers would break the promise of bit-identical results. Small images also leave little to share.
    """
    import torch

    with threads_kept():
        torch.set_num_threads(1)
        yield


class _Stopped(Exception):
    """Raised inside a job when another one has failed or the user has interrupted."""


def run_all(jobs: Iterable[Callable[[Tick], object]], threads: int, advance: Tick) -> None:
    """Runs every job, `threads` side by side; each gets a function that it calls after every forward and that calls `advance`.

    The first failure in their order, or an interruption, stops the others at their next forward.
    """
    stop, counting = Event(), Lock()

    def tick(*done: Any) -> None:
        if stop.is_set():
            raise _Stopped
        with counting:
            advance(*done)

    with pool(threads) as executor:
        running = [executor.submit(job, tick) for job in jobs]
        try:
            for job in running:
                job.result()
        except BaseException:
            stop.set()
            raise
        finally:
            executor.shutdown(wait=True, cancel_futures=True)


def cores() -> int:
    """This process's share of the CPU cores, at least one: processes that a launcher started on one machine share them."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, found // local)


def pool(threads: int) -> ThreadPoolExecutor:
    """Threads whose forwards run on one CPU thread each."""
    import torch

    return ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
