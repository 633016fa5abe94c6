"""OpenTransfer: what may begin, and over what; invariant 1 is tried to be broken here."""

from typing import Any

import pytest

from sendense.v1 import backup_pb2, control_pb2, transfer_pb2
from shared.units import MiB, TiB
from tests.hub.live_hub import LiveHub
from tests.hub.refusals import refused
from tests.hub.scripted_agent import (
    ALLOCATION,
    FULL,
    INCREMENTAL,
    ScriptedAgent,
)
from tests.hub.source_disk import SourceDisk


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"disk_index": -1}, "disk_index"),
        ({"capacity_bytes": 0}, "capacity_bytes"),
        ({"capacity_bytes": -512}, "capacity_bytes"),
        ({"capacity_bytes": 1000}, "capacity_bytes"),
        ({"capacity_bytes": 2**62}, "capacity_bytes"),
        ({"type_run": 0}, "type_run"),
        ({"type_run": 77}, "type_run"),
        ({"type_run": backup_pb2.BACKUP_TYPE_AUTO}, "type_run"),
        ({"base_image_id": "some"}, "base_image_id"),
        ({"base_change_id": "some"}, "base_image_id"),
    ],
)
async def test_an_open_that_makes_no_sense_is_refused(
    hub: LiveHub,
    agent: ScriptedAgent,
    order: control_pb2.StartBackup,
    disk: SourceDisk,
    fields: dict[str, Any],
    field: str,
) -> None:
    refusal = await refused(agent.open(order.backup_id, disk, **fields))
    assert tuple(refusal) == ("INVALID_ARGUMENT", "INVALID_REQUEST", field)
    assert hub.files() == []


async def test_an_open_that_names_no_disk_is_refused(agent: ScriptedAgent, order: control_pb2.StartBackup) -> None:
    request = transfer_pb2.OpenTransferRequest(backup_id=order.backup_id, capacity_bytes=512, type_run=FULL)
    assert tuple(await refused(agent.transfer.OpenTransfer(request))) == ("INVALID_ARGUMENT", "INVALID_REQUEST", "disk")


async def test_the_largest_disk_of_vsphere_is_taken(
    agent: ScriptedAgent, order: control_pb2.StartBackup, disk: SourceDisk
) -> None:
    assert (await agent.open(order.backup_id, disk, capacity_bytes=62 * TiB)).durable_offset == 0


async def test_opening_again_finds_the_same_transfer(
    agent: ScriptedAgent, order: control_pb2.StartBackup, disk: SourceDisk, transfer: str
) -> None:
    await agent.write(transfer, disk.full()[:1])
    again = await agent.open(order.backup_id, disk)
    assert (again.transfer_id, again.durable_offset) == (transfer, disk.full()[0].end)


async def test_opening_again_with_other_arguments_is_refused(
    agent: ScriptedAgent, order: control_pb2.StartBackup, disk: SourceDisk, transfer: str
) -> None:
    assert (await refused(agent.open(order.backup_id, disk, change_id="other"))).code == "INVALID_ARGUMENT"


async def test_two_disks_cannot_have_one_index(
    agent: ScriptedAgent, order: control_pb2.StartBackup, disk: SourceDisk, transfer: str
) -> None:
    refusal = await refused(agent.open(order.backup_id, SourceDisk(key=2001)))
    assert tuple(refusal) == ("INVALID_ARGUMENT", "INVALID_REQUEST", "disk_index")


@pytest.mark.parametrize("backup_id", ["", "unknown"])
async def test_an_unknown_backup_is_not_found(agent: ScriptedAgent, disk: SourceDisk, backup_id: str) -> None:
    assert tuple(await refused(agent.open(backup_id, disk))) == ("NOT_FOUND", "NOT_FOUND", "")
    assert (await refused(agent.commit(backup_id))).code == "NOT_FOUND"


async def test_a_backup_that_has_ended_takes_nothing_more(
    agent: ScriptedAgent, order: control_pb2.StartBackup, disk: SourceDisk, transfer: str
) -> None:
    await agent.finish(order.task_id, "READ_FAILED", "over")
    assert (await refused(agent.open(order.backup_id, disk))).code == "FAILED_PRECONDITION"
    assert (await refused(agent.write(transfer, disk.full()))).code == "NOT_FOUND"


