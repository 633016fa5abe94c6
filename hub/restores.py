"""Restores: a disk of a restore point as a stream of extents, read through its chain by qemu's own programs.

The functions block; they are iterated in a thread. What they start (qemu-nbd, a staged file) ends with the iteration.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from hub.files import storage_errors
from hub.images import qemu_img, qemu_nbd
from shared.errors import DataLoss, RepositoryUnavailable
from shared.extents import Extent, Kind, split_data
from shared.nbd import NbdDisk, Piece
from shared.process import ProgramFailed
from shared.units import MiB

PIECE = 1 * MiB
"""Bytes of one piece of data."""

READ_AHEAD = 4
"""Pieces read ahead of the one being sent."""


class DiskFormat(Enum):
    """The form a disk is restored in."""

    RAW = "raw"
    QCOW2 = "qcow2"


@dataclass(frozen=True, slots=True)
class DiskStream:
    """A file on its way out: `size` in bytes, and pieces that ascend and cover all of it; ZERO ones have no bytes."""

    size: int
    pieces: Iterator[Piece]


@contextmanager
def opened(
    image: Path, disk_format: DiskFormat, staging: Path, stopped: Callable[[], bool] = lambda: False
) -> Iterator[DiskStream]:
    """Open a restore point's image for reading out; raises RepositoryUnavailable or DataLoss.

    QCOW2 is converted into `staging` first: qemu-img cannot write that format to a pipe. That raises LimitReached when
    there is no room for it, and Cancelled soon after `stopped()`.
    """
    if not image.exists():
        raise RepositoryUnavailable(f"the image {image.name} is not in the repository (looked in {image.parent})")
    try:
        if disk_format is DiskFormat.RAW:
            with qemu_nbd.served(image) as socket, NbdDisk(socket) as disk:
                yield DiskStream(disk.size, disk.read(split_data(disk.extents(), PIECE), depth=READ_AHEAD))
        else:
            with _staged(image, staging, stopped) as descriptor:
                yield DiskStream(os.fstat(descriptor).st_size, _file_pieces(descriptor))
    except ProgramFailed as error:
        raise DataLoss(f"the chain of {image.name} cannot be read: {error.message}") from error


def clear(staging: Path) -> None:
    """Delete what a restore left that ended with its hub; called while no restore runs."""
    shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def _staged(image: Path, staging: Path, stopped: Callable[[], bool]) -> Iterator[int]:
    """A stand-alone copy of the image, without a name already: nothing is left of it whatever happens."""
    with storage_errors(staging):
        staging.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=staging) as folder:
        copy = Path(folder, "disk.qcow2")
        qemu_img.convert(image, copy, DiskFormat.QCOW2.value, stopped=stopped)
        descriptor = os.open(copy, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _file_pieces(descriptor: int) -> Iterator[Piece]:
    size = os.fstat(descriptor).st_size
    for extent in split_data(_file_extents(descriptor, size), PIECE):
        data = os.pread(descriptor, extent.length, extent.offset) if extent.kind is Kind.DATA else b""
        yield extent, memoryview(data)


def _file_extents(descriptor: int, size: int) -> Iterator[Extent]:
    """Tile a sparse file with DATA and ZERO."""
    at = 0
    while at < size:
        try:
            data = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError:  # ENXIO: nothing but a hole from here on
            data = size
        if data > at:
            yield Extent(at, data - at, Kind.ZERO)
        if data < size:
            at = os.lseek(descriptor, data, os.SEEK_HOLE)
            yield Extent(data, at - data)
        else:
            at = size
