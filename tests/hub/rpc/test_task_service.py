"""TaskService: tasks as operators see, watch and cancel them."""

import asyncio
from typing import Any

import grpc
import pytest

from hub.rpc import task_service
from sendense.v1 import task_pb2
from tests.hub.live_hub import LiveHub
from tests.hub.refusals import refused
from tests.hub.scripted_agent import PATIENCE, ScriptedAgent
from tests.hub.source_disk import SourceDisk


async def test_progress_ends_exact_and_never_goes_back(hub: LiveHub, agent: ScriptedAgent, disk: SourceDisk) -> None:
    await hub.create()
    order, runs = await agent.order(), disk.full()
    request = task_pb2.WatchTaskRequest(name=f"tasks/{order.task_id}")
    seen = asyncio.create_task(_all(hub, request))
    opened = await agent.open(order.backup_id, disk)
    await agent.write(opened.transfer_id, runs)
    sealed = await agent.seal(opened.transfer_id, disk, runs)
    await agent.commit(order.backup_id, opened.transfer_id)
    await agent.finish(order.task_id, total_bytes=900, read_bytes=600, skipped_bytes=300)
    messages = await seen
    counts = [message.task.progress for message in messages]
    for name in ("total_bytes", "read_bytes", "sent_bytes", "stored_bytes", "skipped_bytes"):
        values = [getattr(count, name) for count in counts]
        assert values == sorted(values)
    last = counts[-1]
    assert (last.total_bytes, last.read_bytes, last.skipped_bytes) == (900, 600, 300)
    assert (last.sent_bytes, last.stored_bytes) == (sum(len(run.payload) for run in runs), sealed.stored_bytes)


async def _all(hub: LiveHub, request: task_pb2.WatchTaskRequest) -> list[task_pb2.WatchTaskResponse]:
    return [message async for message in hub.tasks.WatchTask(request, timeout=PATIENCE)]


async def test_a_watch_shows_every_state_and_closes_after_the_end(hub: LiveHub, agent: ScriptedAgent) -> None:
    await hub.create()
    order = await agent.order()
    watched = hub.tasks.WatchTask(task_pb2.WatchTaskRequest(name=f"tasks/{order.task_id}"), timeout=PATIENCE)
    first: Any = await watched.read()
    await agent.finish(order.task_id, "READ_FAILED", "disk 3 cannot be read")
    last: Any = await watched.read()
    assert [first.task.state, last.task.state] == [task_pb2.TASK_STATE_QUEUED, task_pb2.TASK_STATE_FAILED]
    assert (last.task.failure.message, last.events[-1].message) == ("disk 3 cannot be read",) * 2
    assert await watched.read() is grpc.aio.EOF


async def test_a_watch_goes_on_after_the_event_it_is_given(hub: LiveHub, agent: ScriptedAgent) -> None:
    await hub.create()
    order = await agent.order()
    for number in range(5):
        await agent.event(order.task_id, f"line {number}")
    await agent.leave()
    await agent.finish(order.task_id, "READ_FAILED", "over")
    assert [event.number for event in await hub.events(order.task_id, after=3)] == [4, 5, 6]


async def test_a_watch_after_the_last_event_still_shows_the_end(hub: LiveHub, agent: ScriptedAgent) -> None:
    await hub.create()
    order = await agent.order()
    await agent.finish(order.task_id, "READ_FAILED", "over")
    request = task_pb2.WatchTaskRequest(name=f"tasks/{order.task_id}", after_event=100)
    (only,) = await _all(hub, request)
    assert (only.task.state, list(only.events)) == (task_pb2.TASK_STATE_FAILED, [])


async def test_a_long_log_arrives_whole_and_in_order(
    hub: LiveHub, agent: ScriptedAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_service, "EVENTS_AT_ONCE", 3)
    await hub.create()
    order = await agent.order()
    for number in range(8):
        await agent.event(order.task_id, f"line {number}")
    await agent.leave()
    await agent.finish(order.task_id, "READ_FAILED", "over")
    assert [event.number for event in await hub.events(order.task_id)] == list(range(1, 10))


