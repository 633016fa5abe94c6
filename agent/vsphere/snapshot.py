"""Snapshots of ours: one per VM while a backup reads it, removed whatever happens, found again after a crash.

    ledger: intended ─ create call ─ ledger: made ─ backup reads ─ removed ─ consolidated ─ ledger: gone
                     ╰── a crash anywhere in between: `reap` finds it by its name ──╯

A snapshot is ours when its name is of our form and names this agent; all others belong to somebody and are not touched.
"""

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal

from pyVmomi import vim, vmodl

from agent.vsphere import properties, tasks
from agent.vsphere.inventory import Disk, Vm, disk_of, managed_vm, skipped, virtual_disks
from agent.vsphere.ledger import Entry, Ledger
from agent.vsphere.session import VSphereSession
from shared import logs
from shared.errors import NotBackupable, NotFound, SendenseError

QUIESCE_TRIES = 2
"""A busy guest often misses the 10 s that Windows gives its writers once, and seldom twice."""

REMOVAL_PAUSES = (1.0, 5.0)
"""Seconds between tries to remove a snapshot, where trying again can help; later on it is `reap`'s turn."""

REMEMBERED = 24 * 3600.0
"""Seconds an entry stands though its snapshot is not to be seen: a create call whose answer was lost may still bear
one, and a VM that is not to be found may come back."""

log = logs.get(__name__)


@dataclass(frozen=True, slots=True)
class SnapshotDisk:
    """A disk as the snapshot holds it. Its identity is device key, backing UUID and disk object ID together."""

    device_key: int
    backing_uuid: str
    disk_object_id: str
    label: str
    capacity: int
    """Bytes."""
    change_id: str
    """'' where change tracking is off."""
    file_name: str
    """As recorded in the snapshot, the one that VDDK must be asked for."""


@dataclass(frozen=True, slots=True)
class SkippedDisk:
    """A disk that a snapshot cannot capture."""

    device_key: int
    label: str
    reason: str
    """INDEPENDENT, PHYSICAL_RDM or MULTI_WRITER."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A frozen view of a VM's disks, all of one instant."""

    moref: str
    vm: Vm
    taken_at: datetime
    """By vCenter's clock, UTC."""
    consistency: Literal["CRASH", "QUIESCED"]
    disks: tuple[SnapshotDisk, ...]
    """Those it captures, by device key."""
    skipped: tuple[SkippedDisk, ...]


def snapshot_name(agent_id: str, task_id: str) -> str:
    """The name of a task's snapshot. Hyphens within the ids go: two UUIDs would pass vCenter's limit of 80 letters,
    and what is left can be told apart at the hyphens."""
    return f"sendense-{_compact(agent_id)}-{_compact(task_id)}"


@contextmanager
def taken(
    session: VSphereSession,
    vm: Vm,
    *,
    agent_id: str,
    task_id: str,
    ledger: Ledger,
    quiesce: bool,
    timeout: float,
    check_stop: Callable[[], None] = lambda: None,
) -> Iterator[Snapshot]:
    """A snapshot of the VM, inside the `with`; it is removed at the end whatever happened.

    A removal that fails is logged and left to `reap`: it neither hides an error nor spoils what was done.
    `timeout` seconds each for making and removing it; what `check_stop` raises ends the wait for it to be made, and a
    snapshot that comes after all is left to `reap`. Raises NotBackupable for a template or a VM without a disk to
    capture, TimedOut, and vCenter's faults translated.
    """
    _refuse_unbackupable(vm)
    managed = session.object(vim.VirtualMachine, vm.moref)
    name = snapshot_name(agent_id, task_id)
    ledger.intend(name, vm.instance_uuid, vm.moref)
    try:
        moref, quiesced = _create(
            managed, vm, name, quiesce, partial(tasks.carry_out, timeout=timeout, check_stop=check_stop)
        )
        ledger.made(name, moref)
        yield _read(session, managed, vm, moref, quiesced)
    finally:
        _clear(session, ledger, vm.instance_uuid, lambda found: found == name, timeout)


def reap(
    session: VSphereSession,
    ledger: Ledger,
    agent_id: str,
    active_tasks: Callable[[], Collection[str]],
    *,
    timeout: float,
    instance_uuid: str = "",
) -> None:
    """Remove the snapshots that this agent has left behind; call it every now and then, and before each backup.

    Looks at the VMs of the ledger, or only at the one named, be it in the ledger or not. Snapshots of other agents and
    of people are not touched, nor those of active tasks: `active_tasks` gives their IDs, and is asked again after
    vCenter has listed the snapshots, since a task may begin meanwhile. What cannot be removed now is logged and stays
    in the ledger.
    """
    ours = snapshot_name(agent_id, "")

    def is_leftover(name: str) -> bool:
        if not name.startswith(ours) or name.count("-") != ours.count("-"):
            return False
        return name not in {snapshot_name(agent_id, task_id) for task_id in active_tasks()}

    for vm in [instance_uuid] if instance_uuid else sorted({entry.instance_uuid for entry in ledger.entries()}):
        _clear(session, ledger, vm, is_leftover, timeout)


def _refuse_unbackupable(vm: Vm) -> None:
    if vm.is_template:
        raise NotBackupable(f"{vm.name} is a template: vSphere cannot take snapshots of templates", vm=vm.name)
    if all(skipped(disk) for disk in vm.disks):
        raise NotBackupable(f"{vm.name} has no disk that a snapshot captures", vm=vm.name)


