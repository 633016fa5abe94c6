"""One virtual machine: its disks, its snapshots, and what the host does to them."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from agent.simulator.changes import ChangeId
from agent.simulator.disk import LayerInUse, VirtualDisk
from agent.simulator.records import SnapshotRecord, VmRecord
from shared.extents import Extent, merge
from shared.units import GiB

READER_GRACE = 3.0
"""Seconds a snapshot's removal waits for readers of its view to close, before it leaves consolidation for later."""

FROZEN_COPY_LIMIT = 64 * GiB
"""Disks larger than this are not copied by `keep_frozen`."""


class ChangesUnknown(Exception):
    """Change tracking cannot answer: it is off, was reset, or the change ID is from the future."""


@dataclass(frozen=True, slots=True)
class ChangedPage:
    """The answer about `[offset, offset + length)`: nothing else in that range was written."""

    offset: int
    length: int
    areas: tuple[Extent, ...]


class VirtualMachine:
    """A VM of the site. Host operations run one at a time; the guest goes on writing but for the instant of a stun."""

    def __init__(self, record: VmRecord, folder: Path, save: Callable[[], None]) -> None:
        self.record = record
        self.disks = [VirtualDisk(disk, folder / str(disk.key)) for disk in record.disks]
        self.busy = threading.Lock()
        """Held by the one host operation that runs."""
        self._save = save
        for disk in self.disks:
            disk.keep_only({snapshot.moref for snapshot in record.snapshots})

    @property
    def name(self) -> str:
        return self.record.name

    def snapshots(self) -> list[SnapshotRecord]:
        """Its snapshots, oldest first."""
        return list(self.record.snapshots)

    def snapshot(self, moref: str) -> SnapshotRecord:
        """One of its snapshots; raises KeyError."""
        for snapshot in self.record.snapshots:
            if snapshot.moref == moref:
                return snapshot
        raise KeyError(moref)

    def disk(self, key: int) -> VirtualDisk:
        """The disk with this device key; raises KeyError."""
        for disk in self.disks:
            if disk.record.key == key:
                return disk
        raise KeyError(key)

    @property
    def consolidation_needed(self) -> bool:
        """Whether a disk has layers left over that no snapshot needs."""
        return any(disk.consolidation_needed for disk in self.disks)

    def set_change_tracking(self, enabled: bool) -> None:
        """Reconfigure `changeTrackingEnabled`; a running VM begins to track at its next stun."""
        with self._stunned():
            self.record.change_tracking = enabled
            if not enabled or not self.record.powered_on:
                self._settle_tracking()
            self._save()

    def set_power(self, powered_on: bool) -> None:
        """Power on or off."""
        with self._stunned():
            self.record.powered_on = powered_on
            self._settle_tracking()
            self._save()

    def create_snapshot(
        self, moref: str, name: str, description: str, *, quiesced: bool, keep: Path | None = None
    ) -> SnapshotRecord:
        """Freeze all disks at one instant; with `keep`, copy each frozen view into `<keep>/<VM>/<moref>/<key>.raw`."""
        with self._stunned():
            self._settle_tracking()
            change_ids = {disk.record.key: disk.freeze(moref) for disk in self.disks}
            self.record.snapshots_made += 1
            snapshot = SnapshotRecord(
                moref=moref,
                number=self.record.snapshots_made,
                name=name,
                description=description,
                created=datetime.now(UTC),
                powered_on=self.record.powered_on,
                quiesced=quiesced,
                change_ids={key: change_id for key, change_id in change_ids.items() if change_id},
            )
            self.record.snapshots.append(snapshot)
            self._save()
        if keep is not None:
            self._keep_frozen(snapshot, keep)
        return snapshot

    def remove_snapshots(self, morefs: set[str], *, consolidate: bool = True) -> None:
        """Forget snapshots and consolidate; what is still being read after a grace waits for `consolidate`."""
        self._wait_for_readers(morefs)
        with self._stunned():
            self.record.snapshots = [item for item in self.record.snapshots if item.moref not in morefs]
            for disk in self.disks:
                for moref in morefs:
                    disk.release(moref)
            self._save()
        if consolidate:
            with suppress(LayerInUse):  # as on a host: the snapshot is gone, `consolidationNeeded` says the rest
                self.consolidate()

    def consolidate(self) -> None:
        """Fold away layers that no snapshot needs; raises LayerInUse while one is being read."""
        for disk in self.disks:
            with disk.lock:
                for _ in disk.consolidate():
                    self._save()

    def changed_page(self, moref: str, key: int, start: int, change_id: str, limit: int) -> ChangedPage:
        """One page of at most `limit` areas changed since `change_id` and up to the snapshot, from byte `start` on.

        `*` as change ID asks for what is allocated. Raises KeyError (no such snapshot or disk), ValueError (`start`
        or change ID malformed) and ChangesUnknown.
        """
        snapshot, disk = self.snapshot(moref), self.disk(key)
        capacity = disk.record.capacity
        if not 0 <= start < capacity:
            raise ValueError("startOffset")
        if change_id == "*":
            with disk.frozen(moref) as view:
                return _page(_clipped(merge(view.allocated()), start), start, capacity, limit)
        at, since = snapshot.change_ids.get(key), _parsed(change_id)
        if at is None:
            raise ChangesUnknown("change tracking was off at the snapshot")
        frozen = ChangeId.parse(at)
        if since.uuid != frozen.uuid or since.sequence > frozen.sequence:
            raise ChangesUnknown(f"{change_id} is not from this disk's past")
        return _page(disk.changed_areas(moref, since.sequence, start), start, capacity, limit)

    def close(self) -> None:
        """Close the disks."""
        for disk in self.disks:
            disk.close()

    @contextmanager
    def _stunned(self) -> Iterator[None]:
        """No guest of this VM runs inside the `with`."""
        with ExitStack() as stack:
            for disk in self.disks:
                stack.enter_context(disk.lock)
            yield

    def _settle_tracking(self) -> None:
        for disk in self.disks:
            disk.track(self.record.change_tracking)

    def _wait_for_readers(self, morefs: set[str]) -> None:
        deadline = time.monotonic() + READER_GRACE
        while time.monotonic() < deadline and any(disk.is_read(moref) for disk in self.disks for moref in morefs):
            time.sleep(0.02)

    def _keep_frozen(self, snapshot: SnapshotRecord, keep: Path) -> None:
        folder = keep / self.name / snapshot.moref
        folder.mkdir(parents=True, exist_ok=True)
        for disk in self.disks:
            if disk.record.capacity <= FROZEN_COPY_LIMIT:
                with disk.frozen(snapshot.moref) as view:
                    view.export(folder / f"{disk.record.key}.raw")
        facts = {"vm": self.name, "snapshot": snapshot.moref, "name": snapshot.name, "created": str(snapshot.created)}
        (folder / "snapshot.json").write_text(json.dumps(facts, indent=2) + "\n")


def _parsed(change_id: str) -> ChangeId:
    try:
        return ChangeId.parse(change_id)
    except ValueError as error:
        raise ValueError("changeId") from error


def _clipped(areas: Iterator[Extent], start: int) -> Iterator[Extent]:
    for area in areas:
        if area.end > start:
            begin = max(area.offset, start)
            yield Extent(begin, area.end - begin)


def _page(areas: Iterator[Extent], start: int, capacity: int, limit: int) -> ChangedPage:
    """The first `limit` areas; a page that leaves some out ends where its last area does."""
    taken: list[Extent] = []
    for area in areas:
        if len(taken) == limit:
            return ChangedPage(start, taken[-1].end - start, tuple(taken))
        taken.append(area)
    return ChangedPage(start, capacity - start, tuple(taken))
