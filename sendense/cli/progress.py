"""Progress of something long, on stderr: a bar on a terminal, a plain line every few seconds anywhere else."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.text import Text

from sendense.cli.output import remark, size

LINE_INTERVAL = 5.0
"""Seconds between two plain lines, also when nothing moves: silence would look like a hang."""


class Progress(Protocol):
    """Shows one activity. `output.remark` may be used meanwhile: its lines stand above a bar."""

    def show(self, state: str, done: int, total: int) -> None:
        """Where it is: a word, and bytes; `total` is 0 until known. May be called as often as there is news."""


def progress() -> AbstractContextManager[Progress]:
    """Progress on stderr, for as long as the block runs."""
    return _bar() if sys.stderr.isatty() else _lines(LINE_INTERVAL)


@contextmanager
def _bar() -> Iterator[Progress]:
    columns = TextColumn("{task.description}"), BarColumn(), _Amount(), TimeRemainingColumn()
    with Bars(*columns, console=Console(stderr=True, highlight=False)) as bars:
        yield _Bar(bars)


class _Bar:
    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._task = bars.add_task("waiting", total=None)

    def show(self, state: str, done: int, total: int) -> None:
        self._bars.update(self._task, description=state, completed=done, total=total or None)


class _Amount(ProgressColumn):
    """Bytes done, of how many, and how fast."""

    def render(self, task: Task) -> Text:
        total = f" of {size(task.total)}" if task.total else ""
        return Text(f"{size(task.completed)}{total}  {size(task.speed or 0)}/s")


@contextmanager
def _lines(interval: float) -> Iterator[Progress]:
    lines, over = _Lines(), threading.Event()

    def repeat() -> None:
        while not over.wait(interval):
            lines.print()

    repeater = threading.Thread(target=repeat, name="progress lines")
    repeater.start()
    try:
        yield lines
    finally:
        over.set()
        repeater.join()


class _Lines:
    """The newest news and the line made of it; the rate is that since the line before."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # news come from one thread, the regular line from another
        self._state, self._done, self._total = "waiting", 0, 0
        self._printed_done, self._printed_at = 0, time.monotonic()

    def show(self, state: str, done: int, total: int) -> None:
        with self._lock:
            is_turn = state != self._state
            self._state, self._done, self._total = state, done, total
        if is_turn:
            self.print()

    def print(self) -> None:
        with self._lock:
            now = time.monotonic()
            rate = (self._done - self._printed_done) / max(now - self._printed_at, 0.001)
            self._printed_done, self._printed_at = self._done, now
            remark(f"{time.strftime('%H:%M:%S')}  {self._state}  {self._amount()}  {size(rate)}/s")

    def _amount(self) -> str:
        if not self._total:
            return size(self._done)
        return f"{size(self._done)} of {size(self._total)} ({100 * self._done // self._total} %)"
