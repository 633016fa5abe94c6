"""A disk as a scripted agent backs it up: its bytes, and what changed since the last time."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from shared.digests import digest
from shared.extents import Extent
from shared.runs import ClusterRun, Encoding, encode, zero_run
from shared.units import CLUSTER, MiB, align_down, align_up


@dataclass
class SourceDisk:
    """Bytes of a virtual disk; offsets and sizes in bytes."""

    capacity: int = 4 * MiB
    key: int = 2000
    uuid: str = "6000C29a-0000"
    object_id: str = "1-2000"
    label: str = "Hard disk 1"
    generation: int = 1
    data: bytearray = field(init=False)
    changed: set[int] = field(init=False, default_factory=set)
    """Offsets of changed clusters."""

    def __post_init__(self) -> None:
        self.data = bytearray(self.capacity)

    @property
    def change_id(self) -> str:
        return f"52 de c0 {self.uuid}/{self.generation}"

    def write(self, offset: int, data: bytes) -> None:
        self.data[offset : offset + len(data)] = data
        self.changed |= set(range(align_down(offset, CLUSTER), offset + len(data), CLUSTER))

    def scribble(self, *offsets: int, length: int = 100_000) -> None:
        """Write noise that no other call writes at these offsets."""
        for offset in offsets:
            noise = random.Random(f"{self.uuid} {offset} {self.generation}").randbytes(length // 2)
            self.write(offset, (noise + b"text" * length)[: min(length, self.capacity - offset)])

    def next_generation(self) -> None:
        """The present bytes are in a restore point: changes count from here on."""
        self.generation += 1
        self.changed.clear()

    def full(self, level: int | None = 1) -> list[ClusterRun]:
        """All runs of a full: what is not zero."""
        every = (run for start in range(0, self.capacity, MiB) for run in self._encoded(start, MiB, level))
        return [run for run in every if run.encoding is not Encoding.ZERO]

    def incremental(self, level: int | None = 1) -> list[ClusterRun]:
        """All runs of what changed, zeros too."""
        return [run for start in sorted(self.changed) for run in self._encoded(start, CLUSTER, level)]

    def zeros(self, offset: int, length: int) -> ClusterRun:
        return zero_run(Extent(offset, min(length, self.capacity - offset)))

    def whole(self) -> bytes:
        return bytes(self.data)

    def _encoded(self, start: int, length: int, level: int | None) -> Iterator[ClusterRun]:
        yield from encode(start, memoryview(self.data)[start : start + length], level)


def clusters(runs: list[ClusterRun]) -> tuple[int, int]:
    """How many clusters of data, and of zeros."""
    zero = sum(run.count for run in runs if run.encoding is Encoding.ZERO)
    return sum(run.count for run in runs) - zero, zero


def looked_at(runs: list[ClusterRun], capacity: int) -> int:
    """Bytes that the runs stand for, whole clusters."""
    return min(sum(run.count for run in runs) * CLUSTER, align_up(capacity, CLUSTER))


def raw_run(offset: int, byte: int = 1, count: int = 1) -> ClusterRun:
    """Plain clusters of one repeated byte, which belong to no disk."""
    cluster = bytes([byte]) * CLUSTER
    return ClusterRun(offset, count, Encoding.RAW, cluster * count, (), digest(cluster) * count)
