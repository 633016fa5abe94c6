"""From the catalogue's values to the API's messages, one function a resource."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from hub.catalogue.agents import Agent
from hub.catalogue.backups import Backup
from hub.catalogue.disks import Disk
from hub.catalogue.images import Image
from hub.catalogue.states import BackupState, BackupType, Consistency, Level, TaskState
from hub.catalogue.tasks import Task, TaskEvent
from hub.catalogue.vms import Vm
from sendense.v1 import agent_pb2, backup_pb2, task_pb2, vm_pb2
from shared.errors import InvalidRequest


def timestamp(moment: datetime | None) -> Timestamp | None:
    """A moment, or None where there is none."""
    if moment is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp


def moment(stamp: Timestamp, field: str) -> datetime:
    """The other way; raises InvalidRequest for what is no moment of the years 1 to 9999."""
    try:
        return stamp.ToDatetime(UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidRequest(f"{field} is out of range", field=field) from error


def duration(value: Duration, field: str) -> timedelta:
    """A duration; raises InvalidRequest for one beyond a protobuf's 10 000 years."""
    try:
        return value.ToTimedelta()
    except (ValueError, OverflowError) as error:
        raise InvalidRequest(f"{field} is out of range", field=field) from error


def backup_type(value: BackupType) -> backup_pb2.BackupType.ValueType:
    """FULL, INCREMENTAL or AUTO."""
    return backup_pb2.BackupType.Value(f"BACKUP_TYPE_{value.value}")


def asked_type(value: int, field: str = "backup_type") -> BackupType | None:
    """The other way; None for UNSPECIFIED. Raises InvalidRequest for a number without a meaning."""
    name = _enum_name(backup_pb2.BackupType, value, field)
    return BackupType(name.removeprefix("BACKUP_TYPE_")) if value else None


def asked_status(value: int) -> BackupState | None:
    """The state that a filter asks for; None for any. Raises InvalidRequest for a number without a meaning."""
    name = _enum_name(backup_pb2.BackupStatus, value, "status")
    return BackupState(name.removeprefix("BACKUP_STATUS_")) if value else None


def asked_state(value: int) -> TaskState | None:
    """The task state that a filter asks for; None for any. Raises InvalidRequest for a number without a meaning."""
    name = _enum_name(task_pb2.TaskState, value, "state")
    return TaskState(name.removeprefix("TASK_STATE_")) if value else None


def _enum_name(enum: Any, value: int, field: str) -> str:
    """The value's name: a proto3 enum takes any number, of clients newer than this hub too."""
    try:
        return str(enum.Name(value))
    except ValueError as error:
        raise InvalidRequest(f"{field} has no value {value}", field=field) from error


def failure(reason: str, message: str) -> backup_pb2.Failure | None:
    """Why something ended badly; None where it did not."""
    return backup_pb2.Failure(reason=reason, message=message) if reason else None


def backup(
    value: Backup, vm_name: str, images: Sequence[Image], disks: Mapping[str, Disk], parents: Mapping[str, Image]
) -> backup_pb2.Backup:
    """A backup with its disks; `disks` by disk ID and `parents` by image ID hold at least those it refers to."""
    consistency = "UNSPECIFIED" if value.consistency is Consistency.UNKNOWN else value.consistency.value
    return backup_pb2.Backup(
        name=f"backups/{value.id}",
        vm_id=value.vm_id,
        vm_name=vm_name,
        repository_id=value.repository_id,
        backup_type=backup_type(value.type_asked),
        status=backup_pb2.BackupStatus.Value(f"BACKUP_STATUS_{value.state.value}"),
        task=f"tasks/{value.task_id}",
        agent_id=value.agent_id,
        consistency=backup_pb2.Consistency.Value(f"CONSISTENCY_{consistency}"),
        snapshot_time=timestamp(value.snapshot_at),
        create_time=timestamp(value.created_at),
        complete_time=timestamp(value.completed_at),
        failure=failure(value.failure_reason, value.failure_message),
        disks=[_backup_disk(image, disks[image.disk_id], parents.get(image.parent_id or "")) for image in images],
        skipped_disks=[
            backup_pb2.SkippedDisk(device_key=disk.device_key, label=disk.label, reason=disk.reason)
            for disk in value.skipped_disks
        ],
        etag=str(value.version),
    )


