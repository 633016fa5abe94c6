"""`sendense task`, and following a task over streams that break."""

import contextlib
import json
import os
import pty
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from sendense.cli import task as task_module
from sendense.cli.connection import connect
from sendense.cli.errors import CommandFailed
from sendense.cli.progress import _lines
from sendense.cli.task import follow
from sendense.v1.backup_pb2 import Failure
from sendense.v1.task_pb2 import ListTasksResponse, Progress, Severity, Task, TaskEvent, TaskState, WatchTaskResponse
from sendense.v1.task_pb2_grpc import TaskServiceStub
from tests.cli.conftest import Command, rows
from tests.cli.scripted_hub import PlainAbort, Refusal, ScriptedHub, serving

RUNNING, SUCCEEDED = TaskState.TASK_STATE_RUNNING, TaskState.TASK_STATE_SUCCEEDED
LOST = PlainAbort(grpc.StatusCode.UNAVAILABLE)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries again at once."""
    monkeypatch.setattr(task_module, "RETRY_PAUSE", 0.01)


def message(state: TaskState.ValueType, *events: int, failure: Failure | None = None) -> WatchTaskResponse:
    read = 1024 if state == RUNNING else 3072
    progress = Progress(total_bytes=4096, read_bytes=read, skipped_bytes=1024, sent_bytes=512, stored_bytes=256)
    return WatchTaskResponse(
        task=Task(name="tasks/t1", state=state, progress=progress, failure=failure),
        events=[TaskEvent(number=n, message=f"event {n}", severity=Severity.SEVERITY_WARNING) for n in events],
    )


def test_list_shows_tasks_and_filters_by_state(hub: ScriptedHub, sendense: Command) -> None:
    listed = Task(name="tasks/t1", kind="BACKUP", vm_name="web-01", state=RUNNING)
    hub.on("ListTasks", ListTasksResponse(tasks=[listed]))
    outcome = sendense("task", "list", "--state", "running")
    assert rows(outcome.out)[0][:4] == ["t1", "backup", "web-01", "running"]
    assert hub.requests["ListTasks"][0].state == RUNNING


@pytest.mark.parametrize("spelling", ["t1", "tasks/t1"])
def test_a_task_goes_by_its_id_with_or_without_the_prefix(spelling: str, hub: ScriptedHub, sendense: Command) -> None:
    hub.on("GetTask", Task(name="tasks/t1", state=SUCCEEDED))
    assert json.loads(sendense("task", "show", spelling, "--json").out)["state"] == "TASK_STATE_SUCCEEDED"
    assert hub.requests["GetTask"][0].name == "tasks/t1"


def test_show_tells_why_a_task_failed(hub: ScriptedHub, sendense: Command) -> None:
    failure = Failure(reason="REPOSITORY_FULL", message="no room")
    hub.on("GetTask", Task(name="tasks/t1", state=TaskState.TASK_STATE_FAILED, failure=failure))
    assert "failure   no room (REPOSITORY_FULL)" in sendense("task", "show", "t1").out


def test_cancel_asks_the_hub(hub: ScriptedHub, sendense: Command) -> None:
    hub.on("CancelTask", Task(name="tasks/t1", cancel_requested=True))
    assert sendense("task", "cancel", "t1").out == "task t1 was asked to stop\n"


def test_watching_a_task_to_its_good_end_is_success(hub: ScriptedHub, sendense: Command) -> None:
    hub.on("WatchTask", [message(RUNNING), message(SUCCEEDED)])
    outcome = sendense("task", "watch", "t1")
    assert (outcome.status, outcome.out.split(":")[0]) == (0, "task t1 succeeded")


@pytest.mark.parametrize(("state", "word"), [("FAILED", "failed"), ("CANCELLED", "cancelled")])
def test_watching_a_task_to_a_bad_end_is_failure_with_the_reason(
    state: str, word: str, hub: ScriptedHub, sendense: Command
) -> None:
    failure = Failure(reason="WHY", message="it broke")
    hub.on("WatchTask", [message(TaskState.Value(f"TASK_STATE_{state}"), failure=failure)])
    outcome = sendense("task", "watch", "t1")
    assert outcome.status == 1
    assert outcome.err.endswith(f"sendense: task t1 {word}: it broke (WHY)\n")


def test_watching_shows_the_log_and_the_progress_in_plain_lines(hub: ScriptedHub, sendense: Command) -> None:
    hub.on("WatchTask", [message(RUNNING, 1), message(SUCCEEDED)])
    err = sendense("task", "watch", "t1").err
    assert "warning: event 1" in err
    assert "running  2.0 KiB of 4.0 KiB (50 %)" in err
    assert "succeeded  4.0 KiB of 4.0 KiB (100 %)" in err


def test_watching_in_json_prints_each_message_on_a_line_and_nothing_else(hub: ScriptedHub, sendense: Command) -> None:
    hub.on("WatchTask", [message(RUNNING, 1), message(SUCCEEDED)])
    outcome = sendense("task", "watch", "t1", "--json")
    states = [json.loads(line)["task"]["state"] for line in outcome.out.splitlines()]
    assert (states, outcome.err) == (["TASK_STATE_RUNNING", "TASK_STATE_SUCCEEDED"], "")


def test_a_broken_stream_is_taken_up_after_the_last_event(hub: ScriptedHub, sendense: Command) -> None:
    hub.on("WatchTask", [message(RUNNING, 1, 2), LOST], [LOST], [message(SUCCEEDED, 3)])
    outcome = sendense("task", "watch", "t1")
    assert outcome.status == 0
    assert [request.after_event for request in hub.requests["WatchTask"]] == [0, 2, 2]
    assert "lost the hub; trying again" in outcome.err


def test_a_hub_that_was_restarted_is_found_again(socket_folder: Path) -> None:
    hub, stopped = ScriptedHub(f"unix://{socket_folder}/hub.sock"), threading.Event()

    def stream(request: object) -> Iterator[WatchTaskResponse]:
        yield message(RUNNING)
        stopped.wait(60)

    hub.on("WatchTask", stream, [message(SUCCEEDED)])
    with connect(hub.address) as channel:
        followed = follow(TaskServiceStub(channel), "tasks/t1")
        with serving(hub):
            assert next(followed).task.state == RUNNING
        stopped.set()
        with serving(hub):
            assert next(followed).task.state == SUCCEEDED


def test_a_stream_that_ends_too_early_is_taken_up_again(hub: ScriptedHub, sendense: Command) -> None:
    hub.on("WatchTask", [message(RUNNING, 1)], [message(SUCCEEDED)])
    assert sendense("task", "watch", "t1").status == 0


def test_a_refusal_in_mid_stream_is_final(hub: ScriptedHub, sendense: Command) -> None:
    hub.on("WatchTask", [message(RUNNING), Refusal(grpc.StatusCode.PERMISSION_DENIED)])
    assert sendense("task", "watch", "t1").status == 6


def test_a_hub_that_never_answered_is_not_tried_again(hub: ScriptedHub, sendense: Command) -> None:
    hub.on("WatchTask", [LOST])
    assert sendense("task", "watch", "t1").status == 5
    assert len(hub.requests["WatchTask"]) == 1


@pytest.mark.parametrize("broken", [[LOST], []], ids=["unavailable", "ended"])
def test_a_hub_that_stays_away_is_given_up(broken: list[PlainAbort], hub: ScriptedHub) -> None:
    hub.on("WatchTask", [message(RUNNING), LOST], broken)
    begun = time.monotonic()
    with pytest.raises(CommandFailed), connect(hub.address) as channel:
        list(follow(TaskServiceStub(channel), "tasks/t1", outage_limit=0.5))
    assert 0.5 < time.monotonic() - begun < 5


def test_plain_lines_come_also_when_nothing_moves(capsys: pytest.CaptureFixture[str]) -> None:
    with _lines(interval=0.05):
        time.sleep(0.5)
    assert capsys.readouterr().err.count("waiting") >= 3


def test_on_a_terminal_there_is_a_bar_with_the_log_above_it(hub: ScriptedHub) -> None:
    hub.on("WatchTask", [message(RUNNING, 1), message(SUCCEEDED)])
    ours, its = pty.openpty()
    command = [sys.executable, "-m", "sendense.cli.main", "--hub", hub.address, "task", "watch", "t1"]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    subprocess.run(command, stderr=its, stdout=subprocess.PIPE, env=environment, check=True, timeout=60)
    os.close(its)
    shown = _read_all(ours)
    assert 0 < shown.index("warning: event 1") < shown.rindex("━")
    assert "4.0 KiB of 4.0 KiB" in shown


def _read_all(terminal: int) -> str:
    shown = b""
    with open(terminal, "rb", buffering=0) as file, contextlib.suppress(OSError):  # EIO: nobody has it open any more
        while part := file.read(65536):
            shown += part
    return shown.decode()


def test_watching_does_not_end_with_the_limit_of_other_calls(hub: ScriptedHub) -> None:
    def slow(request: object) -> Iterator[WatchTaskResponse]:
        threading.Event().wait(1)
        yield message(SUCCEEDED)

    hub.on("WatchTask", slow)
    with connect(hub.address, call_timeout=0.2) as channel:
        assert len(list(follow(TaskServiceStub(channel), "tasks/t1"))) == 1
