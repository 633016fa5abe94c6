"""The algebra of extents, each operation held against the plain sets of bytes it stands for."""

from collections.abc import Iterable, Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.extents import (
    Extent,
    Kind,
    align_outwards,
    ascending,
    fill,
    intersect,
    merge,
    split,
    split_data,
    subtract,
    total,
)
from shared.units import MiB, TiB

CAPACITY = 120


@st.composite
def streams(draw: st.DrawFn, kinds: bool = False) -> list[Extent]:
    """Ascending extents of a small disk that do not overlap, but may touch."""
    cuts = draw(st.lists(st.integers(0, CAPACITY), unique=True, max_size=16).map(sorted))
    chosen = [Extent(start, end - start, draw(_kind(kinds))) for start, end in pairwise(cuts)]
    return [extent for extent in chosen if draw(st.booleans())]


def _kind(any_kind: bool) -> st.SearchStrategy[Kind]:
    return st.sampled_from(list(Kind)) if any_kind else st.just(Kind.DATA)


def covered(extents: Iterable[Extent]) -> set[int]:
    return {byte for extent in extents for byte in range(extent.offset, extent.end)}


def kinds_by_byte(extents: Iterable[Extent]) -> dict[int, Kind]:
    return {byte: extent.kind for extent in extents for byte in range(extent.offset, extent.end)}


def in_order(extents: Iterable[Extent]) -> list[Extent]:
    """The extents, if they are a stream as every function promises one."""
    return list(ascending(extents, CAPACITY))


@given(streams(kinds=True), streams())
def test_intersect_is_what_both_cover_in_the_kind_of_the_left(left: list[Extent], right: list[Extent]) -> None:
    both = in_order(intersect(left, right))
    assert covered(both) == covered(left) & covered(right)
    assert kinds_by_byte(both).items() <= kinds_by_byte(left).items()


@given(streams(kinds=True), streams())
def test_subtract_is_what_only_the_left_covers(left: list[Extent], right: list[Extent]) -> None:
    rest = in_order(subtract(left, right))
    assert covered(rest) == covered(left) - covered(right)
    assert kinds_by_byte(rest).items() <= kinds_by_byte(left).items()


@given(streams(), streams())
def test_intersect_and_subtract_together_are_the_left(left: list[Extent], right: list[Extent]) -> None:
    assert total(intersect(left, right)) + total(subtract(left, right)) == total(left)


@given(streams(kinds=True))
def test_merge_keeps_every_byte_and_leaves_no_neighbours_of_a_kind(extents: list[Extent]) -> None:
    merged = in_order(merge(extents))
    assert kinds_by_byte(merged) == kinds_by_byte(extents)
    assert not any(one.end == two.offset and one.kind is two.kind for one, two in pairwise(merged))


@given(st.lists(st.tuples(st.integers(0, CAPACITY - 30), st.integers(1, 30))))
def test_merge_joins_extents_that_overlap(ranges: list[tuple[int, int]]) -> None:
    extents = [Extent(*pair) for pair in sorted(ranges)]
    assert covered(in_order(merge(extents))) == covered(extents)


@given(streams(), st.integers(1, 20), st.integers(0, 20))
def test_align_outwards_covers_each_touched_unit_and_nothing_else(
    extents: list[Extent], unit: int, beyond: int
) -> None:
    capacity = max((extent.end for extent in extents), default=1) + beyond
    aligned = list(ascending(align_outwards(extents, unit, capacity), capacity))
    assert covered(aligned) == {
        byte
        for touched in {byte // unit for byte in covered(extents)}
        for byte in range(touched * unit, min((touched + 1) * unit, capacity))
    }
    assert not any(one.end == two.offset for one, two in pairwise(aligned))


@given(streams(kinds=True))
def test_fill_tiles_the_disk_with_zeros_where_nothing_was(extents: list[Extent]) -> None:
    filled = in_order(fill(extents, CAPACITY))
    assert kinds_by_byte(filled) == dict.fromkeys(range(CAPACITY), Kind.ZERO) | kinds_by_byte(extents)
    assert total(filled) == CAPACITY


@given(streams(kinds=True), st.integers(1, 20))
def test_split_cuts_at_multiples_and_keeps_every_byte(extents: list[Extent], size: int) -> None:
    parts = in_order(split(extents, size))
    assert kinds_by_byte(parts) == kinds_by_byte(extents)
    assert all(part.offset // size == (part.end - 1) // size for part in parts)


@given(streams())
def test_a_stream_in_order_passes_unchanged(extents: list[Extent]) -> None:
    assert list(ascending(extents, CAPACITY)) == extents


@pytest.mark.parametrize(
    "extents",
    [
        [Extent(0, 2), Extent(1, 2)],  # overlaps
        [Extent(5, 1), Extent(0, 1)],  # goes back
        [Extent(3, 1), Extent(3, 1)],  # stands twice
        [Extent(CAPACITY - 1, 2)],  # leaves the disk
    ],
)
def test_a_stream_out_of_order_is_refused(extents: list[Extent]) -> None:
    with pytest.raises(ValueError, match="extent"):
        list(ascending(extents, CAPACITY))


@pytest.mark.parametrize(("offset", "length"), [(-1, 5), (0, 0), (3, -1)])
def test_an_extent_of_nothing_does_not_exist(offset: int, length: int) -> None:
    with pytest.raises(ValueError, match="not an extent"):
        Extent(offset, length)


def test_the_algebra_reads_no_further_than_it_must() -> None:
    """Streams of a million extents must not be held: the first answer comes before the inputs end."""

    def endless() -> Iterator[Extent]:
        for number in range(10_000):
            yield Extent(number * 10, 5)
        raise AssertionError("read to the end")

    assert next(iter(intersect(endless(), endless()))) == Extent(0, 5)
    assert next(iter(subtract(endless(), [Extent(0, 5)]))) == Extent(10, 5)
    assert next(merge(endless())) == Extent(0, 5)
    assert next(align_outwards(endless(), 2, TiB)) == Extent(0, 6)
    assert next(split(endless(), 3)) == Extent(0, 3)


def test_offsets_beyond_32_bits_are_nothing_special() -> None:
    left = [Extent(31 * TiB, TiB), Extent(61 * TiB, TiB)]
    assert list(intersect(left, [Extent(32 * TiB - 1, 40 * TiB)])) == [Extent(32 * TiB - 1, 1), Extent(61 * TiB, TiB)]


def test_cutting_for_reading_leaves_zeros_whole() -> None:
    extents = [Extent(0, 62 * TiB, Kind.ZERO), Extent(62 * TiB, 3 * MiB)]
    pieces = list(split_data(extents, 2 * MiB))
    assert pieces == [extents[0], Extent(62 * TiB, 2 * MiB), Extent(62 * TiB + 2 * MiB, 1 * MiB)]
