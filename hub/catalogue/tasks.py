"""Tasks: long-running activities, where each stands, how far it got, and what it wrote into its log."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from types import MappingProxyType

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from hub.catalogue.ids import new_id
from hub.catalogue.models import TaskEventRow, TaskRow
from hub.catalogue.rows import find, value
from hub.catalogue.states import TASK_MOVES, UNFINISHED_TASK, Level, TaskKind, TaskState, check_move
from shared.errors import Conflict


@dataclass(frozen=True, slots=True)
class Progress:
    """Bytes, each counted by itself; total is what there is to read."""

    total_bytes: int = 0
    read_bytes: int = 0
    sent_bytes: int = 0
    stored_bytes: int = 0
    skipped_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Task:
    """A task; whoever works on it holds the lease and extends it, and a lease that expires means nobody does."""

    id: str
    kind: TaskKind
    state: TaskState
    vm_id: str | None
    agent_id: str | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    cancel_requested_at: datetime | None
    error_reason: str
    error_message: str
    progress: Progress
    time_limit_s: int
    lease_owner: str
    lease_expires_at: datetime
    version: int


@dataclass(frozen=True, slots=True)
class TaskFilter:
    """Which tasks to list; conditions that are given all hold."""

    state: TaskState | None = None
    vm_id: str | None = None
    agent_id: str | None = None


@dataclass(frozen=True, slots=True)
class TaskEvent:
    """A line of a task's log; numbers run from 1 without gaps."""

    task_id: str
    number: int
    at: datetime
    level: Level
    message: str
    facts: dict[str, str]


async def add(
    session: AsyncSession,
    *,
    kind: TaskKind,
    vm_id: str | None,
    agent_id: str | None,
    time_limit_s: int,
    lease_owner: str,
    lease_expires_at: datetime,
    now: datetime,
) -> Task:
    """A new QUEUED task. It is born with a lease, so that work which never sends a heartbeat ends too."""
    row = TaskRow(
        id=new_id(),
        kind=kind,
        state=TaskState.QUEUED,
        vm_id=vm_id,
        agent_id=agent_id,
        created_at=now,
        time_limit_s=time_limit_s,
        lease_owner=lease_owner,
        lease_expires_at=lease_expires_at,
        **asdict(Progress()),
    )
    session.add(row)
    await session.flush()
    return _task(row)


async def get(session: AsyncSession, task_id: str) -> Task:
    """The task; raises NotFound."""
    return _task(await find(session, TaskRow, task_id, "task"))


async def move(
    session: AsyncSession,
    task_id: str,
    to: TaskState,
    now: datetime,
    *,
    error_reason: str = "",
    error_message: str = "",
) -> Task:
    """Bring a task forward; raises Conflict for a move that is not in TASK_MOVES."""
    row = await find(session, TaskRow, task_id, "task")
    check_move(f"task {task_id}", TASK_MOVES, row.state, to)
    row.state = to
    if to is TaskState.RUNNING:
        row.started_at = now
    else:
        row.ended_at = now
    row.error_reason, row.error_message = error_reason, error_message
    await session.flush()
    return _task(row)


async def advance(session: AsyncSession, task_id: str, progress: Progress) -> Task:
    """Note how far a task got; a count never goes back. Raises Conflict when the task has ended."""
    row = await _unfinished(session, task_id)
    for name, count in asdict(progress).items():
        setattr(row, name, max(getattr(row, name), count))
    await session.flush()
    return _task(row)


async def extend_lease(session: AsyncSession, task_id: str, owner: str, expires_at: datetime) -> Task:
    """The owner works on it until `expires_at`, unless it extends again. Raises Conflict when the task has ended."""
    row = await _unfinished(session, task_id)
    row.lease_owner, row.lease_expires_at = owner, expires_at
    await session.flush()
    return _task(row)


async def request_cancel(session: AsyncSession, task_id: str, now: datetime) -> Task:
    """Ask a task to stop; asking again changes nothing. Raises Conflict when the task has ended."""
    row = await _unfinished(session, task_id)
    row.cancel_requested_at = row.cancel_requested_at or now
    await session.flush()
    return _task(row)


async def list_tasks(session: AsyncSession, which: TaskFilter, *, limit: int, before: str | None = None) -> list[Task]:
    """At most `limit` tasks, newest first, from behind `before`: the ID of the last one of the page before."""
    query = select(TaskRow).order_by(TaskRow.id.desc()).limit(limit)
    if before is not None:
        query = query.where(TaskRow.id < before)
    if which.state is not None:
        query = query.where(TaskRow.state == which.state)
    if which.vm_id is not None:
        query = query.where(TaskRow.vm_id == which.vm_id)
    if which.agent_id is not None:
        query = query.where(TaskRow.agent_id == which.agent_id)
    return [_task(row) for row in await session.scalars(query)]


async def unfinished(session: AsyncSession) -> list[Task]:
    """All tasks that have not ended, oldest first: what a hub that starts must take up or give up."""
    rows = await session.scalars(select(TaskRow).where(TaskRow.state.in_(UNFINISHED_TASK)).order_by(TaskRow.id))
    return [_task(row) for row in rows]


async def expired(session: AsyncSession, now: datetime) -> list[Task]:
    """Unfinished tasks whose lease has run out, oldest first."""
    return [task for task in await unfinished(session) if task.lease_expires_at <= now]


async def append_event(
    session: AsyncSession,
    task_id: str,
    level: Level,
    message: str,
    *,
    now: datetime,
    facts: Mapping[str, str] = MappingProxyType({}),
) -> TaskEvent:
    """Add a line to a task's log; raises NotFound."""
    await find(session, TaskRow, task_id, "task")
    last = await session.scalar(select(func.max(TaskEventRow.number)).where(TaskEventRow.task_id == task_id))
    row = TaskEventRow(task_id=task_id, number=(last or 0) + 1, at=now, level=level, message=message, facts=dict(facts))
    session.add(row)
    await session.flush()
    return value(TaskEvent, row)


async def list_events(session: AsyncSession, task_id: str, *, after_number: int = 0, limit: int) -> list[TaskEvent]:
    """At most `limit` lines of a task's log in order, from behind `after_number`."""
    rows = await session.scalars(
        select(TaskEventRow)
        .where(TaskEventRow.task_id == task_id, TaskEventRow.number > after_number)
        .order_by(TaskEventRow.number)
        .limit(limit)
    )
    return [value(TaskEvent, row) for row in rows]


async def _unfinished(session: AsyncSession, task_id: str) -> TaskRow:
    row = await find(session, TaskRow, task_id, "task")
    if row.state not in UNFINISHED_TASK:
        raise Conflict(f"task {task_id} has ended: it is {row.state}", state=row.state)
    return row


def _task(row: TaskRow) -> Task:
    return value(Task, row, progress=value(Progress, row))
