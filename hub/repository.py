"""A repository: a folder of images, manifests and restore points that stands for itself.

    sendense.json                                 id, format version
    vms/<vm>/<disk>/<backup>.qcow2                image     (.qcow2.partial + .qcow2.journal while in flight)
    vms/<vm>/<disk>/<backup>.manifest             cluster digests, root digest
    vms/<vm>/<backup>.json                        the restore point

The catalogue can be rebuilt from these files alone. Unfinished work has another name until one rename; a folder that is
not this repository (an unmounted disk's empty mount point) is never written to.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hub.files import storage_errors, sync_folder
from shared.errors import AlreadyExists, NotPossibleNow, RepositoryUnavailable

MARKER = "sendense.json"
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Space:
    """Bytes of a repository's file system."""

    capacity: int
    free: int


@dataclass(frozen=True, slots=True)
class RepositoryFolder:
    """A repository's folder, known to be the right one when it was opened."""

    id: str
    path: Path

    def image(self, vm_id: str, disk_id: str, backup_id: str) -> Path:
        """Where a backup's image of a disk is, once it is finished."""
        return self.path / "vms" / vm_id / disk_id / f"{backup_id}.qcow2"

    def point(self, vm_id: str, backup_id: str) -> Path:
        """Where a restore point is described."""
        return self.path / "vms" / vm_id / f"{backup_id}.json"

    def relative(self, path: Path) -> str:
        """A path as the catalogue keeps it: the repository can be moved."""
        return str(path.relative_to(self.path))

    def first_missing(self, paths: Iterable[str]) -> str:
        """The first of these paths, as the catalogue keeps them, at which there is no file; '' when all are there."""
        with storage_errors(self.path):
            return next((path for path in paths if not (self.path / path).is_file()), "")

    def space(self) -> Space:
        """Capacity and free bytes for an ordinary user; raises RepositoryUnavailable."""
        with storage_errors(self.path):
            status = os.statvfs(self.path)
        return Space(status.f_frsize * status.f_blocks, status.f_frsize * status.f_bavail)

    def stage_point(self, vm_id: str, backup_id: str, content: dict[str, Any]) -> Path:
        """Write a restore point's description under its unfinished name, durably; returns that path."""
        staged = self.point(vm_id, backup_id).with_suffix(".json.partial")
        with storage_errors(self.path):
            staged.parent.mkdir(parents=True, exist_ok=True)
            _write_durably(staged, json.dumps(content, indent=2, sort_keys=True) + "\n")
        return staged

    def publish_point(self, staged: Path) -> None:
        """Give a staged description its final name, durably."""
        with storage_errors(self.path):
            staged.rename(staged.with_suffix(""))
            sync_folder(staged.parent)

    def remove_backup(self, vm_id: str, backup_id: str) -> int:
        """Remove every file of a backup, finished or not; returns how many there were."""
        vm_folder = self.path / "vms" / vm_id
        with storage_errors(self.path):
            files = [*vm_folder.glob(f"{backup_id}.*"), *vm_folder.glob(f"*/{backup_id}.*")]
            for file in files:
                file.unlink()
            for folder in {file.parent for file in files}:
                sync_folder(folder)
        return len(files)

    def backups(self) -> set[tuple[str, str]]:
        """VM and ID of every backup that has a file here, finished or not, as the files' names say."""
        with storage_errors(self.path):
            vms = self.path / "vms"
            files = [*vms.glob("*/*.*"), *vms.glob("*/*/*.*")]
            return {(file.relative_to(vms).parts[0], file.name.partition(".")[0]) for file in files}

    def make_disk_folder(self, vm_id: str, disk_id: str) -> Path:
        """The folder of a disk's images, made durably when it is not there."""
        folder = self.path / "vms" / vm_id / disk_id
        with storage_errors(self.path):
            if not folder.is_dir():
                folder.mkdir(parents=True, exist_ok=True)
                for parent in (folder.parent, folder.parent.parent, self.path):
                    sync_folder(parent)
        return folder


def open_repository(path: Path, repository_id: str) -> RepositoryFolder:
    """The repository at `path`; raises RepositoryUnavailable when the folder is not there or not this repository."""
    marker = _read_marker(path)
    if marker is None:
        raise RepositoryUnavailable(f"{path} is not there as a repository: it has no {MARKER}")
    if marker.get("id") != repository_id:
        raise RepositoryUnavailable(f"{path} holds another repository ({marker.get('id')}), not {repository_id}")
    if marker.get("version") != FORMAT_VERSION:
        raise RepositoryUnavailable(
            f"{path} has format version {marker.get('version')}; this hub knows {FORMAT_VERSION}"
        )
    return RepositoryFolder(repository_id, path)


def create_repository(path: Path, repository_id: str) -> RepositoryFolder:
    """Make an empty or missing folder a repository; raises AlreadyExists, NotPossibleNow or RepositoryUnavailable."""
    with storage_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        names = {entry.name for entry in path.iterdir()} - {"lost+found"}
        if MARKER in names:
            raise AlreadyExists(f"{path} is a repository already")
        if names:
            raise NotPossibleNow(f"{path} is not empty: give an empty or a new folder", field="path")
        staged = path / f"{MARKER}.partial"
        _write_durably(staged, json.dumps({"id": repository_id, "version": FORMAT_VERSION}) + "\n")
        staged.rename(path / MARKER)
        sync_folder(path)
    return RepositoryFolder(repository_id, path)


def read_repository_id(path: Path) -> str | None:
    """The ID of the repository at `path`, or None when there is none."""
    marker = _read_marker(path)
    return marker["id"] if marker is not None else None


def _read_marker(path: Path) -> dict[str, Any] | None:
    try:
        marker = json.loads((path / MARKER).read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RepositoryUnavailable(f"{path / MARKER} cannot be read: {error}") from error
    if not isinstance(marker, dict) or not isinstance(marker.get("id"), str):
        raise RepositoryUnavailable(f"{path / MARKER} does not say which repository it is")
    return marker


def _write_durably(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
