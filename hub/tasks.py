"""Running tasks: their counts while they run, kept in memory and written to the catalogue every second.

Threads that take in data add to the counts; nothing here waits for the catalogue except `flush` and `tell`.
"""

import threading
import time
from datetime import UTC, datetime, timedelta

from hub.catalogue import tasks
from hub.catalogue.engine import Catalogue
from hub.catalogue.states import Level
from hub.catalogue.tasks import Progress
from shared import logs
from shared.errors import NotFound

log = logs.get(__name__)


class RunningTask:
    """The counts of one task, in bytes; safe to use from several threads."""

    def __init__(self, agent_id: str) -> None:
        self.agent_id = agent_id
        """Who is at work on it: nobody else may speak of it."""
        self._lock = threading.Lock()
        self._progress = Progress()
        self._last_sign = time.monotonic()

    def received(self, sent: int, stored: int) -> None:
        """Payload bytes that arrived, and bytes they took in an image: a sign of life."""
        with self._lock:
            now = self._progress
            self._progress = Progress(
                now.total_bytes, now.read_bytes, now.sent_bytes + sent, now.stored_bytes + stored, now.skipped_bytes
            )
            self._last_sign = time.monotonic()

    def heard(self, total: int, read: int, skipped: int) -> None:
        """What the agent counts on its side: a sign of life. No count goes back."""
        with self._lock:
            now = self._progress
            self._progress = Progress(
                max(now.total_bytes, total),
                max(now.read_bytes, read),
                now.sent_bytes,
                now.stored_bytes,
                max(now.skipped_bytes, skipped),
            )
            self._last_sign = time.monotonic()

    @property
    def progress(self) -> Progress:
        """Where it stands."""
        return self._progress

    def silence(self) -> float:
        """Seconds since the last sign of life."""
        return time.monotonic() - self._last_sign


class Tasks:
    """The tasks that this hub runs."""

    def __init__(self, catalogue: Catalogue, owner: str, lease: float) -> None:
        """`owner`: this hub's ID, which its tasks' leases name; `lease` in seconds."""
        self._catalogue = catalogue
        self._running: dict[str, RunningTask] = {}
        self.owner = owner
        self.lease = timedelta(seconds=lease)

    def track(self, task_id: str, agent_id: str) -> RunningTask:
        """The counts of an agent's task, begun when there are none yet."""
        return self._running.setdefault(task_id, RunningTask(agent_id))

    def running(self, task_id: str) -> RunningTask | None:
        """The counts of a task that is tracked."""
        return self._running.get(task_id)

    def forget(self, task_id: str) -> Progress:
        """Stop tracking; returns the final counts."""
        running = self._running.pop(task_id, None)
        return running.progress if running is not None else Progress()

    async def flush(self) -> None:
        """Write the counts of all tracked tasks to the catalogue."""
        if not self._running:
            return
        async with self._catalogue.writing() as session:
            for task in await tasks.unfinished(session):
                running = self._running.get(task.id)
                if running is not None and running.progress != task.progress:
                    await tasks.advance(session, task.id, running.progress)

    async def quote(self, agent_id: str, task_id: str, level: Level, message: str) -> None:
        """Add what an agent says to the log of a task of its own; raises NotFound for any other."""
        async with self._catalogue.reading() as session:
            task = await tasks.get(session, task_id)
        if task.agent_id != agent_id:
            raise NotFound(f"there is no task {task_id} of this agent")
        await self.tell(task_id, level, message)

    async def tell(self, task_id: str, level: Level, message: str) -> None:
        """Add a line to a task's log."""
        log.info(message, task=task_id, level_shown=level.value)
        async with self._catalogue.writing() as session:
            await tasks.append_event(session, task_id, level, message, now=datetime.now(UTC))
