"""What is said of a catalogue's URL, its file and its server before and while it is used."""

from pathlib import Path

import asyncmy
import pytest
from sqlalchemy import text

from hub.catalogue import agents
from hub.catalogue.databases import parse
from hub.catalogue.engine import Catalogue
from hub.catalogue.schema import migrating, upgrade
from shared.errors import InvalidRequest, NotPossibleNow, Unavailable
from tests.contracts.mariadb import mariadb


@pytest.mark.parametrize(
    "url",
    [
        "",
        "nonsense",
        "postgresql+asyncpg://localhost/sendense",
        "sqlite:////tmp/x.db",
        "sqlite+aiosqlite://",
        "sqlite+aiosqlite:///:memory:",
        "mariadb+asyncmy://root@localhost",
    ],
)
def test_a_url_that_can_never_work_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest, match="URL"):
        parse(url)


def test_no_error_repeats_the_password_of_a_url() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse("mysql://root:hunter2@localhost/sendense")
    assert "hunter2" not in str(caught.value)


async def test_opening_makes_no_file(tmp_path: Path) -> None:
    with pytest.raises(NotPossibleNow, match="sendense-hub init"):
        await Catalogue.open(f"sqlite+aiosqlite:///{tmp_path}/catalogue.db")
    assert entries(tmp_path) == []


def entries(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def test_an_upgrade_that_fails_leaves_a_sqlite_file_without_tables(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/catalogue.db"
    async with migrating(url) as connection:
        await connection.execute(text("CREATE TABLE images (id INTEGER)"))
    with pytest.raises(Unavailable, match="images already exists"):
        await upgrade(url)
    async with migrating(url) as connection:
        names = await connection.scalars(text("SELECT name FROM sqlite_master WHERE type = 'table'"))
        assert names.all() == ["images"]


async def test_a_migration_that_breaks_a_reference_is_undone(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/catalogue.db"
    await upgrade(url)
    with pytest.raises(NotPossibleNow, match="references to nothing"):
        async with migrating(url) as connection:
            await connection.execute(text("INSERT INTO task_events VALUES ('gone', 1, 0, 'INFO', '', '{}')"))
    async with migrating(url) as connection:
        assert (await connection.execute(text("SELECT * FROM task_events"))).all() == []


async def test_a_server_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable):
        await Catalogue.open(f"mariadb+asyncmy://root@/sendense?unix_socket={tmp_path}/socket")


async def test_a_catalogue_is_unavailable_while_its_server_is_gone_and_works_when_it_is_back(tmp_path: Path) -> None:
    with mariadb(tmp_path) as socket:
        catalogue = await make_catalogue(socket)
    with pytest.raises(Unavailable):
        await read(catalogue)
    with mariadb(tmp_path):
        await read(catalogue)
        await catalogue.close()


async def test_a_restart_of_the_server_between_two_transactions_is_not_noticed(tmp_path: Path) -> None:
    with mariadb(tmp_path) as socket:
        catalogue = await make_catalogue(socket)
    with mariadb(tmp_path):
        await read(catalogue)
        await catalogue.close()


async def make_catalogue(socket: Path) -> Catalogue:
    connection = await asyncmy.connect(unix_socket=str(socket), user="root")
    async with connection.cursor() as cursor:
        await cursor.execute("CREATE DATABASE sendense")
    connection.close()
    url = f"mariadb+asyncmy://root@/sendense?unix_socket={socket}"
    await upgrade(url)
    return await Catalogue.open(url)


async def read(catalogue: Catalogue) -> None:
    async with catalogue.reading() as session:
        assert await agents.list_agents(session) == []
