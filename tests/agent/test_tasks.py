"""The tasks of an agent: how many run, how they are stopped, and that their ends are heard."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest

from agent import tasks as tasks_module
from agent.assignment import Assignment, Counts, OnCbtLoss, Progress, Severity
from agent.backup import Backup
from agent.tasks import BACKLOG, REPORTS_IN_VAIN, Tasks
from agent.vsphere.changes import Asked
from shared.errors import (
    AgentUnavailable,
    Cancelled,
    Conflict,
    InvalidRequest,
    NotAuthenticated,
    NotFound,
    NotPossibleNow,
    ReadFailed,
    SendenseError,
    TimedOut,
    Unavailable,
)

PATIENCE = 20.0
"""Seconds."""


class ScriptedBackup(Backup):
    """A backup whose run is a function of the test."""

    def run(self) -> None:
        site: Any = self._site
        site.run(self)


@dataclass
class Finished:
    """What the hub heard of a task's end."""

    task_id: str
    failure: SendenseError | None
    counts: Counts


@dataclass
class ScriptedSite:
    """Stands for the agent's site: what a backup does, and how the hub answers."""

    run: Callable[[Backup], None] = lambda backup: None
    answers: list[SendenseError] = field(default_factory=list)
    """Raised, one after the other, before a report is heard."""
    asked: int = 0
    finished: list[Finished] = field(default_factory=list)

    @property
    def hub(self) -> "ScriptedSite":
        return self

    def finish(self, task_id: str, failure: SendenseError | None, counts: Counts) -> None:
        self.asked += 1
        if self.answers:
            raise self.answers.pop(0)
        self.finished.append(Finished(task_id, failure, counts))


@pytest.fixture(autouse=True)
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks_module, "Backup", ScriptedBackup)
    monkeypatch.setattr(tasks_module, "REPORT_PAUSE", 0.01)


@pytest.fixture
def tasks() -> Iterator[Tasks]:
    tasks = Tasks(max_vms=2)
    yield tasks
    tasks.close()


def order(task_id: str = "task-1", time_limit: float = 0, vm_id: str = "") -> Assignment:
    """A backup of a VM, by default of another one for each task."""
    limit = timedelta(seconds=time_limit)
    return Assignment(task_id, "backup", vm_id or f"vm of {task_id}", Asked.FULL, OnCbtLoss.FULL, {}, limit)


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, "it did not become true"
        time.sleep(0.002)