async def test_another_agent_finds_neither_backup_nor_transfer(
    hub: LiveHub, agent: ScriptedAgent, order: control_pb2.StartBackup, disk: SourceDisk, transfer: str
) -> None:
    stranger, runs = await hub.new_agent("stranger"), disk.full()
    for call in (
        stranger.open(order.backup_id, disk),
        stranger.write(transfer, runs),
        stranger.seal(transfer, disk, runs),
        stranger.commit(order.backup_id, transfer),
    ):
        assert tuple(await refused(call)) == ("NOT_FOUND", "NOT_FOUND", "")
    await agent.commit(order.backup_id, await agent.fill(transfer, disk))
    assert await hub.disk(order.backup_id) == disk.whole()


# Bases


@pytest.fixture
async def bases(hub: LiveHub, agent: ScriptedAgent, disk: SourceDisk) -> list[control_pb2.DiskBase]:
    """What two restore points of the disk were, oldest first; an incremental has been asked for and waits."""
    found = []
    for _ in range(2):
        await hub.create()
        await agent.make(await agent.order(), disk)
        await hub.create(backup_type=INCREMENTAL)
        order = await agent.order()
        found.append(order.bases[0])
        if len(found) < 2:
            await agent.finish(order.task_id, "CANCELLED", "only asked")
    return found


async def running(hub: LiveHub) -> str:
    backup = (await hub.backups.ListBackups(backup_pb2.ListBackupsRequest(page_size=1))).backups[0]
    return backup.name.removeprefix("backups/")


async def test_trap_an_incremental_over_an_older_image_is_refused(
    hub: LiveHub, agent: ScriptedAgent, disk: SourceDisk, bases: list[control_pb2.DiskBase]
) -> None:
    for change_id in (bases[0].change_id, bases[1].change_id):
        refusal = await refused(agent.open(await running(hub), disk, bases[0], base_change_id=change_id))
        assert tuple(refusal) == ("FAILED_PRECONDITION", "NO_USABLE_PARENT", "")


@pytest.mark.parametrize("change_id", ["", "52 de/7"])
async def test_trap_an_incremental_since_another_change_id_is_refused(
    hub: LiveHub, agent: ScriptedAgent, disk: SourceDisk, bases: list[control_pb2.DiskBase], change_id: str
) -> None:
    refusal = await refused(agent.open(await running(hub), disk, bases[1], base_change_id=change_id))
    assert refusal.reason == "NO_USABLE_PARENT"


async def test_trap_an_incremental_of_a_resized_disk_is_refused(
    hub: LiveHub, agent: ScriptedAgent, disk: SourceDisk, bases: list[control_pb2.DiskBase]
) -> None:
    refusal = await refused(agent.open(await running(hub), disk, bases[1], capacity_bytes=8 * MiB))
    assert refusal.reason == "NO_USABLE_PARENT"


async def test_trap_another_disks_image_is_no_parent(
    hub: LiveHub, agent: ScriptedAgent, disk: SourceDisk, bases: list[control_pb2.DiskBase]
) -> None:
    clone = SourceDisk(disk.capacity, key=2001, uuid=disk.uuid, object_id=disk.object_id)
    assert (await refused(agent.open(await running(hub), clone, bases[1]))).reason == "NO_USABLE_PARENT"


async def test_an_incremental_is_not_proven_by_an_allocation_map(
    hub: LiveHub, agent: ScriptedAgent, disk: SourceDisk, bases: list[control_pb2.DiskBase]
) -> None:
    opened = await agent.open(await running(hub), disk, bases[1])
    await agent.write(opened.transfer_id, [])
    assert (await refused(agent.seal(opened.transfer_id, disk, [], source=ALLOCATION))).reason == "COVERAGE_INCOMPLETE"


async def test_a_parent_whose_file_is_gone_is_refused(
    hub: LiveHub, agent: ScriptedAgent, disk: SourceDisk, bases: list[control_pb2.DiskBase]
) -> None:
    for image in hub.repository.rglob("*.qcow2"):
        image.unlink()
    refusal = await refused(agent.open(await running(hub), disk, bases[1]))
    assert tuple(refusal) == ("FAILED_PRECONDITION", "NO_USABLE_PARENT", "")
