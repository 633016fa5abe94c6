"""BackupService."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from hub.backups import Backups
from hub.catalogue import backups, disks, images, vms
from hub.catalogue.backups import Backup, BackupFilter
from hub.catalogue.disks import Disk
from hub.catalogue.engine import Catalogue
from hub.catalogue.images import Image
from hub.rpc import messages, paging
from hub.rpc.names import find_repository, find_vm, id_in
from sendense.v1 import backup_pb2, backup_pb2_grpc
from shared.errors import InvalidRequest


class BackupService(backup_pb2_grpc.BackupServiceServicer):
    """Unpack, call, pack."""

    def __init__(self, catalogue: Catalogue, running: Backups) -> None:
        self._catalogue = catalogue
        self._backups = running

    async def CreateBackup(self, request: backup_pb2.CreateBackupRequest, context: Any) -> backup_pb2.Backup:
        asked = messages.asked_type(request.backup_type)
        if asked is None:
            raise InvalidRequest("say which type: full, incremental or auto", field="backup_type")
        vm = await find_vm(self._catalogue, request)
        repository_id = await find_repository(self._catalogue, request.repository_id)
        return (await self._packed([await self._backups.start(vm, repository_id, asked)]))[0]

    async def GetBackup(self, request: backup_pb2.GetBackupRequest, context: Any) -> backup_pb2.Backup:
        async with self._catalogue.reading() as session:
            found = await backups.get(session, id_in(request.name, "backups"))
        return (await self._packed([found]))[0]

    async def ListBackups(self, request: backup_pb2.ListBackupsRequest, context: Any) -> backup_pb2.ListBackupsResponse:
        size = paging.page_size(request)
        which = BackupFilter(
            vm_id=request.vm_id or None,
            vm_name=request.vm_name or None,
            repository_id=request.repository_id or None,
            state=messages.asked_status(request.status),
            type_asked=messages.asked_type(request.backup_type),
        )
        async with self._catalogue.reading() as session:
            found = await backups.list_backups(session, which, limit=size + 1, before=paging.after(request))
        page = found[:size]
        following = paging.token(request, page[-1].id) if len(found) > size else ""
        return backup_pb2.ListBackupsResponse(backups=await self._packed(page), next_page_token=following)

    async def CancelBackup(self, request: backup_pb2.CancelBackupRequest, context: Any) -> backup_pb2.Backup:
        cancelled = await self._backups.cancel(id_in(request.name, "backups"))
        return (await self._packed([cancelled]))[0]

    async def GetChain(self, request: backup_pb2.GetChainRequest, context: Any) -> backup_pb2.GetChainResponse:
        vm = await find_vm(self._catalogue, request)
        async with self._catalogue.reading() as session:
            known = (await disks.list_disks(session, [vm.id])).get(vm.id, [])
            wanted = [disk for disk in known if request.disk_id in ("", disk.id)]
            found = await images.of_disks(session, [disk.id for disk in wanted])
            snapshots = await backups.get_many(session, {image.backup_id for image in found})
        by_chain: defaultdict[tuple[str, str], list[Image]] = defaultdict(list)
        for image in found:
            if request.repository_id in ("", image.repository_id):
                by_chain[image.disk_id, image.repository_id].append(image)
        return backup_pb2.GetChainResponse(
            chains=[
                _chain(disk, repository_id, members, snapshots)
                for disk in wanted
                for (disk_id, repository_id), members in by_chain.items()
                if disk_id == disk.id
            ]
        )

    async def _packed(self, found: Sequence[Backup]) -> list[backup_pb2.Backup]:
        async with self._catalogue.reading() as session:
            names = await vms.names(session, {backup.vm_id for backup in found})
            by_backup = await images.of_backups(session, [backup.id for backup in found])
            every = [image for members in by_backup.values() for image in members]
            by_vm = await disks.list_disks(session, {backup.vm_id for backup in found})
            parents = await images.get_many(session, {image.parent_id for image in every if image.parent_id})
        known = {disk.id: disk for members in by_vm.values() for disk in members}
        return [
            messages.backup(backup, names.get(backup.vm_id, ""), by_backup.get(backup.id, []), known, parents)
            for backup in found
        ]


def _chain(
    disk: Disk, repository_id: str, members: Sequence[Image], snapshots: dict[str, Backup]
) -> backup_pb2.DiskChain:
    by_id = {image.id: image for image in members}
    return backup_pb2.DiskChain(
        disk_id=disk.id,
        label=disk.label,
        repository_id=repository_id,
        images=[
            backup_pb2.ChainImage(
                backup=f"backups/{image.backup_id}",
                snapshot_time=messages.timestamp(snapshots[image.backup_id].snapshot_at),
                type_run=messages.backup_type(image.type_run),
                parent_backup=f"backups/{by_id[image.parent_id].backup_id}" if image.parent_id else "",
                stored_bytes=image.stored_bytes,
                change_id=image.change_id or "",
            )
            for image in members
        ],
    )
