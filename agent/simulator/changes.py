"""Changed block tracking of one disk: the number of the stun interval in which each 64 KiB block was last written.

As on ESXi (`-ctk.vmdk`), a snapshot freezes a copy of the tracking data, so it answers for the instant it was taken at
whatever is written later. A change ID is `uuid/sequence`: sequence N at a snapshot stands for everything written in
intervals up to N; a question "since N" means the blocks whose number is above N.
"""

import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.simulator.layers import BLOCK
from agent.simulator.sparse import CHUNK, copy_file, data_chunks, open_sparse, write_all
from shared.extents import Extent, merge

STAMP = 4
"""Bytes of a block's number in the file."""

CHANGED = re.compile(rb"\x01+")


@dataclass(frozen=True, slots=True)
class ChangeId:
    """VMware's token for one disk at one instant."""

    uuid: str
    sequence: int

    def __str__(self) -> str:
        return f"{self.uuid}/{self.sequence}"

    @classmethod
    def parse(cls, text: str) -> "ChangeId":
        """Read `uuid/sequence`; raises ValueError."""
        uuid, separator, sequence = text.rpartition("/")
        if not (uuid and separator and sequence.isascii() and sequence.isdigit()):
            raise ValueError(f"{text!r} is not a change ID")
        return cls(uuid, int(sequence))


class ChangeTracking:
    """The tracking data of a disk that is being written to."""

    def __init__(self, path: Path, capacity: int) -> None:
        self._path = path
        self._file = open_sparse(path, -(-capacity // BLOCK) * STAMP)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)
        self._file = -1  # a late write must not reach another file

    def record(self, first: int, end: int, sequence: int) -> None:
        """Blocks `[first, end)` are being written in interval `sequence`."""
        while first < end:
            count = min(end - first, CHUNK // STAMP)
            write_all(self._file, struct.pack("<I", sequence) * count, first * STAMP)
            first += count

    def freeze(self, path: Path) -> None:
        """Keep a copy as it is now."""
        copy_file(self._path, path)


def changed(path: Path, since: int, start: int, capacity: int) -> Iterator[Extent]:
    """The byte ranges of `[start, capacity)` written after interval `since`, from tracking data frozen in a file."""

    def blocks() -> Iterator[Extent]:
        for first, end in _above(path, since, start // BLOCK, -(-capacity // BLOCK)):
            offset = max(first * BLOCK, start)
            yield Extent(offset, min(end * BLOCK, capacity) - offset)

    return merge(blocks())


def _above(path: Path, since: int, first: int, end: int) -> Iterator[tuple[int, int]]:
    """Runs of blocks in `[first, end)` whose number is above `since`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for offset, chunk in data_chunks(descriptor, first * STAMP, end * STAMP):
            flags = bytes(map(since.__lt__, memoryview(chunk).cast("I")))
            for match in CHANGED.finditer(flags):
                yield offset // STAMP + match.start(), offset // STAMP + match.end()
    finally:
        os.close(descriptor)
