"""`sendense backup`: start, follow, show and cancel backups, and show the chains they form."""

from typing import Annotated, Literal

import grpc
import typer

from sendense.cli import output
from sendense.cli.connection import HubOption, connect, pages
from sendense.cli.errors import CommandFailed, failure_text
from sendense.cli.names import BackupArgument, VmArgument, backup_name, bare_id, vm_fields
from sendense.cli.output import NOTHING, JsonOption
from sendense.cli.repository import repository_id, repository_names
from sendense.cli.task import watch_with_progress
from sendense.v1.backup_pb2 import (
    Backup,
    BackupDisk,
    BackupStatus,
    BackupType,
    CancelBackupRequest,
    ChainImage,
    Consistency,
    CreateBackupRequest,
    DiskChain,
    GetBackupRequest,
    GetChainRequest,
    ListBackupsRequest,
)
from sendense.v1.backup_pb2_grpc import BackupServiceStub
from sendense.v1.task_pb2_grpc import TaskServiceStub

app = typer.Typer(no_args_is_help=True, help="Start, show and cancel backups.")

Type = Literal["full", "incremental", "auto"]
Status = Literal["pending", "running", "complete", "failed", "cancelled"]


@app.command()
def start(
    vm: VmArgument,
    *,
    backup_type: Annotated[
        Type, typer.Option("--type", help="auto: incremental where a restore point can be its parent, else full.")
    ] = "auto",
    repository: Annotated[
        str,
        typer.Option(
            metavar="NAME_OR_ID", show_default=False, help="Where to; may be left out when there is only one."
        ),
    ] = "",
    wait: Annotated[
        bool, typer.Option("--wait", help="Follow it to its end; exit status 1 unless it completes.")
    ] = False,
    hub: HubOption = "",
    as_json: JsonOption = False,
) -> None:
    """Start a backup of one VM.

    \b
    Examples:
      sendense backup start web-01 --wait
      sendense backup start 5021c8a4-0c4f-4f4e-9d2c-8e4b7f0c1d2e --type full
    """
    with connect(hub) as channel:
        backup = BackupServiceStub(channel).CreateBackup(
            CreateBackupRequest(
                **vm_fields(vm), repository_id=repository_id(channel, repository), backup_type=_type(backup_type)
            )
        )
        if wait:
            backup = _wait_for(channel, backup)
    _print_started(backup, as_json, wait)
    if wait:
        _check_outcome(backup)


@app.command("list")
def list_backups(
    *,
    vm: Annotated[str, typer.Option(metavar="VM", show_default=False, help="Name in vCenter, or instance UUID.")] = "",
    status: Annotated[Status | None, typer.Option(help="Only backups in this status.")] = None,
    backup_type: Annotated[Type | None, typer.Option("--type", help="Only backups asked for as this type.")] = None,
    repository: Annotated[str, typer.Option(metavar="NAME_OR_ID", show_default=False)] = "",
    hub: HubOption = "",
    as_json: JsonOption = False,
) -> None:
    """List backups, newest first. Options narrow the list; all of them must hold.

    \b
    Examples:
      sendense backup list --vm web-01 --status complete
      sendense backup list --json | jq -r '.backups[].name'
    """
    with connect(hub) as channel:
        request = ListBackupsRequest(
            **(vm_fields(vm) if vm else {}),
            repository_id=repository_id(channel, repository),
            status=_status(status),
            backup_type=_type(backup_type),
        )
        backups = [found for page in pages(BackupServiceStub(channel).ListBackups, request) for found in page.backups]
        names = {} if as_json else repository_names(channel)
    if as_json:
        output.document({"backups": backups})
    else:
        columns = ("BACKUP", "VM", "TYPE", "STATUS", "REPOSITORY", "CREATED", "SHOWS", ">STORED")
        output.table(columns, (_row(backup, names) for backup in backups), empty="no backups")


@app.command()
def show(backup: BackupArgument, hub: HubOption = "", as_json: JsonOption = False) -> None:
    """Show one backup with its disks: what ran for each, and what it took."""
    with connect(hub) as channel:
        found = BackupServiceStub(channel).GetBackup(GetBackupRequest(name=backup_name(backup)))
    if as_json:
        output.document(found)
    else:
        output.facts(_facts(found))
        _print_disks(found)


@app.command()
def chain(vm: VmArgument, hub: HubOption = "", as_json: JsonOption = False) -> None:
    """Show the chains of a VM's disks: the restore points of each, oldest first, and what each is laid over."""
    with connect(hub) as channel:
        found = BackupServiceStub(channel).GetChain(GetChainRequest(**vm_fields(vm)))
        names = {} if as_json else repository_names(channel)
    if as_json:
        output.document(found)
    else:
        columns = ("DISK", "REPOSITORY", "SHOWS", "TYPE", ">STORED", "BACKUP", "LAID OVER")
        rows = [_image_row(disk, image, names) for disk in found.chains for image in disk.images]
        output.table(columns, rows, empty="no restore points")


