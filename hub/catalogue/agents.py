"""Agents: who may report inventories and run backups, and the certificate each is known by."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from hub.catalogue.ids import new_id
from hub.catalogue.models import AgentRow
from hub.catalogue.rows import find, value
from hub.catalogue.states import AgentState


@dataclass(frozen=True, slots=True)
class Agent:
    """An agent; only the certificate with `certificate_serial` proves it, and only while it is ACTIVE."""

    id: str
    name: str
    state: AgentState
    software_version: str
    hostname: str
    certificate_serial: str
    certificate_expires_at: datetime | None
    created_at: datetime
    last_seen_at: datetime | None
    version: int


async def get(session: AsyncSession, agent_id: str) -> Agent:
    """The agent; raises NotFound."""
    return value(Agent, await find(session, AgentRow, agent_id, "agent"))


async def list_agents(session: AsyncSession) -> list[Agent]:
    """All agents by name, the revoked ones too."""
    rows = await session.scalars(select(AgentRow).order_by(AgentRow.name))
    return [value(Agent, row) for row in rows]


async def enrol(session: AsyncSession, name: str, now: datetime) -> Agent:
    """The agent of this name, made if new. A known one keeps its ID and so its VMs; a revoked one is active again.

    Only an invitation the operator gave leads here, so the operator wants that name to be served by the newcomer.
    """
    row = await session.scalar(select(AgentRow).where(AgentRow.name == name))
    if row is None:
        row = AgentRow(id=new_id(), name=name, created_at=now)
        session.add(row)
    row.state = AgentState.ACTIVE
    await session.flush()
    return value(Agent, row)


async def certify(session: AsyncSession, agent_id: str, serial: str, expires_at: datetime) -> Agent:
    """From now on the agent is known by this certificate and by no earlier one; raises NotFound."""
    row = await find(session, AgentRow, agent_id, "agent")
    row.certificate_serial = serial
    row.certificate_expires_at = expires_at
    await session.flush()
    return value(Agent, row)


async def note_seen(
    session: AsyncSession, agent_id: str, *, software_version: str, hostname: str, now: datetime
) -> None:
    """The agent called and said what it is. No change of the agent, so its version stands. Raises NotFound."""
    await find(session, AgentRow, agent_id, "agent")
    await session.execute(
        update(AgentRow)
        .where(AgentRow.id == agent_id)
        .values(software_version=software_version, hostname=hostname, last_seen_at=now)
    )


async def revoke(session: AsyncSession, agent_id: str) -> Agent:
    """Its certificate is worth nothing from now on; raises NotFound."""
    row = await find(session, AgentRow, agent_id, "agent")
    row.state = AgentState.REVOKED
    await session.flush()
    return value(Agent, row)
