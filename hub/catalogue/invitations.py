"""Invitations: each lets one agent enrol, once, before it expires."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from hub.catalogue.models import InvitationRow
from hub.catalogue.rows import value
from shared.errors import NotAuthenticated


@dataclass(frozen=True, slots=True)
class Invitation:
    """An invitation; `certificate_serial` is that of the bootstrap certificate the invited agent brings."""

    id: str
    agent_name: str
    certificate_serial: str
    created_at: datetime
    expires_at: datetime
    used_at: datetime | None = None


async def add(session: AsyncSession, invitation: Invitation) -> None:
    """Keep a new invitation; raises AlreadyExists for an ID or serial that was there before."""
    session.add(
        InvitationRow(
            id=invitation.id,
            agent_name=invitation.agent_name,
            certificate_serial=invitation.certificate_serial,
            created_at=invitation.created_at,
            expires_at=invitation.expires_at,
            used_at=invitation.used_at,
        )
    )
    await session.flush()


async def list_invitations(session: AsyncSession) -> list[Invitation]:
    """All invitations, newest first, the used and the expired ones too."""
    rows = await session.scalars(select(InvitationRow).order_by(InvitationRow.id.desc()))
    return [value(Invitation, row) for row in rows]


async def consume(session: AsyncSession, invitation_id: str, now: datetime) -> Invitation:
    """Use an invitation up; exactly one caller ever succeeds, every other gets NotAuthenticated."""
    row = await session.get(InvitationRow, invitation_id)
    if row is None:
        raise NotAuthenticated("this invitation is not known here: ask for a new one")
    if row.used_at is not None:
        raise NotAuthenticated("this invitation was used before: ask for a new one", invitation=row.id)
    if row.expires_at <= now:
        raise NotAuthenticated("this invitation has expired: ask for a new one", invitation=row.id)
    row.used_at = now
    await session.flush()
    return value(Invitation, row)
