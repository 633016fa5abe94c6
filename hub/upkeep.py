"""Upkeep: what the hub looks after by itself.

At start, work that an earlier run of this hub left is given up. Then, every second: counts are written down, leases of
tasks whose agents are heard are extended, and tasks that are over time, silent, or of lost agents are ended.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from hub.agents import Agents, CancelOrder
from hub.backups import Backups
from hub.catalogue import tasks
from hub.catalogue.engine import Catalogue
from hub.catalogue.states import TaskState
from hub.catalogue.tasks import Task
from hub.tasks import Tasks
from shared import logs
from shared.errors import AgentUnavailable, SendenseError, TimedOut, Unavailable

PERIOD = 1.0
"""Seconds between rounds."""

log = logs.get(__name__)


@dataclass(frozen=True, slots=True)
class Upkeep:
    """Runs beside the listeners."""

    catalogue: Catalogue
    agents: Agents
    backups: Backups
    tasks: Tasks
    stall_limit: float
    """Seconds a running task may be silent."""

    async def give_up_work(self, why: str) -> None:
        """End the unfinished tasks of this hub; their partial files are deleted."""
        for task in await self._unfinished():
            if task.lease_owner == self.tasks.owner:
                await self._end(task, Unavailable(why))

    async def run(self) -> None:
        """Round after round, until cancelled; a round that fails is logged, and the next one tries again."""
        while True:
            await asyncio.sleep(PERIOD)
            try:
                await self.round()
            except Exception:  # whatever it is: without upkeep no lease is extended and no limit kept
                log.exception("upkeep failed; it tries again")

    async def round(self) -> None:
        """One round."""
        await self.tasks.flush()
        now = datetime.now(UTC)
        unfinished = await self._unfinished()
        await self._extend_leases(unfinished, now)
        for task, error in self._overdue(unfinished, now):
            await self._end(task, error)

    async def _end(self, task: Task, error: SendenseError) -> None:
        """End a task; one that cannot be ended keeps no other from it, and is tried again in the next round."""
        log.warning("ending a task", task=task.id, reason=error.reason, error=error.message)
        try:
            if task.agent_id is not None and self.agents.connected(task.agent_id):
                self.agents.send(task.agent_id, CancelOrder(task.id, error.message))
            await self.backups.end(task.id, error)
        except SendenseError as trouble:
            log.error("the task could not be ended", task=task.id, reason=trouble.reason, error=trouble.message)

    async def _unfinished(self) -> list[Task]:
        async with self.catalogue.reading() as session:
            return await tasks.unfinished(session)

    def _overdue(self, unfinished: list[Task], now: datetime) -> Iterator[tuple[Task, SendenseError]]:
        for task in unfinished:
            if task.lease_expires_at <= now:
                yield task, AgentUnavailable(f"its agent was not heard for {self.tasks.lease.total_seconds():.0f} s")
            elif task.state is TaskState.RUNNING and task.lease_owner == self.tasks.owner:
                if task.started_at and (now - task.started_at).total_seconds() > task.time_limit_s:
                    yield task, TimedOut(f"it took longer than the time limit of {task.time_limit_s} s")
                elif (running := self.tasks.running(task.id)) and running.silence() > self.stall_limit:
                    yield task, TimedOut(f"neither data nor a heartbeat for {running.silence():.0f} s")

    async def _extend_leases(self, unfinished: list[Task], now: datetime) -> None:
        """Extend what is half used up: not one write per task and second."""
        due = [
            task
            for task in unfinished
            if task.agent_id is not None
            and task.lease_owner == self.tasks.owner
            and self.agents.connected(task.agent_id)
            and task.lease_expires_at - now < self.tasks.lease / 2
        ]
        if not due:
            return
        async with self.catalogue.writing() as session:
            for task in await tasks.unfinished(session):
                if task.id in {known.id for known in due}:
                    await tasks.extend_lease(session, task.id, self.tasks.owner, now + self.tasks.lease)
