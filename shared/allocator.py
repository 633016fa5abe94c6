"""The C allocator, told to keep the blocks that data passes through.

glibc gives blocks over 128 KiB back to the kernel at every free, so each 1 MiB message costs 256 page faults and as
many cleared pages: a third of the hub's CPU time on dense data. Kept blocks are reused; how many there are is bounded
by what is in flight.
"""

import ctypes

from shared.units import GiB, MiB

_KEEP = 1 * GiB
"""Bytes of free memory at a heap's end that are not given back."""

# malloc.h
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3


def keep_blocks() -> None:
    """Call once, first thing in a program that moves data; another C library than glibc is left as it is."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    # mmap's limit is 32 MiB on 64-bit glibc; more is refused.
    for option, size in ((_M_MMAP_THRESHOLD, 32 * MiB), (_M_TRIM_THRESHOLD, _KEEP), (_M_TOP_PAD, 16 * MiB)):
        mallopt(option, size)
