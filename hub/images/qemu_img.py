"""`qemu-img`: what an image is, whether its tables are sound, and copies of it in another format.

Paths are handed over absolute: a name that begins with "/" is never read as an option, a protocol ("nbd:…") or a
"json:" description. The format of what is read is always said: a raw disk that is probed can pretend to be QCOW2 and
name any file of this machine as its parent.
"""

import errno
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shared.errors import AlreadyExists, DataLoss, LimitReached
from shared.process import ProgramFailed, run

QUICK = 60.0
"""Seconds for what reads a header."""

LONG = 24 * 3600.0
"""Seconds for what reads a whole image."""


class ImageDamaged(DataLoss):
    """An image's tables contradict each other, or it cannot be opened."""

    reason = "IMAGE_DAMAGED"


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """An image's header. Sizes in bytes."""

    capacity: int
    allocated: int
    """What the file takes up on its file system; holes are not counted."""
    parent: str | None
    """The backing file's name as it stands in the image."""


def info(path: Path) -> ImageInfo:
    """What the header of a QCOW2 image says; raises ImageDamaged when qemu cannot open it or its chain."""
    try:
        told = json.loads(
            run(["qemu-img", "info", "-U", "--output=json", "-f", "qcow2", path.absolute()], timeout=QUICK)
        )
    except ProgramFailed as error:
        raise ImageDamaged(f"{path} cannot be opened: {error.message}") from error
    return ImageInfo(told["virtual-size"], told["actual-size"], told.get("backing-filename"))


def check(path: Path) -> None:
    """Compare a QCOW2 image's tables and refcounts; raises ImageDamaged when they differ, be it by a leak.

    The data is not looked at, and an overlay on the wrong parent passes: for those there is the manifest.
    """
    try:
        run(["qemu-img", "check", "-U", "--output=json", "-f", "qcow2", path.absolute()], timeout=LONG)
    except ProgramFailed as error:
        raise ImageDamaged(f"{path} is damaged: {error.message}") from error


def convert(source: Path, target: Path, target_format: str, *, stopped: Callable[[], bool] = lambda: False) -> None:
    """Write the disk that a QCOW2 image and its chain hold to a new file, `raw` or `qcow2`, that needs no parent.

    Raises AlreadyExists, LimitReached when the target's file system is full, ProgramFailed, TimedOut, or Cancelled
    once `stopped()`; what is left of a target then is the caller's to delete.
    """
    if target.exists():
        raise AlreadyExists(f"{target} exists")
    command: list[str | Path] = [
        "qemu-img",
        "convert",
        "-U",
        "-f",
        "qcow2",
        "-O",
        target_format,
        source.absolute(),
        target.absolute(),
    ]
    try:
        run(command, timeout=LONG, stopped=stopped)
    except ProgramFailed as error:
        if os.strerror(errno.ENOSPC) in error.message:
            raise LimitReached(f"there is no room for {target.name} in {target.parent}: {error.message}") from error
        raise
