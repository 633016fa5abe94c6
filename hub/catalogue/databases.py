"""SQLite and MariaDB: how each is connected to, so that a transaction promises the same on both.

    role     may            SQLite             MariaDB
    READER   look           BEGIN, query_only  REPEATABLE READ, READ ONLY
    WRITER   look, change   BEGIN IMMEDIATE    locks the one row of alembic_version before anything else
    SCHEMA   change tables  BEGIN IMMEDIATE    (its DDL knows no transactions)

What `engine` promises of reading and writing transactions is kept here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sqlalchemy import URL, Connection, event, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from shared.errors import InvalidRequest

WAIT = 30
"""Seconds a transaction waits for a connection, or for the writer before it, until it gives up."""

READERS = 8
"""Reading transactions of one process at a time; more wait. There is one writing transaction at a time anyway."""


class Role(Enum):
    """What a connection is for."""

    READER = "reader"
    WRITER = "writer"
    SCHEMA = "schema"


@dataclass(frozen=True, slots=True)
class Manner:
    """What is said to the database when a connection is made, and when a transaction begins."""

    connect: tuple[str, ...]
    begin: str | None


_SQLITE = (
    f"PRAGMA busy_timeout = {WAIT * 1000}",
    "PRAGMA journal_mode = WAL",
    # A restore point the agent was told about must outlive a power cut: its snapshot is gone by then.
    "PRAGMA synchronous = FULL",
)

_MARIADB = (
    # A server may be configured to cut what is too long, in silence.
    "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION'",
    "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ",
    f"SET SESSION innodb_lock_wait_timeout = {WAIT}",
    # At its limit a recursion just ends, and a chain would look shorter than it is.
    "SET SESSION max_recursive_iterations = 1000000",
)

MANNERS: Mapping[tuple[str, Role], Manner] = MappingProxyType(
    {
        ("sqlite", Role.READER): Manner((*_SQLITE, "PRAGMA query_only = ON"), "BEGIN"),
        ("sqlite", Role.WRITER): Manner((*_SQLITE, "PRAGMA foreign_keys = ON"), "BEGIN IMMEDIATE"),
        # A migration may rebuild a table that others refer to; `schema` checks the references before it commits.
        ("sqlite", Role.SCHEMA): Manner((*_SQLITE, "PRAGMA foreign_keys = OFF"), "BEGIN IMMEDIATE"),
        ("mariadb", Role.READER): Manner((*_MARIADB, "SET SESSION TRANSACTION READ ONLY"), None),
        # The first plain read fixes what a transaction sees, so after this lock it sees all that earlier writers did.
        ("mariadb", Role.WRITER): Manner(_MARIADB, "SELECT version_num FROM alembic_version FOR UPDATE"),
        ("mariadb", Role.SCHEMA): Manner(_MARIADB, None),
    }
)

DRIVERS = ("sqlite+aiosqlite", "mariadb+asyncmy")


def parse(url: str) -> URL:
    """`sqlite+aiosqlite:///PATH` or `mariadb+asyncmy://USER:PASSWORD@HOST/DATABASE`; raises InvalidRequest."""
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise InvalidRequest("the catalogue's URL cannot be read", field="url") from error
    if parsed.drivername not in DRIVERS or parsed.database in (None, "", ":memory:"):
        raise InvalidRequest(
            f"the catalogue's URL must begin with {' or '.join(f'{name}://' for name in DRIVERS)} and name a database",
            field="url",
        )
    return parsed


def file_of(url: URL) -> Path | None:
    """The file of an SQLite catalogue; None for MariaDB."""
    return Path(str(url.database)) if url.get_backend_name() == "sqlite" else None


def connect(url: URL, role: Role) -> AsyncEngine:
    """The connections of one role; none is made before the first transaction."""
    engine = create_async_engine(
        url, pool_size=READERS if role is Role.READER else 1, max_overflow=0, pool_timeout=WAIT, pool_pre_ping=True
    )
    manner = MANNERS[url.get_backend_name(), role]

    @event.listens_for(engine.sync_engine, "connect")
    def on_connect(connection: Any, record: object) -> None:
        if url.get_backend_name() == "sqlite":
            connection.isolation_level = None  # else Python's sqlite3 begins transactions when it sees fit
        cursor = connection.cursor()
        for statement in manner.connect:
            cursor.execute(statement)
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def on_begin(connection: Connection) -> None:
        if manner.begin is not None:
            connection.exec_driver_sql(manner.begin)

    return engine
