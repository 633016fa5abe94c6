"""IDs: UUIDv7 strings (RFC 9562): random, sorted by time, and ascending in this process even if its clock is not."""

import secrets
import time
from threading import Lock

RANDOM_BITS = 74
"""Bits beside the 48 of the time in milliseconds, the 4 of the version and the 2 of the variant."""

STEP_BITS = 32
"""Two IDs of one millisecond differ by a random step of up to this many bits, so that the next one is no guess.

The first random number leaves its top bit free: room for 2^41 such steps before the time moves on.
"""


class Ids:
    """A source of IDs, each above the one before it; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._millisecond = 0
        self._random = 0

    def next(self, millisecond: int) -> str:
        """The ID for a moment in milliseconds since 1970; a moment that lies back counts as the last one."""
        with self._lock:
            if millisecond > self._millisecond:
                self._millisecond, self._random = millisecond, secrets.randbits(RANDOM_BITS - 1)
            else:
                self._random += 1 + secrets.randbits(STEP_BITS)
            return _text(self._millisecond, self._random)


_process = Ids()


def new_id() -> str:
    """A new ID, above every one this process made before."""
    return _process.next(time.time_ns() // 1_000_000)


def _text(millisecond: int, random: int) -> str:
    high, low = random >> 62, random & (1 << 62) - 1
    digits = f"{millisecond:012x}7{high:03x}{1 << 63 | low:016x}"
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
