"""Layers: the files a virtual disk is made of, a frozen base with deltas over it, in blocks of 64 KiB.

A layer is a map of one byte per block, and the blocks' bytes at their own offsets. Both files are sparse:

    <prefix>.map          0 absent: ask the layer below    1 data    2 unallocated: zeros, whatever lies below
    <prefix>.s000, …      segments of 1 TiB, since a file of ext4 ends at 16 TiB and a disk at 62 TiB

vddk/vix_disk_lib.c reads the same files.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from agent.simulator.sparse import CHUNK, data_chunks, open_sparse, write_all
from shared.units import KiB, TiB

BLOCK = 64 * KiB
SEGMENT = 1 * TiB

RUN = re.compile(rb"\x00+|\x01+|\x02+")


class State(IntEnum):
    """What a layer says about a block."""

    ABSENT = 0
    DATA = 1
    UNALLOCATED = 2


@dataclass(frozen=True, slots=True)
class Run:
    """Blocks `[first, end)` which one layer holds the data of; without a layer they are unallocated."""

    first: int
    end: int
    layer: "Layer | None"


class Layer:
    """One layer's files. Not locked: its disk does that."""

    def __init__(self, prefix: Path, capacity: int) -> None:
        self.prefix = prefix
        self.readers: set[object] = set()
        """Those reading a frozen view which ends with this layer; what it holds may not change under them."""
        self._capacity = capacity
        self._map = open_sparse(prefix.with_name(f"{prefix.name}.map"), -(-capacity // BLOCK))
        # All that exist are opened now: a reader keeps them when the layer is deleted.
        self._segments = {
            int(path.suffix[2:]): os.open(path, os.O_RDWR | os.O_CLOEXEC)
            for path in prefix.parent.glob(f"{prefix.name}.s*")
        }

    def close(self) -> None:
        """Close the files; may be called twice."""
        for descriptor in [self._map, *self._segments.values()]:
            if descriptor >= 0:
                os.close(descriptor)
        self._map, self._segments = -1, {}

    def delete(self) -> None:
        """Close and unlink the files; whoever has them open goes on reading them."""
        self.close()
        for path in self.prefix.parent.glob(f"{self.prefix.name}.*"):
            path.unlink()

    def states(self, first: int, end: int) -> Iterator[tuple[int, int, State]]:
        """Tile blocks `[first, end)` with (first, end, state)."""
        for offset, chunk in data_chunks(self._map, first, end):
            if first < offset:
                yield first, offset, State.ABSENT
            for match in RUN.finditer(chunk):
                yield offset + match.start(), offset + match.end(), State(chunk[match.start()])
            first = offset + len(chunk)
        if first < end:
            yield first, end, State.ABSENT

    def mark(self, first: int, end: int, state: State) -> None:
        """Set the state of blocks `[first, end)`."""
        while first < end:
            count = min(end - first, CHUNK)
            write_all(self._map, bytes([state]) * count, first)
            first += count

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of data blocks."""
        return b"".join(
            os.pread(self._segment(start), end - start, start % SEGMENT).ljust(end - start, b"\0")
            for start, end in _by_segment(offset, offset + length)
        )

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Put bytes at their place; they count once their blocks are marked."""
        view = memoryview(data)
        for start, end in _by_segment(offset, offset + len(view)):
            write_all(self._segment(start), view[start - offset : end - offset], start % SEGMENT)

    def copy(self, target: int, offset: int, length: int) -> None:
        """Copy bytes of data blocks, less holes, to the same offsets of a file."""
        for start, end in _by_segment(offset, offset + length):
            shift = start - start % SEGMENT
            for at, chunk in data_chunks(self._segment(start), start - shift, end - shift):
                write_all(target, chunk, shift + at)

    def absorb(self, upper: "Layer", *, is_bottom: bool) -> None:
        """Take over what the layer above says. May be repeated after an interruption while `upper` still exists."""
        for first, end, state in upper.states(0, -(-self._capacity // BLOCK)):
            if state is State.DATA:
                for start, stop in _by_segment(first * BLOCK, min(end * BLOCK, self._capacity)):
                    source, target = upper._segment(start), self._segment(start)
                    _copy_over(source, target, start % SEGMENT, (stop - 1) % SEGMENT + 1)
            if state is not State.ABSENT:
                hidden = State.ABSENT if is_bottom else State.UNALLOCATED
                self.mark(first, end, State.DATA if state is State.DATA else hidden)

    def adopt(self, file: Path) -> None:
        """Make a raw file this layer's data, its holes absent; for a file of at most one segment."""
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for offset, chunk in data_chunks(descriptor, 0, self._capacity):
                self.mark(offset // BLOCK, -(-(offset + len(chunk)) // BLOCK), State.DATA)
        finally:
            os.close(descriptor)
        file.rename(self._segment_path(0))

    def _segment(self, offset: int) -> int:
        """The descriptor of the segment that holds `offset`."""
        index = offset // SEGMENT
        if index not in self._segments:
            size = min(SEGMENT, self._capacity - index * SEGMENT)
            self._segments[index] = open_sparse(self._segment_path(index), size)
        return self._segments[index]

    def _segment_path(self, index: int) -> Path:
        return self.prefix.with_name(f"{self.prefix.name}.s{index:03}")


def resolve(layers: Sequence[Layer], first: int, end: int) -> Iterator[Run]:
    """Who holds blocks `[first, end)` of a stack of layers, bottom first: ascending runs that tile them."""
    if not layers:
        yield Run(first, end, None)
        return
    for start, stop, state in layers[-1].states(first, end):
        if state is State.ABSENT:
            yield from resolve(layers[:-1], start, stop)
        else:
            yield Run(start, stop, layers[-1] if state is State.DATA else None)


def _by_segment(start: int, end: int) -> Iterator[tuple[int, int]]:
    """Cut `[start, end)` where segments meet."""
    while start < end:
        stop = min(end, start - start % SEGMENT + SEGMENT)
        yield start, stop
        start = stop


def _copy_over(source: int, target: int, start: int, end: int) -> None:
    """Copy `[start, end)` with its zeros: where the source has a hole, the target may have old bytes."""
    while start < end:
        count = min(CHUNK, end - start)
        write_all(target, os.pread(source, count, start).ljust(count, b"\0"), start)
        start += count
