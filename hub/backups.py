"""Backups: how one is started, taken in, committed, or ended badly. The one writer of a backup's state.

    start ─► PENDING ─ agent begins ─► RUNNING ─ commit ─► COMPLETE       task: ends when the agent says so,
                └──────────────────────────┴─ end ─► FAILED · CANCELLED         its snapshot removed

Commit order: images and manifests are on stable storage (sealed), then the point file, then the renames, then one
catalogue transaction; only then is the agent answered. What a backup left is deleted before it is called FAILED.
"""

import asyncio
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from hub import chains
from hub.agents import Agents, BackupOrder, CancelOrder, DiskBase, Session
from hub.background import Background
from hub.catalogue import backups, disks, images, repositories, tasks, vms
from hub.catalogue.backups import Backup
from hub.catalogue.disks import Disk, DiskIdentity
from hub.catalogue.engine import Catalogue
from hub.catalogue.images import Image, NewImage
from hub.catalogue.states import BackupState, BackupType, Level, TaskKind, TaskState
from hub.catalogue.tasks import Task
from hub.catalogue.vms import Vm
from hub.points import Captured, describe, new_image, publish
from hub.repository import RepositoryFolder, open_repository
from hub.tasks import Tasks
from hub.transfers import IncomingDisk, Transfer, Transfers
from shared.errors import (
    AgentUnavailable,
    Cancelled,
    InvalidRequest,
    NotBackupable,
    NotFound,
    NotPossibleNow,
    NoUsableParent,
    SendenseError,
)

UNFINISHED = (BackupState.PENDING, BackupState.RUNNING)


