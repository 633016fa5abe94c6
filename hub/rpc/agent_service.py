"""AgentService."""

from typing import Any

from hub.agents import Agents
from hub.catalogue import agents
from hub.catalogue.agents import Agent
from hub.catalogue.engine import Catalogue
from hub.enrollment import DEFAULT_TTL, Enrollment
from hub.rpc import messages, paging
from hub.rpc.names import id_in
from sendense.v1 import agent_pb2, agent_pb2_grpc


class AgentService(agent_pb2_grpc.AgentServiceServicer):
    """Unpack, call, pack."""

    def __init__(self, catalogue: Catalogue, enrollment: Enrollment, connected: Agents) -> None:
        self._catalogue = catalogue
        self._enrollment = enrollment
        self._agents = connected

    async def InviteAgent(self, request: agent_pb2.InviteAgentRequest, context: Any) -> agent_pb2.InviteAgentResponse:
        ttl = messages.duration(request.ttl, "ttl") if request.HasField("ttl") else DEFAULT_TTL
        join, expires_at = await self._enrollment.invite(request.display_name, ttl)
        return agent_pb2.InviteAgentResponse(join_string=join.text(), expire_time=messages.timestamp(expires_at))

    async def GetAgent(self, request: agent_pb2.GetAgentRequest, context: Any) -> agent_pb2.Agent:
        async with self._catalogue.reading() as session:
            found = await agents.get(session, id_in(request.name, "agents"))
        return self._packed(found)

    async def ListAgents(self, request: agent_pb2.ListAgentsRequest, context: Any) -> agent_pb2.ListAgentsResponse:
        async with self._catalogue.reading() as session:
            known = await agents.list_agents(session)
        page, following = paging.cut(request, known, key=lambda agent: agent.name)
        return agent_pb2.ListAgentsResponse(agents=[self._packed(agent) for agent in page], next_page_token=following)

    def _packed(self, value: Agent) -> agent_pb2.Agent:
        seen_at = self._agents.heard_at(value.id) or value.last_seen_at
        return messages.agent(value, self._agents.connected(value.id), seen_at)
