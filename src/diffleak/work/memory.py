"""What happens when memory is freed, and when there is too little of it."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffleak.errors import UserError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
OF_THE_CPU = ("can't allocate memory", "not enough memory")  # in what torch says
OF_DEVICES = "out of memory"  # in what libraries of devices say, where torch has no error of its own for it
DEVICE, MACHINE = "the device", "this machine"  # whose memory may run out
ALONE = "one row alone did not fit"  # a note of an error, where halving a batch has ended
LARGEST = 2**25  # bytes, the most that glibc takes for M_MMAP_THRESHOLD


def keep_freed_memory() -> None:
    """Has glibc keep what is freed for what comes next, for the rest of the process; elsewhere nothing is done.

    Otherwise the graph of a decoder's derivatives goes back to the system as soon as it is freed, and the next one is mapped and
    zeroed page by page (docs/design/005-geometry.md).
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        library.mallopt(M_MMAP_THRESHOLD, LARGEST)


def free_on_the_cpu() -> int | None:
    """The bytes that the system can hand out without swapping; None where nothing says so."""
    meminfo = Path("/proc/meminfo")
    lines = meminfo.read_text().splitlines() if meminfo.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def out_of_memory(error: BaseException) -> str | None:
    """Whose memory ran out, "the device" or "this machine"; None for any other error."""
    import torch

    of_torch, text = isinstance(error, RuntimeError), str(error)
    if isinstance(error, MemoryError) or (of_torch and any(part in text for part in OF_THE_CPU)):
        return MACHINE
    return DEVICE if isinstance(error, torch.OutOfMemoryError) or (of_torch and OF_DEVICES in text) else None


@contextmanager
def memory_message(batch_size: int, advice: str | None = None, smaller: bool = True) -> Iterator[None]:
    """Turns running out of memory into one line; ALONE as a note of the error says that no smaller batch is left.

    advice: in the place of the usual one. smaller: a smaller --batch-size would take less memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch's OutOfMemoryError is a RuntimeError
        whose = out_of_memory(error)
        if whose is None:
            raise
        one = batch_size == 1 or ALONE in getattr(error, "__notes__", ())
        ways = ("lower --batch-size",) * (smaller and not one) + ("take --dtype float16 if it is float32 now",)
        ways += ("--offload if it is off",) * (whose == DEVICE)
        advice = advice or f"{', '.join(ways)}, or a machine with more memory"
        batches = "a batch of one" if one else f"batches of {batch_size}"
        raise UserError(f"{whose} has too little memory for {batches}; {advice}") from None
