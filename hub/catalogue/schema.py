"""The catalogue's tables over time: bring them to a revision of `migrations`, or say where they are."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection

from hub.catalogue.databases import Role, connect, file_of, parse
from hub.catalogue.failures import translated
from shared.errors import NotPossibleNow


async def upgrade(url: str) -> None:
    """Bring the catalogue to the newest revision; an SQLite file is made if it is missing, a MariaDB database is not.

    On SQLite all of it happens or nothing. On MariaDB a revision that failed half-way is mended by hand.
    """
    await _migrate(url, lambda config: command.upgrade(config, "head"))


async def downgrade(url: str, revision: str) -> None:
    """Bring the catalogue back to an older revision, or to `base`: no tables. What newer tables held is lost."""
    await _migrate(url, lambda config: command.downgrade(config, revision))


async def check_head(connection: AsyncConnection) -> None:
    """Raise NotPossibleNow unless the catalogue is at the revision this software was made for."""
    found = await connection.run_sync(lambda sync: MigrationContext.configure(sync).get_current_revision())
    scripts = ScriptDirectory.from_config(_config())
    head = scripts.get_current_head()
    if found == head:
        return
    if found is None:
        raise NotPossibleNow("the catalogue has no tables yet: run `sendense-hub init`")
    if found not in {script.revision for script in scripts.walk_revisions()}:
        raise NotPossibleNow(f"the catalogue is of a newer Sendense: it is at revision {found}, this one knows {head}")
    raise NotPossibleNow(f"the catalogue is at revision {found}, not {head}: run `sendense-hub database upgrade`")


@asynccontextmanager
async def migrating(url: str) -> AsyncIterator[AsyncConnection]:
    """A connection that may change tables, in a transaction that commits at the end (which is SQLite's alone)."""
    parsed = parse(url)
    engine = connect(parsed, Role.SCHEMA)
    try:
        with translated():
            async with engine.begin() as connection:
                yield connection
                if file_of(parsed) is not None:
                    await _check_references(connection)
    finally:
        await engine.dispose()


async def _migrate(url: str, step: Callable[[Config], None]) -> None:
    def run(connection: Connection) -> None:
        config = _config()
        config.attributes["connection"] = connection
        step(config)

    async with migrating(url) as connection:
        await connection.run_sync(run)


def _config() -> Config:
    return Config(Path(str(files("migrations"))) / "alembic.ini")


async def _check_references(connection: AsyncConnection) -> None:
    broken = (await connection.exec_driver_sql("PRAGMA foreign_key_check")).all()
    if broken:
        raise NotPossibleNow(f"the new tables would hold {len(broken)} references to nothing: nothing was changed")
