"""Files that a command makes: private, and there only when whole."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from sendense.cli.errors import CommandFailed, ExitCode


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A new file, mode 0600, on stable storage when the block ends, and gone again when the block fails.

    Raises CommandFailed when `path` exists, cannot be created, or cannot be written to the end.
    """
    with write_errors(path), open(path, "xb", opener=_private) as file, _removed_on_failure(path):
        yield file
        file.flush()
        os.fsync(file.fileno())


def rename(unfinished: Path, path: Path) -> None:
    """Give a finished file its name, for good: the folder is on stable storage too."""
    with write_errors(path), _removed_on_failure(unfinished):
        unfinished.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def write_errors(target: Path | str) -> Iterator[None]:
    """What the system says about writing to `target` is raised as CommandFailed."""
    try:
        yield
    except OSError as error:
        exit_code = ExitCode.REFUSED if isinstance(error, FileExistsError) else ExitCode.FAILED
        raise CommandFailed(f"cannot write {target}: {error.strerror or error}", exit_code) from error


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


@contextmanager
def _removed_on_failure(path: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:  # an interruption too
        path.unlink(missing_ok=True)
        raise
