"""The NBD client against a real nbdkit: sizes, extents, bytes, and servers that fail, stall or end."""

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from shared.errors import ReadFailed, Unavailable
from shared.extents import Extent, Kind, ascending, split
from shared.nbd import NbdDisk
from shared.process import serving
from shared.units import GiB, KiB, MiB, TiB

Serve = Callable[..., Path]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start nbdkit with these arguments; gives its socket."""
    with ExitStack() as running:

        def start(*args: str | Path) -> Path:
            return running.enter_context(nbdkit(tmp_path, *args))

        yield start


@contextmanager
def nbdkit(folder: Path, *args: str | Path) -> Iterator[Path]:
    socket, pid_file = folder / "socket", folder / "pid"
    command: list[str | Path] = ["nbdkit", "--foreground", "--readonly", "-U", socket, "-P", pid_file, *args]
    with serving(command) as server:
        server.wait_until(pid_file.exists, 20)
        yield socket


def sparse_file(folder: Path, size: int, pieces: dict[int, bytes]) -> Path:
    path = folder / "disk"
    with path.open("wb") as file:
        file.truncate(size)
        for offset, data in pieces.items():
            file.seek(offset)
            file.write(data)
    return path


@pytest.mark.parametrize("size", [0, 512, 64 * KiB - 512, GiB + 512, 62 * TiB])
def test_the_size_is_the_servers(serve: Serve, size: int) -> None:
    with NbdDisk(serve("null", f"size={size}")) as disk:
        assert disk.size == size
        assert sum(extent.length for extent in disk.extents()) == size


def test_extents_tile_the_disk_and_data_is_never_told_as_zero(serve: Serve, tmp_path: Path) -> None:
    size = 5 * GiB + 512
    pieces = {0: b"first", GiB - 3: b"across a status request", 3 * GiB: b"x" * MiB, size - 1: b"z"}
    with NbdDisk(serve("file", sparse_file(tmp_path, size, pieces))) as disk:
        told = list(ascending(disk.extents(), size))
    assert sum(extent.length for extent in told) == size
    data = [extent for extent in told if extent.kind is Kind.DATA]
    assert sum(extent.length for extent in data) < 2 * MiB
    for offset, piece in pieces.items():
        assert any(extent.offset <= offset and offset + len(piece) <= extent.end for extent in data)


def test_extents_of_a_part_tile_that_part(serve: Serve, tmp_path: Path) -> None:
    with NbdDisk(serve("file", sparse_file(tmp_path, GiB, {MiB: b"x" * MiB}))) as disk:
        assert list(disk.extents(512 * KiB, MiB)) == [
            Extent(512 * KiB, 512 * KiB, Kind.ZERO),
            Extent(MiB, 512 * KiB, Kind.DATA),
        ]


def test_a_server_that_tells_no_extents_has_only_data(serve: Serve) -> None:
    with NbdDisk(serve("--filter=noextents", "null", "size=3G")) as disk:
        assert list(disk.extents()) == [Extent(0, 3 * GiB)]
        assert list(disk.extents(GiB, MiB)) == [Extent(GiB, MiB)]


@pytest.mark.parametrize("depth", [1, 2, 4, 64])
def test_reads_come_back_in_order_with_their_bytes(serve: Serve, depth: int) -> None:
    """The pattern plugin's bytes are their own offset."""
    pieces = list(split([Extent(8, 3 * MiB), Extent(900 * MiB, MiB)], 128 * KiB))
    with NbdDisk(serve("pattern", "size=1G")) as disk:
        read = [(piece, bytes(data)) for piece, data in disk.read(pieces, depth=depth)]
    assert [piece for piece, _ in read] == pieces
    for piece, data in read:
        assert len(data) == piece.length
        assert data[:8] == piece.offset.to_bytes(8)
        assert data[-8:] == (piece.end - 8).to_bytes(8)


def test_a_zero_piece_comes_back_in_its_place_without_being_read(serve: Serve) -> None:
    pieces = [Extent(0, 512), Extent(512, 512 * MiB, Kind.ZERO), Extent(512 * MiB + 512, 512)]
    with NbdDisk(serve("pattern", "size=1G")) as disk:
        assert [(piece, len(data)) for piece, data in disk.read(pieces)] == list(
            zip(pieces, [512, 0, 512], strict=True)
        )


def test_a_failing_read_names_its_offset(serve: Serve) -> None:
    with NbdDisk(serve("--filter=error", "pattern", "size=1G", "error-pread-rate=1")) as disk:
        with pytest.raises(ReadFailed, match="offset 4096") as raised:
            list(disk.read([Extent(4096, 512)]))
        assert raised.value.facts["offset"] == "4096"


def test_failing_extents_name_their_offset(serve: Serve) -> None:
    with NbdDisk(serve("--filter=error", "memory", "size=1G", "error-extents-rate=1")) as disk:
        with pytest.raises(ReadFailed, match="offset 0"):
            list(disk.extents())


def test_a_read_beyond_the_end_fails(serve: Serve) -> None:
    with NbdDisk(serve("pattern", "size=1M")) as disk, pytest.raises(ReadFailed):
        list(disk.read([Extent(MiB - 512, 1024)]))


def test_a_server_that_does_not_answer_is_given_up(serve: Serve) -> None:
    with NbdDisk(serve("--filter=delay", "pattern", "size=1M", "rdelay=30"), stall_limit=0.1) as disk:
        with pytest.raises(ReadFailed, match="no answer"):
            list(disk.read([Extent(0, 512)]))


def test_stopping_ends_a_read_that_waits(serve: Serve) -> None:
    started = time.monotonic()
    with NbdDisk(serve("--filter=delay", "pattern", "size=1M", "rdelay=30")) as disk:
        assert list(disk.read([Extent(0, 512)], stopped=lambda: True)) == []
    assert time.monotonic() - started < 15


def test_a_server_killed_in_mid_read_is_a_failed_read(tmp_path: Path) -> None:
    socket, pid_file = tmp_path / "socket", tmp_path / "pid"
    command = ["nbdkit", "--foreground", "-U", str(socket), "-P", str(pid_file), "pattern", "size=1G"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        _wait_for(pid_file)
        with NbdDisk(socket) as disk:
            reading = disk.read([Extent(0, 512), Extent(512, 512), Extent(MiB, 512)], depth=1)
            next(reading)
            server.kill()
            server.wait()
            with pytest.raises(ReadFailed):
                list(reading)
            with pytest.raises(ReadFailed):
                list(disk.extents())


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_no_server_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="NBD connection failed"):
        NbdDisk(tmp_path / "socket")


def test_closing_twice_is_harmless(serve: Serve) -> None:
    disk = NbdDisk(serve("null", "size=1M"))
    disk.close()
    disk.close()
