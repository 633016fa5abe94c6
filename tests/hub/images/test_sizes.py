"""Sizes that have been somebody's lost data: tiny disks, odd ones, enormous ones, and exactly 4 GiB of nothing."""

import subprocess
from pathlib import Path

import pytest

from hub.images import qemu_img
from hub.images.layout import Layout
from hub.images.partial import PartialImage
from hub.images.qcow2 import ParentImage
from hub.images.qemu_nbd import served
from shared.errors import InvalidRequest
from shared.extents import Extent, Kind
from shared.nbd import NbdDisk
from shared.runs import ClusterRun, Encoding, encode, zero_run
from shared.units import CLUSTER, SECTOR, GiB, MiB, TiB, align_down
from tests.hub.images.sparse_disk import SparseDisk, assert_clean, assert_same, store

FULL, INCREMENTAL = "full.qcow2", "incremental.qcow2"


@pytest.mark.parametrize("level", [None, 1])
@pytest.mark.parametrize(
    "capacity",
    [
        SECTOR,
        CLUSTER - SECTOR,
        CLUSTER,
        CLUSTER + SECTOR,
        512 * MiB,
        512 * MiB + SECTOR,
        GiB + SECTOR,
        2 * TiB + SECTOR,
    ],
)
def test_a_disk_of_this_size_keeps_its_first_and_last_bytes(tmp_path: Path, capacity: int, level: int | None) -> None:
    disk = SparseDisk(capacity)
    disk.write(0, b"first")
    disk.write(capacity - 4, b"last")
    store(tmp_path / FULL, capacity, None, disk.all_runs(level))
    assert_clean(tmp_path / FULL)
    disk.save(tmp_path / "full.raw")
    assert_same(tmp_path / "full.raw", tmp_path / FULL)

    disk.zero(align_down(capacity - 1, SECTOR), SECTOR)
    disk.write(0, b"other")
    store(tmp_path / INCREMENTAL, capacity, ParentImage(FULL), disk.changed_runs(level))
    assert_clean(tmp_path / INCREMENTAL)
    disk.save(tmp_path / "incremental.raw")
    assert_same(tmp_path / "incremental.raw", tmp_path / INCREMENTAL)


@pytest.mark.parametrize("start", [0, 64 * MiB, 512 * MiB])
def test_exactly_4_gib_of_zeros_hide_what_the_parent_holds(tmp_path: Path, start: int) -> None:
    disk = SparseDisk(6 * GiB)
    for offset in range(0, 6 * GiB, 100 * MiB):
        disk.write(offset, b"old" * 500)
    disk.write(start + 4 * GiB, b"after")
    store(tmp_path / FULL, disk.capacity, None, disk.all_runs(None))
    disk.zero(start, 4 * GiB)
    runs = disk.changed_runs(None)
    assert [(run.count, run.encoding) for run in runs] == [(4 * GiB // CLUSTER, Encoding.ZERO)]

    store(tmp_path / INCREMENTAL, disk.capacity, ParentImage(FULL), runs)
    assert_clean(tmp_path / INCREMENTAL)
    disk.save(tmp_path / "model.raw")
    assert_same(tmp_path / "model.raw", tmp_path / INCREMENTAL)


def test_a_62_tib_disk_is_read_back_where_it_has_data(tmp_path: Path) -> None:
    capacity = 62 * TiB
    offsets = [0, 4 * GiB, 31 * TiB + CLUSTER, capacity - CLUSTER]
    runs = [run for offset in offsets for run in encode(offset, memoryview(b"%d" % offset), 1)]
    store(tmp_path / FULL, capacity, None, runs)
    assert_clean(tmp_path / FULL)
    with served(tmp_path / FULL) as socket, NbdDisk(socket) as disk:
        assert disk.size == capacity
        data = list(disk.read([Extent(offset, CLUSTER) for offset in offsets]))
        assert [bytes(read).rstrip(b"\0") for _, read in data] == [b"%d" % offset for offset in offsets]


@pytest.mark.slow
def test_62_tib_of_zeros_over_a_parent_cost_no_room(tmp_path: Path) -> None:
    capacity = 62 * TiB
    store(tmp_path / FULL, capacity, None, encode(31 * TiB, memoryview(b"old"), None))
    sealed = store(tmp_path / INCREMENTAL, capacity, ParentImage(FULL), [zero_run(Extent(0, capacity))])
    assert sealed.stored < 2 * MiB
    assert_clean(tmp_path / INCREMENTAL)
    with served(tmp_path / INCREMENTAL) as socket, NbdDisk(socket) as disk:
        assert list(disk.extents(31 * TiB, GiB)) == [Extent(31 * TiB, GiB, Kind.ZERO)]
        [(_, data)] = disk.read([Extent(31 * TiB, CLUSTER)])
        assert bytes(data) == bytes(CLUSTER)


def test_shared_tables_of_zeros_are_unshared_when_qemu_writes_into_them(tmp_path: Path) -> None:
    """As consolidation does, when it commits an image into its parent."""
    disk = SparseDisk(4 * GiB)
    store(tmp_path / FULL, disk.capacity, None, [])
    store(tmp_path / INCREMENTAL, disk.capacity, ParentImage(FULL), [zero_run(Extent(0, disk.capacity))])
    disk.write(GiB, b"new")
    last = tmp_path / "last.qcow2"
    store(last, disk.capacity, ParentImage(INCREMENTAL), disk.changed_runs(None))
    subprocess.run(["qemu-img", "commit", "-q", "-f", "qcow2", last], check=True)
    assert_clean(tmp_path / INCREMENTAL)
    disk.save(tmp_path / "model.raw")
    assert_same(tmp_path / "model.raw", tmp_path / INCREMENTAL)


@pytest.mark.parametrize("encoding", [Encoding.RAW, Encoding.ZSTD])
def test_refcounts_are_right_in_a_file_of_many_refcount_blocks(tmp_path: Path, encoding: Encoding) -> None:
    """Payloads are left out: the check compares tables and refcounts, and a hole is as good as data to it."""
    capacity = 9 * GiB
    image = tmp_path / FULL
    with image.open("wb") as file:

        def write(offset: int, data: bytes) -> None:
            file.seek(offset)
            file.write(data)

        layout = Layout(capacity, None, write)
        lengths = (40_001,) * 15 + (66_000,) if encoding is Encoding.ZSTD else ()
        for offset in range(0, capacity, MiB):
            layout.place(ClusterRun(offset, 16, encoding, b"", lengths))
        write(0, layout.finish())
        file.truncate(layout.end)
    assert layout.end > 5 * GiB
    qemu_img.check(image)


@pytest.mark.parametrize("capacity", [0, -SECTOR, SECTOR + 1])
def test_a_capacity_no_disk_has_is_refused(tmp_path: Path, capacity: int) -> None:
    with pytest.raises(InvalidRequest):
        PartialImage.create(tmp_path / FULL, capacity, None)
    assert list(tmp_path.iterdir()) == []
