"""A plan: what of a disk has to be read and what is known to be zero, complete before the first byte is sent.

    full          allocated                                 read
    incremental   changed ∩ allocated                       read
                  changed − allocated                       zero, said explicitly: the parent holds old data there

Changed and allocated ranges are rounded outwards to clusters first, so an image holds whole clusters and nothing is
copied up from its parent. The extents are spooled to an unnamed temporary file: a disk of a million extents takes no
more memory than one of ten.
"""

import struct
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import IO

from agent.disks.reader import DiskReader
from agent.vsphere.changes import Changes
from shared.errors import CoverageIncomplete
from shared.extents import Extent, Kind, align_outwards, fill, intersect
from shared.units import CLUSTER, KiB

_RECORD = struct.Struct("<QQ?")
_CHUNK = 4 * KiB * _RECORD.size


class Source(Enum):
    """What says that nothing was overlooked."""

    CHANGE_TRACKING = "change tracking"
    ALLOCATION = "allocation"


@dataclass(frozen=True, slots=True)
class Coverage:
    """The coverage record of a disk: bytes, and how they were learned."""

    source: Source
    to_offset: int
    pages: int
    extents: int
    bytes: int


class Plan:
    """The extents to send, in ascending order, DATA to be read and ZERO to be said."""

    def __init__(self, extents: Iterable[Extent]) -> None:
        """Spool the extents; afterwards the totals are known."""
        self._spool: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self.data_bytes = 0
        self.zero_bytes = 0
        for extent in extents:
            self._spool.write(_RECORD.pack(extent.offset, extent.length, extent.kind is Kind.DATA))
            if extent.kind is Kind.DATA:
                self.data_bytes += extent.length
            else:
                self.zero_bytes += extent.length
        self._spool.flush()

    @property
    def total_bytes(self) -> int:
        """Bytes that have to be looked at."""
        return self.data_bytes + self.zero_bytes

    def extents(self, start: int = 0) -> Iterator[Extent]:
        """The extents from byte offset `start` on, as often as wanted, one iteration at a time."""
        self._spool.seek(0)
        while chunk := self._spool.read(_CHUNK):
            for offset, length, is_data in _RECORD.iter_unpack(chunk):
                begin = max(offset, start)
                if begin < offset + length:
                    yield Extent(begin, offset + length - begin, Kind.DATA if is_data else Kind.ZERO)

    def close(self) -> None:
        """Give the spool's space back."""
        self._spool.close()


def plan_full(reader: DiskReader) -> tuple[Plan, Coverage]:
    """Everything allocated. Raises CoverageIncomplete when the allocation map does not tile the disk."""
    allocation = _Counted(reader.allocated(), reader.capacity)
    plan = Plan(_allocated_clusters(allocation, reader.capacity))
    return plan, allocation.coverage()


def plan_incremental(reader: DiskReader, changes: Changes) -> tuple[Plan, Coverage]:
    """Everything changed: read where allocated, zero elsewhere. Raises what asking for the changes raises."""
    capacity = reader.capacity
    tiles = fill(_allocated_clusters(_Counted(reader.allocated(), capacity), capacity), capacity)
    plan = Plan(intersect(tiles, align_outwards(_within(changes, capacity), CLUSTER, capacity)))
    proof = changes.coverage
    if proof.to_offset != capacity:
        raise CoverageIncomplete(f"changes are known up to {proof.to_offset}, the disk ends at {capacity}")
    return plan, Coverage(Source.CHANGE_TRACKING, proof.to_offset, proof.pages, proof.extents, proof.bytes)


def _allocated_clusters(allocation: Iterable[Extent], capacity: int) -> Iterator[Extent]:
    return align_outwards((extent for extent in allocation if extent.kind is Kind.DATA), CLUSTER, capacity)


def _within(changes: Iterable[Extent], capacity: int) -> Iterator[Extent]:
    for extent in changes:
        if extent.end > capacity:
            raise CoverageIncomplete(f"a change at {extent.offset} goes beyond the disk's {capacity} bytes")
        yield extent


class _Counted:
    """Passes an allocation map on, proving that it tiles the disk."""

    def __init__(self, extents: Iterable[Extent], capacity: int) -> None:
        self._extents = extents
        self._capacity = capacity
        self._reached = 0
        self._count = 0
        self._bytes = 0

    def __iter__(self) -> Iterator[Extent]:
        for extent in self._extents:
            if extent.offset != self._reached:
                raise CoverageIncomplete(f"the allocation map jumps from {self._reached} to {extent.offset}")
            self._reached = extent.end
            if extent.kind is Kind.DATA:
                self._count += 1
                self._bytes += extent.length
            yield extent
        if self._reached != self._capacity:
            raise CoverageIncomplete(f"the allocation map ends at {self._reached}, the disk at {self._capacity}")

    def coverage(self) -> Coverage:
        return Coverage(Source.ALLOCATION, self._reached, 1, self._count, self._bytes)
