"""WriteExtents: order, damage and resume, as the contract states them."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import zstandard

from hub import transfers
from sendense.v1 import control_pb2, transfer_pb2
from shared.digests import digest
from shared.runs import ClusterRun, Encoding
from shared.units import CLUSTER, MiB
from tests.hub.live_hub import LiveHub
from tests.hub.refusals import refused
from tests.hub.scripted_agent import (
    PATIENCE,
    ScriptedAgent,
    run_message,
    start_message,
)
from tests.hub.source_disk import SourceDisk, raw_run


def frame(data: bytes, claimed: bytes | None = None) -> ClusterRun:
    payload = zstandard.ZstdCompressor().compress(data)
    return ClusterRun(0, 1, Encoding.ZSTD, payload, (len(payload),), digest(claimed or data))


@pytest.mark.parametrize(
    "run",
    [
        raw_run(512),
        raw_run(-CLUSTER),
        replace(raw_run(0), count=0),
        replace(raw_run(0), count=2),
        replace(raw_run(0), payload=b"short"),
        replace(raw_run(0), digests=b"short"),
        replace(raw_run(0), lengths=(CLUSTER,)),
        raw_run(5 * MiB),
        raw_run(4 * MiB + CLUSTER),
        ClusterRun(0, 2**40, Encoding.ZERO),
        ClusterRun(0, 1, Encoding.ZERO, b"payload"),
        replace(frame(bytes(CLUSTER)), lengths=(2**31 - 1,)),
    ],
)
async def test_a_run_that_does_not_fit_is_refused_and_the_transfer_goes_on(
    hub: LiveHub,
    agent: ScriptedAgent,
    order: control_pb2.StartBackup,
    disk: SourceDisk,
    transfer: str,
    run: ClusterRun,
) -> None:
    refusal = await refused(agent.write(transfer, [run]))
    assert (refusal.code, refusal.reason, refusal.domain) == ("INVALID_ARGUMENT", "INVALID_REQUEST", "sendense")
    await agent.commit(order.backup_id, await agent.fill(transfer, disk))
    assert await hub.disk(order.backup_id) == disk.whole()


@pytest.mark.parametrize(
    "runs", [[raw_run(CLUSTER), raw_run(0)], [raw_run(0), raw_run(0)], [raw_run(0, count=2), raw_run(CLUSTER)]]
)
async def test_offsets_that_do_not_ascend_are_refused(
    agent: ScriptedAgent, transfer: str, runs: list[ClusterRun]
) -> None:
    assert (await refused(agent.write(transfer, runs))).code == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    "run",
    [
        replace(raw_run(0), payload=bytes([2]) * CLUSTER),
        replace(frame(bytes([1]) * CLUSTER), digests=digest(b"other")),
        frame(bytes([1]) * (CLUSTER - 1), bytes([1]) * CLUSTER),
        frame(bytes([1]) * 64 * MiB),
        replace(frame(b"x" * CLUSTER), payload=b"no frame", lengths=(8,)),
    ],
    ids=["raw", "frame", "short", "bomb", "no frame"],
)
async def test_a_damaged_cluster_is_refused_and_never_counts(
    hub: LiveHub,
    agent: ScriptedAgent,
    order: control_pb2.StartBackup,
    disk: SourceDisk,
    transfer: str,
    run: ClusterRun,
) -> None:
    refusal = await refused(agent.write(transfer, [run]))
    assert (refusal.code, refusal.reason) == ("DATA_LOSS", "DIGEST_MISMATCH")
    assert (await agent.open(order.backup_id, disk)).durable_offset == 0
    await agent.commit(order.backup_id, await agent.fill(transfer, disk))
    assert await hub.disk(order.backup_id) == disk.whole()


async def test_what_came_before_a_damaged_cluster_is_kept(
    agent: ScriptedAgent, order: control_pb2.StartBackup, disk: SourceDisk, transfer: str
) -> None:
    await refused(agent.write(transfer, [raw_run(0), replace(raw_run(CLUSTER), payload=bytes(CLUSTER))]))
    assert (await agent.open(order.backup_id, disk)).durable_offset == CLUSTER


async def test_a_stream_begins_at_the_durable_offset(agent: ScriptedAgent, transfer: str) -> None:
    refusal = await refused(agent.write(transfer, [raw_run(CLUSTER)], offset=CLUSTER))
    assert tuple(refusal) == ("INVALID_ARGUMENT", "INVALID_REQUEST", "start.offset")


async def test_a_stream_begins_with_start(agent: ScriptedAgent, transfer: str) -> None:
    async def requests() -> AsyncIterator[transfer_pb2.WriteExtentsRequest]:
        yield run_message(raw_run(0))

    assert (await refused(_drained(agent.transfer.WriteExtents(requests())))).field == "start"


@pytest.mark.parametrize("second", [start_message("x"), transfer_pb2.WriteExtentsRequest()])
async def test_all_that_follows_start_is_runs(
    agent: ScriptedAgent, transfer: str, second: transfer_pb2.WriteExtentsRequest
) -> None:
    async def requests() -> AsyncIterator[transfer_pb2.WriteExtentsRequest]:
        yield start_message(transfer)
        yield second

    assert (await refused(_drained(agent.transfer.WriteExtents(requests())))).field == "run.encoding"


async def _drained(call: Any) -> list[Any]:
    return [message async for message in call]


async def test_an_unknown_transfer_is_not_found(agent: ScriptedAgent, disk: SourceDisk) -> None:
    assert (await refused(agent.write("unknown", []))).code == "NOT_FOUND"
    assert (await refused(agent.seal("unknown", disk, []))).code == "NOT_FOUND"


async def test_the_last_durable_offset_is_the_end_of_the_last_run(
    agent: ScriptedAgent, disk: SourceDisk, transfer: str
) -> None:
    assert (await agent.write(transfer, disk.full()))[-1] == disk.capacity


async def test_durable_offsets_come_while_data_flows(
    agent: ScriptedAgent, disk: SourceDisk, transfer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfers, "SYNC_EVERY", CLUSTER)
    runs = [raw_run(offset) for offset in range(0, 4 * CLUSTER, CLUSTER)]
    told = await agent.write(transfer, runs)
    assert told == [CLUSTER, 2 * CLUSTER, 3 * CLUSTER, 4 * CLUSTER, 4 * CLUSTER]


async def begun(agent: ScriptedAgent, transfer_id: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A stream that has brought one cluster of nonsense and stays open."""
    monkeypatch.setattr(transfers, "SYNC_EVERY", CLUSTER)
    stream = agent.transfer.WriteExtents(timeout=PATIENCE)
    await stream.write(start_message(transfer_id))
    await stream.write(run_message(raw_run(0)))
    told: Any = await stream.read()
    assert told.durable_offset == CLUSTER
    return stream


