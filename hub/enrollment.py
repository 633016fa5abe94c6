"""Enrolment: invitations and what becomes of them."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from hub.authority import Authority
from hub.catalogue import agents, invitations
from hub.catalogue.agents import Agent
from hub.catalogue.engine import Catalogue
from hub.catalogue.ids import new_id
from hub.catalogue.invitations import Invitation
from hub.catalogue.states import AgentState
from shared.errors import AlreadyExists, InvalidRequest, NotAuthenticated, NotFound
from shared.join import JoinString

LONGEST_TTL = timedelta(days=7)
DEFAULT_TTL = timedelta(hours=1)
LONGEST_NAME = 100
LATE = timedelta(days=30)
"""What an invitation's certificate outlives the invitation by: whoever comes late hears why, and not of TLS."""


@dataclass(frozen=True, slots=True)
class Enrolled:
    """An agent's new identity, PEM."""

    agent_id: str
    certificate: bytes
    ca_certificate: bytes


@dataclass(frozen=True, slots=True)
class Enrollment:
    """Invites agents and takes them in."""

    catalogue: Catalogue
    authority: Authority
    address: str
    """`host:port` of the agents' port, as agents reach it."""

    async def invite(self, name: str, ttl: timedelta) -> tuple[JoinString, datetime]:
        """A join string and when it ends; raises InvalidRequest, AlreadyExists."""
        if not 0 < len(name) <= LONGEST_NAME:
            raise InvalidRequest(f"an agent's name has 1 to {LONGEST_NAME} characters", field="display_name")
        if not timedelta(0) < ttl <= LONGEST_TTL:
            raise InvalidRequest(f"an invitation lasts at most {LONGEST_TTL.days} days", field="ttl")
        now = datetime.now(UTC)
        invitation_id = new_id()
        issued, key = self.authority.invitation(invitation_id, ttl + LATE)
        invitation = Invitation(invitation_id, name, issued.serial, now, now + ttl)
        async with self.catalogue.writing() as session:
            await _check_free(session, name, now)
            await invitations.add(session, invitation)
        return JoinString(self.address, self.authority.ca.der, issued.der, key), invitation.expires_at

    async def enroll(self, invitation_id: str, signing_request: bytes) -> Enrolled:
        """Take an invited agent in; raises NotAuthenticated, AlreadyExists or InvalidRequest.

        Whatever is raised, the invitation is not used up by it.
        """
        now = datetime.now(UTC)
        async with self.catalogue.writing() as session:
            invitation = await invitations.consume(session, invitation_id, now)
            await _check_free(session, invitation.agent_name, now)
            agent = await agents.enrol(session, invitation.agent_name, now)
            issued = self.authority.agent(agent.id, signing_request)
            await agents.certify(session, agent.id, issued.serial, issued.expires_at)
        return Enrolled(agent.id, issued.pem, self.authority.ca.pem)

    async def known(self, agent_id: str, serial: str) -> Agent:
        """The agent that a certificate names; raises NotAuthenticated when it is unknown, revoked or enrolled anew."""
        try:
            async with self.catalogue.reading() as session:
                agent = await agents.get(session, agent_id)
        except NotFound as error:
            raise NotAuthenticated("this hub does not know this agent: enrol it anew") from error
        if agent.state is not AgentState.ACTIVE:
            raise NotAuthenticated("this agent's access was revoked")
        if agent.certificate_serial != serial:
            raise NotAuthenticated("this certificate was replaced by a newer one of the same agent")
        return agent


async def _check_free(session: Any, name: str, now: datetime) -> None:
    """The name of an agent that can never call again is free: who enrols under it takes over its VMs."""
    for agent in await agents.list_agents(session):
        if agent.name == name and _may_call(agent, now):
            raise AlreadyExists(f"there is an agent {name} already", field="display_name")


def _may_call(agent: Agent, now: datetime) -> bool:
    """Whether its access was not revoked and its certificate has not expired."""
    expires_at = agent.certificate_expires_at
    return agent.state is AgentState.ACTIVE and (expires_at is None or now < expires_at)
