"""Transfers: disks of running backups on their way into images.

A transfer is opened once per disk, written by at most one stream at a time, sealed when the agent has sent all, and
committed with its backup. Its methods block and are called from the agents' listener's threads.

    OPEN ── write* ── seal ──► SEALED ── commit (the backup's) ──► gone
      └───────────┴── end ──► gone; its files are the backup's to delete
"""

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import PurePath

from hub.catalogue.disks import DiskIdentity
from hub.catalogue.images import Image
from hub.catalogue.states import BackupType
from hub.images.partial import PartialImage, SealedImage
from hub.images.qcow2 import ParentImage
from hub.repository import RepositoryFolder
from hub.tasks import RunningTask
from shared.errors import (
    Cancelled,
    CoverageIncomplete,
    InvalidRequest,
    NotFound,
    NotPossibleNow,
    NoUsableParent,
    SendenseError,
)
from shared.runs import ClusterRun, Encoding, check_digests, check_shape
from shared.units import MiB

SYNC_EVERY = 32 * MiB
"""Payload bytes after which data is made durable and the agent told: what a broken stream costs to send again."""


class CoverageSource(Enum):
    """What says that nothing of a disk was overlooked."""

    CHANGE_TRACKING = "change tracking"
    ALLOCATION = "allocation"


@dataclass(frozen=True, slots=True)
class Coverage:
    """A disk's coverage record, as the agent states it; offsets and sizes in bytes."""

    source: CoverageSource
    from_offset: int
    to_offset: int
    pages: int
    extents: int
    bytes: int


@dataclass(frozen=True, slots=True)
class IncomingDisk:
    """A disk as its snapshot shows it, and what runs for it."""

    identity: DiskIdentity
    index: int
    label: str
    capacity: int
    type_run: BackupType
    type_reason: str
    change_id: str
    base_image_id: str
    base_change_id: str


@dataclass(frozen=True, slots=True)
class Totals:
    """What the agent counted of a whole transfer."""

    data_clusters: int
    zero_clusters: int
    changed_bytes: int
    read_bytes: int
    skipped_bytes: int


@dataclass(frozen=True, slots=True)
class SealedTransfer:
    """A disk that is complete on stable storage under its unfinished name."""

    image: SealedImage
    coverage: Coverage
    totals: Totals
    sent_bytes: int


class Transfer:
    """One disk on its way in."""

    def __init__(
        self,
        backup_id: str,
        disk_id: str,
        disk: IncomingDisk,
        parent: Image | None,
        image: PartialImage,
        task: RunningTask,
    ) -> None:
        self.id = _transfer_id(backup_id, disk_id)
        self.backup_id = backup_id
        self.disk_id = disk_id
        self.disk = disk
        self.parent = parent
        self._image = image
        self._task = task
        self._lock = threading.Lock()
        self._stream = 0
        self._ended: SendenseError | None = None
        self._sealed: SealedTransfer | None = None
        self._sent = 0
        self._data_clusters = 0
        self._zero_clusters = 0

    def durable_offset(self) -> int:
        """Make everything appended durable and return where to go on; an open stream is ended by that."""
        with self._lock:
            self._stream += 1
            self._check_open()
            return self._image.durable if self._sealed else self._image.sync()

    def write(self, offset: int, runs: Iterable[ClusterRun]) -> Iterator[int]:
        """Take runs in from `offset` on, yielding durable offsets; the last one when the runs have ended.

        Raises InvalidRequest, DigestMismatch, RepositoryFull, RepositoryUnavailable, or what the transfer ended by.
        """
        with self._lock:
            self._check_open()
            if self._sealed is not None:
                raise NotPossibleNow(f"the transfer of {self.disk.label} is sealed already")
            if offset != (durable := self._image.sync()):
                raise InvalidRequest(f"the transfer goes on at {durable}, not at {offset}", field="start.offset")
            self._stream += 1
            stream = self._stream
        unsynced = 0
        for run in runs:
            check_shape(run)
            check_digests(run)
            self._append(stream, run)
            unsynced += len(run.payload)
            if unsynced >= SYNC_EVERY:
                yield self._sync(stream)
                unsynced = 0
        yield self._sync(stream)

    def seal(self, coverage: Coverage, totals: Totals) -> SealedTransfer:
        """Finish the image; again returns the same. Raises CoverageIncomplete when it is not the whole disk."""
        with self._lock:
            if self._sealed is None:
                self._check_open()
                self._check_whole(coverage, totals)
                image = self._image.seal()
                self._task.received(0, image.stored - self._sent)
                self._sealed = SealedTransfer(image, coverage, totals, self._sent)
            return self._sealed

    def sealed(self) -> SealedTransfer:
        """What was sealed; raises NotPossibleNow when nothing was."""
        if self._sealed is None:
            raise NotPossibleNow(f"the transfer of {self.disk.label} is not sealed")
        return self._sealed

    def publish(self) -> None:
        """Give the sealed image and its manifest their own names, durably."""
        with self._lock:
            self._image.commit()

    def end(self, error: SendenseError) -> None:
        """End the transfer; streams that write to it get `error`. May be called twice; cannot fail."""
        with self._lock:
            self._ended = self._ended or error
            self._image.close()

    def _append(self, stream: int, run: ClusterRun) -> None:
        with self._lock:
            self._check_open(stream)
            self._image.append(run)
            self._sent += len(run.payload)
            if run.encoding is Encoding.ZERO:
                self._zero_clusters += run.count
            else:
                self._data_clusters += run.count
        self._task.received(len(run.payload), len(run.payload))

    def _sync(self, stream: int) -> int:
        with self._lock:
            self._check_open(stream)
            return self._image.sync()

    def _check_open(self, stream: int | None = None) -> None:
        if self._ended is not None:
            raise self._ended
        if stream is not None and stream != self._stream:
            raise Cancelled("another stream writes to this transfer now")

    def _check_whole(self, coverage: Coverage, totals: Totals) -> None:
        counted = (self._data_clusters, self._zero_clusters)
        if counted != (totals.data_clusters, totals.zero_clusters):
            raise CoverageIncomplete(
                f"{counted[0]} data and {counted[1]} zero clusters of {self.disk.label} arrived, "
                f"{totals.data_clusters} and {totals.zero_clusters} were sent"
            )
        if (coverage.from_offset, coverage.to_offset) != (0, self.disk.capacity) or coverage.pages < 1:
            raise CoverageIncomplete(
                f"the coverage of {self.disk.label} is [{coverage.from_offset}, {coverage.to_offset}) "
                f"in {coverage.pages} pages, the disk has {self.disk.capacity} bytes"
            )
        by_tracking = coverage.source is CoverageSource.CHANGE_TRACKING
        if by_tracking != (self.disk.type_run is BackupType.INCREMENTAL):
            raise CoverageIncomplete(
                f"{self.disk.label}: {coverage.source.value} does not prove a {self.disk.type_run}"
            )