def _backup_disk(image: Image, disk: Disk, parent: Image | None) -> backup_pb2.BackupDisk:
    return backup_pb2.BackupDisk(
        disk_index=image.ordinal,
        disk_id=image.disk_id,
        device_key=disk.identity.device_key,
        label=disk.label,
        capacity_bytes=image.capacity,
        type_run=backup_type(image.type_run),
        type_reason=image.type_reason,
        parent_backup=f"backups/{parent.backup_id}" if parent is not None else "",
        change_id=image.change_id or "",
        base_change_id=image.base_change_id or "",
        changed_bytes=image.changed_bytes,
        read_bytes=image.read_bytes,
        sent_bytes=image.sent_bytes,
        stored_bytes=image.stored_bytes,
        skipped_bytes=image.skipped_bytes,
        root_digest=image.root_digest,
        image_path=image.path,
    )


def vm(value: Vm, disks: Sequence[Disk]) -> vm_pb2.Vm:
    """A VM with the disks it has now."""
    return vm_pb2.Vm(
        name=f"vms/{value.id}",
        display_name=value.name,
        agent_id=value.agent_id,
        vcenter_id=value.vcenter,
        moref=value.moref,
        power_state=value.power_state,
        guest_os=value.guest_os,
        hardware_version=value.hardware_version,
        cbt_enabled=value.cbt_enabled,
        template=value.is_template,
        folder_path=value.folder_path,
        host_name=value.host_name,
        disks=[_vm_disk(disk) for disk in disks if disk.present],
        seen_time=timestamp(value.seen_at),
        missing_since=timestamp(value.missing_since),
    )


def _vm_disk(disk: Disk) -> vm_pb2.VmDisk:
    return vm_pb2.VmDisk(
        disk_id=disk.id,
        device_key=disk.identity.device_key,
        backing_uuid=disk.identity.backing_uuid,
        disk_object_id=disk.identity.disk_object_id,
        label=disk.label,
        capacity_bytes=disk.capacity,
    )


def agent(value: Agent, connected: bool, seen_at: datetime | None) -> agent_pb2.Agent:
    """An agent, whether its control stream is up, and when it was last heard."""
    return agent_pb2.Agent(
        name=f"agents/{value.id}",
        display_name=value.name,
        connected=connected,
        software_version=value.software_version,
        hostname=value.hostname,
        certificate_expire_time=timestamp(value.certificate_expires_at),
        create_time=timestamp(value.created_at),
        seen_time=timestamp(seen_at),
    )


def task(value: Task, vm_name: str, backup_id: str) -> task_pb2.Task:
    """A task with its progress."""
    progress = value.progress
    return task_pb2.Task(
        name=f"tasks/{value.id}",
        kind=value.kind.value,
        state=task_pb2.TaskState.Value(f"TASK_STATE_{value.state.value}"),
        cancel_requested=value.cancel_requested_at is not None,
        vm_id=value.vm_id or "",
        vm_name=vm_name,
        agent_id=value.agent_id or "",
        backup=f"backups/{backup_id}" if backup_id else "",
        progress=task_pb2.Progress(
            total_bytes=progress.total_bytes,
            read_bytes=progress.read_bytes,
            sent_bytes=progress.sent_bytes,
            stored_bytes=progress.stored_bytes,
            skipped_bytes=progress.skipped_bytes,
        ),
        create_time=timestamp(value.created_at),
        start_time=timestamp(value.started_at),
        end_time=timestamp(value.ended_at),
        failure=failure(value.error_reason, value.error_message),
    )


_SEVERITIES = {
    Level.INFO: task_pb2.SEVERITY_INFO,
    Level.WARNING: task_pb2.SEVERITY_WARNING,
    Level.ERROR: task_pb2.SEVERITY_ERROR,
}


def event(value: TaskEvent) -> task_pb2.TaskEvent:
    """A line of a task's log."""
    return task_pb2.TaskEvent(
        number=value.number, time=timestamp(value.at), severity=_SEVERITIES[value.level], message=value.message
    )
