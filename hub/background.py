"""Background work of the hub: pieces that run beside everything else, so that one which hangs holds up no other."""

import asyncio
from collections.abc import Awaitable, Callable

from shared import logs
from shared.errors import SendenseError

RETRY = 1.0
"""Seconds before work that failed is tried again."""

log = logs.get(__name__)


class Background:
    """Named pieces of work; at most one of a name at a time."""

    def __init__(self) -> None:
        self._working: dict[str, asyncio.Task[None]] = {}

    def begin(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Work beside everything else, again until it does not fail; nothing when this name is at work already."""
        if name not in self._working:
            task = asyncio.create_task(_done(name, work), name=name)
            self._working[name] = task
            task.add_done_callback(lambda _: self._working.pop(name))

    async def settle(self, patience: float) -> None:
        """Wait `patience` seconds for what is at work, and stop the rest."""
        working = list(self._working.values())
        if working:
            _, late = await asyncio.wait(working, timeout=patience)
            for task in late:
                log.warning("background work was stopped", name=task.get_name())
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)


async def _done(name: str, work: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            return await work()
        except SendenseError as error:
            log.error("background work failed; it is tried again", name=name, reason=error.reason, error=error.message)
        await asyncio.sleep(RETRY)
