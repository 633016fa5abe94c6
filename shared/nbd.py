"""NBD client over libnbd: a disk's size, allocation and bytes, with several reads in flight. The one door to libnbd.

The binding is Debian's python3-libnbd, made for the system's Python. PyPI's package `nbd` is something else.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from shared.errors import ReadFailed, Unavailable
from shared.extents import Extent, Kind, merge
from shared.units import GiB

try:
    import nbd
except ImportError as error:  # pragma: no cover - a machine without the package
    raise ImportError(
        "libnbd's Python binding is missing: install Debian's python3-libnbd and link its nbd.py and libnbdmod*.so "
        "into this environment (deploy/dev/setup.sh does). PyPI's `nbd` is an unrelated package."
    ) from error

ALLOCATION = "base:allocation"

STATUS_SPAN = 1 * GiB
"""Bytes asked about per block-status request; servers with dense maps answer in parts anyway."""

POLL_MS = 1000
"""How often, in milliseconds, a waiting read looks at `stopped` and at the time."""

STALL_LIMIT = 120.0
"""Seconds without any answer after which a read is given up."""

Piece = tuple[Extent, memoryview]
"""An extent and its bytes."""


class NbdDisk:
    """A disk behind an NBD server's unix socket. One connection; not for use by two threads at once."""

    def __init__(self, socket: Path, *, stall_limit: float = STALL_LIMIT) -> None:
        """Connect; raises Unavailable with libnbd's words (which for nbdkit-vddk rarely name the cause)."""
        self._stall_limit = stall_limit
        self._nbd: Any = nbd.NBD()
        self._nbd.add_meta_context(ALLOCATION)
        try:
            self._nbd.connect_unix(str(socket))
        except nbd.Error as error:
            raise Unavailable(f"NBD connection failed: {error.string}") from error
        self.size: int = self._nbd.get_size()
        """Bytes."""
        self._tells_extents: bool = self._nbd.can_meta_context(ALLOCATION)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect; never hides an earlier error, never waits for reads in flight, may be called twice."""
        handle, self._nbd = self._nbd, None
        if handle is not None and not handle.aio_in_flight():
            with suppress(nbd.Error):  # the server may be gone already
                handle.shutdown()

    def extents(self, offset: int = 0, length: int | None = None) -> Iterator[Extent]:
        """Tile `[offset, offset + length)` (default: the whole disk) with DATA and ZERO extents.

        What the server cannot tell apart counts as DATA: reading too much is slow, too little is corruption.
        """
        end = self.size if length is None else offset + length
        if not self._tells_extents:
            return iter([Extent(offset, end - offset)] if end > offset else [])
        return merge(self._status(offset, end))

    def _status(self, offset: int, end: int) -> Iterator[Extent]:
        while offset < end:
            entries: list[int] = []

            def collect(context: str, start: int, values: list[int], error: object, into: list[int] = entries) -> int:
                into.extend(values)
                return 0

            try:
                self._wait(self._nbd.aio_block_status(min(STATUS_SPAN, end - offset), offset, collect), offset)
            except nbd.Error as error:
                raise ReadFailed(f"block status at offset {offset} failed: {error.string}", offset=offset) from error
            started = offset
            for told, flags in zip(entries[::2], entries[1::2], strict=True):
                length = min(told, end - offset)
                if length:
                    yield Extent(offset, length, Kind.ZERO if flags & nbd.STATE_ZERO else Kind.DATA)
                    offset += length
            if offset == started:
                raise ReadFailed(f"the NBD server told nothing about offset {offset}", offset=offset)

    def read(
        self, pieces: Iterable[Extent], *, depth: int = 4, stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[Piece]:
        """Read the pieces in their order, keeping up to `depth` requests in flight on the connection.

        A ZERO piece is not read: it comes back in its place, with no bytes. Raises ReadFailed with the offset; when
        `stopped()` turns true, the iteration just ends.
        """
        waiting: deque[_Request] = deque()
        for piece in pieces:
            if len(waiting) >= depth:
                if not self._finish(waiting[0], stopped):
                    return
                yield self._take(waiting)
            waiting.append(self._start(piece))
        while waiting:
            if not self._finish(waiting[0], stopped):
                return
            yield self._take(waiting)

    def _start(self, piece: Extent) -> "_Request":
        if piece.kind is Kind.ZERO:
            return _Request(piece, bytearray(), None)
        buffer = bytearray(piece.length)
        try:
            return _Request(piece, buffer, self._nbd.aio_pread(buffer, piece.offset))
        except nbd.Error as error:
            raise self._failed(piece, error) from error

    def _finish(self, request: "_Request", stopped: Callable[[], bool]) -> bool:
        """Wait for a read; False when `stopped()` turned true first."""
        if stopped():
            return False
        try:
            return request.cookie is None or self._wait(request.cookie, request.piece.offset, stopped)
        except nbd.Error as error:
            raise self._failed(request.piece, error) from error

    def _wait(self, cookie: int, offset: int, stopped: Callable[[], bool] = lambda: False) -> bool:
        deadline = time.monotonic() + self._stall_limit
        while not self._nbd.aio_command_completed(cookie):
            if stopped():
                return False
            if time.monotonic() > deadline:
                raise ReadFailed(f"no answer for {self._stall_limit:.0f} s about offset {offset}", offset=offset)
            self._nbd.poll(POLL_MS)
        return True

    @staticmethod
    def _take(waiting: "deque[_Request]") -> Piece:
        request = waiting.popleft()
        return request.piece, memoryview(request.buffer)

    @staticmethod
    def _failed(piece: Extent, error: Any) -> ReadFailed:
        return ReadFailed(
            f"read of {piece.length} bytes at offset {piece.offset} failed: {error.string}", offset=piece.offset
        )


@dataclass(frozen=True, slots=True)
class _Request:
    """A read in flight; `cookie` is libnbd's name for it, None when there is nothing to read."""

    piece: Extent
    buffer: bytearray
    cookie: int | None
