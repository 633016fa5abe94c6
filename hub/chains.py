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
    missing_file: str
    """The first file of its chain that is not there, relative to the repository; '' when all are."""


def usable(head: Head) -> bool:
    """Whether an increment can be laid over this image."""
    return bool(head.change_id) and not head.missing_file


def why_not(heads: Iterable[Head]) -> str:
    """Why none of these can be a parent, for the administrator."""
    reasons = [
        f"{head.label}: "
        + (f"a file is missing from its chain: {head.missing_file}" if head.missing_file else "it has no change ID")
        for head in heads
    ]
    return "; ".join(reasons) or "there is no restore point of it in this repository"
