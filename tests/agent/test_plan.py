"""Plans: what of a disk is read, what is said to be zero, and what proves that nothing was left out."""

import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from agent.disks.memory import MemoryDisk
from agent.plan import Coverage, Plan, Source, plan_full, plan_incremental
from agent.vsphere.changes import Changes
from shared.errors import CbtLost, CoverageIncomplete
from shared.extents import Extent, Kind
from shared.nbd import Piece
from shared.units import CLUSTER, SECTOR, MiB

CAPACITY = 16 * MiB


@dataclass
class MappedReader:
    """A DiskReader of which only the allocation map is asked."""

    allocation: Iterable[Extent]
    capacity: int = CAPACITY

    def allocated(self) -> Iterator[Extent]:
        return iter(self.allocation)

    def read(self, pieces: Iterable[Extent], *, depth: int = 4, stopped: Callable[[], bool] = bool) -> Iterator[Piece]:
        raise AssertionError("a plan reads nothing")


def data(offset: int, length: int) -> Extent:
    return Extent(offset, length, Kind.DATA)


def zero(offset: int, length: int) -> Extent:
    return Extent(offset, length, Kind.ZERO)


def changes(*pages: Any, capacity: int = CAPACITY) -> Changes:
    """Answers page after page; without any, one page that names nothing."""
    script = iter(pages or [page(0, capacity)])
    return Changes(lambda offset: next(script), capacity)


def page(offset: int, length: int, *areas: tuple[int, int]) -> Any:
    """As vCenter's DiskChangeInfo."""
    named = [SimpleNamespace(start=start, length=extent) for start, extent in areas]
    return SimpleNamespace(startOffset=offset, length=length, changedArea=named)


HALF = MappedReader([data(0, 8 * MiB), zero(8 * MiB, 8 * MiB)])
"""Allocated in its first half."""


# -- the plan itself --------------------------------------------------------------------------------------------------


def test_the_extents_come_as_they_were_given_and_as_often_as_wanted() -> None:
    given = [data(0, CLUSTER), zero(2 * CLUSTER, CLUSTER), data(5 * CLUSTER, SECTOR)]
    plan = Plan(iter(given))
    assert list(plan.extents()) == given
    assert list(plan.extents()) == given


def test_the_totals_tell_reading_from_knowing() -> None:
    plan = Plan([data(0, CLUSTER), zero(2 * CLUSTER, 3 * CLUSTER), data(5 * CLUSTER, SECTOR)])
    assert (plan.data_bytes, plan.zero_bytes, plan.total_bytes) == (CLUSTER + SECTOR, 3 * CLUSTER, 4 * CLUSTER + SECTOR)


@pytest.mark.parametrize(
    ("start", "left"),
    [
        (0, [data(0, 4 * CLUSTER), zero(8 * CLUSTER, 2 * CLUSTER)]),
        (CLUSTER, [data(CLUSTER, 3 * CLUSTER), zero(8 * CLUSTER, 2 * CLUSTER)]),
        (4 * CLUSTER, [zero(8 * CLUSTER, 2 * CLUSTER)]),
        (9 * CLUSTER, [zero(9 * CLUSTER, CLUSTER)]),
        (10 * CLUSTER, []),
    ],
)
def test_it_can_be_gone_on_with_from_any_offset(start: int, left: list[Extent]) -> None:
    plan = Plan([data(0, 4 * CLUSTER), zero(8 * CLUSTER, 2 * CLUSTER)])
    assert list(plan.extents(start)) == left


def test_a_hundred_thousand_extents_take_no_memory() -> None:
    count = 100_000
    tracemalloc.start()
    try:
        plan = Plan(data(2 * index * CLUSTER, CLUSTER) for index in range(count))
        assert sum(1 for _ in plan.extents()) == count
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert plan.data_bytes == count * CLUSTER
    assert peak < 2 * MiB


# -- full -------------------------------------------------------------------------------------------------------------


def test_a_full_reads_what_is_allocated_in_whole_clusters() -> None:
    edge = MiB + 2 * SECTOR
    reader = MappedReader([zero(0, MiB + SECTOR), data(MiB + SECTOR, SECTOR), zero(edge, CAPACITY - edge)])
    plan, _ = plan_full(reader)
    assert list(plan.extents()) == [data(MiB, CLUSTER)]


def test_a_full_of_a_disk_that_ends_within_a_cluster_ends_with_the_disk() -> None:
    plan, coverage = plan_full(MappedReader([data(0, CLUSTER + SECTOR)], CLUSTER + SECTOR))
    assert list(plan.extents()) == [data(0, CLUSTER + SECTOR)]
    assert coverage.to_offset == CLUSTER + SECTOR


def test_the_coverage_of_a_full_counts_what_the_map_named() -> None:
    allocation = [data(0, 100), zero(100, MiB - 100), data(MiB, MiB), zero(2 * MiB, 14 * MiB)]
    _, coverage = plan_full(MappedReader(allocation))
    assert coverage == Coverage(Source.ALLOCATION, CAPACITY, pages=1, extents=2, bytes=100 + MiB)


