"""ControlService: control streams, inventories, and what an agent may say of tasks."""

import asyncio
from types import SimpleNamespace

import grpc
import pytest

from sendense.v1 import control_pb2, task_pb2
from tests.hub.live_hub import LiveHub, until
from tests.hub.refusals import refused
from tests.hub.scripted_agent import PATIENCE, ScriptedAgent, enroll, vm
from tests.hub.source_disk import SourceDisk

Page = control_pb2.ReportInventoryRequest


async def beat(agent: ScriptedAgent, task_id: str, **progress: int) -> None:
    entry = control_pb2.TaskProgress(task_id=task_id, **progress)
    await agent.stream.write(control_pb2.ConnectRequest(heartbeat=control_pb2.Heartbeat(tasks=[entry])))


async def progress_of(hub: LiveHub, task_id: str) -> task_pb2.Progress:
    await hub.hub.tasks.flush()
    return (await hub.task(task_id)).progress


async def read_until(hub: LiveHub, task_id: str, read_bytes: int) -> task_pb2.Progress:
    """Wait until the hub counts so many bytes as read; all its counts then."""

    async def counted() -> bool:
        return (await progress_of(hub, task_id)).read_bytes == read_bytes

    await until(counted)
    return await progress_of(hub, task_id)


async def test_the_welcome_tells_interval_and_name(hub: LiveHub) -> None:
    agent = await enroll(await hub.invite("appliance-7"))
    hub.agents.append(agent)
    welcome = await agent.connect()
    assert (welcome.heartbeat_interval.ToTimedelta().total_seconds(), welcome.display_name) == (5, "appliance-7")


@pytest.mark.parametrize("version", [0, 2])
async def test_another_protocol_version_is_refused_with_both_versions(hub: LiveHub, version: int) -> None:
    agent = await enroll(await hub.invite("appliance"))
    hub.agents.append(agent)
    refusal = await refused(agent.connect(version=version))
    assert tuple(refusal) == ("FAILED_PRECONDITION", "VERSION_MISMATCH", "")
    assert f"speaks protocol {version}, this hub" in refusal.message


async def test_an_agent_of_another_version_does_not_count_as_connected(hub: LiveHub) -> None:
    agent = await enroll(await hub.invite("appliance"))
    hub.agents.append(agent)
    await refused(agent.connect(version=2))
    assert not hub.hub.agents.connected(agent.id)


async def test_a_second_stream_ends_the_first_and_gets_the_orders(hub: LiveHub, agent: ScriptedAgent) -> None:
    first = agent.stream
    await agent.connect()
    assert await asyncio.wait_for(first.read(), PATIENCE) is grpc.aio.EOF
    assert await first.code() is grpc.StatusCode.OK
    await hub.create()
    assert (await agent.order()).vm_id == "vm-1"


async def test_a_task_that_hello_does_not_name_has_failed(hub: LiveHub, agent: ScriptedAgent) -> None:
    await hub.create()
    order = await agent.order()
    await agent.connect()
    task, backup = await hub.ended(order.task_id), await hub.backup(order.backup_id)
    assert (task.state, task.failure.reason) == (task_pb2.TASK_STATE_FAILED, "AGENT_UNAVAILABLE")
    assert (backup.failure.reason, "lost the task" in backup.failure.message) == ("AGENT_UNAVAILABLE", True)


async def test_a_task_that_hello_names_goes_on(hub: LiveHub, agent: ScriptedAgent, disk: SourceDisk) -> None:
    await hub.create()
    order = await agent.order()
    await agent.connect(order.task_id)
    await agent.make(order, disk)
    assert (await hub.ended(order.task_id)).state == task_pb2.TASK_STATE_SUCCEEDED


async def test_a_task_of_another_agent_is_not_missed_in_a_hello(hub: LiveHub, agent: ScriptedAgent) -> None:
    await hub.create()
    order = await agent.order()
    await hub.new_agent("second")
    assert (await hub.task(order.task_id)).state == task_pb2.TASK_STATE_QUEUED


