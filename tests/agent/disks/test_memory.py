"""The disk in memory: what a guest wrote is what is read, and a freeze is for ever."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.disks.memory import MemoryDisk
from shared.extents import Extent, Kind
from shared.units import CLUSTER, SECTOR, TiB

CAPACITY = 3 * CLUSTER + SECTOR

ranges = st.tuples(st.integers(0, CAPACITY), st.integers(0, CAPACITY)).map(sorted)
writes = st.lists(st.tuples(st.sampled_from(["write", "zero", "trim"]), ranges, st.integers(1, 255)), max_size=12)


def apply(disk: MemoryDisk, model: bytearray, kind: str, start: int, end: int, value: int) -> None:
    data = bytes([value if kind == "write" else 0]) * (end - start)
    if kind == "write":
        disk.write(start, data)
    elif kind == "zero":
        disk.zero(start, end - start)
    else:
        disk.trim(start, end - start)
    model[start:end] = data


@given(writes)
@example([("write", [0, 1], 1), ("trim", [1, 1], 1)])
def test_it_reads_as_what_was_written_last(script: list[tuple[str, list[int], int]]) -> None:
    disk, model = MemoryDisk(CAPACITY), bytearray(CAPACITY)
    for kind, (start, end), value in script:
        apply(disk, model, kind, start, end, value)
    frozen = disk.freeze()
    assert b"".join(data for _, data in frozen.read([Extent(0, CAPACITY)])) == model
    for extent in frozen.allocated():
        assert extent.kind is Kind.DATA or not any(model[extent.offset : extent.end])


@given(writes, writes)
def test_whatever_differs_between_two_freezes_is_named_as_changed(
    before: list[tuple[str, list[int], int]], after: list[tuple[str, list[int], int]]
) -> None:
    disk, model = MemoryDisk(CAPACITY), bytearray(CAPACITY)
    for kind, (start, end), value in before:
        apply(disk, model, kind, start, end, value)
    older, old_model = disk.freeze(), bytes(model)
    for kind, (start, end), value in after:
        apply(disk, model, kind, start, end, value)
    for extent in disk.freeze().changed_since(older):
        model[extent.offset : extent.end] = old_model[extent.offset : extent.end]
    assert model == old_model


def test_a_freeze_does_not_see_what_is_written_later() -> None:
    disk = MemoryDisk(CAPACITY)
    frozen = disk.freeze()
    disk.write(0, b"later")
    assert bytes(next(frozen.read([Extent(0, SECTOR)]))[1]) == bytes(SECTOR)


def test_zeros_written_stay_allocated() -> None:
    disk = MemoryDisk(2 * CLUSTER)
    disk.zero(0, CLUSTER)
    assert [extent.kind for extent in disk.freeze().allocated()] == [Kind.DATA, Kind.ZERO]


def test_trim_gives_whole_clusters_back_and_zeroes_the_rest() -> None:
    disk = MemoryDisk(3 * CLUSTER)
    disk.write(0, b"x" * 3 * CLUSTER)
    disk.trim(CLUSTER // 2, 2 * CLUSTER)
    assert list(disk.freeze().allocated()) == [
        Extent(0, CLUSTER),
        Extent(CLUSTER, CLUSTER, Kind.ZERO),
        Extent(2 * CLUSTER, CLUSTER),
    ]


def test_data_rewritten_with_the_same_bytes_counts_as_changed_as_it_does_for_cbt() -> None:
    disk = MemoryDisk(2 * CLUSTER)
    disk.write(0, b"same")
    older = disk.freeze()
    disk.write(0, b"same")
    assert list(disk.freeze().changed_since(older)) == [Extent(0, CLUSTER)]


def test_a_disk_of_62_tib_takes_memory_for_its_data_only() -> None:
    disk = MemoryDisk(62 * TiB)
    disk.write(62 * TiB - SECTOR, b"x" * SECTOR)
    disk.trim(0, 61 * TiB)
    assert list(disk.freeze().allocated()) == [
        Extent(0, 62 * TiB - CLUSTER, Kind.ZERO),
        Extent(62 * TiB - CLUSTER, CLUSTER),
    ]


@pytest.mark.parametrize("capacity", [0, -512, 511, 513])
def test_a_disk_is_whole_sectors(capacity: int) -> None:
    with pytest.raises(ValueError):
        MemoryDisk(capacity)


def test_nothing_can_be_written_beyond_the_end() -> None:
    with pytest.raises(ValueError):
        MemoryDisk(SECTOR).write(SECTOR - 1, b"xx")