class Backups:
    """Starts backups and brings them to their end."""

    def __init__(
        self, catalogue: Catalogue, agents: Agents, running: Tasks, transfers: Transfers, time_limit: float
    ) -> None:
        """`time_limit`: seconds a backup may take."""
        self._catalogue = catalogue
        self._agents = agents
        self._tasks = running
        self._transfers = transfers
        self._time_limit = time_limit
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        # Between making a task and sending it, an agent that connects must not be taken for one that lost it.
        self._assigning = asyncio.Lock()
        self.background = Background()
        """What nobody waits for: tasks that are being ended, by their IDs, and upkeep's own work."""

    async def start(self, vm: Vm, repository_id: str, asked: BackupType) -> Backup:
        """Start a backup; raises NotBackupable, AgentUnavailable, VmBusy, NoUsableParent, RepositoryUnavailable."""
        if vm.is_template:
            raise NotBackupable(f"{vm.name} is a template: vSphere cannot snapshot it", vm=vm.id)
        if vm.missing_since is not None:
            raise NotPossibleNow(f"{vm.name} is not in vCenter any more (since {vm.missing_since:%Y-%m-%d %H:%M} UTC)")
        if not self._agents.connected(vm.agent_id):
            raise AgentUnavailable(f"the agent of {vm.name} is not connected to the hub", agent=vm.agent_id)
        heads = await self._heads(vm.id, repository_id)  # not under the lock: a repository may hang
        async with self._assigning:
            backup, order = await self._enter(vm, repository_id, asked, heads)
            try:
                self._agents.send(vm.agent_id, order)
                return backup
            except AgentUnavailable as error:
                unsent = error
        await self.end(backup.task_id, unsent)
        raise unsent

    async def attach(self, agent_id: str, task_ids: Collection[str]) -> Session:
        """An agent connected and has these tasks: its session.

        Tasks that should be with it and are not have failed. Those it is to stop, or that have ended, it is told of:
        the order to stop may have been lost with an earlier session.
        """
        async with self._assigning:
            control = self._agents.connect(agent_id)  # first: a cancel from now on finds this session
            try:
                known = await self._unfinished_of(agent_id)
            except SendenseError:
                self._agents.disconnect(control)
                raise
        wanted = {task.id for task in known if task.cancel_requested_at is None}
        for task_id in set(task_ids) - wanted:
            control.send(CancelOrder(task_id, "it was cancelled, or has ended"))
        lost = AgentUnavailable("the agent was restarted and has lost the task")
        for task_id in {task.id for task in known} - set(task_ids):
            self.background.begin(task_id, partial(self.end, task_id, lost))
        return control

    async def begin(self, agent_id: str, task_id: str) -> None:
        """The agent is at work on a task; again changes nothing. Raises NotFound when the task is not this agent's."""
        async with self._catalogue.reading() as session:
            task = await tasks.get(session, task_id)
        if task.agent_id != agent_id:
            raise NotFound(f"there is no task {task_id} of this agent")
        if task.state is not TaskState.QUEUED:
            return  # heartbeats name a task again and again: only the first one writes
        async with self._catalogue.writing() as session:
            if (await tasks.get(session, task_id)).state is TaskState.QUEUED:
                now = datetime.now(UTC)
                await tasks.move(session, task_id, TaskState.RUNNING, now)
                backup = await _of_task(session, task_id)
                await backups.start(session, backup.id)
                self._tasks.track(task_id, agent_id)

    async def cancel(self, backup_id: str) -> Backup:
        """Ask a backup to stop; raises NotPossibleNow when it has ended."""
        async with self._catalogue.writing() as session:
            backup = await backups.get(session, backup_id)
            task = await tasks.get(session, backup.task_id)
            if task.ended_at is not None or backup.state not in UNFINISHED:
                raise NotPossibleNow(f"backup {backup_id} has ended already: it is {backup.state}")
            await tasks.request_cancel(session, task.id, datetime.now(UTC))
        reason = "cancelled by the operator"
        if not self._agents.connected(backup.agent_id):
            await self.end(backup.task_id, Cancelled(f"{reason}; its agent is not connected"))
        else:
            self._agents.send(backup.agent_id, CancelOrder(backup.task_id, reason))
        async with self._catalogue.reading() as session:
            return await backups.get(session, backup_id)

    async def open_transfer(self, agent_id: str, backup_id: str, disk: IncomingDisk) -> Transfer:
        """Begin the transfer of one disk of a running backup, or find the one begun."""
        await self.begin(agent_id, await self._task_of(agent_id, backup_id))
        async with self._lock(backup_id):
            async with self._catalogue.writing() as session:
                backup = await self._running(session, agent_id, backup_id)
                _check_type(backup.type_asked, disk)
                known = await disks.identify(session, backup.vm_id, disk.identity, disk.label, disk.capacity)
                head = await images.head(session, known.id, backup.repository_id)
                repository = await repositories.get(session, backup.repository_id)
            parent = _checked_parent(disk, head)
            folder = await asyncio.to_thread(open_repository, Path(repository.path), repository.id)
            return await asyncio.to_thread(
                self._transfers.open,
                backup_id=backup_id,
                vm_id=backup.vm_id,
                disk_id=known.id,
                disk=disk,
                parent=parent,
                folder=folder,
                task=self._tasks.track(backup.task_id, agent_id),
            )

    async def commit(self, agent_id: str, backup_id: str, transfer_ids: Sequence[str], captured: Captured) -> Backup:
        """Make a backup's sealed transfers a restore point; again returns the same."""
        async with self._lock(backup_id):
            async with self._catalogue.reading() as session:
                backup = await backups.get(session, backup_id)
                if backup.agent_id == agent_id and backup.state is BackupState.COMPLETE:
                    return backup
                backup = await self._running(session, agent_id, backup_id)
                task = await tasks.get(session, backup.task_id)
                vm = await vms.get(session, backup.vm_id)
                repository = await repositories.get(session, backup.repository_id)
            if task.cancel_requested_at is not None:
                raise NotPossibleNow(f"backup {backup_id} was cancelled")
            transfers = self._transfers.of(backup_id)
            if not transfers:
                raise NotPossibleNow(f"backup {backup_id} has no disk yet")
            if sorted(transfer_ids) != sorted(transfer.id for transfer in transfers):
                raise NotPossibleNow("the transfers named are not those of this backup")
            folder = await asyncio.to_thread(open_repository, Path(repository.path), repository.id)
            new = [new_image(transfer, folder, backup) for transfer in transfers]
            point = describe(backup, vm, captured, transfers, new)
            await asyncio.to_thread(publish, folder, backup, point, transfers)
            return await self._record(backup, captured, new)

    async def finish(self, agent_id: str, task_id: str, failure: SendenseError | None) -> None:
        """The agent says that a task has ended; the first word counts."""
        async with self._catalogue.reading() as session:
            task = await tasks.get(session, task_id)
            if task.agent_id != agent_id:
                raise NotFound(f"there is no task {task_id} of this agent")
            if task.ended_at is not None:
                return
            backup = await _of_task(session, task_id)
        if backup.state is BackupState.COMPLETE and failure is None:
            await self._end_task(task_id, TaskState.SUCCEEDED)
        elif backup.state in UNFINISHED and task.cancel_requested_at is not None:
            # Whatever stopped it first: the commit may have been refused before the agent heard of the cancel.
            await self.end(task_id, Cancelled("cancelled by the operator"))
        else:
            await self.end(task_id, failure or SendenseError("the agent ended the task without committing the backup"))

    async def end(self, task_id: str, error: SendenseError) -> None:
        """End a task badly: its transfers end, its files are deleted, its backup is FAILED or CANCELLED.

        A backup that is COMPLETE stays so; only its task then has failed. One that has ended is left alone.
        """
        async with self._catalogue.reading() as session:
            backup = await _of_task(session, task_id)
            repository = await repositories.get(session, backup.repository_id)
        async with self._lock(backup.id):
            async with self._catalogue.reading() as session:
                backup = await backups.get(session, backup.id)
            if backup.state in UNFINISHED:
                await self._clean_up(backup, Path(repository.path), error)
                async with self._catalogue.writing() as session:
                    if isinstance(error, Cancelled):
                        await backups.cancel(session, backup.id, error.message)
                    else:
                        await backups.fail(session, backup.id, error.reason, error.message)
            # Under the lock: who ends it next, with another reason, finds backup and task ended for the same one.
            ended = TaskState.CANCELLED if isinstance(error, Cancelled) else TaskState.FAILED
            await self._end_task(task_id, ended, error)

    async def _enter(
        self, vm: Vm, repository_id: str, asked: BackupType, heads: Sequence[chains.Head]
    ) -> tuple[Backup, BackupOrder]:
        """Put task and backup into the catalogue; one transaction, so a refusal leaves nothing."""
        bases = tuple(_base(head) for head in heads if chains.usable(head)) if asked is not BackupType.FULL else ()
        now = datetime.now(UTC)
        async with self._catalogue.writing() as session:
            task = await tasks.add(
                session,
                kind=TaskKind.BACKUP,
                vm_id=vm.id,
                agent_id=vm.agent_id,
                time_limit_s=int(self._time_limit),
                lease_owner=self._tasks.owner,
                lease_expires_at=now + self._tasks.lease,
                now=now,
            )
            backup = await backups.add(
                session,
                vm_id=vm.id,
                repository_id=repository_id,
                task_id=task.id,
                agent_id=vm.agent_id,
                type_asked=asked,
                now=now,
            )
            if asked is BackupType.INCREMENTAL and not bases:
                why = chains.why_not(heads)
                raise NoUsableParent(f"{vm.name} has nothing that an incremental could go on from: {why}", vm=vm.id)
        limit = timedelta(seconds=self._time_limit)
        return backup, BackupOrder(task.id, backup.id, vm.id, asked, bases, limit)

    async def _heads(self, vm_id: str, repository_id: str) -> list[chains.Head]:
        """The newest image of each present disk, as far as there is one, and whether its chain's files are there.

        Looked at before the backup is entered. If another one ends in between, a base is not the newest any more, and
        the transfer is refused.
        """
        async with self._catalogue.reading() as session:
            repository = await repositories.get(session, repository_id)
            known = (await disks.list_disks(session, [vm_id])).get(vm_id, [])
            found = [(disk, await images.head(session, disk.id, repository_id)) for disk in known if disk.present]
            grown = [(disk, await images.chain(session, image.id)) for disk, image in found if image is not None]
        folder = await asyncio.to_thread(open_repository, Path(repository.path), repository.id)
        return [await asyncio.to_thread(_head, disk, chain, folder) for disk, chain in grown]

    async def _unfinished_of(self, agent_id: str) -> list[Task]:
        async with self._catalogue.reading() as session:
            return [task for task in await tasks.unfinished(session) if task.agent_id == agent_id]

    async def agent_of(self, backup_id: str) -> str:
        """The ID of the agent that makes a backup; raises NotFound."""
        async with self._catalogue.reading() as session:
            return (await backups.get(session, backup_id)).agent_id

    async def _task_of(self, agent_id: str, backup_id: str) -> str:
        async with self._catalogue.reading() as session:
            backup = await backups.get(session, backup_id)
        if backup.agent_id != agent_id:
            raise NotFound(f"there is no backup {backup_id} of this agent")
        return backup.task_id

    async def _running(self, session: Any, agent_id: str, backup_id: str) -> Backup:
        backup = await backups.get(session, backup_id)
        if backup.agent_id != agent_id:
            raise NotFound(f"there is no backup {backup_id} of this agent")
        if backup.state is not BackupState.RUNNING:
            raise NotPossibleNow(f"backup {backup_id} is {backup.state}: {backup.failure_message or 'not running'}")
        return backup

    async def _record(self, backup: Backup, captured: Captured, new: Sequence[NewImage]) -> Backup:
        progress = self._tasks.track(backup.task_id, backup.agent_id).progress
        async with self._catalogue.writing() as session:
            await backups.note_snapshot(
                session,
                backup.id,
                snapshot_at=captured.snapshot_at,
                consistency=captured.consistency,
                skipped_disks=captured.skipped,
            )
            complete = await backups.commit(session, backup.id, new, datetime.now(UTC))
            await tasks.advance(session, backup.task_id, progress)
        self._transfers.forget(backup.id)
        return complete

    async def _clean_up(self, backup: Backup, path: Path, error: SendenseError) -> None:
        """End the transfers of a backup and delete all its files; what cannot be deleted is said in the task's log."""
        for transfer in self._transfers.of(backup.id):
            await asyncio.to_thread(transfer.end, error)  # in a thread: it waits for a sync under way
        self._transfers.forget(backup.id)
        try:
            folder = await asyncio.to_thread(open_repository, path, backup.repository_id)
            await asyncio.to_thread(folder.remove_backup, backup.vm_id, backup.id)
        except SendenseError as trouble:
            await self._tasks.tell(backup.task_id, Level.WARNING, f"unfinished files could not be deleted: {trouble}")

    async def _end_task(self, task_id: str, state: TaskState, error: SendenseError | None = None) -> None:
        progress, now = self._tasks.forget(task_id), datetime.now(UTC)
        reason, message = (error.reason, error.message) if error is not None else ("", "")
        async with self._catalogue.writing() as session:
            task = await tasks.get(session, task_id)
            if task.ended_at is not None:
                return
            if message:
                await tasks.append_event(session, task_id, Level.ERROR, message, now=now)
            await tasks.advance(session, task_id, progress)
            await tasks.move(session, task_id, state, now, error_reason=reason, error_message=message)

    def _lock(self, backup_id: str) -> asyncio.Lock:
        """One at a time changes a backup; the lock lives as long as somebody holds or awaits it."""
        return self._locks.setdefault(backup_id, asyncio.Lock())