async def test_a_heartbeat_begins_its_task_and_counts_never_go_back(hub: LiveHub, agent: ScriptedAgent) -> None:
    await hub.create()
    order = await agent.order()
    await beat(agent, order.task_id, total_bytes=300, read_bytes=200, skipped_bytes=10)
    await read_until(hub, order.task_id, 200)
    assert (await hub.task(order.task_id)).state == task_pb2.TASK_STATE_RUNNING
    await beat(agent, order.task_id, total_bytes=200, read_bytes=250, skipped_bytes=-5)
    progress = await read_until(hub, order.task_id, 250)
    assert (progress.total_bytes, progress.skipped_bytes) == (300, 10)


async def test_another_agent_cannot_begin_log_or_finish_a_task(hub: LiveHub, agent: ScriptedAgent) -> None:
    await hub.create()
    order, stranger = await agent.order(), await hub.new_agent("stranger")
    await beat(stranger, order.task_id, read_bytes=7)
    await stranger.event(order.task_id, "let me in")
    assert (await refused(stranger.finish(order.task_id))).code == "NOT_FOUND"
    await stranger.leave()
    assert (await hub.task(order.task_id)).state == task_pb2.TASK_STATE_QUEUED
    await agent.finish(order.task_id, "READ_FAILED", "over")
    assert [event.message for event in await hub.events(order.task_id)] == ["over"]


async def test_another_agent_cannot_count_for_a_task(hub: LiveHub, agent: ScriptedAgent) -> None:
    await hub.create()
    order, stranger = await agent.order(), await hub.new_agent("stranger")
    await beat(agent, order.task_id, read_bytes=3)
    await read_until(hub, order.task_id, 3)
    await beat(stranger, order.task_id, read_bytes=7)
    assert (await refused(stranger.finish(order.task_id, read_bytes=7))).code == "NOT_FOUND"
    await stranger.leave()
    assert (await progress_of(hub, order.task_id)).read_bytes == 3


async def test_events_are_numbered_and_keep_their_severity(hub: LiveHub, agent: ScriptedAgent) -> None:
    await hub.create()
    order = await agent.order()
    for severity in (task_pb2.SEVERITY_INFO, task_pb2.SEVERITY_WARNING, task_pb2.SEVERITY_UNSPECIFIED):
        await agent.event(order.task_id, f"line {severity}", severity)
    await agent.leave()
    await agent.finish(order.task_id, "READ_FAILED", "over")
    events = await hub.events(order.task_id)
    assert [(event.number, event.severity) for event in events] == [(1, 1), (2, 2), (3, 1), (4, 3)]


async def test_what_an_agent_says_of_an_unknown_task_leaves_its_stream_alone(
    hub: LiveHub, agent: ScriptedAgent
) -> None:
    await agent.event("unknown", "hello")
    await agent.heartbeat(unknown=(1, 1, 1))
    await hub.create()
    assert (await agent.order()).vm_id == "vm-1"


async def test_the_first_word_on_a_tasks_end_counts(hub: LiveHub, agent: ScriptedAgent) -> None:
    await hub.create()
    order = await agent.order()
    await agent.finish(order.task_id, "READ_FAILED", "disk 3 cannot be read")
    await agent.finish(order.task_id)
    task = await hub.task(order.task_id)
    assert (task.state, task.failure.reason) == (task_pb2.TASK_STATE_FAILED, "READ_FAILED")


async def test_an_unknown_task_cannot_be_finished(hub: LiveHub, agent: ScriptedAgent) -> None:
    assert tuple(await refused(agent.finish("unknown"))) == ("NOT_FOUND", "NOT_FOUND", "")


async def test_a_task_that_ends_without_a_commit_has_failed(hub: LiveHub, agent: ScriptedAgent) -> None:
    await hub.create()
    order = await agent.order()
    await agent.finish(order.task_id)
    assert (await hub.task(order.task_id)).state == task_pb2.TASK_STATE_FAILED