def until_stopped(backup: Backup) -> None:
    """Run until somebody stops it."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        backup.check_stop()
        time.sleep(0.002)


def counted(runs: list[Backup]) -> Callable[[Backup], None]:
    """Runs until it is stopped, and says that it ran."""

    def run(backup: Backup) -> None:
        runs.append(backup)
        until_stopped(backup)

    return run


def run(tasks: Tasks, site: ScriptedSite, assignment: Assignment) -> None:
    """Start a task and wait until it is gone."""
    start(tasks, site, assignment)
    until(lambda: not tasks.ids())


def start(tasks: Tasks, site: Any, assignment: Assignment) -> None:
    tasks.start(site, assignment)


def started(tasks: Tasks, *ids: str) -> bool:
    return set(tasks.counts()) == set(ids)


# -- how many run -----------------------------------------------------------------------------------------------------


def test_as_many_tasks_run_as_there_are_slots_and_the_others_wait(tasks: Tasks) -> None:
    site = ScriptedSite(until_stopped)
    for number in range(4):
        start(tasks, site, order(f"task-{number}"))
    until(lambda: len(tasks.counts()) == 2)
    time.sleep(0.05)
    assert len(tasks.counts()) == 2
    assert tasks.ids() == {"task-0", "task-1", "task-2", "task-3"}


def test_a_task_that_waits_runs_when_another_has_ended(tasks: Tasks) -> None:
    site = ScriptedSite(until_stopped)
    for number in range(3):
        start(tasks, site, order(f"task-{number}"))
    until(lambda: len(tasks.counts()) == 2)
    (waiting,) = tasks.ids() - set(tasks.counts())
    tasks.cancel(next(iter(tasks.counts())), "enough")
    until(lambda: waiting in tasks.counts())


def test_a_second_task_of_a_vm_waits_for_the_first_and_leaves_the_slot_to_others(tasks: Tasks) -> None:
    """The hub may have given the first one up while its snapshot is still being removed here."""
    site = ScriptedSite(until_stopped)
    start(tasks, site, order("first", vm_id="web01"))
    until(lambda: started(tasks, "first"))
    start(tasks, site, order("second", vm_id="web01"))
    start(tasks, site, order("other", vm_id="db01"))
    until(lambda: started(tasks, "first", "other"))
    tasks.cancel("first", "enough")
    until(lambda: started(tasks, "second", "other"))


def test_a_task_at_hand_is_not_started_again(tasks: Tasks) -> None:
    runs: list[Backup] = []
    site = ScriptedSite(counted(runs))
    start(tasks, site, order())
    start(tasks, site, order())
    until(lambda: bool(runs))
    tasks.cancel("task-1", "enough")
    until(lambda: not tasks.ids())
    assert (len(runs), site.asked) == (1, 1)


# -- how they are stopped ---------------------------------------------------------------------------------------------


def test_a_running_task_that_is_cancelled_ends_cancelled(tasks: Tasks) -> None:
    site = ScriptedSite(until_stopped)
    start(tasks, site, order())
    until(lambda: started(tasks, "task-1"))
    tasks.cancel("task-1", "the operator wants it")
    until(lambda: not tasks.ids())
    failure = site.finished[0].failure
    assert isinstance(failure, Cancelled)
    assert failure.message == "the operator wants it"


def test_a_waiting_task_that_is_cancelled_ends_at_once_and_never_runs(tasks: Tasks) -> None:
    runs: list[Backup] = []
    site = ScriptedSite(counted(runs))
    for number in range(3):
        start(tasks, site, order(f"task-{number}"))
    until(lambda: len(tasks.counts()) == 2)
    (waiting,) = tasks.ids() - set(tasks.counts())
    tasks.cancel(waiting, "enough")
    until(lambda: waiting not in tasks.ids())
    assert [finished.task_id for finished in site.finished] == [waiting]
    assert isinstance(site.finished[0].failure, Cancelled)
    assert len(runs) == 2


def test_cancelling_an_unknown_task_does_nothing(tasks: Tasks) -> None:
    tasks.cancel("task-9", "why not")


def test_a_task_over_its_time_limit_has_timed_out(tasks: Tasks) -> None:
    site = ScriptedSite(until_stopped)
    run(tasks, site, order(time_limit=0.05))
    assert isinstance(site.finished[0].failure, TimedOut)


def test_a_task_within_its_time_limit_is_not_disturbed_afterwards(tasks: Tasks) -> None:
    site = ScriptedSite(lambda backup: None)
    run(tasks, site, order(time_limit=3600))
    assert site.finished[0].failure is None
    assert not [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]


def test_a_task_without_a_time_limit_takes_as_long_as_it_takes(tasks: Tasks) -> None:
    site = ScriptedSite(lambda backup: time.sleep(0.05))
    run(tasks, site, order(time_limit=0))
    assert site.finished[0].failure is None


def test_closing_stops_every_task_and_waits_for_its_end_to_be_heard(tasks: Tasks) -> None:
    site = ScriptedSite(until_stopped)
    for number in range(3):
        start(tasks, site, order(f"task-{number}"))
    tasks.close()
    assert tasks.ids() == frozenset()
    assert len(site.finished) == 3
    assert {type(finished.failure) for finished in site.finished} == {AgentUnavailable}


def test_closing_does_not_wait_for_a_hub_that_does_not_answer(tasks: Tasks) -> None:
    site = ScriptedSite(until_stopped, [Unavailable("no hub")] * 1_000_000)
    start(tasks, site, order())
    begun = time.monotonic()
    tasks.close()
    assert time.monotonic() - begun < PATIENCE / 4
    assert (site.asked, site.finished) == (1, [])


def test_nothing_is_started_any_more_once_it_is_closed(tasks: Tasks) -> None:
    tasks.close()
    site = ScriptedSite()
    start(tasks, site, order())
    assert tasks.ids() == frozenset()
    assert site.asked == 0


# -- what the hub hears -----------------------------------------------------------------------------------------------


def test_the_end_of_a_good_task_is_reported_with_its_final_counts(tasks: Tasks) -> None:
    def work(backup: Backup) -> None:
        progress: Progress = backup._progress
        progress.add(total=10, read=7)
        progress.add(skipped=3)

    site = ScriptedSite(work)
    run(tasks, site, order())
    assert site.finished == [Finished("task-1", None, Counts(total=10, read=7, skipped=3))]


def test_the_end_of_a_bad_task_is_reported_with_its_error(tasks: Tasks) -> None:
    error = ReadFailed("bad sector")

    def work(backup: Backup) -> None:
        raise error

    site = ScriptedSite(work)
    run(tasks, site, order())
    assert site.finished == [Finished("task-1", error, Counts())]


def test_an_unexpected_error_is_reported_by_its_kind_alone(tasks: Tasks) -> None:
    def work(backup: Backup) -> None:
        raise KeyError("password hunter2")

    site = ScriptedSite(work)
    run(tasks, site, order())
    failure = site.finished[0].failure
    assert failure is not None
    assert failure.reason == "INTERNAL"
    assert "KeyError" in failure.message
    assert "hunter2" not in failure.message


def test_an_end_is_reported_until_it_is_heard(tasks: Tasks) -> None:
    answers = [
        Unavailable("no hub"),
        TimedOut("a busy hub"),
        SendenseError("a confused hub"),
        Conflict("a race"),
    ]
    site = ScriptedSite(answers=list(answers))
    run(tasks, site, order())
    assert site.asked == len(answers) + 1
    assert len(site.finished) == 1


def test_a_task_is_at_hand_until_its_end_was_heard(tasks: Tasks) -> None:
    """What a reconnecting agent does not name has failed."""
    site = ScriptedSite(answers=[Unavailable("no hub")] * 1_000_000)
    start(tasks, site, order())
    until(lambda: site.asked > 3)
    assert tasks.ids() == {"task-1"}


def test_a_task_whose_backup_has_returned_is_not_active_though_its_end_is_not_heard(tasks: Tasks) -> None:
    """What it has left behind may be removed."""
    site = ScriptedSite(answers=[Unavailable("no hub")] * 1_000_000)
    start(tasks, site, order())
    until(lambda: site.asked > 0)
    assert not tasks.active()
    assert tasks.ids() == {"task-1"}


def test_waiting_and_running_tasks_are_active(tasks: Tasks) -> None:
    site = ScriptedSite(until_stopped)
    for number in range(3):
        start(tasks, site, order(f"task-{number}"))
    until(lambda: len(tasks.counts()) == 2)
    assert tasks.active() == {"task-0", "task-1", "task-2"}


def test_a_hub_that_is_confused_about_an_end_is_not_asked_for_ever(tasks: Tasks) -> None:
    site = ScriptedSite(answers=[SendenseError("a confused hub")] * 1_000_000)
    run(tasks, site, order())
    assert (site.asked, site.finished) == (REPORTS_IN_VAIN, [])


@pytest.mark.parametrize(
    "answer",
    [NotFound("no such task"), NotAuthenticated("revoked"), InvalidRequest("nonsense"), NotPossibleNow("it has ended")],
)
def test_an_end_nobody_wants_to_hear_of_is_given_up(tasks: Tasks, answer: SendenseError) -> None:
    site = ScriptedSite(answers=[answer])
    run(tasks, site, order())
    assert (site.asked, site.finished) == (1, [])


class Listener:
    """A control stream's side for events."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Severity, str]] = []

    def event(self, task_id: str, severity: Severity, message: str) -> None:
        self.events.append((task_id, severity, message))


