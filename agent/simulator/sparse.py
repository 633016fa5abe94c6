"""Sparse files: looking at what they hold without reading their holes, and copying just that."""

import os
from collections.abc import Iterator
from pathlib import Path

from shared.units import MiB

CHUNK = 1 * MiB


def open_sparse(path: Path, size: int) -> int:
    """A descriptor of the file, created and `size` bytes long, for reading and writing."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.ftruncate(descriptor, size)
    return descriptor


def data_chunks(descriptor: int, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """What `[start, end)` of a file holds besides holes: ascending (offset, up to a MiB of bytes)."""
    while (start := _next_data(descriptor, start, end)) < end:
        hole = min(os.lseek(descriptor, start, os.SEEK_HOLE), end)
        while start < hole:
            chunk = os.pread(descriptor, min(CHUNK, hole - start), start)
            yield start, chunk
            start += len(chunk)


def copy_range(source: int, target: int, start: int, end: int) -> None:
    """Copy `[start, end)` of `source`, less its holes, to the same place in `target`."""
    for offset, chunk in data_chunks(source, start, end):
        write_all(target, chunk, offset)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file with its holes, in place of what `target` was."""
    target.unlink(missing_ok=True)
    read, size = os.open(source, os.O_RDONLY | os.O_CLOEXEC), source.stat().st_size
    write = open_sparse(target, size)
    try:
        copy_range(read, write, 0, size)
    finally:
        os.close(write)
        os.close(read)


def write_all(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` at `offset`."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _next_data(descriptor: int, start: int, end: int) -> int:
    """Where the next byte that is not in a hole lies, at most `end`."""
    try:
        return min(os.lseek(descriptor, start, os.SEEK_DATA), end)
    except OSError:  # ENXIO: nothing but a hole up to the file's end
        return end
