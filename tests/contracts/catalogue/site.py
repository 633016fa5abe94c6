"""A small site in a catalogue: an agent, VMs with disks, a repository, and backups of them."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from hub.catalogue import agents, backups, disks, inventory, repositories, tasks
from hub.catalogue.backups import Backup
from hub.catalogue.disks import DiskIdentity
from hub.catalogue.engine import Catalogue
from hub.catalogue.ids import new_id
from hub.catalogue.images import NewImage
from hub.catalogue.inventory import ReportedDisk, ReportedVm
from hub.catalogue.states import BackupType, TaskKind
from hub.catalogue.tasks import Task
from shared.units import GiB

NOW = datetime(2026, 11, 20, 10, 30, 0, 123456, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)
VCENTER = "0a1b2c3d-0000-4000-8000-000000000001"
OTHER_VCENTER = "0a1b2c3d-0000-4000-8000-000000000002"


@dataclass(frozen=True)
class Site:
    """IDs of what is there."""

    agent: str
    vm: str
    other_vm: str
    disk: str
    second_disk: str
    foreign_disk: str
    repository: str
    second_repository: str


def vm_id(number: int) -> str:
    return f"5000aaaa-0000-4000-8000-{number:012d}"


def reported_disk(vm: int, number: int) -> ReportedDisk:
    identity = DiskIdentity(2000 + number, f"6000C29{number}-{vm:08d}", f"{vm}-{2000 + number}")
    return ReportedDisk(identity, f"Hard disk {number + 1}", 10 * GiB)


def reported_vm(number: int, disk_count: int = 2, **changes: Any) -> ReportedVm:
    vm = ReportedVm(
        id=vm_id(number),
        moref=f"vm-{number}",
        name=f"vm{number}",
        power_state="poweredOn",
        guest_os="debian12_64Guest",
        hardware_version=19,
        cbt_enabled=True,
        is_template=False,
        folder_path="/Datacenter/vm",
        host_name="esx1",
        disks=tuple(reported_disk(number, each) for each in range(disk_count)),
    )
    return replace(vm, **changes)


async def make_site(catalogue: Catalogue) -> Site:
    async with catalogue.writing() as session:
        agent = await agents.enrol(session, "agent1", NOW)
        await inventory.report(session, agent.id, VCENTER, [reported_vm(1), reported_vm(2)], NOW)
        found = await disks.list_disks(session, [vm_id(1), vm_id(2)])
        places = [
            await repositories.add(session, repository_id=new_id(), name=name, path=f"/{name}", now=NOW)
            for name in ("first", "second")
        ]
    (disk, second_disk), (foreign_disk, _) = found[vm_id(1)], found[vm_id(2)]
    return Site(
        agent=agent.id,
        vm=vm_id(1),
        other_vm=vm_id(2),
        disk=disk.id,
        second_disk=second_disk.id,
        foreign_disk=foreign_disk.id,
        repository=places[0].id,
        second_repository=places[1].id,
    )


async def new_task(session: AsyncSession, site: Site, vm: str = "") -> Task:
    return await tasks.add(
        session,
        kind=TaskKind.BACKUP,
        vm_id=vm or site.vm,
        agent_id=site.agent,
        time_limit_s=4 * 3600,
        lease_owner="hub1",
        lease_expires_at=LATER,
        now=NOW,
    )


async def new_backup(
    session: AsyncSession,
    site: Site,
    *,
    vm: str = "",
    repository: str = "",
    type_asked: BackupType = BackupType.AUTO,
) -> Backup:
    """A PENDING backup."""
    task = await new_task(session, site, vm)
    return await backups.add(
        session,
        vm_id=vm or site.vm,
        repository_id=repository or site.repository,
        task_id=task.id,
        agent_id=site.agent,
        type_asked=type_asked,
        now=NOW,
    )


def new_image(disk: str, change_id: str | None, **changes: Any) -> NewImage:
    """A full image of the backup's first disk, unless `changes` says otherwise."""
    image = NewImage(
        disk_id=disk,
        ordinal=0,
        parent_id=None,
        type_reason="",
        capacity=10 * GiB,
        change_id=change_id,
        base_change_id=None,
        path="vms/x/y/z.qcow2",
        root_digest="00" * 32,
        changed_bytes=5,
        read_bytes=4,
        sent_bytes=3,
        stored_bytes=2,
        skipped_bytes=1,
        coverage={"pages": 1, "complete": True},
    )
    return replace(image, **changes)


async def restore_point(catalogue: Catalogue, site: Site, *images: NewImage, repository: str = "") -> Backup:
    """A COMPLETE backup with these images."""
    async with catalogue.writing() as session:
        backup = await new_backup(session, site, repository=repository)
        await backups.start(session, backup.id)
        return await backups.commit(session, backup.id, images, LATER)