def _create(managed: Any, vm: Vm, name: str, quiesce: bool, carry_out: Callable[..., Any]) -> tuple[str, bool]:
    """Reference of a new snapshot, and whether the guest was quiesced."""

    def create(quiesced: bool) -> str:
        call = partial(managed.CreateSnapshot_Task, name, "Sendense reads a backup from it", False, quiesced)
        made = carry_out(f"taking a snapshot of {vm.name}", call)
        return str(made._GetMoId())

    # vCenter ignores the wish for a VM that does not run.
    for _ in range(QUIESCE_TRIES if quiesce and vm.power_state == "POWERED_ON" else 0):
        try:
            return create(True), True
        except SendenseError as error:
            if not _is_quiesce_fault(error.__cause__):
                raise
            log.warning("the guest could not be quiesced", vm=vm.name, error=error.message)
    return create(False), False


def _is_quiesce_fault(fault: Any) -> bool:
    kinds = (vim.fault.ApplicationQuiesceFault, vim.fault.FilesystemQuiesceFault, vim.fault.ToolsUnavailable)
    # ESXi also reports it as a general fault that says 'An error occurred while quiescing the virtual machine'.
    general = isinstance(fault, vmodl.MethodFault) and "quiesc" in (fault.msg or "").lower()
    return isinstance(fault, kinds) or general


def _read(session: VSphereSession, managed: Any, vm: Vm, moref: str, quiesced: bool) -> Snapshot:
    config = properties.of(session, session.object(vim.vm.Snapshot, moref), "config.hardware.device")
    devices = virtual_disks(config.get("config.hardware.device", ()))
    captured = [(disk_of(device), device) for device in devices]
    # Disks that the snapshot leaves out altogether are known from the VM only.
    known = {disk.device_key: disk for disk in (*vm.disks, *(disk for disk, _ in captured))}
    return Snapshot(
        moref=moref,
        vm=vm,
        taken_at=_created_at(session, managed, moref),
        consistency="QUIESCED" if quiesced else "CRASH",
        disks=tuple(_snapshot_disk(disk, device) for disk, device in captured if not skipped(disk)),
        skipped=tuple(
            SkippedDisk(key, disk.label, reason) for key, disk in sorted(known.items()) if (reason := skipped(disk))
        ),
    )


def _snapshot_disk(disk: Disk, device: Any) -> SnapshotDisk:
    return SnapshotDisk(
        disk.device_key,
        disk.backing_uuid,
        disk.disk_object_id,
        disk.label,
        disk.capacity,
        change_id=getattr(device.backing, "changeId", None) or "",
        file_name=disk.file_name,
    )


def _created_at(session: VSphereSession, managed: Any, moref: str) -> datetime:
    for node in _tree(session, managed):
        if node.snapshot._GetMoId() == moref:
            created: datetime = node.createTime
            return created.astimezone(UTC)
    raise NotFound(f"vCenter does not list the snapshot {moref} that it has just made", snapshot=moref)


def _tree(session: VSphereSession, managed: Any) -> Iterator[Any]:
    """Every snapshot of the VM, parents before children."""
    info = properties.of(session, managed, "snapshot").get("snapshot")
    waiting = list(info.rootSnapshotList) if info else []
    while waiting:
        node = waiting.pop(0)
        yield node
        waiting.extend(node.childSnapshotList)


def _clear(
    session: VSphereSession, ledger: Ledger, instance_uuid: str, is_leftover: Callable[[str], bool], timeout: float
) -> None:
    """Remove the VM's snapshots whose names are leftovers, and strike them out; or log why that cannot be now."""
    # Before vCenter is asked: of a snapshot that is made after it was, its answer tells nothing.
    entries = [entry for entry in ledger.entries() if entry.instance_uuid == instance_uuid and is_leftover(entry.name)]
    removed: set[str] | None
    try:
        removed = _retried(partial(_remove, session, instance_uuid, is_leftover, timeout))
    except NotFound as error:
        log.warning("the VM of a snapshot is not in vCenter now", vm=instance_uuid, error=error.message)
        removed = None
    except SendenseError as error:
        log.error("a snapshot could not be removed; it will be tried again", vm=instance_uuid, error=error.message)
        return
    for entry in entries:
        if _is_settled(entry, removed):
            ledger.gone(entry.name)


def _is_settled(entry: Entry, removed: set[str] | None) -> bool:
    """Whether the entry's snapshot is gone for good; `removed` is None when its VM was not to be found."""
    if removed is not None and (entry.name in removed or entry.snapshot_moref):
        return True
    return entry.age > REMEMBERED


def _retried(remove: Callable[[], set[str]]) -> set[str]:
    for pause in REMOVAL_PAUSES:
        try:
            return remove()
        except SendenseError as error:
            if not error.retry_helps:
                raise
            log.warning("a snapshot could not be removed; trying again", seconds=pause, error=error.message)
            time.sleep(pause)
    return remove()


def _remove(
    session: VSphereSession, instance_uuid: str, is_leftover: Callable[[str], bool], timeout: float
) -> set[str]:
    """Remove the VM's leftovers, wait until their data is merged, and return their names; NotFound: no such VM."""
    managed = managed_vm(session, instance_uuid)
    leftovers = [node for node in _tree(session, managed) if is_leftover(node.name)]
    for node in leftovers:
        # Without its children: somebody may have taken a snapshot on top of ours.
        call = partial(node.snapshot.RemoveSnapshot_Task, removeChildren=False, consolidate=True)
        with suppress(NotFound):  # somebody was faster
            tasks.carry_out(f"removing snapshot {node.name}", call, timeout=timeout)
    if properties.of(session, managed, "runtime.consolidationNeeded").get("runtime.consolidationNeeded"):
        tasks.carry_out("consolidating disks", managed.ConsolidateVMDisks_Task, timeout=timeout)
    return {node.name for node in leftovers}


def _compact(identifier: str) -> str:
    return identifier.replace("-", "")
