"""Streams on the agents' port: how many there may be, and how long one may keep silent before its first message.

Each holds a thread for as long as it lasts.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import grpc

from shared.errors import LimitReached

FIRST_MESSAGE = 10.0
"""Seconds until a stream must have said what it is for."""

Request = TypeVar("Request")


class Streams:
    """Admits so many streams at once; safe to use from several threads."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._free = threading.Semaphore(most)

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """One stream, inside the `with`; raises LimitReached when there are as many as there may be."""
        if not self._free.acquire(blocking=False):
            raise LimitReached(f"the hub serves {self._most} streams already (agents.max_streams)")
        try:
            yield
        finally:
            self._free.release()


def first(requests: Iterator[Request], context: grpc.ServicerContext, absent: Request) -> Request:
    """A stream's first message, `absent` when it ends without one; the call is cancelled when none comes in time."""
    late = threading.Timer(FIRST_MESSAGE, context.cancel)
    late.daemon = True
    late.start()
    try:
        return next(requests, absent)
    finally:
        late.cancel()
