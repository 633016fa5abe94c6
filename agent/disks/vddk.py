"""A disk of a vSphere snapshot, read by nbdkit's vddk plugin: one nbdkit per disk, on a unix socket of its own.

VMware's VDDK ─ nbdkit vddk (child process) ─ unix socket in a private folder ─ libnbd (shared.nbd)
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer

from agent.config import VCenterSection, VddkSection
from shared import logs
from shared.config import read_secret
from shared.errors import ReadFailed, SourceUnavailable, TimedOut, Unavailable
from shared.extents import Extent
from shared.nbd import NbdDisk, Piece
from shared.process import ProgramFailed, ServedProgram, serving

RETRIES = 2
RETRY_DELAY = 1
"""How nbdkit's retry filter reopens a disk whose reading failed: after 1 and after 2 seconds, then the error stands. By
its defaults a backup would hang for a minute at each bad place; the first opening is never repeated."""

EXIT_NOTICE = 0.5
"""Seconds until a process whose socket has closed is seen to have ended."""

log = logs.get(__name__)


@contextmanager
def opened(
    settings: VddkSection,
    vcenter: VCenterSection,
    thumbprint_sha1: str,
    vm_moref: str,
    snapshot_moref: str,
    disk_file: str,
) -> Iterator["VddkReader"]:
    """Open a disk of a snapshot; nbdkit runs inside the `with`, and is always ended after it.

    `disk_file` as recorded in the snapshot. nbdkit dies with the thread that calls this: keep that one alive. Raises
    SourceUnavailable with nbdkit's last words, or TimedOut after `settings.start_timeout` seconds.
    """
    with tempfile.TemporaryDirectory(prefix="sendense-") as folder:  # 0700: the socket has no other protection
        socket, pid = Path(folder, "sock"), Path(folder, "pid")
        command: list[str | Path] = [
            *("nbdkit", "--foreground", "--exit-with-parent", "--readonly", "-U", socket, "-P", pid),
            *("--filter=cacheextents", "--filter=retry", settings.plugin),
            *_disk(settings, vcenter, thumbprint_sha1, disk_file),
            *(f"vm=moref={vm_moref}", f"snapshot={snapshot_moref}"),
            *(f"retries={RETRIES}", f"retry-delay={RETRY_DELAY}"),
        ]
        with serving(command, env=_environment(settings), secrets=[read_secret(vcenter.password_file)]) as nbdkit:
            with _connected(socket, pid, nbdkit, settings.start_timeout, disk_file) as disk:
                yield VddkReader(disk, nbdkit, disk_file)


class VddkReader:
    """A DiskReader over a running nbdkit."""

    def __init__(self, disk: NbdDisk, nbdkit: ServedProgram, disk_file: str) -> None:
        self._disk = disk
        self._nbdkit = nbdkit
        self._disk_file = disk_file
        self.capacity = disk.size

    def allocated(self) -> Iterator[Extent]:
        """See DiskReader. Where the map cannot be told, the rest of the disk is DATA, to be read."""
        reached = 0
        try:
            for extent in self._disk.extents():
                yield extent
                reached = extent.end
        except ReadFailed as error:
            self._raise_if_ended(error)
            log.warning("no allocation map; reading it all", disk=self._disk_file, offset=reached, error=error.message)
            yield Extent(reached, self.capacity - reached)

    def read(
        self, pieces: Iterable[Extent], *, depth: int = 4, stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[Piece]:
        """See DiskReader."""
        try:
            yield from self._disk.read(pieces, depth=depth, stopped=stopped)
        except ReadFailed as error:
            self._raise_if_ended(error)
            raise ReadFailed(f"{self._disk_file}: {error.message}{_said(self._nbdkit)}", **error.facts) from error

    def _raise_if_ended(self, error: ReadFailed) -> None:
        """Raise what is behind an error when nbdkit is no more."""
        deadline = time.monotonic() + EXIT_NOTICE
        while self._nbdkit.exit_code is None and time.monotonic() < deadline:
            time.sleep(0.01)
        if self._nbdkit.exit_code is not None:
            raise SourceUnavailable(
                f"nbdkit ended while it was reading {self._disk_file} (exit {self._nbdkit.exit_code})"
                f"{_said(self._nbdkit)}",
                **error.facts,
            ) from error


def _disk(settings: VddkSection, vcenter: VCenterSection, thumbprint_sha1: str, disk_file: str) -> Iterator[str]:
    yield f"libdir={settings.libdir}"
    yield f"server={vcenter.server}"
    yield f"port={vcenter.port}"
    yield f"user={vcenter.username}"
    yield f"password=+{vcenter.password_file}"
    yield f"thumbprint={thumbprint_sha1}"
    yield f"transports={settings.transports}"
    yield f"compression={settings.compression}"
    yield f"file={disk_file}"


def _environment(settings: VddkSection) -> dict[str, str]:
    """The child's; with VDDK's library path set, the plugin need not run nbdkit a second time to set it."""
    return {**os.environ, "LD_LIBRARY_PATH": str(settings.libdir / "lib64")}


@contextmanager
def _connected(socket: Path, pid: Path, nbdkit: ServedProgram, timeout: float, disk_file: str) -> Iterator[NbdDisk]:
    """A connection to nbdkit, which logs in and opens the disk only now."""
    deadline = time.monotonic() + timeout
    try:
        nbdkit.wait_until(pid.exists, timeout)
    except ProgramFailed as error:
        raise SourceUnavailable(f"nbdkit cannot open {disk_file}: {error.message}", disk=disk_file) from error
    # VDDK may wait for minutes for a host that does not answer, and libnbd with it: ending nbdkit ends both.
    alarm = Timer(deadline - time.monotonic(), nbdkit.stop)
    alarm.start()
    try:
        disk = NbdDisk(socket)
    except Unavailable as error:
        if time.monotonic() >= deadline:
            raise TimedOut(f"nbdkit has not opened {disk_file} within {timeout:.0f} s{_said(nbdkit)}") from error
        raise SourceUnavailable(f"nbdkit cannot open {disk_file}{_said(nbdkit)}", disk=disk_file) from error
    finally:
        alarm.cancel()
    with disk:
        yield disk


def _said(nbdkit: ServedProgram) -> str:
    words = nbdkit.last_words()
    return f": {words}" if words else ""
