"""A disk in memory, for tests: sparse up to 62 TiB, written by a guest, frozen by a snapshot, read like any other.

MemoryDisk (the guest writes) ─ freeze() ─ MemoryReader (a DiskReader) ─ changed_since(an older one)
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

from shared.digests import ZERO_CLUSTER
from shared.errors import ReadFailed
from shared.extents import Extent, Kind, fill, intersect, merge, split
from shared.nbd import Piece
from shared.units import CLUSTER, SECTOR


class MemoryDisk:
    """What the guest of a VM sees. Clusters that were never written, or were trimmed, take no memory."""

    def __init__(self, capacity: int) -> None:
        """`capacity` in bytes, a multiple of 512."""
        if capacity <= 0 or capacity % SECTOR:
            raise ValueError(f"a disk of {capacity} bytes is not a whole number of sectors")
        self.capacity = capacity
        self._clusters: dict[int, bytes] = {}

    def write(self, offset: int, data: bytes) -> None:
        """Put bytes at any offset; zeros are stored like other bytes."""
        self._check(offset, len(data))
        for part in _parts(offset, len(data)):
            begin = part.offset - offset
            self._patch(part, data[begin : begin + part.length])

    def zero(self, offset: int, length: int) -> None:
        """Write zeros: they read as zeros and stay allocated."""
        self._check(offset, length)
        for part in _parts(offset, length):
            self._patch(part, ZERO_CLUSTER[: part.length])

    def trim(self, offset: int, length: int) -> None:
        """Give space back: whole clusters become unallocated, parts of one become zeros; all of it reads as zeros."""
        self._check(offset, length)
        stored = _cluster_extents(sorted(self._clusters), self.capacity)
        for part in list(intersect(stored, [Extent(offset, length)] if length else [])):
            index = part.offset // CLUSTER
            if part.length == min(CLUSTER, self.capacity - index * CLUSTER):
                del self._clusters[index]
            else:
                self._patch(part, ZERO_CLUSTER[: part.length])

    def freeze(self) -> "MemoryReader":
        """The disk as it is now, untouched by what is written later."""
        return MemoryReader(self.capacity, dict(self._clusters))

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.capacity:
            raise ValueError(f"[{offset}, {offset + length}) is not within a disk of {self.capacity} bytes")

    def _patch(self, part: Extent, data: bytes) -> None:
        index, start = divmod(part.offset, CLUSTER)
        old = self._clusters.get(index, ZERO_CLUSTER)
        self._clusters[index] = old[:start] + data + old[start + part.length :]


class MemoryReader:
    """A frozen disk; a DiskReader that needs no closing."""

    def __init__(self, capacity: int, clusters: Mapping[int, bytes]) -> None:
        """`clusters`: 64 KiB each, by index; the others are unallocated."""
        self.capacity = capacity
        self._clusters = clusters

    def allocated(self) -> Iterator[Extent]:
        """See DiskReader."""
        return fill(merge(_cluster_extents(sorted(self._clusters), self.capacity)), self.capacity)

    def changed_since(self, older: "MemoryReader") -> Iterator[Extent]:
        """What the guest wrote, zeroed or trimmed since an older freeze of the same disk, as CBT would name it."""
        before, now = older._clusters, self._clusters
        # Compared as objects: quick, and a cluster rewritten with the bytes it had may count, as it does for CBT.
        differing = [index for index in before.keys() | now.keys() if before.get(index) is not now.get(index)]
        return merge(_cluster_extents(sorted(differing), self.capacity))

    def read(
        self, pieces: Iterable[Extent], *, depth: int = 4, stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[Piece]:
        """See DiskReader; nothing is read ahead."""
        for piece in pieces:
            if stopped():
                return
            if piece.offset % SECTOR or piece.length % SECTOR or piece.end > self.capacity:
                raise ReadFailed(f"no such sectors: {piece.length} bytes at offset {piece.offset}", offset=piece.offset)
            yield piece, memoryview(self._bytes(piece) if piece.kind is Kind.DATA else b"")

    def _bytes(self, piece: Extent) -> bytes:
        return b"".join(
            self._clusters.get(part.offset // CLUSTER, ZERO_CLUSTER)[part.offset % CLUSTER :][: part.length]
            for part in split([piece], CLUSTER)
        )


def _cluster_extents(indexes: Iterable[int], capacity: int) -> Iterator[Extent]:
    return (Extent(index * CLUSTER, min(CLUSTER, capacity - index * CLUSTER)) for index in indexes)


def _parts(offset: int, length: int) -> Iterator[Extent]:
    """The range, cut at cluster boundaries."""
    return split([Extent(offset, length)] if length else [], CLUSTER)
