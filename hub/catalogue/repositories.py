"""Repositories: the places where images lie."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from hub.catalogue.models import RepositoryRow
from hub.catalogue.rows import find, value
from hub.catalogue.states import RepositoryKind
from shared.errors import AlreadyExists


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository; `path` is its folder on the hub, `id` also stands in that folder's sendense.json."""

    id: str
    name: str
    kind: RepositoryKind
    path: str
    created_at: datetime
    version: int


async def add(session: AsyncSession, *, repository_id: str, name: str, path: str, now: datetime) -> Repository:
    """Keep a new repository in a local folder; raises AlreadyExists for a name or ID that is taken."""
    taken = await session.scalar(
        select(RepositoryRow).where(or_(RepositoryRow.name == name, RepositoryRow.id == repository_id))
    )
    if taken is not None:
        raise AlreadyExists(f"the repository {taken.name} ({taken.id}) exists already", repository=taken.id)
    row = RepositoryRow(id=repository_id, name=name, kind=RepositoryKind.LOCAL, path=path, created_at=now)
    session.add(row)
    await session.flush()
    return value(Repository, row)


async def get(session: AsyncSession, repository_id: str) -> Repository:
    """The repository; raises NotFound."""
    return value(Repository, await find(session, RepositoryRow, repository_id, "repository"))


async def list_repositories(session: AsyncSession) -> list[Repository]:
    """All repositories by name."""
    rows = await session.scalars(select(RepositoryRow).order_by(RepositoryRow.name))
    return [value(Repository, row) for row in rows]
