"""The tasks of an agent: taken from the control stream, run in threads, heard of by heartbeats, reported at their end.

The control stream comes and goes; tasks go on meanwhile. A task's end is reported until the hub has heard it.
"""

import threading
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from agent.assignment import Assignment, Counts, Progress, Severity
from agent.backup import Backup, Site, Slots
from agent.hub_client import ControlStream
from shared import logs
from shared.errors import AgentUnavailable, Cancelled, SendenseError, TimedOut

log = logs.get(__name__)

REPORT_PAUSE = 2.0
"""Seconds between attempts to report a task's end."""

REPORTS_IN_VAIN = 5
"""Attempts that a hub may answer with an error of its own (INTERNAL) before a report is given up."""

BACKLOG = 1000
"""Log lines kept while no control stream is open, the newest: a task tells a few dozen in its life."""


class Tasks:
    """The tasks at hand, by ID."""

    def __init__(self, max_vms: int) -> None:
        """`max_vms` tasks run at once; others wait."""
        self._lock = threading.Lock()
        self._at_hand: dict[str, _Task] = {}
        self._slots = Slots(max_vms)
        # The hub may have ended a backup whose snapshot is still to be removed here: the VM's next one waits for that.
        self._slots_of_vms = defaultdict[str, Slots](partial(Slots, 1))
        self._stream: ControlStream | None = None
        self._backlog = deque[tuple[str, Severity, str]](maxlen=BACKLOG)
        self._closing = threading.Event()

    def ids(self) -> frozenset[str]:
        """IDs of all tasks at hand, waiting ones too."""
        with self._lock:
            return frozenset(self._at_hand)

    def active(self) -> frozenset[str]:
        """IDs of the tasks whose snapshots are in use or may come to be: those whose backup has not ended."""
        with self._lock:
            return frozenset(task.id for task in self._at_hand.values() if not task.ended)

    def counts(self) -> Mapping[str, Counts]:
        """How far each started task is."""
        with self._lock:
            return {task.id: task.progress.counts() for task in self._at_hand.values() if task.started}

    def attach(self, stream: ControlStream | None) -> None:
        """Say where log lines go from now on, those kept meanwhile first; None: they are kept until there is one."""
        with self._lock:
            self._stream = stream
            while stream is not None and self._backlog:
                stream.event(*self._backlog.popleft())

    def start(self, site: Site, assignment: Assignment) -> None:
        """Run a backup as soon as a slot is free; a task already at hand is left alone."""
        with self._lock:
            if assignment.task_id in self._at_hand or self._closing.is_set():
                return
            task = _Task(site, assignment, self, self._slots_of_vms[assignment.vm_id])
            self._at_hand[task.id] = task
            task.thread.start()

    def cancel(self, task_id: str, reason: str) -> None:
        """Ask a task to stop; an unknown one is ignored."""
        with self._lock:
            task = self._at_hand.get(task_id)
        if task is not None:
            task.backup.stop(Cancelled(reason))

    def close(self) -> None:
        """Stop all tasks, wait until their snapshots are removed and their ends are reported (or cannot be)."""
        with self._lock:
            self._closing.set()
            tasks = list(self._at_hand.values())
        for task in tasks:
            task.backup.stop(AgentUnavailable("the agent was stopped in the middle of it"))
        for task in tasks:
            task.thread.join()

    def tell(self, task_id: str, severity: Severity, message: str) -> None:
        """Add a line to a task's log."""
        log.info(message, task=task_id)
        with self._lock:
            if self._stream is not None:
                self._stream.event(task_id, severity, message)
            else:
                self._backlog.append((task_id, severity, message))

    def run(self, site: Site, task: "_Task") -> None:
        """Run a task in its thread, once there is a slot, and report its end."""
        failure: SendenseError | None = None
        try:
            with task.vm_slot.one(task.backup.check_stop), self._slots.one(task.backup.check_stop):
                task.run()
        except SendenseError as error:
            failure = error
            log.warning("task ended badly", task=task.id, reason=error.reason, error=error.message)
        except Exception as error:  # the thread's last resort: whatever it was, the hub must hear that the task ended
            failure = SendenseError(f"the agent failed unexpectedly ({type(error).__name__}); its log tells more")
            log.exception("task failed unexpectedly", task=task.id)
        task.ended = True
        try:
            self._report(site, task, failure)
        finally:
            with self._lock:
                del self._at_hand[task.id]

    def _report(self, site: Site, task: "_Task", failure: SendenseError | None) -> None:
        in_vain = 0
        while True:
            try:
                site.hub.finish(task.id, failure, task.progress.counts())
                return
            except SendenseError as error:
                in_vain += type(error) is SendenseError
                if not _may_be_heard_later(error) or in_vain == REPORTS_IN_VAIN:
                    log.warning("the hub does not want to hear of a task's end", task=task.id, error=error.message)
                    return
                log.warning("cannot report a task's end yet", task=task.id, error=error.message)
            if self._closing.wait(REPORT_PAUSE):
                return


def _may_be_heard_later(error: SendenseError) -> bool:
    return error.retry_helps or isinstance(error, TimedOut) or type(error) is SendenseError


class _Task:
    """One task, waiting or running."""

    def __init__(self, site: Site, assignment: Assignment, tasks: Tasks, vm_slot: Slots) -> None:
        self.id = assignment.task_id
        self.vm_slot = vm_slot
        self.progress = Progress()
        self.started = False
        self.ended = False
        """Its backup has returned; only its end is still to be heard of."""
        self.backup = Backup(site, assignment, partial(tasks.tell, self.id), self.progress)
        self.thread = threading.Thread(target=tasks.run, args=(site, self), name=f"task {self.id}")
        self._time_limit = assignment.time_limit.total_seconds()

    def run(self) -> None:
        """Make the backup, within its time limit."""
        self.started = True
        with self._limited():
            self.backup.run()

    @contextmanager
    def _limited(self) -> Iterator[None]:
        if not self._time_limit:
            yield
            return
        error = TimedOut(f"it took longer than the time limit of {self._time_limit:.0f} s")
        timer = threading.Timer(self._time_limit, self.backup.stop, [error])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