async def _of_task(session: Any, task_id: str) -> Backup:
    backup = await backups.of_task(session, task_id)
    if backup is None:
        raise NotFound(f"there is no backup of task {task_id}")
    return backup


def _head(disk: Disk, chain: Sequence[Image], folder: RepositoryFolder) -> chains.Head:
    image = chain[-1]
    return chains.Head(
        disk_id=disk.id,
        device_key=disk.identity.device_key,
        backing_uuid=disk.identity.backing_uuid,
        disk_object_id=disk.identity.disk_object_id,
        label=disk.label,
        image_id=image.id,
        change_id=image.change_id or "",
        capacity=image.capacity,
        missing_file=folder.first_missing(image.path for image in chain),
    )


def _base(head: chains.Head) -> DiskBase:
    identity = DiskIdentity(head.device_key, head.backing_uuid, head.disk_object_id)
    return DiskBase(identity, head.image_id, head.change_id, head.capacity)


def _check_type(asked: BackupType, disk: IncomingDisk) -> None:
    """What was asked for is what runs, or it is said why not; raises InvalidRequest."""
    if asked is BackupType.FULL and disk.type_run is not BackupType.FULL:
        raise InvalidRequest(f"{disk.label}: a full was asked for", field="type_run")
    if asked is not BackupType.FULL and disk.type_run is BackupType.FULL and not disk.type_reason:
        raise InvalidRequest(f"{disk.label}: it is not said why a full runs", field="type_reason")


def _checked_parent(disk: IncomingDisk, head: Image | None) -> Image | None:
    """The image to lay an incremental over: exactly the one whose change ID was asked about."""
    if disk.type_run is BackupType.FULL:
        if disk.base_image_id or disk.base_change_id:
            raise InvalidRequest("a full has no base", field="base_image_id")
        return None
    if head is None or head.id != disk.base_image_id:
        raise NoUsableParent(f"{disk.label}: image {disk.base_image_id} is not the newest of this disk")
    if not disk.base_change_id or head.change_id != disk.base_change_id:
        raise NoUsableParent(
            f"{disk.label}: the changes are since {disk.base_change_id}, the parent is of {head.change_id}"
        )
    if head.capacity != disk.capacity:
        raise NoUsableParent(f"{disk.label}: the parent has {head.capacity} bytes, the disk {disk.capacity}")
    return head
