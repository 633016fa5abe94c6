"""What tests script and look at: faults to come, and the calls that came."""

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

CALLS_KEPT = 100_000


@dataclass(frozen=True, slots=True)
class Call:
    """One API call as it arrived; `at` in seconds since the epoch."""

    at: float
    method: str
    target: str
    """Managed object reference."""


class CallLog:
    """The last calls, oldest first."""

    def __init__(self) -> None:
        self._calls: deque[Call] = deque(maxlen=CALLS_KEPT)

    def add(self, method: str, target: str) -> None:
        """Note a call."""
        self._calls.append(Call(time.time(), method, target))

    def calls(self) -> list[Call]:
        """The calls so far."""
        return list(self._calls)

    def methods(self) -> list[str]:
        """The names of the methods called so far, in WSDL spelling."""
        return [call.method for call in self._calls]


@dataclass(slots=True)
class _Scripted:
    fault: Any
    after: int
    times: int


class Faults:
    """Faults that methods are to answer with, each a number of times; the methods' tasks end in `task_fault`s."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._scripted: dict[tuple[str, bool], list[_Scripted]] = {}

    def add(self, method: str, fault: Any, *, times: int = 1, after: int = 0, in_task: bool = False) -> None:
        """Let `method` (WSDL name) fail `times` times after `after` good calls; `in_task`: its task, not the call."""
        with self._lock:
            self._scripted.setdefault((method, in_task), []).append(_Scripted(fault, after, times))

    def take(self, method: str, *, in_task: bool = False) -> Any | None:
        """The fault this call (or task) is to end with, if any."""
        with self._lock:
            for scripted in self._scripted.get((method, in_task), []):
                if scripted.after > 0:
                    scripted.after -= 1
                elif scripted.times > 0:
                    scripted.times -= 1
                    return scripted.fault
        return None


@dataclass
class DiskFaults:
    """What happens to disks opened by libvixDiskLib from now on."""

    fail_after: int | None = None
    """Reads fail once this many bytes were read over one handle."""
    latency: float = 0.0
    """Seconds each read takes longer."""
