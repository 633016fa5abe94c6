"""Changed block tracking: making sure it is on, deciding per disk what can run, and asking what changed.

vCenter answers in pages. Each must begin where the one before ended, up to the disk's end; only then is it known that
nothing was left out:

    0 ──────── page ────────│──── page (empty) ────│─── page ───│ capacity
        ██   ███     █                                █████
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

from pyVmomi import vim, vmodl

from agent.vsphere import properties, tasks
from agent.vsphere.faults import fault_kind, translated
from agent.vsphere.inventory import Vm
from agent.vsphere.ledger import Ledger
from agent.vsphere.session import VSphereSession
from agent.vsphere.snapshot import Snapshot, SnapshotDisk, taken
from shared import logs
from shared.errors import CbtLost, CoverageIncomplete, NotPermitted
from shared.extents import Extent

OLDEST_HARDWARE = 7
"""The first virtual hardware version with change tracking."""

log = logs.get(__name__)


class Asked(Enum):
    """A type of backup: what was asked for, and (never AUTO) what runs."""

    FULL = "FULL"
    INCREMENTAL = "INCREMENTAL"
    AUTO = "AUTO"


@dataclass(frozen=True, slots=True)
class ChangeId:
    """VMware's `uuid/sequence`: another uuid means that tracking began anew, a lower sequence that it went back."""

    uuid: str
    sequence: int


@dataclass(frozen=True, slots=True)
class Base:
    """A disk's newest restore point."""

    image_id: str
    change_id: str
    capacity: int
    """Bytes, then."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What runs for a disk; `reason` says, upper-snake, why a full runs where an increment was wanted, else ''."""

    type_run: Asked
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Coverage:
    """Proof that the pages tiled the disk: `[from_offset, to_offset)`, and what they named."""

    from_offset: int
    to_offset: int
    pages: int
    extents: int
    bytes: int


def parse_change_id(change_id: str) -> ChangeId:
    """Read `uuid/sequence`; raises ValueError."""
    uuid, slash, sequence = change_id.rpartition("/")
    if not (uuid and slash and sequence.isdecimal()):
        raise ValueError(f"not a change ID: {change_id!r}")
    return ChangeId(uuid, int(sequence))


def decide(disk: SnapshotDisk, base: Base | None, asked: Asked) -> Decision:
    """What can run for a disk, given the newest restore point of the same disk (None: there is none)."""
    if asked is Asked.FULL:
        return Decision(Asked.FULL)
    reason = "FIRST_BACKUP" if base is None else _obstacle(disk, base)
    return Decision(Asked.FULL, reason) if reason else Decision(Asked.INCREMENTAL)


def enable_tracking(
    session: VSphereSession, vm: Vm, *, agent_id: str, task_id: str, ledger: Ledger, timeout: float
) -> str:
    """Turn change tracking on where that is safe; return '' when it is on, else why not, upper-snake.

    CBT_UNSUPPORTED, CBT_BLOCKED_BY_SNAPSHOT, CBT_BLOCKED_BY_CONSOLIDATION, CBT_NOT_PERMITTED, CBT_NOT_ENABLED. Without
    it a backup is full. Makes and removes a snapshot: a running VM starts to track at its next stun only.
    """
    if not vm.cbt_supported or vm.hardware_version < OLDEST_HARDWARE:
        return "CBT_UNSUPPORTED"
    managed = session.object(vim.VirtualMachine, vm.moref)
    state = properties.of(session, managed, *_TRACKING_PATHS)
    if state.get("config.changeTrackingEnabled"):
        return ""
    # Since vSphere 6.5 a map that begins under a snapshot, or under an unmerged delta, is incomplete without a word.
    if state.get("snapshot"):
        return "CBT_BLOCKED_BY_SNAPSHOT"
    if state.get("runtime.consolidationNeeded"):
        return "CBT_BLOCKED_BY_CONSOLIDATION"
    try:
        _reconfigure(managed, vm, timeout)
    except NotPermitted as error:
        log.warning("change tracking cannot be turned on", vm=vm.name, error=error.message)
        return "CBT_NOT_PERMITTED"
    with taken(session, vm, agent_id=agent_id, task_id=task_id, ledger=ledger, quiesce=False, timeout=timeout):
        pass
    enabled = properties.of(session, managed, *_TRACKING_PATHS).get("config.changeTrackingEnabled")
    return "" if enabled else "CBT_NOT_ENABLED"


