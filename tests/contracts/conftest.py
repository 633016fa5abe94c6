"""Fixtures of the contracts: each suite runs on every implementation of its interface."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import asyncmy
import pytest

from hub.catalogue.engine import Catalogue
from hub.catalogue.schema import upgrade
from tests.contracts.mariadb import mariadb


@pytest.fixture(scope="session")
def mariadb_socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with mariadb(tmp_path_factory.mktemp("mariadb")) as socket:
        yield socket


@pytest.fixture(params=["sqlite", "mariadb"])
async def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database without tables."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path}/catalogue.db"
    socket: Path = request.getfixturevalue("mariadb_socket")
    name = f"catalogue_{uuid4().hex}"
    connection = await asyncmy.connect(unix_socket=str(socket), user="root")
    async with connection.cursor() as cursor:
        await cursor.execute(f"CREATE DATABASE {name}")
    connection.close()
    return f"mariadb+asyncmy://root@/{name}?unix_socket={socket}"


@pytest.fixture
async def url(empty_url: str) -> str:
    """The URL of a catalogue with tables and nothing in them."""
    await upgrade(empty_url)
    return empty_url


@pytest.fixture
async def catalogue(url: str) -> AsyncIterator[Catalogue]:
    opened = await Catalogue.open(url)
    yield opened
    await opened.close()