def test_log_lines_go_to_the_stream_that_is_open(tasks: Tasks) -> None:
    first, second = Listener(), Listener()
    attach: Callable[[Any], None] = tasks.attach
    attach(first)
    tasks.tell("task-1", Severity.INFO, "one")
    attach(second)
    tasks.tell("task-1", Severity.WARNING, "two")
    attach(None)
    tasks.tell("task-1", Severity.INFO, "nobody listens now")
    assert first.events == [("task-1", Severity.INFO, "one")]
    assert second.events == [("task-1", Severity.WARNING, "two")]


def test_log_lines_told_while_no_stream_is_open_follow_on_the_next_one_once(tasks: Tasks) -> None:
    first, second = Listener(), Listener()
    attach: Callable[[Any], None] = tasks.attach
    tasks.tell("task-1", Severity.INFO, "one")
    tasks.tell("task-2", Severity.WARNING, "two")
    attach(first)
    tasks.tell("task-1", Severity.INFO, "three")
    attach(second)
    assert [message for _, _, message in first.events] == ["one", "two", "three"]
    assert second.events == []


def test_of_log_lines_that_nobody_hears_for_long_the_newest_are_kept(tasks: Tasks) -> None:
    listener: Any = Listener()
    for number in range(BACKLOG + 5):
        tasks.tell("task-1", Severity.INFO, str(number))
    tasks.attach(listener)
    assert [message for _, _, message in listener.events] == [str(number) for number in range(5, BACKLOG + 5)]
