"""What Alembic runs for every command on the connection the hub hands in or, from a shell, on the environment's URL."""

import asyncio
import os

from alembic import context
from sqlalchemy import Connection

from hub.catalogue.models import Base
from hub.catalogue.schema import migrating

URL_VARIABLE = "SENDENSE_HUB_DATABASE__URL"
"""The hub's own setting; an environment variable, because a URL may hold a password and arguments are public."""


def migrate(connection: Connection) -> None:
    """Run the revisions Alembic chose, in the transaction the connection is in."""
    context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()


async def migrate_from_shell() -> None:
    """As `migrate`, for a person at a shell."""
    url = os.environ.get(URL_VARIABLE)
    if not url:
        raise SystemExit(f"set {URL_VARIABLE} to the catalogue's URL")
    async with migrating(url) as connection:
        await connection.run_sync(migrate)


given: Connection | None = context.config.attributes.get("connection")
if given is None:
    asyncio.run(migrate_from_shell())
else:
    migrate(given)
