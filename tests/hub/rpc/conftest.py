"""A backup that is under way."""

import pytest

from sendense.v1 import control_pb2
from tests.hub.live_hub import LiveHub
from tests.hub.scripted_agent import ScriptedAgent
from tests.hub.source_disk import SourceDisk


@pytest.fixture
async def order(hub: LiveHub, agent: ScriptedAgent) -> control_pb2.StartBackup:
    """A full backup that waits for its agent."""
    await hub.create()
    return await agent.order()


@pytest.fixture
async def transfer(agent: ScriptedAgent, order: control_pb2.StartBackup, disk: SourceDisk) -> str:
    """A transfer that is open."""
    return (await agent.open(order.backup_id, disk)).transfer_id
