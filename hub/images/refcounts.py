"""Refcounts of a growing image's host clusters: a block is final, and leaves memory, once the image has grown past it.

image file   0 ────── 2 GiB ────── 4 GiB ──── end
blocks         written    written     open            host offsets of the written ones become the refcount table
"""

from array import array

from hub.images.qcow2 import BLOCK_ENTRIES, MAX_REFCOUNT, big_endian, from_big_endian
from shared.units import CLUSTER


class Refcounts:
    """Counts references to host clusters, which are named by their number in the file."""

    def __init__(self) -> None:
        self.written: array[int] = array("Q")
        """Host offsets of the blocks that are in the file, in order."""
        self._open: dict[int, array[int]] = {}

    def add(self, first: int, count: int = 1) -> None:
        """Count one more reference to each of `count` clusters from `first` on."""
        while count:
            index, entry = divmod(first, BLOCK_ENTRIES)
            part = min(count, BLOCK_ENTRIES - entry)
            block = self._block(index)
            for position in range(entry, entry + part):
                block[position] += 1
            first += part
            count -= part

    def can_share(self, cluster: int) -> bool:
        """Whether another reference to the cluster can still be counted."""
        index, entry = divmod(cluster, BLOCK_ENTRIES)
        return index in self._open and self._open[index][entry] < MAX_REFCOUNT

    def take_full(self, end: int) -> bytes | None:
        """The oldest open block, once all it counts lies below `end`; the caller writes it, then calls `wrote`."""
        index = len(self.written)
        if (index + 1) * BLOCK_ENTRIES > end:
            return None
        return big_endian(self._open.pop(index))

    def take_all(self) -> list[bytes]:
        """All open blocks, in order; the image is complete."""
        blocks = [big_endian(block) for _, block in sorted(self._open.items())]
        self._open.clear()
        return blocks

    def wrote(self, host: int) -> None:
        """Note that the block last taken lies at `host`."""
        self.written.append(host)

    def save(self) -> list[bytes]:
        """What `load` makes an equal object of."""
        return [big_endian(self.written), *(big_endian(block) for _, block in sorted(self._open.items()))]

    @classmethod
    def load(cls, written: bytes, *blocks: bytes) -> "Refcounts":
        """The counts that `save` described."""
        counts = cls()
        counts.written = from_big_endian("Q", written)
        for index, block in enumerate(blocks, len(counts.written)):
            counts._open[index] = from_big_endian("H", block)
        return counts

    def _block(self, index: int) -> "array[int]":
        if index not in self._open:
            self._open[index] = array("H", bytes(CLUSTER))
        return self._open[index]
