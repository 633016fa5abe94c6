"""The catalogue: reading transactions, and writing transactions that are alone.

A reading transaction sees one moment of the catalogue and cannot change it. What a writing transaction read stays true
until it commits, in whatever process or hub the others run: "look, then change" needs no retry and cannot deadlock.
So writing transactions are short: nothing outside the catalogue is waited for inside one, least of all another one.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from hub.catalogue import schema
from hub.catalogue.databases import Role, connect, file_of, parse
from hub.catalogue.failures import translated
from shared.errors import NotPossibleNow


class Catalogue:
    """One open catalogue. Its sessions go to the query functions of the modules beside this one."""

    def __init__(self, readers: AsyncEngine, writer: AsyncEngine) -> None:
        self._readers = readers
        self._writer = writer

    @classmethod
    async def open(cls, url: str) -> Self:
        """Open what is there and make nothing.

        Raises InvalidRequest for a URL that can never work, NotPossibleNow when the tables are missing or of another
        revision, Unavailable when the database does not answer.
        """
        parsed = parse(url)
        file = file_of(parsed)
        if file is not None and not file.exists():
            raise NotPossibleNow(f"there is no catalogue at {file}: run `sendense-hub init`")
        catalogue = cls(connect(parsed, Role.READER), connect(parsed, Role.WRITER))
        try:
            async with catalogue.reading() as session:
                await schema.check_head(await session.connection())
        except BaseException:
            await catalogue.close()
            raise
        return catalogue

    async def close(self) -> None:
        """Give back every connection; may be called twice."""
        await self._readers.dispose()
        await self._writer.dispose()

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncSession]:
        """A transaction that only looks; raises Unavailable when the database does not answer."""
        with translated():
            async with AsyncSession(self._readers) as session:
                yield session

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncSession]:
        """A transaction that commits at the end, or rolls back on any error or cancel, and is never tried again.

        Raises Unavailable when the database does not answer, or other writers keep it longer than the time limit.
        """
        with translated():
            async with AsyncSession(self._writer) as session, session.begin():
                await session.connection()  # it is alone from here on, not from its first statement on
                yield session