@app.command()
def cancel(backup: BackupArgument, hub: HubOption = "", as_json: JsonOption = False) -> None:
    """Ask a backup to stop. Returns at once; it is cancelled when its snapshot is removed."""
    with connect(hub) as channel:
        asked = BackupServiceStub(channel).CancelBackup(CancelBackupRequest(name=backup_name(backup)))
    if as_json:
        output.document(asked)
    else:
        output.line(f"backup {bare_id(asked.name)} of {asked.vm_name} was asked to stop")


def _type(text: Type | None) -> BackupType.ValueType:
    return BackupType.Value(f"BACKUP_TYPE_{(text or 'unspecified').upper()}")


def _status(text: Status | None) -> BackupStatus.ValueType:
    return BackupStatus.Value(f"BACKUP_STATUS_{(text or 'unspecified').upper()}")


def _wait_for(channel: grpc.Channel, backup: Backup) -> Backup:
    output.remark(f"backup {bare_id(backup.name)} of {backup.vm_name}")
    try:
        watch_with_progress(TaskServiceStub(channel), backup.task)
    except KeyboardInterrupt:
        output.remark(f"the backup goes on; `sendense backup cancel {bare_id(backup.name)}` stops it")
        raise
    return BackupServiceStub(channel).GetBackup(GetBackupRequest(name=backup.name))


def _check_outcome(backup: Backup) -> None:
    if backup.status != BackupStatus.BACKUP_STATUS_COMPLETE:
        why = failure_text(backup.failure)
        raise CommandFailed(f"backup {bare_id(backup.name)} of {backup.vm_name} {_status_word(backup)}: {why}")


def _print_started(backup: Backup, as_json: bool, ended: bool) -> None:
    if as_json:
        output.document(backup)
    elif not ended:
        output.line(f"backup {bare_id(backup.name)} of {backup.vm_name} {_status_word(backup)}")
        output.remark(f"`sendense task watch {bare_id(backup.task)}` shows how it goes on")
    else:
        output.line(f"backup {bare_id(backup.name)} of {backup.vm_name} {_status_word(backup)}")
        _print_disks(backup)


def _print_disks(backup: Backup) -> None:
    if backup.disks:
        columns = ("DISK", "LABEL", ">SIZE", "RAN", "WHY", ">CHANGED", ">READ", ">SENT", ">STORED", "LAID OVER")
        output.table(columns, map(_disk_row, backup.disks))
    for disk in backup.skipped_disks:
        output.remark(f"not captured: {disk.label} (device key {disk.device_key}), {disk.reason}")


def _status_word(backup: Backup) -> str:
    return output.word(BackupStatus.DESCRIPTOR, backup.status)


def _type_word(value: BackupType.ValueType) -> str:
    return output.word(BackupType.DESCRIPTOR, value)


def _row(backup: Backup, repositories: dict[str, str]) -> tuple[str, ...]:
    return (
        bare_id(backup.name),
        backup.vm_name,
        _type_word(backup.backup_type),
        _status_word(backup),
        repositories.get(backup.repository_id, backup.repository_id),
        output.when(backup.create_time),
        output.when(backup.snapshot_time),
        output.size(sum(disk.stored_bytes for disk in backup.disks)) if backup.disks else NOTHING,
    )


def _disk_row(disk: BackupDisk) -> tuple[str, ...]:
    sizes = disk.changed_bytes, disk.read_bytes, disk.sent_bytes, disk.stored_bytes
    return (
        str(disk.disk_index),
        disk.label,
        output.size(disk.capacity_bytes),
        _type_word(disk.type_run),
        disk.type_reason or NOTHING,
        *map(output.size, sizes),
        bare_id(disk.parent_backup) or NOTHING,
    )


def _image_row(disk: DiskChain, image: ChainImage, repositories: dict[str, str]) -> tuple[str, ...]:
    return (
        disk.label,
        repositories.get(disk.repository_id, disk.repository_id),
        output.when(image.snapshot_time),
        _type_word(image.type_run),
        output.size(image.stored_bytes),
        bare_id(image.backup),
        bare_id(image.parent_backup) or NOTHING,
    )


def _facts(backup: Backup) -> list[tuple[str, str]]:
    return [
        ("backup", bare_id(backup.name)),
        ("VM", f"{backup.vm_name} ({backup.vm_id})"),
        ("type asked", _type_word(backup.backup_type)),
        ("status", _status_word(backup)),
        ("repository", backup.repository_id),
        ("agent", backup.agent_id),
        ("task", bare_id(backup.task)),
        ("shows", output.when(backup.snapshot_time)),
        ("consistency", output.word(Consistency.DESCRIPTOR, backup.consistency)),
        ("created", output.when(backup.create_time)),
        ("completed", output.when(backup.complete_time)),
        ("failure", failure_text(backup.failure)),
    ]
