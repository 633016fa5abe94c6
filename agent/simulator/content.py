"""Real file systems for a site's disks, made without root from files of this machine."""

import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from agent.simulator.description import DiskDescription
from shared.errors import NotFound
from shared.process import run
from shared.units import KiB

SMALLEST = 16 * KiB
"""Smaller files are left out: nearly nine in ten files, a twentieth of the bytes, and most of the time it takes."""

MAKE_LIMIT = 600.0
"""Seconds a file system may take to be made."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many bytes of it, and of how many."""


def no_progress(what: str, done: int, total: int) -> None:
    """For whoever does not look."""


def make_image(disk: DiskDescription, image: Path, progress: Progress) -> None:
    """Write a raw image with the file system and contents that are described.

    Raises ProgramMissing or ProgramFailed when the file system cannot be made.
    """
    with image.open("wb") as file:
        file.truncate(disk.capacity)
    with tempfile.TemporaryDirectory(dir=image.parent, prefix="contents-") as folder:
        root = Path(folder)
        _collect(disk, root, lambda done: progress("collecting files", done, disk.content))
        progress(f"making {disk.file_system}", 0, 0)
        run(_maker(disk, root, image), timeout=MAKE_LIMIT)


def _maker(disk: DiskDescription, root: Path, image: Path) -> list[str | Path]:
    if disk.file_system == "ext4":
        return ["/sbin/mke2fs", "-q", "-F", "-t", "ext4", "-d", root, image]
    return ["/sbin/mkfs.btrfs", "-q", "--rootdir", root, image]


def _collect(disk: DiskDescription, root: Path, progress: Callable[[int], None]) -> None:
    """Copy files into `root`, in a fixed order, until they hold `disk.content` bytes."""
    # mkfs.btrfs makes dangling references of files that have names elsewhere too; mke2fs takes them as they are.
    place = _link if disk.file_system == "ext4" else _copy
    done, again = 0, 1
    while done < disk.content:
        before = done
        for source in _files(disk.folders):
            done += place(source, root / str(again) / source.relative_to("/"))
            progress(done)
            if done >= disk.content:
                return
        if done == before:
            raise NotFound(f"no readable files in {', '.join(map(str, disk.folders))}")
        again += 1


def _files(folders: tuple[Path, ...]) -> Iterator[Path]:
    for folder in folders:
        for parent, subfolders, names in os.walk(folder):
            subfolders.sort()
            for name in sorted(names):
                yield Path(parent, name)


def _link(source: Path, target: Path) -> int:
    """As `_copy`, without moving bytes where both lie on one file system and nobody forbids it."""
    size = _size(source)
    if size:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except OSError:
            return _copy(source, target)
    return size


def _copy(source: Path, target: Path) -> int:
    """Copy a file's bytes; gives how many, 0 for what is small, no regular file or not readable."""
    size = _size(source)
    if size:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    return size


def _size(source: Path) -> int:
    """Bytes of a file worth taking, else 0."""
    status = source.lstat()
    wanted = stat.S_ISREG(status.st_mode) and status.st_size >= SMALLEST and os.access(source, os.R_OK)
    return status.st_size if wanted else 0
