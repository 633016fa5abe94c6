"""Upkeep: limits that end tasks by themselves, and work that an earlier run of the hub left."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from hub import upkeep
from hub.backups import Backups
from hub.catalogue import tasks
from hub.config import HubSettings
from hub.upkeep import Upkeep
from sendense.v1 import backup_pb2, control_pb2, task_pb2
from shared.errors import TimedOut, Unavailable
from tests.hub.live_hub import LiveHub, running, until
from tests.hub.scripted_agent import INCREMENTAL, ScriptedAgent, vm
from tests.hub.source_disk import SourceDisk

FAILED = task_pb2.TASK_STATE_FAILED


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "PERIOD", 0.05)


@pytest.fixture
async def order(hub: LiveHub, agent: ScriptedAgent, disk: SourceDisk) -> control_pb2.StartBackup:
    """A backup whose transfer is open."""
    await hub.create()
    order = await agent.order()
    await agent.send(order, disk)
    return order


class TestTimeLimit:
    @pytest.fixture
    def options(self) -> dict[str, Any]:
        return {"tasks": {"time_limit": 1}}

    async def test_a_task_over_its_time_limit_is_ended_and_its_agent_told(
        self, hub: LiveHub, agent: ScriptedAgent, order: control_pb2.StartBackup
    ) -> None:
        assert order.time_limit.ToSeconds() == 1
        ended = await hub.ended(order.task_id)
        assert (ended.state, ended.failure.reason) == (FAILED, "TIMED_OUT")
        assert "time limit of 1 s" in ended.failure.message
        assert (await agent.cancellation()).task_id == order.task_id
        assert (hub.files(), (await hub.backup(order.backup_id)).failure.reason) == ([], "TIMED_OUT")

    async def test_a_time_out_is_recorded_as_one_though_its_agent_says_that_it_was_cancelled(
        self, hub: LiveHub, agent: ScriptedAgent, order: control_pb2.StartBackup, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        end = Backups.end

        async def end_late(self: Backups, task_id: str, error: Any) -> None:
            if isinstance(error, TimedOut):
                await asyncio.sleep(0.5)
            await end(self, task_id, error)

        monkeypatch.setattr(Backups, "end", end_late)
        await agent.cancellation()
        await agent.finish(order.task_id, "CANCELLED", "stopped")
        assert (await hub.task(order.task_id)).failure.reason == "TIMED_OUT"


class TestStallLimit:
    @pytest.fixture
    def options(self) -> dict[str, Any]:
        return {"tasks": {"stall_limit": 1}}

    async def test_a_task_without_data_or_heartbeat_is_ended(
        self, hub: LiveHub, order: control_pb2.StartBackup
    ) -> None:
        ended = await hub.ended(order.task_id)
        assert (ended.state, ended.failure.reason, hub.files()) == (FAILED, "TIMED_OUT", [])
        assert "neither data nor a heartbeat" in ended.failure.message

    async def test_heartbeats_alone_keep_a_task_alive(
        self, hub: LiveHub, agent: ScriptedAgent, order: control_pb2.StartBackup
    ) -> None:
        for number in range(15):
            await agent.heartbeat(**{order.task_id.replace("-", "_"): (100, number, 0)})
            await asyncio.sleep(0.1)
        assert (await hub.task(order.task_id)).state == task_pb2.TASK_STATE_RUNNING


class TestLease:
    @pytest.fixture
    def options(self) -> dict[str, Any]:
        return {"agents": {"lease": 1.5, "heartbeat_interval": 0.2}}

    async def test_a_task_that_never_began_ends_with_its_agents_silence(
        self, hub: LiveHub, agent: ScriptedAgent
    ) -> None:
        created = await hub.create()
        ended = await hub.ended(created.task.removeprefix("tasks/"))
        assert (ended.state, ended.failure.reason) == (FAILED, "AGENT_UNAVAILABLE")
        assert "not heard for 2 s" in ended.failure.message

    async def test_a_task_whose_agent_left_ends_with_its_lease(
        self, hub: LiveHub, agent: ScriptedAgent, order: control_pb2.StartBackup
    ) -> None:
        await agent.leave()
        ended = await hub.ended(order.task_id)
        assert (ended.failure.reason, hub.files()) == ("AGENT_UNAVAILABLE", [])

    async def test_a_lease_is_extended_while_the_agent_is_heard(
        self, hub: LiveHub, agent: ScriptedAgent, order: control_pb2.StartBackup
    ) -> None:
        for _ in range(22):
            await agent.heartbeat()
            await asyncio.sleep(0.1)
        assert (await hub.task(order.task_id)).state == task_pb2.TASK_STATE_RUNNING

    async def test_a_lease_that_ran_out_while_the_agent_was_heard_ends_nothing(
        self, hub: LiveHub, agent: ScriptedAgent, order: control_pb2.StartBackup
    ) -> None:
        async with hub.hub.catalogue.writing() as session:
            await tasks.extend_lease(session, order.task_id, hub.hub.tasks.owner, datetime.now(UTC))
        for _ in range(5):
            await agent.heartbeat()
            await asyncio.sleep(0.1)
        assert (await hub.task(order.task_id)).state == task_pb2.TASK_STATE_RUNNING

    async def test_a_hub_that_stalled_gives_agents_the_time_of_a_lease_to_be_heard(
        self, hub: LiveHub, agent: ScriptedAgent, order: control_pb2.StartBackup, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(tasks, "unfinished", _broken)
            await asyncio.sleep(2)
        await asyncio.sleep(0.3)
        for _ in range(5):
            await agent.heartbeat()
            await asyncio.sleep(0.1)
        assert (await hub.task(order.task_id)).state == task_pb2.TASK_STATE_RUNNING


async def test_files_that_could_not_be_deleted_are_removed_when_the_repository_is_back(
    hub: LiveHub, agent: ScriptedAgent, disk: SourceDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    await hub.create()
    await agent.make(await agent.order(), disk)
    stranger = hub.repository / "vms" / "vm-1" / "unknown.json"
    stranger.write_text("{}")
    kept = hub.files()
    await hub.create()
    order = await agent.order()
    await agent.send(order, disk)
    elsewhere = hub.repository.rename(hub.repository.with_name("elsewhere"))
    await agent.finish(order.task_id, "READ_FAILED", "over")
    elsewhere.rename(hub.repository)
    assert hub.files() != kept

    async def clean() -> bool:
        return hub.files() == kept

    monkeypatch.setattr(upkeep, "SWEEP_PERIOD", 0.05)
    await until(clean)


async def test_a_hub_that_stops_gives_up_its_work(
    settings: HubSettings, folder: Path, disk: SourceDisk, initialised: Path
) -> None:
    async with running(settings, folder / "repository") as first:
        order = await _half_a_backup(first, folder / "repository", disk)
    async with running(settings, folder / "repository") as second:
        task, backup = await second.task(order.task_id), await second.backup(order.backup_id)
        assert (task.state, task.failure.reason) == (FAILED, "UNAVAILABLE")
        assert (backup.status, second.files()) == (backup_pb2.BACKUP_STATUS_FAILED, [])
        assert "stopped in the middle" in backup.failure.message


async def test_a_hub_that_was_killed_gives_up_its_work_when_it_starts(
    settings: HubSettings, folder: Path, disk: SourceDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Upkeep, "give_up_work", _nothing)  # a killed hub says no last word
        async with running(settings, folder / "repository") as first:
            order = await _half_a_backup(first, folder / "repository", disk)
    assert list((folder / "repository").rglob("*.partial"))
    async with running(settings, folder / "repository") as second:
        backup = await second.backup(order.backup_id)
        assert (backup.status, backup.failure.reason, second.files()) == (4, "UNAVAILABLE", [])
        assert "restarted in the middle" in backup.failure.message


async def test_after_a_restart_the_chain_goes_on_at_its_old_head(
    settings: HubSettings, folder: Path, disk: SourceDisk
) -> None:
    async with running(settings, folder / "repository") as first:
        first.repository_id = await first.add_repository("default", folder / "repository")
        agent = await first.new_agent()
        await agent.report(vm("vm-1", "web", disk))
        await first.create()
        full = await agent.order()
        await agent.make(full, disk)
        await first.create(backup_type=INCREMENTAL)
        lost = await agent.order()
        await agent.send(lost, disk)
    async with running(settings, folder / "repository") as second:
        assert await second.disk(full.backup_id) == disk.whole()
        agent = _again(agent, second)
        await agent.connect(lost.task_id)
        assert (await agent.cancellation()).task_id == lost.task_id
        await second.create(backup_type=INCREMENTAL)
        assert list((await agent.order()).bases) == list(lost.bases)


async def _half_a_backup(hub: LiveHub, repository: Path, disk: SourceDisk) -> control_pb2.StartBackup:
    await hub.add_repository("default", repository)
    agent = await hub.new_agent()
    await agent.report(vm("vm-1", "web", disk))
    await hub.create()
    order = await agent.order()
    await agent.send(order, disk)
    return order


def _again(agent: ScriptedAgent, hub: LiveHub) -> ScriptedAgent:
    ca = hub.hub.authority.ca.pem
    again = ScriptedAgent(agent.id, hub.settings.agents.address, ca, agent.key, agent.certificate.decode())
    hub.agents.append(again)
    return again


async def _nothing(*_: object) -> None:
    pass


async def test_a_round_that_fails_does_not_end_upkeep(
    hub: LiveHub, order: control_pb2.StartBackup, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(tasks, "unfinished", _broken)
        await asyncio.sleep(0.2)
    hub.hub.tasks.track(order.task_id, "").heard(100, 7, 0)

    async def counted() -> bool:
        return (await hub.task(order.task_id)).progress.read_bytes == 7

    await until(counted)


async def _broken(*_: object) -> None:
    raise RuntimeError("injected")


class TestManyOverdue:
    @pytest.fixture
    def options(self) -> dict[str, Any]:
        return {"tasks": {"time_limit": 1}}

    @pytest.mark.parametrize("hangs", [False, True])
    async def test_a_task_that_cannot_be_ended_keeps_no_other_from_it(
        self, hub: LiveHub, agent: ScriptedAgent, monkeypatch: pytest.MonkeyPatch, hangs: bool
    ) -> None:
        monkeypatch.setattr(upkeep, "PATIENCE", 0.5)
        disks = [SourceDisk(uuid="a"), SourceDisk(uuid="b")]
        await agent.report(vm("vm-1", "a", disks[0]), vm("vm-2", "b", disks[1]))
        await hub.create("vm-1")
        await hub.create("vm-2")
        stuck, other = await agent.order(), await agent.order()
        end = Backups.end

        async def end_others(self: Backups, task_id: str, error: Any) -> None:
            if task_id == stuck.task_id:
                await asyncio.sleep(30 if hangs else 0)
                raise Unavailable("injected")
            await end(self, task_id, error)

        monkeypatch.setattr(Backups, "end", end_others)
        await agent.open(stuck.backup_id, disks[0])
        await agent.open(other.backup_id, disks[1])
        assert (await hub.ended(other.task_id)).state == FAILED
        assert (await hub.task(stuck.task_id)).state == task_pb2.TASK_STATE_RUNNING
