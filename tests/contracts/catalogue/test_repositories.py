"""Repositories in the catalogue."""

import pytest

from hub.catalogue import repositories
from hub.catalogue.engine import Catalogue
from hub.catalogue.ids import new_id
from hub.catalogue.repositories import Repository
from hub.catalogue.states import RepositoryKind
from shared.errors import AlreadyExists, NotFound
from tests.contracts.catalogue.site import NOW


async def add(catalogue: Catalogue, name: str, repository_id: str = "") -> Repository:
    async with catalogue.writing() as session:
        return await repositories.add(
            session, repository_id=repository_id or new_id(), name=name, path="/srv/backup", now=NOW
        )


async def test_a_repository_is_read_back_as_it_was_written(catalogue: Catalogue) -> None:
    written = await add(catalogue, "main")
    async with catalogue.reading() as session:
        assert await repositories.get(session, written.id) == written
    assert written == Repository(written.id, "main", RepositoryKind.LOCAL, "/srv/backup", NOW, 1)


async def test_repositories_are_listed_by_name(catalogue: Catalogue) -> None:
    second, first = await add(catalogue, "b"), await add(catalogue, "a")
    async with catalogue.reading() as session:
        assert await repositories.list_repositories(session) == [first, second]


async def test_a_name_is_taken_once(catalogue: Catalogue) -> None:
    taken = await add(catalogue, "main")
    with pytest.raises(AlreadyExists) as caught:
        await add(catalogue, "main")
    assert caught.value.facts == {"repository": taken.id}


async def test_names_that_differ_in_case_are_different(catalogue: Catalogue) -> None:
    await add(catalogue, "main")
    await add(catalogue, "Main")
    await add(catalogue, "main ")


async def test_one_repository_is_not_added_under_two_names(catalogue: Catalogue) -> None:
    taken = await add(catalogue, "main")
    with pytest.raises(AlreadyExists):
        await add(catalogue, "other", taken.id)


async def test_an_unknown_repository_is_not_found(catalogue: Catalogue) -> None:
    with pytest.raises(NotFound, match="repository"):
        async with catalogue.reading() as session:
            await repositories.get(session, new_id())