@pytest.mark.parametrize(
    "pages",
    [
        [],
        [Page()],
        [Page(vcenter_id="a"), Page(vcenter_id="b")],
        [Page(vcenter_id="a"), Page()],
    ],
    ids=["none", "empty", "changing", "ending"],
)
async def test_an_inventory_of_no_one_vcenter_is_refused(
    hub: LiveHub, agent: ScriptedAgent, pages: list[control_pb2.ReportInventoryRequest]
) -> None:
    before = await hub.everything()
    expected = ("INVALID_ARGUMENT", "INVALID_REQUEST", "vcenter_id")
    assert tuple(await refused(agent.control.ReportInventory(iter(pages)))) == expected
    assert await hub.everything() == before


@pytest.mark.parametrize("vm_id", ["", "../../etc", "a/b", "x" * 37, ".."])
async def test_an_instance_uuid_that_could_leave_its_folder_is_refused(
    hub: LiveHub, agent: ScriptedAgent, vm_id: str
) -> None:
    refusal = await refused(agent.report(vm(vm_id, "hostile")))
    assert tuple(refusal) == ("INVALID_ARGUMENT", "INVALID_REQUEST", "vms.vm_id")


async def test_an_inventory_that_breaks_off_changes_nothing(
    hub: LiveHub, agent: ScriptedAgent, disk: SourceDisk
) -> None:
    call = agent.control.ReportInventory()
    await call.write(Page(vcenter_id="vcenter-1", vms=[vm("vm-2", "new")]))
    call.cancel()
    await agent.report(vm("vm-1", "web", disk))
    (only,) = (await hub.everything())["vms"]
    assert (only.name, only.HasField("missing_since")) == ("vms/vm-1", False)


async def test_pages_make_up_one_inventory(hub: LiveHub, agent: ScriptedAgent) -> None:
    pages = [Page(vcenter_id="vcenter-1", vms=[vm(f"vm-{number}", "x")]) for number in (1, 2, 3)]
    await agent.control.ReportInventory(iter(pages))
    assert [one.HasField("missing_since") for one in (await hub.everything())["vms"]] == [False, False, False]


async def test_a_vm_of_another_vcenter_is_not_overwritten(hub: LiveHub, agent: ScriptedAgent) -> None:
    second = await hub.new_agent("second")
    assert await second.report(vm("vm-1", "copy"), vcenter="vcenter-2") == ["vm-1"]
    (kept,) = (await hub.everything())["vms"]
    assert (kept.display_name, kept.agent_id) == ("web", agent.id)


async def test_streams_that_broke_leave_no_session(hub: LiveHub, agent: ScriptedAgent) -> None:
    async def gone() -> bool:
        return hub.hub.agents.heard_at(agent.id) is None

    for _ in range(3):
        await agent.connect()
    agent.stream.cancel()
    await until(gone)


async def test_a_foreign_task_in_a_heartbeat_does_not_silence_the_others(hub: LiveHub, agent: ScriptedAgent) -> None:
    await hub.create()
    order = await agent.order()
    entries = [
        control_pb2.TaskProgress(task_id="unknown"),
        control_pb2.TaskProgress(task_id=order.task_id, total_bytes=9, read_bytes=7),
    ]
    await agent.stream.write(control_pb2.ConnectRequest(heartbeat=control_pb2.Heartbeat(tasks=entries)))
    assert (await read_until(hub, order.task_id, 7)).total_bytes == 9


async def test_a_task_that_is_begun_again_writes_nothing(
    hub: LiveHub, agent: ScriptedAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    await hub.create()
    order = await agent.order()
    await agent.finish(order.task_id)
    monkeypatch.setattr(hub.hub.backups, "_catalogue", SimpleNamespace(reading=hub.hub.catalogue.reading))
    await hub.hub.backups.begin(agent.id, order.task_id)
