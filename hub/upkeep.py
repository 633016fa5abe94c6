"""Upkeep: what the hub looks after by itself.

At start, work that an earlier run of this hub left is given up. Then, every second: counts are written down, leases of
tasks whose agents are heard are extended, and tasks that are over time, silent, or of lost agents are ended. Hourly:
files that failed backups left are removed. What touches a repository runs in the background, since one may hang.
"""

import asyncio
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial

from hub import leftovers
from hub.agents import Agents, CancelOrder
from hub.backups import Backups
from hub.catalogue import repositories, tasks
from hub.catalogue.engine import Catalogue
from hub.catalogue.states import TaskState
from hub.catalogue.tasks import Task
from hub.tasks import Tasks
from shared import logs
from shared.errors import AgentUnavailable, SendenseError, TimedOut, Unavailable

PERIOD = 1.0
"""Seconds between rounds."""

SWEEP_PERIOD = 3600.0
"""Seconds between looks for leftovers."""

PATIENCE = 10.0
"""Seconds that giving up work may keep the hub from starting or stopping."""

log = logs.get(__name__)


@dataclass(slots=True)
class Upkeep:
    """Runs beside the listeners."""

    catalogue: Catalogue
    agents: Agents
    backups: Backups
    tasks: Tasks
    stall_limit: float
    """Seconds a running task may be silent."""
    _last_round: float = field(default_factory=time.monotonic)
    _last_sweep: float = -math.inf

    async def give_up_work(self, why: str) -> None:
        """End the unfinished tasks of this hub; their partial files are deleted."""
        for task in await self._unfinished():
            if task.lease_owner == self.tasks.owner:
                self._end(task, Unavailable(why))
        await self.backups.background.settle(PATIENCE)

    async def run(self) -> None:
        """Round after round, until cancelled; a round that fails is logged, and the next one tries again."""
        while True:
            await asyncio.sleep(PERIOD)
            try:
                await self.round()
            except Exception:  # whatever it is: without upkeep no lease is extended and no limit kept
                log.exception("upkeep failed; it tries again")

    async def round(self) -> None:
        """One round. After a stall of the hub nobody is judged: it may be the hub that has not listened."""
        now, stalled = datetime.now(UTC), self._has_stalled()
        await self.tasks.flush()
        await self._extend_leases(now, of_all=stalled)
        if not stalled:
            for task, error in self._overdue(await self._unfinished(), now):
                self._end(task, error)
        self._last_round = time.monotonic()
        await self._sweep()

    def _has_stalled(self) -> bool:
        """Whether leases may have run out because no round extended them."""
        return time.monotonic() - self._last_round > self.tasks.lease.total_seconds() / 2

    def _end(self, task: Task, error: SendenseError) -> None:
        """Begin to end a task: one that cannot be ended keeps no other from it."""
        self.backups.background.begin(task.id, partial(self._end_and_tell, task, error))

    async def _end_and_tell(self, task: Task, error: SendenseError) -> None:
        """In this order: the agent's own word, that it was told to stop, would be the task's end otherwise."""
        log.warning("ending a task", task=task.id, reason=error.reason, error=error.message)
        await self.backups.end(task.id, error)
        if task.agent_id is not None and self.agents.connected(task.agent_id):
            self.agents.send(task.agent_id, CancelOrder(task.id, error.message))

    async def _sweep(self) -> None:
        """Remove what failed backups left, when it is time to."""
        if time.monotonic() - self._last_sweep < SWEEP_PERIOD:
            return
        async with self.catalogue.reading() as session:
            known = await repositories.list_repositories(session)
        for repository in known:
            self.backups.background.begin(repository.id, partial(leftovers.remove, self.catalogue, repository))
        self._last_sweep = time.monotonic()

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

    async def _extend_leases(self, now: datetime, *, of_all: bool) -> None:
        """Extend leases of tasks whose agents are heard, or `of_all`; what is half used up: not a write a second."""
        due = {task.id for task in await self._unfinished() if self._to_extend(task, now, of_all)}
        if not due:
            return
        async with self.catalogue.writing() as session:
            for task in await tasks.unfinished(session):
                if task.id in due:
                    await tasks.extend_lease(session, task.id, self.tasks.owner, now + self.tasks.lease)

    def _to_extend(self, task: Task, now: datetime, of_all: bool) -> bool:
        if task.agent_id is None or task.lease_owner != self.tasks.owner:
            return False
        heard = of_all or self.agents.connected(task.agent_id)
        return heard and task.lease_expires_at - now < self.tasks.lease / 2
