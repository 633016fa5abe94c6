"""An assignment: the backup of one VM that the hub wants, and what is said back about it."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum

from agent.vsphere.changes import Asked, Base


class OnCbtLoss(Enum):
    """What to do with a disk when change tracking cannot tell what changed."""

    FULL = "full"
    FAIL = "fail"


class Severity(Enum):
    """How grave a line of a task's log is."""

    INFO = "info"
    WARNING = "warning"


Identity = tuple[int, str, str]
"""Device key, backing UUID, object ID: the same disk as long as all three are the same."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """Make this backup."""

    task_id: str
    backup_id: str
    vm_id: str
    """vCenter's instance UUID."""
    asked: Asked
    on_cbt_loss: OnCbtLoss
    bases: Mapping[Identity, Base]
    """The newest restore point of each disk, to go on from; empty for a full."""
    time_limit: timedelta
    """How long it may take altogether; zero: as long as it takes."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Bytes of a task so far."""

    total: int = 0
    read: int = 0
    skipped: int = 0


class Progress:
    """Counts of a running task, added to by its disks' threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = Counts()

    def add(self, *, total: int = 0, read: int = 0, skipped: int = 0) -> None:
        """Add bytes."""
        with self._lock:
            now = self._counts
            self._counts = Counts(now.total + total, now.read + read, now.skipped + skipped)

    def counts(self) -> Counts:
        """Where it stands."""
        return self._counts