class Transfers:
    """The transfers of all running backups; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_id: dict[str, Transfer] = {}

    def open(
        self,
        *,
        backup_id: str,
        vm_id: str,
        disk_id: str,
        disk: IncomingDisk,
        parent: Image | None,
        folder: RepositoryFolder,
        task: RunningTask,
    ) -> Transfer:
        """Begin a disk's transfer; the same disk again is the same transfer. Raises InvalidRequest if it differs.

        One call at a time for a backup, which its caller sees to.
        """
        with self._lock:
            known = self._by_id.get(_transfer_id(backup_id, disk_id))
            if known is None:
                self._check_index(backup_id, disk)
        if known is None:
            # Without the lock: the other transfers do not wait for this one's files.
            image = _new_image(folder, vm_id, disk_id, backup_id, disk.capacity, parent)
            known = Transfer(backup_id, disk_id, disk, parent, image, task)
            with self._lock:
                self._by_id[known.id] = known
        if known.disk != disk:
            raise InvalidRequest(f"the transfer of {disk.label} was begun with other arguments")
        return known

    def get(self, transfer_id: str) -> Transfer:
        """The transfer; raises NotFound."""
        with self._lock:
            found = self._by_id.get(transfer_id)
        if found is None:
            raise NotFound(f"there is no transfer {transfer_id}")
        return found

    def of(self, backup_id: str) -> list[Transfer]:
        """A backup's transfers, by disk index."""
        with self._lock:
            found = [transfer for transfer in self._by_id.values() if transfer.backup_id == backup_id]
        return sorted(found, key=lambda transfer: transfer.disk.index)

    def forget(self, backup_id: str) -> None:
        """Drop a backup's transfers, once they are committed or ended."""
        with self._lock:
            for transfer_id in [key for key, value in self._by_id.items() if value.backup_id == backup_id]:
                del self._by_id[transfer_id]

    def _check_index(self, backup_id: str, disk: IncomingDisk) -> None:
        for other in self._by_id.values():
            if other.backup_id == backup_id and other.disk.index == disk.index:
                message = f"disk {disk.index} of the backup is {other.disk.label} already"
                raise InvalidRequest(message, field="disk_index")


def _transfer_id(backup_id: str, disk_id: str) -> str:
    return f"{backup_id}.{disk_id}"


def _new_image(
    folder: RepositoryFolder, vm_id: str, disk_id: str, backup_id: str, capacity: int, parent: Image | None
) -> PartialImage:
    if parent is not None and not (folder.path / parent.path).is_file():
        raise NoUsableParent(f"the image {parent.path}, which the disk's changes are of, is not in the repository")
    folder.make_disk_folder(vm_id, disk_id)
    # A parent lies in the same folder: its bare name stays true wherever the repository is moved.
    over = ParentImage(PurePath(parent.path).name) if parent is not None else None
    return PartialImage.create(folder.image(vm_id, disk_id, backup_id), capacity, over)
