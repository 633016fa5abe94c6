"""Streams on the agents' port: so many at once, none that keeps silent, and short calls whatever streams there are."""

import asyncio
from typing import Any

import grpc
import pytest

from hub.rpc import streams
from hub.rpc.streams import Streams
from sendense.v1 import control_pb2
from shared.errors import LimitReached
from tests.hub.live_hub import LiveHub
from tests.hub.refusals import refused
from tests.hub.scripted_agent import PATIENCE, ScriptedAgent
from tests.hub.source_disk import SourceDisk

MOST = 8


@pytest.fixture
def options() -> dict[str, Any]:
    return {"agents": {"max_streams": MOST}}


def test_a_place_is_free_again_when_its_stream_has_ended() -> None:
    places = Streams(1)
    for _ in range(2):
        with places.admitted(), pytest.raises(LimitReached, match="serves 1 streams already"), places.admitted():
            pass


@pytest.fixture
async def crowd(agent: ScriptedAgent) -> list[Any]:
    """Streams of data that say nothing yet: with the control stream, as many as there may be."""
    return [agent.transfer.WriteExtents() for _ in range(MOST - 1)]


async def test_one_stream_more_is_refused(agent: ScriptedAgent, crowd: list[Any]) -> None:
    answers = [asyncio.ensure_future(call.read()) for call in (*crowd, agent.transfer.WriteExtents())]
    ended, _ = await asyncio.wait(answers, timeout=PATIENCE / 2, return_when=asyncio.FIRST_COMPLETED)
    (one,) = ended
    assert tuple(await refused(one)) == ("RESOURCE_EXHAUSTED", "LIMIT_REACHED", "")


@pytest.mark.usefixtures("crowd")
async def test_short_calls_are_answered_beside_all_streams(
    hub: LiveHub, agent: ScriptedAgent, order: control_pb2.StartBackup, disk: SourceDisk
) -> None:
    await agent.open(order.backup_id, disk)
    await agent.finish(order.task_id)
    assert (await hub.task(order.task_id)).HasField("end_time")


async def test_a_place_is_given_back_by_streams_that_broke(agent: ScriptedAgent, crowd: list[Any]) -> None:
    for call in crowd:
        call.cancel()
    for call in [agent.transfer.WriteExtents() for _ in range(MOST - 1)]:
        await call.done_writing()
        assert (await refused(call.read())).code == "INVALID_ARGUMENT"


async def test_a_stream_that_does_not_say_hello_is_ended(agent: ScriptedAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "FIRST_MESSAGE", 0.2)
    call = agent.control.Connect()
    assert await asyncio.wait_for(call.code(), PATIENCE) is grpc.StatusCode.CANCELLED


async def test_a_stream_that_said_hello_may_keep_silent(
    hub: LiveHub, agent: ScriptedAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "FIRST_MESSAGE", 0.2)
    await agent.connect()
    await asyncio.sleep(0.5)
    await hub.create()
    assert (await agent.order()).vm_id == "vm-1"