def changed(session: VSphereSession, snapshot: Snapshot, disk: SnapshotDisk, base_change_id: str) -> "Changes":
    """What changed on a disk between `base_change_id` and the snapshot; nothing is asked before it is iterated."""
    managed = session.object(vim.VirtualMachine, snapshot.vm.moref)
    frozen = session.object(vim.vm.Snapshot, snapshot.moref)

    def ask(offset: int) -> Any:
        with translated(f"asking what changed on {disk.label} of {snapshot.vm.name} from offset {offset}"):
            try:
                return managed.QueryChangedDiskAreas(frozen, disk.device_key, offset, base_change_id)
            except _LOSS as fault:
                log.warning("change tracking failed; trying once more", disk=disk.label, fault=fault_kind(fault))
            session.renew()
            try:
                return managed.QueryChangedDiskAreas(frozen, disk.device_key, offset, base_change_id)
            except _LOSS as fault:
                raise CbtLost(
                    f"vCenter cannot tell what changed on {disk.label} of {snapshot.vm.name} since "
                    f"{base_change_id!r} ({fault_kind(fault)}: {fault.msg})",
                    disk=disk.label,
                    fault=fault_kind(fault),
                ) from fault

    return Changes(ask, disk.capacity)


class Changes:
    """The changed extents of one disk, asked for page by page while they are iterated; memory stays flat.

    Ascending and disjoint, but not aligned to anything. Iterate once, to the end; then `coverage` is there.
    Iterating raises CoverageIncomplete at a page that does not fit, CbtLost when vCenter cannot tell what changed.
    """

    def __init__(self, ask: Callable[[int], Any], capacity: int) -> None:
        """`ask(offset)` returns vCenter's DiskChangeInfo for what begins at `offset`; `capacity` in bytes."""
        self._ask = ask
        self._capacity = capacity
        self._reached = self._pages = self._extents = self._bytes = 0

    def __iter__(self) -> Iterator[Extent]:
        # Never beyond: asking at the disk's very end is an InvalidArgument to vCenter, not an empty page.
        while self._reached < self._capacity:
            page = self._ask(self._reached)
            _check_page(page, self._reached, self._capacity)
            for extent in _extents_of(page):
                self._extents += 1
                self._bytes += extent.length
                yield extent
            self._pages += 1
            self._reached += page.length

    @property
    def coverage(self) -> Coverage:
        """The proof; raises CoverageIncomplete while the pages have not reached the end of the disk."""
        if self._reached != self._capacity:
            raise CoverageIncomplete(f"changes are known up to byte {self._reached} of {self._capacity} only")
        return Coverage(0, self._capacity, self._pages, self._extents, self._bytes)


_TRACKING_PATHS = ("config.changeTrackingEnabled", "runtime.consolidationNeeded", "snapshot")

_LOSS = (vim.fault.FileFault, vim.fault.NotFound, vmodl.fault.InvalidArgument)
"""How vCenter says that it cannot tell: the change file is gone or damaged, or the change ID means nothing to it."""


def _obstacle(disk: SnapshotDisk, base: Base) -> str:
    """Why the base is of no use for the disk, or ''."""
    if disk.capacity != base.capacity:
        return "CAPACITY_CHANGED"
    try:
        now, then = parse_change_id(disk.change_id), parse_change_id(base.change_id)
    except ValueError:
        return "CHANGE_ID_MISSING"
    if now.uuid != then.uuid:
        return "CBT_RESET"
    return "CBT_SEQUENCE_DROPPED" if now.sequence < then.sequence else ""


def _reconfigure(managed: Any, vm: Vm, timeout: float) -> None:
    def start() -> Any:
        return managed.ReconfigVM_Task(vim.vm.ConfigSpec(changeTrackingEnabled=True))

    tasks.carry_out(f"turning change tracking on for {vm.name}", start, timeout=timeout)


def _check_page(page: Any, offset: int, capacity: int) -> None:
    if page.startOffset != offset or page.length <= 0 or offset + page.length > capacity:
        raise CoverageIncomplete(
            f"vCenter answered with {page.length} bytes from offset {page.startOffset}, asked from offset {offset} of "
            f"a disk of {capacity} bytes",
            offset=offset,
        )


def _extents_of(page: Any) -> Iterator[Extent]:
    """The page's extents, checked: inside it, ascending, disjoint."""
    reached, end = page.startOffset, page.startOffset + page.length
    for area in page.changedArea:
        if area.start < reached or area.length <= 0 or area.start + area.length > end:
            raise CoverageIncomplete(
                f"vCenter named a change of {area.length} bytes at offset {area.start}, which does not fit between "
                f"{reached} and {end}",
                offset=area.start,
            )
        reached = area.start + area.length
        yield Extent(area.start, area.length)
