"""The bridge from the agents' listener, whose methods run in threads, to the event loop that owns the catalogue.

Data is taken in by threads because that costs less than the event loop does; all that changes a backup's state runs on
the loop.
"""

import asyncio
from collections.abc import Coroutine
from concurrent.futures import CancelledError
from typing import Any, TypeVar

from shared.errors import Unavailable

Result = TypeVar("Result")


class Bridge:
    """Runs coroutines on the hub's event loop, from other threads."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def __call__(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Wait for the coroutine's result; raises what it raises, or Unavailable when the hub is stopping."""
        try:
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        except RuntimeError as error:
            coroutine.close()
            raise Unavailable("the hub is stopping") from error
        try:
            return future.result()
        except CancelledError as error:
            raise Unavailable("the hub is stopping") from error
