"""Rules of chains: what an incremental may go on from. Pure; the catalogue and the file system are asked before."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Head:
    """The newest image of a disk in a repository, and whether it can be gone on from."""

    disk_id: str
    device_key: int
    backing_uuid: str
    disk_object_id: str
    label: str
    image_id: str
    change_id: str
    """'' where change tracking was off."""
    capacity: int
    file_exists: bool


def usable(head: Head) -> bool:
    """Whether an increment can be laid over this image."""
    return bool(head.change_id) and head.file_exists


def why_not(heads: Iterable[Head]) -> str:
    """Why none of these can be a parent, for the administrator."""
    reasons = [
        f"{head.label}: " + ("its newest image's file is missing" if not head.file_exists else "it has no change ID")
        for head in heads
    ]
    return "; ".join(reasons) or "there is no restore point of it in this repository"