BROKEN_MAPS = {
    "begins late": [data(SECTOR, CAPACITY - SECTOR)],
    "has a gap": [data(0, MiB), zero(2 * MiB, 14 * MiB)],
    "goes back": [data(0, 2 * MiB), zero(MiB, 15 * MiB)],
    "ends early": [data(0, MiB), zero(MiB, MiB)],
    "goes beyond": [data(0, CAPACITY), zero(CAPACITY, MiB)],
    "is empty": [],
}


@pytest.mark.parametrize("allocation", BROKEN_MAPS.values(), ids=BROKEN_MAPS.keys())
def test_a_full_by_a_map_that_does_not_tile_the_disk_is_refused(allocation: list[Extent]) -> None:
    with pytest.raises(CoverageIncomplete):
        plan_full(MappedReader(allocation))


@pytest.mark.parametrize("allocation", BROKEN_MAPS.values(), ids=BROKEN_MAPS.keys())
def test_an_increment_by_such_a_map_is_refused_too(allocation: list[Extent]) -> None:
    with pytest.raises(CoverageIncomplete):
        plan_incremental(MappedReader(allocation), changes(page(0, CAPACITY, (0, CAPACITY))))


# -- incremental ------------------------------------------------------------------------------------------------------


def test_what_changed_is_read_where_it_is_allocated_and_zero_elsewhere() -> None:
    plan, _ = plan_incremental(HALF, changes(page(0, CAPACITY, (7 * MiB, 2 * MiB), (12 * MiB, MiB))))
    assert list(plan.extents()) == [data(7 * MiB, MiB), zero(8 * MiB, MiB), zero(12 * MiB, MiB)]


def test_changes_are_rounded_outwards_and_joined() -> None:
    asked = changes(page(0, CAPACITY, (MiB + 5, 10), (MiB + CLUSTER - 1, 2), (3 * MiB, SECTOR)))
    plan, _ = plan_incremental(HALF, asked)
    assert list(plan.extents()) == [data(MiB, 2 * CLUSTER), data(3 * MiB, CLUSTER)]


def test_a_cluster_allocated_in_part_is_read_as_a_whole() -> None:
    edge = 8 * MiB + SECTOR
    reader = MappedReader([data(0, edge), zero(edge, CAPACITY - edge)])
    plan, _ = plan_incremental(reader, changes(page(0, CAPACITY, (8 * MiB, 2 * CLUSTER))))
    assert list(plan.extents()) == [data(8 * MiB, CLUSTER), zero(8 * MiB + CLUSTER, CLUSTER)]


def test_an_increment_without_changes_is_empty_and_proven() -> None:
    plan, coverage = plan_incremental(HALF, changes())
    assert list(plan.extents()) == []
    assert coverage == Coverage(Source.CHANGE_TRACKING, CAPACITY, pages=1, extents=0, bytes=0)


def test_the_coverage_of_an_increment_is_what_the_pages_proved() -> None:
    asked = changes(page(0, MiB, (0, 10)), page(MiB, 7 * MiB), page(8 * MiB, 8 * MiB, (9 * MiB, 5), (10 * MiB, 7)))
    _, coverage = plan_incremental(HALF, asked)
    assert coverage == Coverage(Source.CHANGE_TRACKING, CAPACITY, pages=3, extents=3, bytes=22)


def test_pages_after_the_last_change_are_drawn() -> None:
    """Without them nothing is proven."""
    asked: list[int] = []

    def ask(offset: int) -> Any:
        asked.append(offset)
        return page(offset, 4 * MiB, *([(0, SECTOR)] if not offset else []))

    plan_incremental(HALF, Changes(ask, CAPACITY))
    assert asked == [0, 4 * MiB, 8 * MiB, 12 * MiB]


@pytest.mark.parametrize("offset", [CAPACITY - SECTOR, CAPACITY, CAPACITY + MiB])
def test_changes_beyond_the_disk_that_was_opened_are_refused(offset: int) -> None:
    asked = changes(page(0, 2 * CAPACITY, (0, SECTOR), (offset, 2 * SECTOR)), capacity=2 * CAPACITY)
    with pytest.raises(CoverageIncomplete):
        plan_incremental(HALF, asked)


@pytest.mark.parametrize("told", [CAPACITY - MiB, CAPACITY + MiB])
def test_changes_of_a_disk_of_another_size_are_refused(told: int) -> None:
    with pytest.raises(CoverageIncomplete):
        plan_incremental(HALF, changes(page(0, told, (0, SECTOR)), capacity=told))


def test_a_page_that_does_not_fit_is_refused() -> None:
    with pytest.raises(CoverageIncomplete):
        plan_incremental(HALF, changes(page(0, MiB), page(2 * MiB, 14 * MiB)))


def test_lost_change_tracking_is_handed_on() -> None:
    def ask(offset: int) -> Any:
        raise CbtLost("gone")

    with pytest.raises(CbtLost):
        plan_incremental(HALF, Changes(ask, CAPACITY))


def test_trimmed_clusters_are_zero_in_the_plan() -> None:
    disk = MemoryDisk(MiB)
    disk.write(0, b"x" * MiB)
    disk.trim(4 * CLUSTER, 2 * CLUSTER)
    asked = changes(page(0, MiB, (4 * CLUSTER, 3 * CLUSTER)), capacity=MiB)
    plan, _ = plan_incremental(disk.freeze(), asked)
    assert list(plan.extents()) == [zero(4 * CLUSTER, 2 * CLUSTER), data(6 * CLUSTER, CLUSTER)]
