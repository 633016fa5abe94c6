"""Files written for keeps: every byte written, stable storage asked for and believed, errors of storage translated.

The door of `hub/images` to the operating system: an OSError leaves it as RepositoryFull, RepositoryUnavailable,
AlreadyExists or, where a file is to be opened, NotFound.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from shared.errors import AlreadyExists, Conflict, NotFound, RepositoryFull, RepositoryUnavailable, SendenseError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_PRIVATE = 0o600  # guests' data: for the hub's own user


@contextmanager
def storage_errors(path: Path, *, missing: type[SendenseError] = RepositoryUnavailable) -> Iterator[None]:
    """Translate what the operating system says about `path`; `missing` is raised where something does not exist."""
    try:
        yield
    except FileNotFoundError as error:
        raise missing(f"{path} does not exist") from error
    except FileExistsError as error:
        raise AlreadyExists(f"{path} exists") from error
    except OSError as error:
        kind = RepositoryFull if error.errno in _FULL else RepositoryUnavailable
        raise kind(f"{path}: {error.strerror or error}") from error


class DurableFile:
    """A file being written by this process alone, at offsets the caller keeps account of."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    @classmethod
    def create(cls, path: Path) -> Self:
        """Make a file that must not exist yet, and lock it."""
        return cls._open(path, os.O_CREAT | os.O_EXCL)

    @classmethod
    def replace(cls, path: Path) -> Self:
        """Make a file, emptied if it exists, and lock it."""
        return cls._open(path, os.O_CREAT | os.O_TRUNC)

    @classmethod
    def reopen(cls, path: Path) -> Self:
        """Open a file that exists, and lock it; raises NotFound, or Conflict while another has it open."""
        return cls._open(path, 0, missing=NotFound)

    @classmethod
    def _open(cls, path: Path, flags: int, missing: type[SendenseError] = RepositoryUnavailable) -> Self:
        with storage_errors(path, missing=missing), ExitStack() as on_error:
            file = cls(path, os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | flags, _PRIVATE))
            on_error.callback(file.close)
            try:
                fcntl.flock(file._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Conflict(f"{path} is being written by another") from error
            on_error.pop_all()
        return file

    @property
    def size(self) -> int:
        """Bytes."""
        return os.fstat(self._descriptor).st_size

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data` at `offset`; a system call may take less than it was given."""
        with storage_errors(self.path):
            written = os.pwrite(self._descriptor, data, offset)
            while written < len(data):
                written += os.pwrite(self._descriptor, memoryview(data)[written:], offset + written)

    def truncate(self, size: int) -> None:
        """Cut, or extend with zeros, to `size` bytes."""
        with storage_errors(self.path):
            os.ftruncate(self._descriptor, size)

    def sync(self) -> None:
        """Return once all written bytes are on stable storage.

        After an error nothing is known of any byte since the last success, and asking again proves nothing: the
        kernel has forgotten which pages it failed to write.
        """
        with storage_errors(self.path):
            os.fdatasync(self._descriptor)

    def close(self) -> None:
        """Close and unlock; may be called twice."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with suppress(OSError):  # what matters was synced, and an earlier error must stay the one seen
                os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def sync_folder(folder: Path) -> None:
    """Return once the folder's names are on stable storage."""
    with storage_errors(folder):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
