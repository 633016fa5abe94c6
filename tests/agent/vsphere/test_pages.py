"""Pages of changed areas: only such as tile the disk are believed."""

import itertools
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from agent.vsphere.changes import Changes, Coverage
from shared.errors import CoverageIncomplete
from shared.extents import Extent
from shared.units import CLUSTER, GiB, MiB, TiB

CAPACITY = 64 * MiB


@dataclass
class Area:
    """As vSphere's DiskChangeExtent."""

    start: int
    length: int


@dataclass
class Page:
    """As vSphere's DiskChangeInfo, in its spelling."""

    startOffset: int
    length: int
    changedArea: list[Area]


def scripted(*pages: Page) -> Callable[[int], Page]:
    """Answers one page after the other, whatever is asked."""
    script = iter(pages)
    return lambda offset: next(script)


def test_one_page_covers_the_disk() -> None:
    changes = Changes(scripted(Page(0, CAPACITY, [Area(CLUSTER, CLUSTER)])), CAPACITY)
    assert list(changes) == [Extent(CLUSTER, CLUSTER)]
    assert changes.coverage == Coverage(0, CAPACITY, pages=1, extents=1, bytes=CLUSTER)


def test_each_page_is_asked_from_the_end_of_the_one_before() -> None:
    asked: list[int] = []

    def ask(offset: int) -> Page:
        asked.append(offset)
        return Page(offset, min(24 * MiB, CAPACITY - offset), [])

    list(Changes(ask, CAPACITY))
    assert asked == [0, 24 * MiB, 48 * MiB]  # and never CAPACITY


def test_advance_is_by_the_page_not_by_its_last_extent() -> None:
    pages = scripted(Page(0, 32 * MiB, [Area(0, CLUSTER)]), Page(32 * MiB, 32 * MiB, []))
    assert list(Changes(pages, CAPACITY)) == [Extent(0, CLUSTER)]


def test_an_empty_page_in_the_middle_does_not_end_the_query() -> None:
    pages = scripted(
        Page(0, MiB, [Area(0, CLUSTER)]), Page(MiB, MiB, []), Page(2 * MiB, 62 * MiB, [Area(4 * MiB, CLUSTER)])
    )
    changes = Changes(pages, CAPACITY)
    assert list(changes) == [Extent(0, CLUSTER), Extent(4 * MiB, CLUSTER)]
    assert changes.coverage.pages == 3


def test_a_disk_that_ends_within_a_sector_run_has_a_short_last_page() -> None:
    capacity = GiB + 512
    pages = scripted(Page(0, GiB, []), Page(GiB, 512, [Area(GiB, 512)]))
    changes = Changes(pages, capacity)
    assert list(changes) == [Extent(GiB, 512)]
    assert changes.coverage.to_offset == capacity


def test_nothing_changed_is_complete_too() -> None:
    changes = Changes(scripted(Page(0, CAPACITY, [])), CAPACITY)
    assert list(changes) == []
    assert changes.coverage == Coverage(0, CAPACITY, pages=1, extents=0, bytes=0)


@pytest.mark.parametrize("count", [1, 1_999, 2_000, 2_001, 100_000])
def test_every_extent_arrives_whatever_their_number(count: int) -> None:
    capacity = 2 * count * CLUSTER
    expected = [Extent(2 * index * CLUSTER, CLUSTER) for index in range(count)]

    def ask(offset: int) -> Page:
        first = offset // (2 * CLUSTER)
        extents = expected[first : first + 2_000]
        end = capacity if first + 2_000 >= count else expected[first + 2_000].offset
        return Page(offset, end - offset, [Area(extent.offset, extent.length) for extent in extents])

    changes = Changes(ask, capacity)
    assert list(changes) == expected
    assert changes.coverage == Coverage(0, capacity, -(-count // 2_000), count, count * CLUSTER)


def test_memory_does_not_grow_with_the_number_of_extents() -> None:
    capacity = 62 * TiB
    step = capacity // 400_000 // 512 * 512

    def ask(offset: int) -> Page:
        length = min(2_000 * step, capacity - offset)
        return Page(offset, length, [Area(offset + index * step, 512) for index in range(length // step)])

    tracemalloc.start()
    for _ in itertools.islice(Changes(ask, capacity), 200_000):
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * MiB


WRONG_FIRST_PAGES = {
    "does not advance": Page(0, 0, []),
    "goes back": Page(0, -MiB, []),
    "begins later than asked": Page(CLUSTER, MiB, []),
    "reaches beyond the disk": Page(0, CAPACITY + 512, []),
    "names an extent outside itself": Page(0, MiB, [Area(MiB, CLUSTER)]),
    "names an extent across its end": Page(0, MiB, [Area(MiB - 512, 1024)]),
    "names an extent beyond the disk": Page(0, CAPACITY, [Area(CAPACITY - 512, 1024)]),
    "names an empty extent": Page(0, MiB, [Area(0, 0)]),
    "names extents that overlap": Page(0, MiB, [Area(0, 2 * CLUSTER), Area(CLUSTER, CLUSTER)]),
    "names extents that descend": Page(0, MiB, [Area(2 * CLUSTER, CLUSTER), Area(0, CLUSTER)]),
}


@pytest.mark.parametrize("page", WRONG_FIRST_PAGES.values(), ids=WRONG_FIRST_PAGES.keys())
def test_a_page_is_refused_that(page: Page) -> None:
    changes = Changes(scripted(page), CAPACITY)
    with pytest.raises(CoverageIncomplete):
        list(changes)
    with pytest.raises(CoverageIncomplete):
        _ = changes.coverage


def test_a_second_page_that_names_an_extent_of_the_first_is_refused() -> None:
    pages = scripted(Page(0, MiB, []), Page(MiB, CAPACITY - MiB, [Area(MiB - CLUSTER, CLUSTER)]))
    with pytest.raises(CoverageIncomplete):
        list(Changes(pages, CAPACITY))


def test_there_is_no_proof_before_the_first_page() -> None:
    with pytest.raises(CoverageIncomplete):
        _ = Changes(scripted(), CAPACITY).coverage


def test_there_is_no_proof_while_the_last_extent_is_not_drawn() -> None:
    changes = Changes(scripted(Page(0, CAPACITY, [Area(0, CLUSTER), Area(MiB, CLUSTER)])), CAPACITY)
    assert next(iter(changes)) == Extent(0, CLUSTER)
    with pytest.raises(CoverageIncomplete, match="up to byte 0 of"):
        _ = changes.coverage
