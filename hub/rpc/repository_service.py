"""RepositoryService."""

import asyncio
from pathlib import Path
from typing import Any

from hub.catalogue import images, repositories
from hub.catalogue.engine import Catalogue
from hub.catalogue.repositories import Repository
from hub.repositories import Repositories
from hub.repository import Space, open_repository
from hub.rpc import messages, paging
from hub.rpc.names import id_in
from sendense.v1 import repository_pb2, repository_pb2_grpc
from shared.errors import SendenseError


class RepositoryService(repository_pb2_grpc.RepositoryServiceServicer):
    """Unpack, call, pack."""

    def __init__(self, catalogue: Catalogue, known: Repositories) -> None:
        self._catalogue = catalogue
        self._repositories = known

    async def CreateRepository(
        self, request: repository_pb2.CreateRepositoryRequest, context: Any
    ) -> repository_pb2.Repository:
        return await self._packed(await self._repositories.add(request.display_name, Path(request.path)))

    async def GetRepository(
        self, request: repository_pb2.GetRepositoryRequest, context: Any
    ) -> repository_pb2.Repository:
        async with self._catalogue.reading() as session:
            found = await repositories.get(session, id_in(request.name, "repositories"))
        return await self._packed(found)

    async def ListRepositories(
        self, request: repository_pb2.ListRepositoriesRequest, context: Any
    ) -> repository_pb2.ListRepositoriesResponse:
        async with self._catalogue.reading() as session:
            known = await repositories.list_repositories(session)
        page, following = paging.cut(request, known, key=lambda repository: repository.name)
        packed = [await self._packed(repository) for repository in page]
        return repository_pb2.ListRepositoriesResponse(repositories=packed, next_page_token=following)

    async def _packed(self, value: Repository) -> repository_pb2.Repository:
        space = await asyncio.to_thread(_space, value)
        async with self._catalogue.reading() as session:
            stored = await images.stored_bytes(session, value.id)
        return repository_pb2.Repository(
            name=f"repositories/{value.id}",
            display_name=value.name,
            path=value.path,
            available=space is not None,
            capacity_bytes=space.capacity if space else 0,
            free_bytes=space.free if space else 0,
            stored_bytes=stored,
            create_time=messages.timestamp(value.created_at),
        )


def _space(value: Repository) -> Space | None:
    """The room it has; None when the folder is not there, which a listing shows rather than fails by."""
    try:
        return open_repository(Path(value.path), value.id).space()
    except SendenseError:
        return None
