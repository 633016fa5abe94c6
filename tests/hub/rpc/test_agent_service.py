"""AgentService: invitations, and agents as they are listed."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf.duration_pb2 import Duration

from sendense.v1 import agent_pb2
from tests.hub.live_hub import LiveHub, until
from tests.hub.refusals import refused
from tests.hub.scripted_agent import ScriptedAgent

Request = agent_pb2.InviteAgentRequest


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (Request(), "display_name"),
        (Request(display_name="x" * 101), "display_name"),
        (Request(display_name="a", ttl=Duration(seconds=7 * 24 * 3600 + 1)), "ttl"),
        (Request(display_name="a", ttl=Duration(seconds=-1)), "ttl"),
        (Request(display_name="a", ttl=Duration()), "ttl"),
        (Request(display_name="a", ttl=Duration(seconds=2**60)), "ttl"),
    ],
)
async def test_an_invitation_that_makes_no_sense_is_refused(
    hub: LiveHub, request_: agent_pb2.InviteAgentRequest, field: str
) -> None:
    refusal = await refused(hub.operators_agents.InviteAgent(request_))
    assert (*refusal, refusal.domain) == ("INVALID_ARGUMENT", "INVALID_REQUEST", field, "sendense")


async def test_the_name_of_an_agent_is_taken(hub: LiveHub, agent: ScriptedAgent) -> None:
    refusal = await refused(hub.invite("appliance"))
    assert tuple(refusal) == ("ALREADY_EXISTS", "ALREADY_EXISTS", "display_name")


async def test_a_connected_agent_shows_its_last_heartbeat(hub: LiveHub, agent: ScriptedAgent) -> None:
    first = await hub.seen(agent.id)
    await agent.heartbeat()
    await until(lambda: _heard_after(hub, agent, first.seen_time.ToDatetime(UTC)))
    assert (first.software_version, first.hostname, first.connected) == ("0.1-test", "appliance", True)


async def test_an_agent_that_left_tells_when_it_was_last_heard(hub: LiveHub, agent: ScriptedAgent) -> None:
    connected = (await hub.seen(agent.id)).seen_time.ToDatetime(UTC)
    await asyncio.sleep(0.05)
    await agent.heartbeat()
    await agent.leave()
    assert not (await hub.seen(agent.id)).connected
    await until(lambda: _heard_after(hub, agent, connected + timedelta(seconds=0.04)))


async def _heard_after(hub: LiveHub, agent: ScriptedAgent, moment: datetime) -> bool:
    return (await hub.seen(agent.id)).seen_time.ToDatetime(UTC) > moment


async def test_an_unknown_agent_is_not_found(hub: LiveHub) -> None:
    request = agent_pb2.GetAgentRequest(name="agents/unknown")
    assert tuple(await refused(hub.operators_agents.GetAgent(request))) == ("NOT_FOUND", "NOT_FOUND", "")


async def test_a_negative_page_is_refused(hub: LiveHub) -> None:
    refusal = await refused(hub.operators_agents.ListAgents(agent_pb2.ListAgentsRequest(page_size=-1)))
    assert tuple(refusal) == ("INVALID_ARGUMENT", "INVALID_REQUEST", "page_size")