async def test_a_second_stream_ends_the_first(
    agent: ScriptedAgent, order: control_pb2.StartBackup, transfer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await begun(agent, transfer, monkeypatch)
    await agent.write(transfer, [raw_run(CLUSTER)], CLUSTER)
    await first.write(run_message(raw_run(2 * CLUSTER)))
    assert (await refused(first.read())).code == "CANCELLED"
    assert (await agent.write(transfer, [], 2 * CLUSTER)) == [2 * CLUSTER]


async def test_a_stream_that_broke_goes_on_where_opening_again_says(
    hub: LiveHub, agent: ScriptedAgent, order: control_pb2.StartBackup, disk: SourceDisk, transfer: str
) -> None:
    runs, broken = disk.full(), agent.transfer.WriteExtents()
    await broken.write(start_message(transfer))
    await broken.write(run_message(runs[0]))
    broken.cancel()
    reached = (await agent.open(order.backup_id, disk)).durable_offset
    assert reached in (0, runs[0].end)
    await agent.write(transfer, [run for run in runs if run.offset >= reached], reached)
    await agent.seal(transfer, disk, runs)
    await agent.commit(order.backup_id, transfer)
    assert await hub.disk(order.backup_id) == disk.whole()


async def test_a_connection_that_broke_goes_on_too(
    hub: LiveHub, agent: ScriptedAgent, order: control_pb2.StartBackup, disk: SourceDisk, transfer: str
) -> None:
    runs = disk.full()
    await agent.write(transfer, runs[:1])
    again = ScriptedAgent(
        agent.id, hub.settings.agents.address, hub.hub.authority.ca.pem, agent.key, agent.certificate.decode()
    )
    hub.agents.append(again)
    await agent.channel.close()
    await again.connect(order.task_id)
    opened = await again.open(order.backup_id, disk)
    await again.write(transfer, runs[1:], opened.durable_offset)
    await again.seal(transfer, disk, runs)
    await again.commit(order.backup_id, transfer)
    assert await hub.disk(order.backup_id) == disk.whole()


async def test_a_stream_of_a_cancelled_task_ends_as_cancelled(
    hub: LiveHub,
    agent: ScriptedAgent,
    order: control_pb2.StartBackup,
    transfer: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = await begun(agent, transfer, monkeypatch)
    await agent.finish(order.task_id, "CANCELLED", "cancelled by the operator")
    await stream.write(run_message(raw_run(CLUSTER)))
    assert tuple(await refused(stream.read())) == ("CANCELLED", "CANCELLED", "")
    assert hub.files() == []
