"""Extents: byte ranges of a disk, and the algebra over ascending streams of them.

Every function takes extents that ascend and do not overlap, and yields the same; nothing is held beyond the extents
being looked at, so memory stays flat for a disk of a million extents.

    disk      0 ─────────────────────────────────── capacity
    changed        ███████          ███
    allocated   ██████         ████████
    read           ███              ███      = intersect(changed, allocated)
    zero              ████                   = subtract(changed, allocated)
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import Enum

from shared.units import align_down, align_up


class Kind(Enum):
    """What an extent holds: bytes worth reading, or nothing but zeros."""

    DATA = "data"
    ZERO = "zero"


@dataclass(frozen=True, slots=True)
class Extent:
    """The byte range `[offset, offset + length)` of a disk; `length` is above zero."""

    offset: int
    length: int
    kind: Kind = Kind.DATA

    def __post_init__(self) -> None:
        if self.offset < 0 or self.length <= 0:
            raise ValueError(f"not an extent: offset {self.offset}, length {self.length}")

    @property
    def end(self) -> int:
        """The first byte after the extent."""
        return self.offset + self.length


def total(extents: Iterable[Extent]) -> int:
    """How many bytes the extents cover."""
    return sum(extent.length for extent in extents)


def ascending(extents: Iterable[Extent], capacity: int) -> Iterator[Extent]:
    """Pass the extents on, raising ValueError at the first that overlaps, goes back or leaves `[0, capacity)`."""
    reached = 0
    for extent in extents:
        if extent.offset < reached or extent.end > capacity:
            raise ValueError(f"extent [{extent.offset}, {extent.end}) after {reached}, capacity {capacity}")
        reached = extent.end
        yield extent


def merge(extents: Iterable[Extent]) -> Iterator[Extent]:
    """Join neighbours of one kind that touch or overlap; offsets must ascend."""
    current: Extent | None = None
    for extent in extents:
        if current is not None and extent.kind is current.kind and extent.offset <= current.end:
            current = replace(current, length=max(current.end, extent.end) - current.offset)
            continue
        if current is not None:
            yield current
        current = extent
    if current is not None:
        yield current


def align_outwards(extents: Iterable[Extent], unit: int, capacity: int) -> Iterator[Extent]:
    """Round each extent outwards to multiples of `unit`, clip to `capacity`, and join what then touches.

    All extents must be of one kind: two kinds inside one unit have no right answer.
    """

    def rounded() -> Iterator[Extent]:
        for extent in extents:
            start = align_down(extent.offset, unit)
            end = min(align_up(extent.end, unit), capacity)
            yield Extent(start, end - start, extent.kind)

    return merge(rounded())


def intersect(left: Iterable[Extent], right: Iterable[Extent]) -> Iterator[Extent]:
    """What both cover, with `left`'s kind."""
    others = iter(right)
    other = next(others, None)
    for extent in left:
        while other is not None and other.end <= extent.offset:
            other = next(others, None)
        while other is not None and other.offset < extent.end:
            start, end = max(extent.offset, other.offset), min(extent.end, other.end)
            yield Extent(start, end - start, extent.kind)
            if other.end > extent.end:
                break
            other = next(others, None)


def subtract(left: Iterable[Extent], right: Iterable[Extent]) -> Iterator[Extent]:
    """What `left` covers and `right` does not, with `left`'s kind."""
    others = iter(right)
    other = next(others, None)
    for extent in left:
        start = extent.offset
        while other is not None and other.end <= start:
            other = next(others, None)
        while other is not None and other.offset < extent.end:
            if other.offset > start:
                yield Extent(start, other.offset - start, extent.kind)
            start = max(start, other.end)
            if other.end > extent.end:
                break
            other = next(others, None)
        if start < extent.end:
            yield Extent(start, extent.end - start, extent.kind)


def fill(extents: Iterable[Extent], capacity: int) -> Iterator[Extent]:
    """The extents, with what they leave out of `[0, capacity)` as ZERO extents between them."""
    reached = 0
    for extent in extents:
        if extent.offset > reached:
            yield Extent(reached, extent.offset - reached, Kind.ZERO)
        yield extent
        reached = extent.end
    if reached < capacity:
        yield Extent(reached, capacity - reached, Kind.ZERO)


def split_data(extents: Iterable[Extent], size: int) -> Iterator[Extent]:
    """Cut DATA extents as `split` does; ZERO ones stay whole, be they terabytes: nothing of them is read."""
    for extent in extents:
        if extent.kind is Kind.DATA:
            yield from split([extent], size)
        else:
            yield extent


def split(extents: Iterable[Extent], size: int) -> Iterator[Extent]:
    """Cut extents at multiples of `size`, so that none is longer than `size`."""
    for extent in extents:
        start = extent.offset
        while start < extent.end:
            end = min(align_down(start, size) + size, extent.end)
            yield Extent(start, end - start, extent.kind)
            start = end
