"""What people type for a VM, a backup or a task, and the hub's resource names it stands for."""

import re
from typing import Annotated, TypedDict

import typer

VmArgument = Annotated[str, typer.Argument(metavar="VM", help="Name in vCenter, or instance UUID.")]
BackupArgument = Annotated[str, typer.Argument(metavar="BACKUP", help="ID, with or without `backups/`.")]
TaskArgument = Annotated[str, typer.Argument(metavar="TASK", help="ID, with or without `tasks/`.")]


class VmFields(TypedDict, total=False):
    """The two request fields that say which VM; one of them is set."""

    vm_id: str
    vm_name: str


def vm_fields(text: str) -> VmFields:
    """An instance UUID (with or without `vms/`) goes as `vm_id`, anything else as `vm_name`."""
    bare = text.removeprefix("vms/")
    return {"vm_id": bare.lower()} if _UUID.fullmatch(bare) else {"vm_name": text}


def backup_name(text: str) -> str:
    """The resource name of a backup: `backups/{backup}`."""
    return f"backups/{text.removeprefix('backups/')}"


def task_name(text: str) -> str:
    """The resource name of a task: `tasks/{task}`."""
    return f"tasks/{text.removeprefix('tasks/')}"


def bare_id(name: str) -> str:
    """The ID within a resource name: `backups/0198…` → `0198…`."""
    return name.rpartition("/")[2]


_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