async def test_a_cancelled_task_is_cancelled_when_its_agent_says_so(
    hub: LiveHub, agent: ScriptedAgent, disk: SourceDisk
) -> None:
    await hub.create()
    order = await agent.order()
    await agent.open(order.backup_id, disk)
    asked = await hub.tasks.CancelTask(task_pb2.CancelTaskRequest(name=f"tasks/{order.task_id}"))
    assert (asked.state, asked.cancel_requested) == (task_pb2.TASK_STATE_RUNNING, True)
    assert (await agent.cancellation()).task_id == order.task_id
    await agent.finish(order.task_id, "CANCELLED", "cancelled by the operator")
    ended, backup = await hub.ended(order.task_id), await hub.backup(order.backup_id)
    assert (ended.state, ended.failure.reason) == (task_pb2.TASK_STATE_CANCELLED, "CANCELLED")
    assert (backup.status, hub.files()) == (5, [])


async def test_a_task_whose_agent_is_away_is_cancelled_at_once(hub: LiveHub, agent: ScriptedAgent) -> None:
    await hub.create()
    order = await agent.order()
    await agent.leave()
    asked = await hub.tasks.CancelTask(task_pb2.CancelTaskRequest(name=f"tasks/{order.task_id}"))
    assert asked.state == task_pb2.TASK_STATE_CANCELLED


async def test_a_task_that_has_ended_cannot_be_cancelled(hub: LiveHub, agent: ScriptedAgent) -> None:
    await hub.create()
    order = await agent.order()
    await agent.finish(order.task_id, "READ_FAILED", "over")
    before = await hub.everything()
    refusal = await refused(hub.tasks.CancelTask(task_pb2.CancelTaskRequest(name=f"tasks/{order.task_id}")))
    assert tuple(refusal) == ("FAILED_PRECONDITION", "NOT_POSSIBLE_NOW", "")
    assert await hub.everything() == before


@pytest.mark.parametrize(
    ("name", "expected"),
    [("tasks", ("INVALID_ARGUMENT", "INVALID_REQUEST", "name")), ("tasks/unknown", ("NOT_FOUND", "NOT_FOUND", ""))],
)
async def test_a_name_of_no_task_is_refused(hub: LiveHub, name: str, expected: tuple[str, str, str]) -> None:
    assert tuple(await refused(hub.tasks.GetTask(task_pb2.GetTaskRequest(name=name)))) == expected
    assert tuple(await refused(hub.tasks.CancelTask(task_pb2.CancelTaskRequest(name=name)))) == expected
    assert tuple(await refused(_all(hub, task_pb2.WatchTaskRequest(name=name)))) == expected


@pytest.mark.parametrize("field", [{"state": 77}, {"page_size": -1}, {"page_token": "W10="}])
async def test_a_list_that_makes_no_sense_is_refused(hub: LiveHub, field: dict[str, str]) -> None:
    request = task_pb2.ListTasksRequest(**field)  # type: ignore[arg-type]
    assert tuple(await refused(hub.tasks.ListTasks(request))) == ("INVALID_ARGUMENT", "INVALID_REQUEST", *field)


async def test_filters_of_a_list_are_anded(hub: LiveHub, agent: ScriptedAgent) -> None:
    await hub.create()
    await agent.finish((await agent.order()).task_id, "READ_FAILED", "over")
    await hub.create()

    async def found(**fields: object) -> int:
        return len((await hub.tasks.ListTasks(task_pb2.ListTasksRequest(**fields))).tasks)  # type: ignore[arg-type]

    assert await found() == 2
    assert await found(vm_id="vm-1", state=task_pb2.TASK_STATE_FAILED) == 1
    assert await found(vm_id="vm-2", state=task_pb2.TASK_STATE_FAILED) == 0
