"""Backups from order to restore point: every byte compared, every failure without a trace."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hub import points
from hub.catalogue import backups
from hub.repository import RepositoryFolder, open_repository
from hub.transfers import Transfer
from sendense.v1 import backup_pb2, control_pb2, task_pb2
from shared.errors import RepositoryUnavailable, SendenseError, Unavailable
from shared.units import CLUSTER, MiB
from tests.hub.live_hub import LiveHub
from tests.hub.refusals import refused
from tests.hub.scripted_agent import AUTO, FULL, INCREMENTAL, ScriptedAgent, vm
from tests.hub.source_disk import SourceDisk

COMPLETE, FAILED = backup_pb2.BACKUP_STATUS_COMPLETE, backup_pb2.BACKUP_STATUS_FAILED


async def made(hub: LiveHub, agent: ScriptedAgent, *disks: SourceDisk, kind: Any = FULL, **other: Any) -> str:
    """A complete backup of `vm-1`; its ID."""
    await hub.create(backup_type=kind, **other)
    order = await agent.order()
    await agent.make(order, *disks)
    return order.backup_id


async def test_trap_a_full_and_five_incrementals_each_restore_their_own_instant(
    hub: LiveHub, agent: ScriptedAgent, disk: SourceDisk
) -> None:
    instants = {await made(hub, agent, disk): disk.whole()}
    for step in range(5):
        disk.scribble(step * 5 * CLUSTER, 3 * MiB - 1000)
        disk.write((step + 1) * CLUSTER, bytes(CLUSTER))
        instants[await made(hub, agent, disk, kind=INCREMENTAL)] = disk.whole()
    assert [await hub.disk(backup_id) for backup_id in instants] == list(instants.values())


async def test_trap_data_that_became_zero_does_not_show_through(
    hub: LiveHub, agent: ScriptedAgent, disk: SourceDisk
) -> None:
    await made(hub, agent, disk)
    disk.write(0, bytes(disk.capacity))
    assert await hub.disk(await made(hub, agent, disk, kind=INCREMENTAL)) == bytes(disk.capacity)


async def test_an_incremental_without_a_change_completes_and_restores(
    hub: LiveHub, agent: ScriptedAgent, disk: SourceDisk
) -> None:
    await made(hub, agent, disk)
    backup_id = await made(hub, agent, disk, kind=INCREMENTAL)
    assert await hub.disk(backup_id) == disk.whole()
    assert (await hub.backup(backup_id)).disks[0].changed_bytes == 0


async def test_trap_a_full_is_a_full_whatever_history_there_is(
    hub: LiveHub, agent: ScriptedAgent, disk: SourceDisk
) -> None:
    await made(hub, agent, disk)
    await hub.create(backup_type=FULL)
    assert list((await agent.order()).bases) == []


@pytest.mark.parametrize("kind", [AUTO, INCREMENTAL])
async def test_an_incremental_is_given_the_newest_image_and_its_change_id(
    hub: LiveHub, agent: ScriptedAgent, disk: SourceDisk, kind: Any
) -> None:
    await made(hub, agent, disk)
    newest = disk.change_id
    await made(hub, agent, disk, kind=INCREMENTAL)
    await hub.create(backup_type=kind)
    (base,) = (await agent.order()).bases
    assert (base.change_id, base.capacity_bytes) == (newest, disk.capacity)


async def test_trap_a_chain_whose_full_is_gone_is_not_gone_on_from(
    hub: LiveHub, agent: ScriptedAgent, disk: SourceDisk
) -> None:
    full = await made(hub, agent, disk)
    await made(hub, agent, disk, kind=INCREMENTAL)
    path = (await hub.backup(full)).disks[0].image_path
    (hub.repository / path).unlink()
    refusal = await refused(hub.create(backup_type=INCREMENTAL))
    assert (refusal.reason, path in refusal.message) == ("NO_USABLE_PARENT", True)
    await hub.create(backup_type=AUTO)
    assert list((await agent.order()).bases) == []


async def test_an_incremental_is_refused_where_a_full_was_asked_for(
    hub: LiveHub, agent: ScriptedAgent, disk: SourceDisk
) -> None:
    await hub.create(backup_type=FULL)
    refusal = await refused(agent.open((await agent.order()).backup_id, disk, type_run=INCREMENTAL))
    assert (refusal.code, refusal.field) == ("INVALID_ARGUMENT", "type_run")


async def test_a_full_that_was_not_asked_for_is_refused_without_a_reason(
    hub: LiveHub, agent: ScriptedAgent, disk: SourceDisk
) -> None:
    await hub.create(backup_type=AUTO)
    refusal = await refused(agent.open((await agent.order()).backup_id, disk))
    assert (refusal.code, refusal.field) == ("INVALID_ARGUMENT", "type_reason")


async def test_trap_two_repositories_have_chains_of_their_own(
    hub: LiveHub, agent: ScriptedAgent, disk: SourceDisk
) -> None:
    second = await hub.add_repository("second", hub.repository.parent / "second")
    first_change = disk.change_id
    await made(hub, agent, disk, repository_id=hub.repository_id)
    disk.scribble(CLUSTER)
    await made(hub, agent, disk, repository_id=second)
    disk.scribble(2 * CLUSTER)
    await hub.create(backup_type=INCREMENTAL, repository_id=hub.repository_id)
    (base,) = (await agent.order()).bases
    assert base.change_id == first_change


async def test_trap_each_disk_has_its_own_change_id_and_base(hub: LiveHub, agent: ScriptedAgent) -> None:
    disks = [SourceDisk(MiB, key=2000 + number, uuid=f"disk-{number}", generation=number + 1) for number in range(2)]
    await agent.report(vm("vm-1", "web", *disks))
    await made(hub, agent, *disks)
    disks[1].scribble(CLUSTER)
    backup_id = await made(hub, agent, *disks, kind=INCREMENTAL)
    shown = (await hub.backup(backup_id)).disks
    assert [disk.base_change_id for disk in shown] == ["52 de c0 disk-0/1", "52 de c0 disk-1/2"]
    assert [await hub.disk(backup_id, index) for index in range(2)] == [disk.whole() for disk in disks]


async def test_a_disk_that_was_added_is_full_beside_an_incremental(
    hub: LiveHub, agent: ScriptedAgent, disk: SourceDisk
) -> None:
    await made(hub, agent, disk)
    added = SourceDisk(MiB, key=2001, uuid="added")
    added.scribble(0)
    await agent.report(vm("vm-1", "web", disk, added))
    backup_id = await made(hub, agent, disk, added, kind=INCREMENTAL)
    assert [one.type_run for one in (await hub.backup(backup_id)).disks] == [INCREMENTAL, FULL]
    assert await hub.disk(backup_id, 1) == added.whole()


async def test_a_failed_backup_leaves_the_head_where_it_was(
    hub: LiveHub, agent: ScriptedAgent, disk: SourceDisk
) -> None:
    await made(hub, agent, disk)
    files = hub.files()
    await hub.create(backup_type=INCREMENTAL)
    order = await agent.order()
    await agent.send(order, disk)
    await agent.finish(order.task_id, "READ_FAILED", "disk 1 cannot be read")
    assert hub.files() == files
    await hub.create(backup_type=INCREMENTAL)
    assert list((await agent.order()).bases) == list(order.bases)


async def test_no_change_id_is_seen_before_the_commit(hub: LiveHub, agent: ScriptedAgent, disk: SourceDisk) -> None:
    await hub.create()
    order = await agent.order()
    await agent.send(order, disk)
    shown = await hub.backup(order.backup_id)
    assert (shown.status, list(shown.disks)) == (backup_pb2.BACKUP_STATUS_RUNNING, [])
    assert list((await hub.backups.GetChain(backup_pb2.GetChainRequest(vm_id="vm-1"))).chains) == []
    assert not list(hub.repository.rglob("*.json.partial"))


async def test_a_restore_point_shows_what_it_cost(hub: LiveHub, agent: ScriptedAgent, disk: SourceDisk) -> None:
    runs = disk.full()
    backup_id = await made(hub, agent, disk)
    backup = await hub.backup(backup_id)
    (shown,) = backup.disks
    image = hub.repository / shown.image_path
    assert (backup.status, backup.consistency) == (COMPLETE, backup_pb2.CONSISTENCY_CRASH)
    assert (shown.capacity_bytes, shown.sent_bytes) == (disk.capacity, sum(len(run.payload) for run in runs))
    assert (shown.stored_bytes, len(shown.root_digest)) == (image.stat().st_size, 64)


async def test_disks_that_were_left_out_are_listed(hub: LiveHub, agent: ScriptedAgent, disk: SourceDisk) -> None:
    await hub.create()
    order = await agent.order()
    skipped = backup_pb2.SkippedDisk(device_key=2001, label="Hard disk 2", reason="INDEPENDENT")
    await agent.commit(order.backup_id, await agent.send(order, disk), skipped_disks=[skipped])
    assert list((await hub.backup(order.backup_id)).skipped_disks) == [skipped]


async def test_two_vms_are_backed_up_at_once(hub: LiveHub, agent: ScriptedAgent) -> None:
    disks = {f"vm-{number}": SourceDisk(MiB, uuid=f"disk-{number}") for number in range(4)}
    await agent.report(*(vm(vm_id, vm_id, disk) for vm_id, disk in disks.items()))
    for number, (vm_id, disk) in enumerate(disks.items()):
        disk.scribble(number * CLUSTER)
        await hub.create(vm_id)
    orders = [await agent.order() for _ in disks]
    await asyncio.gather(*(agent.make(order, disks[order.vm_id]) for order in orders))
    assert [await hub.disk(order.backup_id) for order in orders] == [disks[order.vm_id].whole() for order in orders]


async def test_of_two_creates_at_once_one_is_told_that_the_vm_is_busy(hub: LiveHub, agent: ScriptedAgent) -> None:
    outcomes = await asyncio.gather(*(hub.create() for _ in range(4)), return_exceptions=True)
    assert sum(isinstance(outcome, backup_pb2.Backup) for outcome in outcomes) == 1


# Failures at the commit


@pytest.fixture
async def sealed(hub: LiveHub, agent: ScriptedAgent, disk: SourceDisk) -> tuple[control_pb2.StartBackup, str]:
    """A backup that only needs its commit."""
    await hub.create()
    order = await agent.order()
    return order, await agent.send(order, disk)


def failing(error: SendenseError) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


async def failing_later(*_: object, **__: object) -> None:
    raise Unavailable("the catalogue does not answer: injected")


@pytest.mark.parametrize(
    ("where", "name", "fault"),
    [
        (RepositoryFolder, "stage_point", failing(RepositoryUnavailable("injected"))),
        (Transfer, "publish", failing(RepositoryUnavailable("injected"))),
        (RepositoryFolder, "publish_point", failing(RepositoryUnavailable("injected"))),
        (backups, "commit", failing_later),
    ],
    ids=["point file", "renames", "point's rename", "catalogue"],
)
async def test_a_commit_that_fails_leaves_no_restore_point_and_no_file(
    hub: LiveHub,
    agent: ScriptedAgent,
    sealed: tuple[control_pb2.StartBackup, str],
    monkeypatch: pytest.MonkeyPatch,
    where: Any,
    name: str,
    fault: Callable[..., Any],
) -> None:
    order, transfer = sealed
    monkeypatch.setattr(where, name, fault)
    assert (await refused(agent.commit(order.backup_id, transfer))).code == "UNAVAILABLE"
    assert list((await hub.backup(order.backup_id)).disks) == []
    await agent.finish(order.task_id, "UNAVAILABLE", "the commit failed")
    assert (await hub.backup(order.backup_id)).status == FAILED
    assert hub.files() == []


@pytest.mark.parametrize(
    ("where", "name", "fault"),
    [
        (RepositoryFolder, "publish_point", failing(RepositoryUnavailable("injected"))),
        (backups, "commit", failing_later),
    ],
    ids=["point's rename", "catalogue"],
)
async def test_a_commit_that_failed_half_way_can_be_tried_again(
    hub: LiveHub,
    agent: ScriptedAgent,
    disk: SourceDisk,
    sealed: tuple[control_pb2.StartBackup, str],
    where: Any,
    name: str,
    fault: Callable[..., Any],
) -> None:
    order, transfer = sealed
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(where, name, fault)
        await refused(agent.commit(order.backup_id, transfer))
    await agent.commit(order.backup_id, transfer)
    assert await hub.disk(order.backup_id) == disk.whole()


async def test_a_repository_that_went_away_keeps_no_task_from_ending(
    hub: LiveHub, agent: ScriptedAgent, sealed: tuple[control_pb2.StartBackup, str]
) -> None:
    order, _ = sealed
    hub.repository.rename(hub.repository.with_name("elsewhere"))
    await agent.finish(order.task_id, "READ_FAILED", "over")
    assert (await hub.backup(order.backup_id)).status == FAILED
    events = await hub.events(order.task_id)
    assert [event.severity for event in events] == [task_pb2.SEVERITY_WARNING, task_pb2.SEVERITY_ERROR]
    assert "could not be deleted" in events[0].message


async def test_a_snapshot_that_stays_behind_fails_the_task_and_not_the_restore_point(
    hub: LiveHub, agent: ScriptedAgent, sealed: tuple[control_pb2.StartBackup, str], disk: SourceDisk
) -> None:
    order, transfer = sealed
    await agent.commit(order.backup_id, transfer)
    await agent.finish(order.task_id, "SOURCE_UNAVAILABLE", "the snapshot could not be removed")
    assert (await hub.backup(order.backup_id)).status == COMPLETE
    assert (await hub.task(order.task_id)).state == task_pb2.TASK_STATE_FAILED
    assert await hub.disk(order.backup_id) == disk.whole()


# Cancels


async def cancelled(hub: LiveHub, backup_id: str) -> backup_pb2.Backup:
    return await hub.backups.CancelBackup(backup_pb2.CancelBackupRequest(name=f"backups/{backup_id}"))


async def test_a_commit_refused_after_a_cancel_makes_a_cancelled_backup(
    hub: LiveHub, agent: ScriptedAgent, sealed: tuple[control_pb2.StartBackup, str]
) -> None:
    order, transfer = sealed
    await cancelled(hub, order.backup_id)
    refusal = await refused(agent.commit(order.backup_id, transfer))
    await agent.finish(order.task_id, refusal.reason, refusal.message)
    assert (await hub.backup(order.backup_id)).status == backup_pb2.BACKUP_STATUS_CANCELLED


async def test_a_cancel_that_an_earlier_session_took_along_is_said_again(
    hub: LiveHub, agent: ScriptedAgent, sealed: tuple[control_pb2.StartBackup, str]
) -> None:
    order, _ = sealed
    await cancelled(hub, order.backup_id)
    await agent.connect(order.task_id)
    assert (await agent.cancellation()).task_id == order.task_id


async def test_an_agent_that_comes_back_with_a_task_that_has_ended_is_told_to_stop(
    hub: LiveHub, agent: ScriptedAgent, sealed: tuple[control_pb2.StartBackup, str]
) -> None:
    order, _ = sealed
    await agent.leave()
    await cancelled(hub, order.backup_id)
    await agent.connect(order.task_id)
    assert (await agent.cancellation()).task_id == order.task_id


# A repository that hangs


class Hanging:
    """Storage that does not answer, until it is let go."""

    def __init__(self) -> None:
        self.reached, self.let_go = threading.Event(), threading.Event()

    def __call__(self, path: Path, repository_id: str) -> RepositoryFolder:
        self.reached.set()
        self.let_go.wait(30)
        return open_repository(path, repository_id)


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Hanging]]:
    """Makes repositories hang from now on, until the test has ended."""
    storage = Hanging()

    def hang() -> Hanging:
        monkeypatch.setattr("hub.backups.open_repository", storage)
        return storage

    yield hang
    storage.let_go.set()


async def test_a_repository_that_hangs_at_a_start_keeps_no_agent_from_connecting(
    hub: LiveHub, agent: ScriptedAgent, hanging: Callable[[], Hanging]
) -> None:
    storage = hanging()
    starting = asyncio.create_task(asyncio.wait_for(hub.create(), 30))
    assert await asyncio.to_thread(storage.reached.wait, 10)
    await agent.connect()
    storage.let_go.set()
    assert (await starting).status == backup_pb2.BACKUP_STATUS_PENDING


async def test_a_repository_that_hangs_keeps_no_agent_that_lost_its_task_from_connecting(
    hub: LiveHub,
    agent: ScriptedAgent,
    sealed: tuple[control_pb2.StartBackup, str],
    hanging: Callable[[], Hanging],
) -> None:
    order, _ = sealed
    storage = hanging()
    await agent.connect()
    assert (await hub.task(order.task_id)).state == task_pb2.TASK_STATE_RUNNING
    storage.let_go.set()
    assert (await hub.ended(order.task_id)).failure.reason == "AGENT_UNAVAILABLE"


# The point file


async def test_the_point_file_tells_all_that_the_catalogue_knows_of_a_restore_point(
    hub: LiveHub, agent: ScriptedAgent, disk: SourceDisk
) -> None:
    full = await made(hub, agent, disk)
    backup_id = await made(hub, agent, disk, kind=INCREMENTAL)
    shown = await hub.backup(backup_id)
    point = json.loads((hub.repository / "vms" / "vm-1" / f"{backup_id}.json").read_text())
    (content,), (told,) = shown.disks, point["disks"]
    assert (point["version"], point["backup"], point["agent"]) == (points.POINT_VERSION, backup_id, agent.id)
    assert point["vm"] == {"id": "vm-1", "name": "web", "vcenter": "vcenter-1"}
    assert (point["type_asked"], point["consistency"]) == ("INCREMENTAL", "CRASH")
    assert point["snapshot_at"].startswith(shown.snapshot_time.ToDatetime().isoformat())
    assert point["created_at"].startswith(shown.create_time.ToDatetime().isoformat())
    assert (told["parent_backup"], content.parent_backup) == (full, f"backups/{full}")
    assert told["identity"] == {"device_key": 2000, "backing_uuid": disk.uuid, "disk_object_id": disk.object_id}
    assert told["coverage"]["source"] == "change tracking"
    same = ["change_id", "base_change_id", "root_digest", "disk_id", "label", "type_reason"]
    same += ["changed_bytes", "read_bytes", "sent_bytes", "stored_bytes", "skipped_bytes"]
    assert {name: told[name] for name in same} == {name: getattr(content, name) for name in same}
    assert (told["capacity"], told["ordinal"], told["path"]) == (disk.capacity, 0, content.image_path)


async def test_a_restore_point_has_an_image_a_manifest_and_a_point_file_and_nothing_else(
    hub: LiveHub, agent: ScriptedAgent, disk: SourceDisk
) -> None:
    backup_id = await made(hub, agent, disk)
    (shown,) = (await hub.backup(backup_id)).disks
    image = Path(shown.image_path)
    assert hub.files() == sorted([str(image), str(image.with_suffix(".manifest")), f"vms/vm-1/{backup_id}.json"])
