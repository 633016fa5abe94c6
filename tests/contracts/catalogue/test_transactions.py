"""Transactions: readers see one moment, writers are alone, what was committed stays."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from hub.catalogue import agents, repositories, tasks
from hub.catalogue.engine import Catalogue
from hub.catalogue.ids import new_id
from hub.catalogue.tasks import Progress
from shared.errors import InvalidRequest, SendenseError
from tests.contracts.catalogue.site import NOW, make_site, new_task


async def names(catalogue: Catalogue) -> list[str]:
    async with catalogue.reading() as session:
        return [agent.name for agent in await agents.list_agents(session)]


async def enrol(catalogue: Catalogue, name: str) -> None:
    async with catalogue.writing() as session:
        await agents.enrol(session, name, NOW)


async def test_forty_read_modify_writes_of_four_hubs_all_count(catalogue: Catalogue, url: str) -> None:
    site = await make_site(catalogue)
    async with catalogue.writing() as session:
        task = await new_task(session, site)

    async def add_one(hub: Catalogue) -> None:
        async with hub.writing() as session:
            count = (await tasks.get(session, task.id)).progress.read_bytes
            await asyncio.sleep(0.001)
            await tasks.advance(session, task.id, Progress(read_bytes=count + 1))

    async with AsyncExitStack() as stack:
        hubs = [await Catalogue.open(url) for _ in range(4)]
        for hub in hubs:
            stack.push_async_callback(hub.close)
        await asyncio.gather(*(add_one(hub) for hub in hubs * 10))
    async with catalogue.reading() as session:
        assert (await tasks.get(session, task.id)).progress.read_bytes == 40


async def test_a_writing_transaction_that_fails_leaves_nothing(catalogue: Catalogue) -> None:
    with pytest.raises(ZeroDivisionError):
        async with catalogue.writing() as session:
            await agents.enrol(session, "a", NOW)
            raise ZeroDivisionError
    assert await names(catalogue) == []


async def test_a_cancelled_writer_leaves_nothing_and_lets_the_next_one_in(catalogue: Catalogue) -> None:
    inside = asyncio.Event()

    async def write_for_ever() -> None:
        async with catalogue.writing() as session:
            await agents.enrol(session, "a", NOW)
            inside.set()
            await asyncio.sleep(3600)

    writer = asyncio.create_task(write_for_ever())
    await inside.wait()
    writer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writer
    await enrol(catalogue, "b")
    assert await names(catalogue) == ["b"]


async def test_a_writer_cancelled_while_it_waits_for_another_hub_lets_the_next_one_in(
    catalogue: Catalogue, url: str
) -> None:
    other = await Catalogue.open(url)
    try:
        async with other.writing() as session:
            waiting = asyncio.create_task(enrol(catalogue, "a"))
            await asyncio.sleep(0.1)
            assert not waiting.done()
            waiting.cancel()
            await agents.enrol(session, "b", NOW)
        with pytest.raises(asyncio.CancelledError):
            await waiting
    finally:
        await other.close()
    await enrol(catalogue, "c")
    assert await names(catalogue) == ["b", "c"]


async def test_a_reader_sees_one_moment_whatever_is_written_meanwhile(catalogue: Catalogue) -> None:
    async with catalogue.reading() as session:
        before = await agents.list_agents(session)
        await enrol(catalogue, "a")
        assert await agents.list_agents(session) == before == []
    assert await names(catalogue) == ["a"]


async def test_a_reader_does_not_wait_for_a_writer_and_sees_nothing_uncommitted(catalogue: Catalogue) -> None:
    async with catalogue.writing() as session:
        await agents.enrol(session, "a", NOW)
        assert await names(catalogue) == []


async def test_a_reading_transaction_cannot_change_anything(catalogue: Catalogue) -> None:
    with pytest.raises(SendenseError):
        async with catalogue.reading() as session:
            await agents.enrol(session, "a", NOW)
            await session.commit()
    assert await names(catalogue) == []


async def test_everything_is_still_there_after_a_restart(catalogue: Catalogue, url: str) -> None:
    site = await make_site(catalogue)
    async with catalogue.writing() as session:
        task = await new_task(session, site)
    await catalogue.close()
    again = await Catalogue.open(url)
    try:
        async with again.reading() as session:
            assert await tasks.unfinished(session) == [task]
            assert len(await repositories.list_repositories(session)) == 2
    finally:
        await again.close()


async def test_what_is_too_long_for_a_column_is_never_cut(catalogue: Catalogue) -> None:
    """SQLite has no limits and keeps it whole; MariaDB refuses, even where the server is set to cut in silence."""
    name = "x" * 300
    try:
        async with catalogue.writing() as session:
            await repositories.add(session, repository_id=new_id(), name=name, path="/", now=NOW)
    except InvalidRequest:
        name = ""
    async with catalogue.reading() as session:
        assert [one.name for one in await repositories.list_repositories(session)] == ([name] if name else [])


async def test_a_time_without_a_zone_is_refused(catalogue: Catalogue) -> None:
    with pytest.raises(SendenseError):
        async with catalogue.writing() as session:
            await agents.enrol(session, "a", NOW.replace(tzinfo=None))


async def test_a_catalogue_may_be_closed_twice(catalogue: Catalogue) -> None:
    await catalogue.close()
    await catalogue.close()
