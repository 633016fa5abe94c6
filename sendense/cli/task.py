"""`sendense task`: what the hub is doing, and following it to its end."""

import time
from collections.abc import Iterator
from datetime import UTC
from typing import Literal, cast

import grpc
import typer

from sendense.cli import output
from sendense.cli.connection import HubOption, connect, pages
from sendense.cli.errors import CommandFailed, failure_text
from sendense.cli.names import TaskArgument, bare_id, task_name
from sendense.cli.output import JsonOption
from sendense.cli.progress import Progress, progress
from sendense.v1.task_pb2 import (
    CancelTaskRequest,
    GetTaskRequest,
    ListTasksRequest,
    Severity,
    Task,
    TaskState,
    WatchTaskRequest,
    WatchTaskResponse,
)
from sendense.v1.task_pb2_grpc import TaskServiceStub

app = typer.Typer(no_args_is_help=True, help="Show, watch and cancel tasks.")

OUTAGE_LIMIT = 60.0
"""Seconds a watched task's hub may be away before the watching is given up."""

RETRY_PAUSE = 2.0
"""Seconds between two attempts to reach it again."""

State = Literal["queued", "running", "succeeded", "failed", "cancelled"]


@app.command("list")
def list_tasks(state: State | None = None, hub: HubOption = "", as_json: JsonOption = False) -> None:
    """List tasks, newest first."""
    request = ListTasksRequest(state=TaskState.Value(f"TASK_STATE_{(state or 'unspecified').upper()}"))
    with connect(hub) as channel:
        tasks = [task for page in pages(TaskServiceStub(channel).ListTasks, request) for task in page.tasks]
    if as_json:
        output.document({"tasks": tasks})
    else:
        columns = ("TASK", "KIND", "VM", "STATE", ">DONE", ">SENT", "CREATED", "ENDED")
        output.table(columns, map(_row, tasks), empty="no tasks")


@app.command()
def show(task: TaskArgument, hub: HubOption = "", as_json: JsonOption = False) -> None:
    """Show one task."""
    with connect(hub) as channel:
        found = TaskServiceStub(channel).GetTask(GetTaskRequest(name=task_name(task)))
    if as_json:
        output.document(found)
    else:
        output.facts(_facts(found))


@app.command()
def watch(task: TaskArgument, hub: HubOption = "", as_json: JsonOption = False) -> None:
    """Follow a task until it ends; exit status 0 when it succeeded, 1 when not.

    A stream that breaks is taken up again. With --json every message is one JSON object on one line.

    \b
    Example:
      sendense task watch TASK --json | jq -c .task.progress
    """
    with connect(hub) as channel:
        stub = TaskServiceStub(channel)
        ended = _print_lines(stub, task_name(task)) if as_json else watch_with_progress(stub, task_name(task))
    if not as_json:
        output.line(f"task {bare_id(ended.name)} {_state_word(ended)}: {_counts(ended)}")
    _check_outcome(ended)


@app.command()
def cancel(task: TaskArgument, hub: HubOption = "", as_json: JsonOption = False) -> None:
    """Ask a task to stop. Returns at once; `sendense task watch` shows when it has."""
    with connect(hub) as channel:
        asked = TaskServiceStub(channel).CancelTask(CancelTaskRequest(name=task_name(task)))
    if as_json:
        output.document(asked)
    else:
        output.line(f"task {bare_id(asked.name)} was asked to stop")


def watch_with_progress(stub: TaskServiceStub, name: str) -> Task:
    """Follow the task with a progress bar and its log on stderr; the task as it ended."""
    with progress() as view:
        for response in follow(stub, name):
            _show(view, response)
    return response.task


def follow(stub: TaskServiceStub, name: str, outage_limit: float = OUTAGE_LIMIT) -> Iterator[WatchTaskResponse]:
    """Every message of WatchTask until the task has ended, each event once, over streams that break.

    Raises the last RpcError when the hub answers nothing at all, or is away for more than `outage_limit` seconds.
    """
    last_event, give_up_at = 0, 0.0
    while True:
        try:
            for response in stub.WatchTask(WatchTaskRequest(name=name, after_event=last_event)):
                give_up_at = time.monotonic() + outage_limit
                last_event = max([last_event, *(event.number for event in response.events)])
                yield response
                if response.task.state in _ENDED:
                    return
            _check_patience(give_up_at, CommandFailed("the hub ended the stream, and the task has not ended"))
        except grpc.RpcError as error:
            _check_patience(give_up_at if _is_outage(error) else 0.0, error)
        time.sleep(RETRY_PAUSE)


_ENDED = {TaskState.TASK_STATE_SUCCEEDED, TaskState.TASK_STATE_FAILED, TaskState.TASK_STATE_CANCELLED}

# What a stream ends with when the hub stops, is killed, or the way to it breaks.
_OUTAGE = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}


def _is_outage(error: grpc.RpcError) -> bool:
    return cast(grpc.Call, error).code() in _OUTAGE


def _check_patience(give_up_at: float, error: Exception) -> None:
    if time.monotonic() > give_up_at:
        raise error
    output.remark("lost the hub; trying again")


def _check_outcome(task: Task) -> None:
    if task.state != TaskState.TASK_STATE_SUCCEEDED:
        raise CommandFailed(f"task {bare_id(task.name)} {_state_word(task)}: {failure_text(task.failure)}")


def _state_word(task: Task) -> str:
    return output.word(TaskState.DESCRIPTOR, task.state)


def _print_lines(stub: TaskServiceStub, name: str) -> Task:
    for response in follow(stub, name):
        output.json_line(response)
    return response.task


def _show(view: Progress, response: WatchTaskResponse) -> None:
    for event in response.events:
        severity = output.word(Severity.DESCRIPTOR, event.severity)
        output.remark(f"{event.time.ToDatetime(UTC).astimezone():%H:%M:%S}  {severity}: {event.message}")
    task = response.task
    view.show(_state_word(task), _done(task), task.progress.total_bytes)


def _done(task: Task) -> int:
    return task.progress.read_bytes + task.progress.skipped_bytes


def _counts(task: Task) -> str:
    counts = task.progress
    return (
        f"read {output.size(counts.read_bytes)}, sent {output.size(counts.sent_bytes)}, "
        f"stored {output.size(counts.stored_bytes)}, skipped {output.size(counts.skipped_bytes)}"
    )


def _row(task: Task) -> tuple[str, ...]:
    return (
        bare_id(task.name),
        task.kind.lower(),
        task.vm_name,
        _state_word(task),
        f"{output.size(_done(task))} of {output.size(task.progress.total_bytes)}",
        output.size(task.progress.sent_bytes),
        output.when(task.create_time),
        output.when(task.end_time),
    )


def _facts(task: Task) -> list[tuple[str, str]]:
    return [
        ("task", bare_id(task.name)),
        ("kind", task.kind.lower()),
        ("state", _state_word(task) + (", asked to stop" if task.cancel_requested else "")),
        ("VM", f"{task.vm_name} ({task.vm_id})"),
        ("agent", task.agent_id),
        ("backup", bare_id(task.backup)),
        ("progress", f"{output.size(_done(task))} of {output.size(task.progress.total_bytes)}: {_counts(task)}"),
        ("created", output.when(task.create_time)),
        ("started", output.when(task.start_time)),
        ("ended", output.when(task.end_time)),
        ("failure", failure_text(task.failure)),
    ]
