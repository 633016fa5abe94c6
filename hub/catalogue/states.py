"""States and kinds of the catalogue's nouns, and the table of moves: states only go forward.

    task     QUEUED ──► RUNNING ──► SUCCEEDED        backup   PENDING ──► RUNNING ──► COMPLETE
                └──────────┴──────► FAILED                       └──────────┴───────► FAILED
                └──────────┴──────► CANCELLED                    └──────────┴───────► CANCELLED

A state with no way out of it is an end; the others are called unfinished.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import TypeVar

from shared.errors import Conflict


class AgentState(StrEnum):
    """Whether an agent's certificate is honoured."""

    ACTIVE = "ACTIVE"
    REVOKED = "REVOKED"


class RepositoryKind(StrEnum):
    """What a repository is made of."""

    LOCAL = "LOCAL"


class TaskKind(StrEnum):
    """What a task does."""

    BACKUP = "BACKUP"


class TaskState(StrEnum):
    """Where a task stands."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


class Level(StrEnum):
    """How much a line of a task's log matters."""

    INFO = "INFO"
    WARNING = "WARNING"
    ERROR = "ERROR"


class BackupType(StrEnum):
    """What kind of backup is asked for; AUTO is incremental where a parent is usable, else full."""

    FULL = "FULL"
    INCREMENTAL = "INCREMENTAL"
    AUTO = "AUTO"


class BackupState(StrEnum):
    """Where a backup stands; COMPLETE makes it a restore point."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETE = "COMPLETE"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


class Consistency(StrEnum):
    """What the snapshot promises about the guest's files."""

    UNKNOWN = "UNKNOWN"
    """No snapshot was taken yet."""
    CRASH = "CRASH"
    QUIESCED = "QUIESCED"


TASK_MOVES: Mapping[TaskState, frozenset[TaskState]] = MappingProxyType(
    {
        TaskState.QUEUED: frozenset({TaskState.RUNNING, TaskState.FAILED, TaskState.CANCELLED}),
        TaskState.RUNNING: frozenset({TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED}),
        TaskState.SUCCEEDED: frozenset(),
        TaskState.FAILED: frozenset(),
        TaskState.CANCELLED: frozenset(),
    }
)

BACKUP_MOVES: Mapping[BackupState, frozenset[BackupState]] = MappingProxyType(
    {
        BackupState.PENDING: frozenset({BackupState.RUNNING, BackupState.FAILED, BackupState.CANCELLED}),
        BackupState.RUNNING: frozenset({BackupState.COMPLETE, BackupState.FAILED, BackupState.CANCELLED}),
        BackupState.COMPLETE: frozenset(),
        BackupState.FAILED: frozenset(),
        BackupState.CANCELLED: frozenset(),
    }
)

UNFINISHED_TASK = tuple(state for state, moves in TASK_MOVES.items() if moves)
UNFINISHED_BACKUP = tuple(state for state, moves in BACKUP_MOVES.items() if moves)

State = TypeVar("State", bound=StrEnum)


def check_move(what: str, moves: Mapping[State, frozenset[State]], now: State, to: State) -> None:
    """Raise Conflict unless `moves` lets `what` (a noun and its ID, for the message) go from state `now` to `to`."""
    if to not in moves[now]:
        raise Conflict(f"{what} is {now} and cannot become {to}", state=now, wanted=to)
