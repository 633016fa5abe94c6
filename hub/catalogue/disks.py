"""Disks: the virtual disks of VMs, known by what vSphere says of each in a snapshot, never by their place in a list."""

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from hub.catalogue.ids import new_id
from hub.catalogue.models import DiskRow
from hub.catalogue.rows import find, value


class DiskIdentity(NamedTuple):
    """What makes a disk of a VM this disk: all three, since each of them alone repeats or changes hands."""

    device_key: int
    backing_uuid: str
    disk_object_id: str


@dataclass(frozen=True, slots=True)
class Disk:
    """A virtual disk; `capacity` in bytes. One that is not `present` was there once and has images."""

    id: str
    vm_id: str
    identity: DiskIdentity
    label: str
    capacity: int
    present: bool


async def get(session: AsyncSession, disk_id: str) -> Disk:
    """The disk; raises NotFound."""
    return _disk(await find(session, DiskRow, disk_id, "disk"))


async def list_disks(session: AsyncSession, vm_ids: Collection[str]) -> dict[str, list[Disk]]:
    """The disks of each of these VMs by device key, those no longer present too; VMs without disks are left out."""
    found: dict[str, list[Disk]] = defaultdict(list)
    rows = await session.scalars(
        select(DiskRow).where(DiskRow.vm_id.in_(vm_ids)).order_by(DiskRow.device_key, DiskRow.id)
    )
    for row in rows:
        found[row.vm_id].append(_disk(row))
    return dict(found)


async def identify(session: AsyncSession, vm_id: str, identity: DiskIdentity, label: str, capacity: int) -> Disk:
    """The disk of this identity, made if new, present with this label and capacity from now on."""
    row = await session.scalar(
        select(DiskRow).where(
            DiskRow.vm_id == vm_id,
            DiskRow.device_key == identity.device_key,
            DiskRow.backing_uuid == identity.backing_uuid,
            DiskRow.disk_object_id == identity.disk_object_id,
        )
    )
    if row is None:
        row = DiskRow(id=new_id(), vm_id=vm_id, **identity._asdict())
        session.add(row)
    row.label, row.capacity, row.present = label, capacity, True
    await session.flush()
    return _disk(row)


def _disk(row: DiskRow) -> Disk:
    return value(Disk, row, identity=DiskIdentity(row.device_key, row.backing_uuid, row.disk_object_id))
