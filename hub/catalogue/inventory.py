"""Inventory: an agent's report of all VMs of its vCenter, laid over what the catalogue knew."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Select, and_, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from hub.catalogue.disks import DiskIdentity
from hub.catalogue.ids import new_id
from hub.catalogue.models import AgentRow, DiskRow, VmRow
from hub.catalogue.states import AgentState


@dataclass(frozen=True, slots=True)
class ReportedDisk:
    """A virtual disk as vSphere shows it; `capacity` in bytes."""

    identity: DiskIdentity
    label: str
    capacity: int


@dataclass(frozen=True, slots=True)
class ReportedVm:
    """A VM as vSphere shows it; `id` is its instance UUID."""

    id: str
    moref: str
    name: str
    power_state: str
    guest_os: str
    hardware_version: int
    cbt_enabled: bool
    is_template: bool
    folder_path: str
    host_name: str
    disks: tuple[ReportedDisk, ...]


@dataclass(frozen=True, slots=True)
class Clash:
    """A reported VM that was left alone: it is known as a VM of another vCenter, or another active agent has it."""

    vm_id: str
    known_vcenter: str
    known_agent: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a report changed, in numbers of VMs, and what it could not."""

    added: int
    updated: int
    missing: int
    """VMs that were in the inventory before and are not any more."""
    clashes: tuple[Clash, ...]


async def report(
    session: AsyncSession, agent_id: str, vcenter: str, vms: Iterable[ReportedVm], now: datetime
) -> Outcome:
    """Take over a whole inventory. Nothing is deleted: absent VMs are marked missing, absent disks not present.

    A clone of a vCenter repeats instance UUIDs; a VM known under another vCenter is therefore never overwritten. Nor
    is one that another active agent has: no agent can take another's VMs. A missing or a revoked agent's VM moves over.
    """
    reported = {vm.id: vm for vm in vms}
    homes = set(await session.scalars(select(VmRow.id)))
    clashes = tuple(clash for clash in await _taken(session, agent_id, vcenter) if clash.vm_id in reported)
    for clash in clashes:
        del reported[clash.vm_id]
    rows = [_row(vm) | {"agent_id": agent_id, "vcenter": vcenter, "seen_at": now} for vm in reported.values()]
    fresh = [row for row in rows if row["id"] not in homes]
    known = [row for row in rows if row["id"] in homes]
    await _insert(session, VmRow, fresh)
    await _update(session, VmRow, known)
    missing = await _mark_missing(session, agent_id, vcenter, reported, now)
    await _report_disks(session, vcenter, reported)
    return Outcome(len(fresh), len(known), missing, clashes)


async def _taken(session: AsyncSession, agent_id: str, vcenter: str) -> list[Clash]:
    """The VMs that this agent's report must leave alone."""
    held = and_(
        VmRow.agent_id != agent_id, VmRow.missing_since.is_(None), VmRow.agent_id.in_(_agents(AgentState.ACTIVE))
    )
    query = select(VmRow.id, VmRow.vcenter, VmRow.agent_id).where(or_(VmRow.vcenter != vcenter, held))
    return [Clash(*row) for row in await session.execute(query.order_by(VmRow.id))]


def _agents(state: AgentState) -> Select[str]:
    return select(AgentRow.id).where(AgentRow.state == state)


def _row(vm: ReportedVm) -> dict[str, Any]:
    row = {name: getattr(vm, name) for name in ReportedVm.__slots__ if name != "disks"}
    return row | {"missing_since": None}


async def _mark_missing(
    session: AsyncSession, agent_id: str, vcenter: str, reported: Mapping[str, object], now: datetime
) -> int:
    """Agents of one vCenter may see different parts of it: each speaks for its own VMs and those of revoked agents."""
    before = await session.scalars(
        select(VmRow.id).where(
            VmRow.vcenter == vcenter,
            VmRow.missing_since.is_(None),
            or_(VmRow.agent_id == agent_id, VmRow.agent_id.in_(_agents(AgentState.REVOKED))),
        )
    )
    gone = [{"id": vm_id, "missing_since": now} for vm_id in before if vm_id not in reported]
    await _update(session, VmRow, gone)
    return len(gone)


async def _report_disks(session: AsyncSession, vcenter: str, reported: Mapping[str, ReportedVm]) -> None:
    wanted = {(vm.id, *disk.identity): disk for vm in reported.values() for disk in vm.disks}
    known = {
        (row.vm_id, row.device_key, row.backing_uuid, row.disk_object_id): row
        for row in await session.scalars(select(DiskRow).join(VmRow).where(VmRow.vcenter == vcenter))
        if row.vm_id in reported
    }
    for key, row in known.items():
        disk = wanted.get(key)
        row.present = disk is not None
        if disk is not None:
            row.label, row.capacity = disk.label, disk.capacity
    fresh = [
        {"id": new_id(), "vm_id": key[0], "label": disk.label, "capacity": disk.capacity, "present": True}
        | disk.identity._asdict()
        for key, disk in wanted.items()
        if key not in known
    ]
    await session.flush()
    await _insert(session, DiskRow, fresh)


async def _insert(session: AsyncSession, kind: type[VmRow] | type[DiskRow], rows: list[dict[str, Any]]) -> None:
    if rows:
        await session.execute(insert(kind), rows)


async def _update(session: AsyncSession, kind: type[VmRow], rows: list[dict[str, Any]]) -> None:
    if rows:
        await session.execute(update(kind), rows)
