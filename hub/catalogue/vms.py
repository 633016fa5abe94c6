"""VMs: known by vCenter's instance UUID, whatever they are called today."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from hub.catalogue.models import VmRow
from hub.catalogue.rows import find, value


@dataclass(frozen=True, slots=True)
class Vm:
    """A VM as its agent last reported it; `id` is the instance UUID, `vcenter` the instance UUID of its vCenter."""

    id: str
    agent_id: str
    vcenter: str
    moref: str
    name: str
    power_state: str
    guest_os: str
    hardware_version: int
    cbt_enabled: bool
    is_template: bool
    folder_path: str
    host_name: str
    seen_at: datetime
    missing_since: datetime | None
    """When a report came without it; None while it is in the inventory."""


@dataclass(frozen=True, slots=True)
class VmFilter:
    """Which VMs to list; conditions that are given all hold."""

    name: str | None = None
    agent_id: str | None = None
    vcenter: str | None = None
    present: bool | None = None


async def get(session: AsyncSession, vm_id: str) -> Vm:
    """The VM; raises NotFound."""
    return value(Vm, await find(session, VmRow, vm_id, "vm"))


async def names(session: AsyncSession, vm_ids: Collection[str]) -> dict[str, str]:
    """The names of these VMs; unknown ones are left out."""
    rows = await session.execute(select(VmRow.id, VmRow.name).where(VmRow.id.in_(vm_ids)))
    return dict(rows.all())


async def list_vms(
    session: AsyncSession, which: VmFilter, *, limit: int, after: tuple[str, str] = ("", "")
) -> list[Vm]:
    """At most `limit` VMs by name, from behind `after`: the name and ID of the last one of the page before."""
    query = select(VmRow).where(tuple_(VmRow.name, VmRow.id) > after).order_by(VmRow.name, VmRow.id).limit(limit)
    if which.name is not None:
        query = query.where(VmRow.name == which.name)
    if which.agent_id is not None:
        query = query.where(VmRow.agent_id == which.agent_id)
    if which.vcenter is not None:
        query = query.where(VmRow.vcenter == which.vcenter)
    if which.present is not None:
        query = query.where(VmRow.missing_since.is_(None) == which.present)
    return [value(Vm, row) for row in await session.scalars(query)]
