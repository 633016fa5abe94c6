"""SealTransfer and CommitBackup: nothing unproven is sealed, nothing incomplete is committed."""

from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from sendense.v1 import backup_pb2, control_pb2
from shared.units import CLUSTER, MiB
from tests.hub.live_hub import LiveHub, until
from tests.hub.refusals import refused
from tests.hub.scripted_agent import (
    TRACKING,
    ScriptedAgent,
)
from tests.hub.source_disk import SourceDisk


@pytest.mark.parametrize(
    "other",
    [
        {"data_clusters": 1},
        {"zero_clusters": 1},
        {"from_offset": CLUSTER},
        {"to_offset": 4 * MiB},
        {"to_offset": 5 * MiB},
        {"pages": 0},
        {"source": TRACKING},
    ],
    ids=lambda other: next(iter(other)),
)
async def test_a_disk_that_is_not_proven_whole_is_not_sealed(
    agent: ScriptedAgent, order: control_pb2.StartBackup, disk: SourceDisk, transfer: str, other: dict[str, Any]
) -> None:
    runs = disk.full()
    await agent.write(transfer, runs)
    refusal = await refused(agent.seal(transfer, disk, runs, **other))
    assert tuple(refusal) == ("DATA_LOSS", "COVERAGE_INCOMPLETE", "")
    assert (await refused(agent.commit(order.backup_id, transfer))).code == "FAILED_PRECONDITION"


async def test_coverage_from_nowhere_is_refused(agent: ScriptedAgent, disk: SourceDisk, transfer: str) -> None:
    await agent.write(transfer, disk.full())
    refusal = await refused(agent.seal(transfer, disk, disk.full(), source=0))
    assert tuple(refusal) == ("INVALID_ARGUMENT", "INVALID_REQUEST", "coverage.source")


async def test_a_run_that_was_lost_is_noticed(agent: ScriptedAgent, disk: SourceDisk, transfer: str) -> None:
    await agent.write(transfer, disk.full()[:-1])
    assert (await refused(agent.seal(transfer, disk, disk.full()))).reason == "COVERAGE_INCOMPLETE"


async def test_sealing_again_says_the_same(agent: ScriptedAgent, disk: SourceDisk, transfer: str) -> None:
    runs = disk.full()
    await agent.write(transfer, runs)
    assert await agent.seal(transfer, disk, runs) == await agent.seal(transfer, disk, runs)


async def test_a_sealed_disk_takes_no_more_and_tells_where_it_ended(
    agent: ScriptedAgent, order: control_pb2.StartBackup, disk: SourceDisk, transfer: str
) -> None:
    await agent.fill(transfer, disk)
    opened = await agent.open(order.backup_id, disk)
    assert opened.durable_offset == disk.capacity
    assert (await refused(agent.write(transfer, [], opened.durable_offset))).code == "FAILED_PRECONDITION"


# Committing


async def test_a_transfer_that_is_not_sealed_cannot_be_committed(
    hub: LiveHub, agent: ScriptedAgent, order: control_pb2.StartBackup, disk: SourceDisk, transfer: str
) -> None:
    await agent.write(transfer, disk.full())
    assert tuple(await refused(agent.commit(order.backup_id, transfer))) == (
        "FAILED_PRECONDITION",
        "NOT_POSSIBLE_NOW",
        "",
    )
    assert all(".partial" in name or ".journal" in name for name in hub.files())


async def test_the_transfers_named_must_be_all_of_them(
    agent: ScriptedAgent, order: control_pb2.StartBackup, disk: SourceDisk, transfer: str
) -> None:
    await agent.fill(transfer, disk)
    for named in ([], ["unknown"], [transfer, "unknown"], [transfer, transfer]):
        assert (await refused(agent.commit(order.backup_id, *named))).code == "FAILED_PRECONDITION"


async def test_a_backup_without_a_disk_cannot_be_committed(
    hub: LiveHub, agent: ScriptedAgent, order: control_pb2.StartBackup
) -> None:
    async def begun() -> bool:
        return (await hub.backup(order.backup_id)).status == backup_pb2.BACKUP_STATUS_RUNNING

    await agent.heartbeat(**{order.task_id.replace("-", "_"): (0, 0, 0)})
    await until(begun)
    refusal = await refused(agent.commit(order.backup_id))
    assert (refusal.code, "has no disk yet" in refusal.message) == ("FAILED_PRECONDITION", True)
    assert hub.files() == []


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"consistency": 0}, "consistency"),
        ({"consistency": 77}, "consistency"),
        ({"snapshot_time": None}, "snapshot_time"),
        ({"snapshot_time": Timestamp(seconds=2**60)}, "snapshot_time"),
    ],
)
async def test_a_commit_that_does_not_say_what_was_caught_is_refused(
    agent: ScriptedAgent,
    order: control_pb2.StartBackup,
    disk: SourceDisk,
    transfer: str,
    fields: dict[str, Any],
    field: str,
) -> None:
    await agent.fill(transfer, disk)
    refusal = await refused(agent.commit(order.backup_id, transfer, **fields))
    assert tuple(refusal) == ("INVALID_ARGUMENT", "INVALID_REQUEST", field)


async def test_committing_again_says_the_same(
    agent: ScriptedAgent, order: control_pb2.StartBackup, disk: SourceDisk, transfer: str
) -> None:
    await agent.fill(transfer, disk)
    first = await agent.commit(order.backup_id, transfer)
    assert await agent.commit(order.backup_id, transfer) == first


async def test_a_cancelled_backup_cannot_be_committed(
    hub: LiveHub, agent: ScriptedAgent, order: control_pb2.StartBackup, disk: SourceDisk, transfer: str
) -> None:
    await agent.fill(transfer, disk)
    await hub.backups.CancelBackup(backup_pb2.CancelBackupRequest(name=f"backups/{order.backup_id}"))
    refusal = await refused(agent.commit(order.backup_id, transfer))
    assert (refusal.code, "cancelled" in refusal.message) == ("FAILED_PRECONDITION", True)
    await agent.finish(order.task_id, "CANCELLED", "cancelled by the operator")
    assert (await refused(agent.commit(order.backup_id, transfer))).code == "FAILED_PRECONDITION"
    assert hub.files() == []
