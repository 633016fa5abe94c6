"""The ledger: which snapshots this agent has asked vCenter for, on stable storage before vCenter is asked.

intended   before the create call: VM and unique name. A crash from here on leaves a snapshot to be found by name.
made       the snapshot's reference is known.
(gone)     the snapshot was removed, or is known never to have been made.
"""

import json
import os
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock

from shared.errors import DataLoss, Unavailable


@dataclass(frozen=True, slots=True)
class Entry:
    """A snapshot that was asked for."""

    name: str
    """Unique: it holds agent and task."""
    instance_uuid: str
    """Of the VM."""
    vm_moref: str
    intended_at: str
    """ISO 8601, UTC."""
    snapshot_moref: str = ""
    """'' as long as vCenter has not told it."""

    @property
    def age(self) -> float:
        """Seconds since the snapshot was intended."""
        return (datetime.now(UTC) - datetime.fromisoformat(self.intended_at)).total_seconds()


class Ledger:
    """Entries in one small file, replaced as a whole and fsynced at each change. For all threads of one agent.

    Changing it raises Unavailable when the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        """Read the file if there is one; raises DataLoss when it is not a ledger."""
        self._path = path
        self._lock = Lock()
        self._entries = _read(path)

    def entries(self) -> tuple[Entry, ...]:
        return tuple(self._entries.values())

    def intend(self, name: str, instance_uuid: str, vm_moref: str) -> None:
        """Write down that a snapshot is going to be asked for."""
        with self._lock:
            self._entries[name] = Entry(name, instance_uuid, vm_moref, datetime.now(UTC).isoformat())
            self._write()

    def made(self, name: str, snapshot_moref: str) -> None:
        """Write down the reference of an intended snapshot."""
        with self._lock:
            self._entries[name] = replace(self._entries[name], snapshot_moref=snapshot_moref)
            self._write()

    def gone(self, name: str) -> None:
        """Strike a snapshot out; unknown names are none of our business."""
        with self._lock:
            if self._entries.pop(name, None) is not None:
                self._write()

    def _write(self) -> None:
        try:
            self._replace()
        except OSError as error:
            raise Unavailable(f"the ledger of snapshots {self._path} cannot be written: {error.strerror}") from error

    def _replace(self) -> None:
        unfinished = self._path.with_name(self._path.name + ".new")
        with unfinished.open("w") as file:
            json.dump([asdict(entry) for entry in self._entries.values()], file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _read(path: Path) -> dict[str, Entry]:
    if not path.exists():
        return {}
    try:
        return {item["name"]: Entry(**item) for item in json.loads(path.read_text())}
    except (ValueError, TypeError, KeyError) as error:
        raise DataLoss(
            f"the ledger of snapshots {path} is damaged ({error}): look in vCenter for snapshots named sendense-… that "
            "no backup is using, remove them, then remove the file"
        ) from error
