"""Backups: runs that capture one VM each, and the commit that makes one a restore point."""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from hub.catalogue.ids import new_id
from hub.catalogue.images import NewImage, check_parent
from hub.catalogue.models import BackupRow, DiskRow, ImageRow, VmRow
from hub.catalogue.rows import find, portions, value
from hub.catalogue.states import (
    BACKUP_MOVES,
    UNFINISHED_BACKUP,
    BackupState,
    BackupType,
    Consistency,
    check_move,
)
from shared.errors import Conflict, InvalidRequest, VmBusy


@dataclass(frozen=True, slots=True)
class SkippedDisk:
    """A disk of the VM which its backup does not hold, and why."""

    device_key: int
    label: str
    reason: str


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup; COMPLETE, it is a restore point. What it held of each disk are its images."""

    id: str
    vm_id: str
    repository_id: str
    task_id: str
    agent_id: str
    type_asked: BackupType
    state: BackupState
    consistency: Consistency
    snapshot_at: datetime | None
    """The instant all its disks are from."""
    created_at: datetime
    completed_at: datetime | None
    failure_reason: str
    failure_message: str
    skipped_disks: tuple[SkippedDisk, ...]
    version: int


@dataclass(frozen=True, slots=True)
class BackupFilter:
    """Which backups to list; conditions that are given all hold."""

    vm_id: str | None = None
    vm_name: str | None = None
    repository_id: str | None = None
    state: BackupState | None = None
    type_asked: BackupType | None = None


async def add(
    session: AsyncSession,
    *,
    vm_id: str,
    repository_id: str,
    task_id: str,
    agent_id: str,
    type_asked: BackupType,
    now: datetime,
) -> Backup:
    """A new PENDING backup; raises VmBusy while another one of the VM is unfinished."""
    busy = await session.scalar(select(BackupRow.id).where(BackupRow.active_vm_id == vm_id))
    if busy is not None:
        raise VmBusy(f"backup {busy} of this VM is under way", vm=vm_id, backup=busy)
    row = BackupRow(
        id=new_id(),
        vm_id=vm_id,
        repository_id=repository_id,
        task_id=task_id,
        agent_id=agent_id,
        type_asked=type_asked,
        state=BackupState.PENDING,
        consistency=Consistency.UNKNOWN,
        created_at=now,
        skipped_disks=[],
    )
    session.add(row)
    await session.flush()
    return _backup(row)


async def get(session: AsyncSession, backup_id: str) -> Backup:
    """The backup; raises NotFound."""
    return _backup(await find(session, BackupRow, backup_id, "backup"))


async def get_many(session: AsyncSession, backup_ids: Collection[str]) -> dict[str, Backup]:
    """These backups by ID; unknown ones are left out."""
    found: dict[str, Backup] = {}
    for portion in portions(backup_ids):
        rows = await session.scalars(select(BackupRow).where(BackupRow.id.in_(portion)))
        found |= {row.id: _backup(row) for row in rows}
    return found


async def ids_of_tasks(session: AsyncSession, task_ids: Collection[str]) -> dict[str, str]:
    """The ID of the backup that each of these tasks runs; tasks that run none are left out."""
    rows = await session.execute(select(BackupRow.task_id, BackupRow.id).where(BackupRow.task_id.in_(task_ids)))
    return dict(rows.all())


async def of_task(session: AsyncSession, task_id: str) -> Backup | None:
    """The backup this task runs, if it runs one."""
    row = await session.scalar(select(BackupRow).where(BackupRow.task_id == task_id))
    return None if row is None else _backup(row)


async def list_backups(
    session: AsyncSession, which: BackupFilter, *, limit: int, before: str | None = None
) -> list[Backup]:
    """At most `limit` backups, newest first, from behind `before`: the ID of the last one of the page before."""
    query = select(BackupRow).order_by(BackupRow.id.desc()).limit(limit)
    if before is not None:
        query = query.where(BackupRow.id < before)
    if which.vm_id is not None:
        query = query.where(BackupRow.vm_id == which.vm_id)
    if which.vm_name is not None:
        query = query.join(VmRow, BackupRow.vm_id == VmRow.id).where(VmRow.name == which.vm_name)
    if which.repository_id is not None:
        query = query.where(BackupRow.repository_id == which.repository_id)
    if which.state is not None:
        query = query.where(BackupRow.state == which.state)
    if which.type_asked is not None:
        query = query.where(BackupRow.type_asked == which.type_asked)
    return [_backup(row) for row in await session.scalars(query)]


async def unfinished(session: AsyncSession) -> list[Backup]:
    """All backups that have not ended, oldest first: what a hub that starts must take up or give up."""
    rows = await session.scalars(select(BackupRow).where(BackupRow.state.in_(UNFINISHED_BACKUP)).order_by(BackupRow.id))
    return [_backup(row) for row in rows]


async def start(session: AsyncSession, backup_id: str) -> Backup:
    """The agent has begun; raises Conflict unless the backup was PENDING."""
    row = await find(session, BackupRow, backup_id, "backup")
    _move(row, BackupState.RUNNING)
    await session.flush()
    return _backup(row)


async def note_snapshot(
    session: AsyncSession,
    backup_id: str,
    *,
    snapshot_at: datetime,
    consistency: Consistency,
    skipped_disks: Sequence[SkippedDisk] = (),
) -> Backup:
    """What the agent's snapshot caught, and what it could not; raises Conflict unless the backup is RUNNING."""
    row = await find(session, BackupRow, backup_id, "backup")
    if row.state is not BackupState.RUNNING:
        raise Conflict(f"backup {backup_id} is {row.state}: its snapshot is not waited for", state=row.state)
    row.snapshot_at, row.consistency = snapshot_at, consistency
    row.skipped_disks = [asdict(disk) for disk in skipped_disks]
    await session.flush()
    return _backup(row)


