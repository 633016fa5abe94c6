"""The contract of DiskReader, on each implementation."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from agent.disks.memory import MemoryDisk
from agent.disks.reader import DiskReader
from agent.disks.vddk import opened
from agent.simulator.disk import VirtualDisk
from agent.simulator.server import running
from shared.errors import ReadFailed
from shared.extents import Extent, Kind, split
from shared.units import CLUSTER, SECTOR, MiB
from tests.agent.vsphere.sites import described, vcenter_settings, vddk_settings, vm_with

CAPACITY = 4 * MiB + SECTOR


def written(disk: MemoryDisk | VirtualDisk) -> bytes:
    """Write noise, zeros and trims over a disk; what it holds then."""
    noise, model = random.Random(7), bytearray(CAPACITY)
    for offset in (0, MiB - 100, 2 * MiB, CAPACITY - 300):
        data = noise.randbytes(min(3 * CLUSTER + 1, CAPACITY - offset))
        disk.write(offset, data)
        model[offset : offset + len(data)] = data
    disk.zero(CLUSTER, 2 * CLUSTER)
    model[CLUSTER : 3 * CLUSTER] = bytes(2 * CLUSTER)
    disk.trim(2 * MiB, CLUSTER)
    model[2 * MiB : 2 * MiB + CLUSTER] = bytes(CLUSTER)
    return bytes(model)


@contextmanager
def in_memory(folder: Path) -> Iterator[tuple[DiskReader, bytes]]:
    disk = MemoryDisk(CAPACITY)
    content = written(disk)
    yield disk.freeze(), content


@contextmanager
def by_vddk(folder: Path) -> Iterator[tuple[DiskReader, bytes]]:
    with running(folder / "site", described(vm_with("vm", CAPACITY))) as site:
        vm = site.vm("vm")
        content = written(vm.disks[0])
        vm.create_snapshot("snapshot-1", "backup", "", quiesced=False)
        file = vm.disks[0].frozen_file_name("snapshot-1")
        settings = vddk_settings(site), vcenter_settings(site)
        with opened(*settings, site.thumbprint_sha1, vm.record.moref, "snapshot-1", file) as reader:
            yield reader, content


@pytest.fixture(params=[in_memory, by_vddk], ids=lambda make: make.__name__)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[DiskReader, bytes]]:
    make: Callable[[Path], AbstractContextManager[tuple[DiskReader, bytes]]] = request.param
    with make(tmp_path) as disk:
        yield disk


@pytest.fixture
def reader(disk: tuple[DiskReader, bytes]) -> DiskReader:
    return disk[0]


@pytest.fixture
def content(disk: tuple[DiskReader, bytes]) -> bytes:
    return disk[1]


def test_the_capacity_is_exact(reader: DiskReader) -> None:
    assert reader.capacity == CAPACITY


def test_the_bytes_are_those_of_the_disk(reader: DiskReader, content: bytes) -> None:
    pieces = list(reader.read(split([Extent(0, CAPACITY)], 3 * CLUSTER)))
    assert b"".join(data for _, data in pieces) == content


def test_the_map_tiles_the_disk(reader: DiskReader) -> None:
    reached = 0
    for extent in reader.allocated():
        assert extent.offset == reached
        reached = extent.end
    assert reached == CAPACITY


def test_where_the_map_says_zero_there_are_zeros(reader: DiskReader, content: bytes) -> None:
    holes = [extent for extent in reader.allocated() if extent.kind is Kind.ZERO]
    assert holes
    assert not any(any(content[hole.offset : hole.end]) for hole in holes)


def test_map_and_bytes_are_the_same_when_asked_again(reader: DiskReader) -> None:
    assert list(reader.allocated()) == list(reader.allocated())
    first, second = (bytes(next(reader.read([Extent(MiB, CLUSTER)]))[1]) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("depth", [1, 2, 16])
def test_pieces_come_in_the_order_given_whatever_the_depth(reader: DiskReader, content: bytes, depth: int) -> None:
    wanted = [Extent(MiB, 2 * MiB), Extent(0, SECTOR), Extent(CAPACITY - SECTOR, SECTOR), Extent(0, SECTOR)]
    got = [(piece, bytes(data)) for piece, data in reader.read(wanted, depth=depth)]
    assert got == [(piece, content[piece.offset : piece.end]) for piece in wanted]


def test_a_zero_piece_comes_back_in_its_place_without_bytes(reader: DiskReader) -> None:
    wanted = [Extent(0, SECTOR), Extent(SECTOR, SECTOR, Kind.ZERO), Extent(2 * SECTOR, SECTOR)]
    assert [(piece, len(data)) for piece, data in reader.read(wanted)] == list(
        zip(wanted, [SECTOR, 0, SECTOR], strict=True)
    )


def test_pieces_may_be_drawn_from_the_map_while_reading(reader: DiskReader, content: bytes) -> None:
    copy = bytearray(CAPACITY)
    for piece, data in reader.read(extent for extent in reader.allocated() if extent.kind is Kind.DATA):
        copy[piece.offset : piece.end] = data
    assert copy == content


def test_no_more_than_depth_pieces_are_drawn_ahead(reader: DiskReader) -> None:
    drawn: list[Extent] = []

    def pieces() -> Iterator[Extent]:
        for piece in split([Extent(0, MiB)], CLUSTER):
            drawn.append(piece)
            yield piece

    next(reader.read(pieces(), depth=3))
    assert len(drawn) <= 4


def test_nothing_asked_is_nothing_read(reader: DiskReader) -> None:
    assert list(reader.read([])) == []


def test_a_stopped_read_ends_without_error_and_soon(reader: DiskReader) -> None:
    given: list[Extent] = []
    started = time.monotonic()
    for piece, _ in reader.read(split([Extent(0, CAPACITY)], SECTOR), stopped=lambda: len(given) >= 3):
        given.append(piece)
    assert len(given) < CAPACITY // SECTOR
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("piece", [Extent(CAPACITY, SECTOR), Extent(CAPACITY - SECTOR, 2 * SECTOR)])
def test_a_piece_beyond_the_end_is_an_error_with_its_offset(reader: DiskReader, piece: Extent) -> None:
    with pytest.raises(ReadFailed, match=str(piece.offset)) as caught:
        list(reader.read([piece]))
    assert caught.value.facts["offset"] == str(piece.offset)


@pytest.mark.parametrize("piece", [Extent(1, SECTOR), Extent(0, SECTOR + 1)])
def test_a_piece_of_broken_sectors_is_an_error(reader: DiskReader, piece: Extent) -> None:
    with pytest.raises(ReadFailed):
        list(reader.read([piece]))
