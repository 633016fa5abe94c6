"""vSphere's own tasks: started by one call, carried out by vCenter in its time."""

import time
from collections.abc import Callable
from typing import Any

from agent.vsphere.faults import translated
from shared.errors import TimedOut

FIRST_LOOK = 0.05
LONGEST_PAUSE = 2.0
"""Seconds between looks at a task: often at first, since most take a second, then seldom, since some take an hour."""


def carry_out(
    doing: str, start: Callable[[], Any], *, timeout: float, check_stop: Callable[[], None] = lambda: None
) -> Any:
    """Start a task and return its result when vCenter has ended it.

    Raises the task's fault, translated. Raises TimedOut after `timeout` seconds, and what `check_stop` raises: vCenter
    goes on with the task then.
    """
    with translated(doing):
        task = start()
    deadline = time.monotonic() + timeout
    pause = FIRST_LOOK
    while True:
        with translated(doing):
            info = task.info
            if info.state == "error":
                raise info.error
        if info.state == "success":
            return info.result
        if time.monotonic() > deadline:
            raise TimedOut(f"{doing}: vCenter has not ended its task {task._GetMoId()} within {timeout:.0f} s")
        check_stop()
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