async def fail(session: AsyncSession, backup_id: str, reason: str, message: str) -> Backup:
    """It ended without a restore point; raises Conflict when it had ended before."""
    return await _give_up(session, backup_id, BackupState.FAILED, reason, message)


async def cancel(session: AsyncSession, backup_id: str, message: str) -> Backup:
    """Somebody stopped it; raises Conflict when it had ended before."""
    return await _give_up(session, backup_id, BackupState.CANCELLED, "CANCELLED", message)


async def commit(session: AsyncSession, backup_id: str, images: Sequence[NewImage], now: datetime) -> Backup:
    """Make the backup a restore point with these images, all of them or none.

    Call it when their files are on stable storage. Raises Conflict unless the backup is RUNNING (a second commit
    too), InvalidRequest when the images are not one per disk of this VM, NoUsableParent when an incremental one is
    not laid over exactly the image it was asked from.
    """
    row = await find(session, BackupRow, backup_id, "backup")
    _move(row, BackupState.COMPLETE)
    row.completed_at = now
    await _check_disks(session, row.vm_id, images)
    for image in images:
        await check_parent(session, image, row.repository_id)
        session.add(
            ImageRow(id=new_id(), backup_id=row.id, repository_id=row.repository_id, created_at=now, **asdict(image))
        )
    await session.flush()
    return _backup(row)


async def _check_disks(session: AsyncSession, vm_id: str, images: Sequence[NewImage]) -> None:
    wanted = {image.disk_id for image in images}
    if not images or len(wanted) < len(images) or len({image.ordinal for image in images}) < len(images):
        raise InvalidRequest("a restore point has at least one image, and one per disk")
    found = await session.scalars(select(DiskRow.id).where(DiskRow.id.in_(wanted), DiskRow.vm_id == vm_id))
    foreign = wanted - set(found)
    if foreign:
        raise InvalidRequest(f"these are no disks of VM {vm_id}: {', '.join(sorted(foreign))}", vm=vm_id)


async def _give_up(session: AsyncSession, backup_id: str, to: BackupState, reason: str, message: str) -> Backup:
    row = await find(session, BackupRow, backup_id, "backup")
    _move(row, to)
    row.failure_reason, row.failure_message = reason, message
    await session.flush()
    return _backup(row)


def _move(row: BackupRow, to: BackupState) -> None:
    check_move(f"backup {row.id}", BACKUP_MOVES, row.state, to)
    row.state = to


def _backup(row: BackupRow) -> Backup:
    return value(Backup, row, skipped_disks=tuple(SkippedDisk(**disk) for disk in row.skipped_disks))
