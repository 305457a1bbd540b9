"""What a process does with the memory that it frees."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
LARGEST = 2**25  # bytes, the most that glibc takes for M_MMAP_THRESHOLD


def keep_freed_memory() -> None:
    """Has glibc keep what is freed for what comes next, for the rest of the process; elsewhere nothing is done.

    Otherwise every tensor of a megabyte or so goes back to the system as soon as it is freed, and the next one is mapped and zeroed
    page by page: a fifth of the time of a decoder's derivatives (docs/design/005-geometry.md).
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        library.mallopt(M_MMAP_THRESHOLD, LARGEST)
