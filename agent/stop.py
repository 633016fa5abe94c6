"""The end of a backup that was asked for: why, heard by everything of it that works or waits."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Stop:
    """Asked for once, by whoever comes first; may be asked for and looked at from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._why: BaseException | None = None
        self._interrupts: list[Callable[[], object]] = []

    def ask(self, why: BaseException) -> None:
        """Ask for the end with this error; the first word counts."""
        with self._lock:
            self._why = self._why or why
            interrupts = list(self._interrupts)
        for interrupt in interrupts:
            interrupt()

    def asked(self) -> bool:
        """Whether it is to end."""
        return self._why is not None

    def check(self) -> None:
        """Raise what was asked to end with, if it was."""
        if self._why is not None:
            raise self._why

    @contextmanager
    def interrupting(self, interrupt: Callable[[], object]) -> Iterator[None]:
        """Inside the `with` the end, once asked for, calls `interrupt` too: a wait that looks at nothing needs it.

        It may be called more than once, from any thread, and must neither block nor raise.
        """
        with self._lock:
            self._interrupts.append(interrupt)
            late = self._why is not None
        try:
            if late:
                interrupt()
            yield
        finally:
            with self._lock:
                self._interrupts.remove(interrupt)
