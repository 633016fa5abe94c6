"""Repositories: adding one to the catalogue, its folder made or taken as it is."""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from hub.catalogue import repositories
from hub.catalogue.engine import Catalogue
from hub.catalogue.ids import new_id
from hub.catalogue.repositories import Repository
from hub.repository import create_repository, open_repository, read_repository_id
from shared.errors import AlreadyExists, InvalidRequest

LONGEST_NAME = 100


@dataclass(frozen=True, slots=True)
class Repositories:
    """Adds repositories."""

    catalogue: Catalogue

    async def add(self, name: str, path: Path) -> Repository:
        """Add a repository; raises InvalidRequest, AlreadyExists, NotPossibleNow, RepositoryUnavailable."""
        if not 0 < len(name) <= LONGEST_NAME:
            raise InvalidRequest(f"a repository's name has 1 to {LONGEST_NAME} characters", field="display_name")
        if not path.is_absolute():
            raise InvalidRequest(f"{str(path)!r} is not an absolute path", field="path")
        try:
            path = await asyncio.to_thread(path.resolve)
        except (ValueError, RuntimeError) as error:  # a NUL in it, a circle of symbolic links
            raise InvalidRequest(f"{str(path)!r} cannot be a path: {error}", field="path") from error
        await self._check_free(name, path)
        repository_id = await asyncio.to_thread(_make_or_take, path)
        async with self.catalogue.writing() as session:
            return await repositories.add(
                session, repository_id=repository_id, name=name, path=str(path), now=datetime.now(UTC)
            )

    async def _check_free(self, name: str, path: Path) -> None:
        """Look before a folder is made: a refused request leaves none behind."""
        async with self.catalogue.reading() as session:
            known = await repositories.list_repositories(session)
        for repository in known:
            if repository.name == name:
                raise AlreadyExists(f"there is a repository named {name} already", field="display_name")
            if Path(repository.path) == path:
                raise AlreadyExists(f"{path} is the repository {repository.name} already", field="path")


def _make_or_take(path: Path) -> str:
    known = read_repository_id(path)
    if known is not None:
        return open_repository(path, known).id
    return create_repository(path, new_id()).id
