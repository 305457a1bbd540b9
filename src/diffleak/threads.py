"""One CPU thread a forward, several forwards side by side: why is in docs/design/004-threads.md."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event, Lock
from typing import Any

import torch

from diffleak.diffusion.denoiser import NetworkDenoiser, unguided
from diffleak.hub import Target

Tick = Callable[..., None]  # told of work that is done


def side_by_side(target: Target) -> int:
    """How many chunks of work this process does at once by default.

    Processes that a launcher started on one machine share its cores. An accelerator takes one chunk at a time, and so
    does a function, which may not be made for several threads.
    """
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    networks = all(isinstance(unguided(exposed), NetworkDenoiser) for exposed in target.denoiser.exposed)
    return max(1, cores // local) if target.device == "cpu" and networks else 1


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Every forward runs on one CPU thread; speed comes from chunks side by side.

    The last bits of a convolution depend on how many threads share it, so a thread count that follows the number of
    workers would break the promise of bit-identical results. Small images also leave little to share.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Stopped(Exception):
    """Raised inside a job when another one has failed or the user has interrupted."""


def run_all(jobs: Iterable[Callable[[Tick], object]], threads: int, advance: Tick) -> None:
    """Runs every job, `threads` side by side; each is given what it calls after every forward, with what `advance` is told.

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


def pool(threads: int) -> ThreadPoolExecutor:
    """Threads whose forwards run on one CPU thread each."""
    return ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
