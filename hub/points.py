"""Restore points: what a backup's sealed transfers become, in the catalogue's words and in the repository's files."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from hub.catalogue.backups import Backup, SkippedDisk
from hub.catalogue.images import NewImage
from hub.catalogue.states import Consistency
from hub.catalogue.vms import Vm
from hub.repository import RepositoryFolder
from hub.transfers import Transfer

POINT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Captured:
    """What a snapshot caught, as the agent states it at the commit."""

    snapshot_at: datetime
    consistency: Consistency
    skipped: tuple[SkippedDisk, ...]


def new_image(transfer: Transfer, folder: RepositoryFolder, backup: Backup) -> NewImage:
    """A sealed transfer as the catalogue is to know it; raises NotPossibleNow when it is not sealed."""
    sealed, disk = transfer.sealed(), transfer.disk
    coverage = asdict(sealed.coverage) | {"source": sealed.coverage.source.value}
    return NewImage(
        disk_id=transfer.disk_id,
        ordinal=disk.index,
        parent_id=disk.base_image_id or None,
        type_reason=disk.type_reason,
        capacity=disk.capacity,
        change_id=disk.change_id or None,
        base_change_id=disk.base_change_id or None,
        path=folder.relative(folder.image(backup.vm_id, transfer.disk_id, backup.id)),
        root_digest=sealed.image.root.hex(),
        changed_bytes=sealed.totals.changed_bytes,
        read_bytes=sealed.totals.read_bytes,
        sent_bytes=sealed.sent_bytes,
        stored_bytes=sealed.image.stored,
        skipped_bytes=sealed.totals.skipped_bytes,
        coverage=coverage,
    )


def describe(
    backup: Backup, vm: Vm, captured: Captured, transfers: Sequence[Transfer], new: Sequence[NewImage]
) -> dict[str, Any]:
    """The restore point's description: with the images, all that is needed to rebuild the catalogue."""
    return {
        "version": POINT_VERSION,
        "backup": backup.id,
        "created_at": backup.created_at.isoformat(),
        "agent": backup.agent_id,
        "vm": {"id": vm.id, "name": vm.name, "vcenter": vm.vcenter},
        "snapshot_at": captured.snapshot_at.isoformat(),
        "consistency": captured.consistency.value,
        "type_asked": backup.type_asked.value,
        "disks": [_disk(transfer, image) for transfer, image in zip(transfers, new, strict=True)],
        "skipped_disks": [asdict(disk) for disk in captured.skipped],
    }


def publish(folder: RepositoryFolder, backup: Backup, point: dict[str, Any], transfers: Sequence[Transfer]) -> None:
    """Bring everything of a restore point under its final names, durably."""
    staged = folder.stage_point(backup.vm_id, backup.id, point)
    for transfer in transfers:
        transfer.publish()
    folder.publish_point(staged)


def _disk(transfer: Transfer, image: NewImage) -> dict[str, Any]:
    """An image by what its files tell: the catalogue's own IDs of images mean nothing without the catalogue."""
    content = asdict(image)
    del content["parent_id"]
    return content | {
        "parent_backup": transfer.parent.backup_id if transfer.parent is not None else None,
        "identity": transfer.disk.identity._asdict(),
        "label": transfer.disk.label,
    }
