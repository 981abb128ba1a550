"""What the C library does with memory that is freed, where it is glibc."""

import ctypes
import sys

from hpcm_scale.units import MIB

HEAP_BOUNDARY = 32 * MIB
"""Blocks from here on are mapped one by one and go back to the system when freed; the heap has the
others. glibc allows no more."""
TIGHT_HEAP_BOUNDARY = 4 * MIB
"""The same in a run whose optimizer state is on disks. A step of 1B on one rank of
launch/one_billion.sh then peaks at 6.0 instead of 8.7 GiB, at the same speed."""
KEPT = 128 * MIB
"""Free memory at the end of the main heap that stays with the process; those of other threads are
smaller."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""glibc's numbers of those parameters of mallopt."""


def keep_heap() -> None:
    """Let the process keep memory that it frees and soon needs again.

    By itself glibc gives blocks of some MiB back as soon as they are freed, and the next operation
    waits for the system to clear new ones, which can take ten times as long as its arithmetic.
    """
    if libc := _glibc():
        libc.mallopt(_M_MMAP_THRESHOLD, HEAP_BOUNDARY)
        libc.mallopt(_M_TRIM_THRESHOLD, KEPT)


def settle_heap(tight: bool) -> None:
    """Give freed memory back to the system, then do as `keep_heap`.

    A network that is built, cut up and given away parameter by parameter leaves gaps of its whole
    size in the heap.

    Args:
        tight: instead map larger blocks one by one from now on, so that those go back when freed.
    """
    if libc := _glibc():
        if tight:
            libc.mallopt(_M_MMAP_THRESHOLD, TIGHT_HEAP_BOUNDARY)
        else:
            keep_heap()
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "malloc_trim") else None
