"""Helper programs: run one to its end, or keep one serving while it is needed. The one door to subprocesses.

Arguments are lists, never a shell. A program dies with the thread that started it (the kernel's parent-death signal,
by `setpriv`), so a killed hub or agent leaves no helper behind; whoever starts one keeps its thread alive until it is
stopped. Stderr is kept per program, and its last lines go into the error, less the secrets.
"""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from shared.errors import Cancelled, SendenseError, TimedOut, Unavailable

STDERR_TAIL = 2000
"""Characters of a program's stderr that an error carries."""

STDERR_READ = 32 * STDERR_TAIL
"""Bytes that secrets are struck out of before the tail is taken: one that is cut in two would not be found."""

STOP_POLL = 0.1
"""Seconds between two looks at whether a program that runs to its end is to stop."""

STOP_GRACE = 5.0
"""Seconds between asking a program to end and killing it."""


class ProgramMissing(Unavailable):
    """A program this software needs is not installed."""

    reason = "PROGRAM_MISSING"
    retry_helps = False


class ProgramFailed(SendenseError):
    """A program ended with an error; its last words are in the message."""

    reason = "PROGRAM_FAILED"


def run(
    args: Sequence[str | Path], *, timeout: float, stdin: str = "", stopped: Callable[[], bool] = lambda: False
) -> str:
    """Run a program to its end, or kill it once `stopped()`; returns its stdout.

    Raises ProgramFailed, ProgramMissing, TimedOut after `timeout` seconds, or Cancelled when it was stopped.
    """
    command, pipe, name = _dying_with_us(args), subprocess.PIPE, str(args[0])
    with (
        _file_of(stdin) as source,
        subprocess.Popen(command, stdin=source, stdout=pipe, stderr=pipe, text=True) as process,
    ):
        try:
            stdout, stderr = _output(process, name, timeout, stopped)
        finally:
            process.kill()  # one that has ended does not mind
    if process.returncode:
        raise ProgramFailed(f"{name} failed (exit {process.returncode}): {stderr.strip()[-STDERR_TAIL:]}")
    return stdout


@contextmanager
def _file_of(text: str) -> Iterator[IO[str]]:
    """The text as a file: a pipe would need somebody to fill it, and `communicate` stops that at its first timeout."""
    with tempfile.TemporaryFile("w+") as file:
        file.write(text)
        file.seek(0)
        yield file


def _output(
    process: "subprocess.Popen[str]", name: str, timeout: float, stopped: Callable[[], bool]
) -> tuple[str, str]:
    """All that the program says on stdout and stderr until it ends; raises TimedOut or Cancelled while it runs."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            return process.communicate(timeout=STOP_POLL)
        except subprocess.TimeoutExpired as error:
            if stopped():
                raise Cancelled(f"{name} was stopped") from error
            if time.monotonic() > deadline:
                raise TimedOut(f"{name} did not end within {timeout:.0f} s") from error


class ServedProgram:
    """A helper program that runs until it is stopped."""

    def __init__(
        self, process: "subprocess.Popen[bytes]", name: str, stderr: IO[bytes], secrets: Iterable[str]
    ) -> None:
        self._process = process
        self._stderr = stderr
        # The longest first: a secret may be a part of another one.
        self._secrets = sorted(filter(None, secrets), key=len, reverse=True)
        self.name = name

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """The exit code, negative for a signal, or None while it runs."""
        return self._process.poll()

    def last_words(self) -> str:
        """The end of its stderr, secrets struck out; '' when it said nothing."""
        # By pread: the program writes at the same file position as we would seek.
        descriptor = self._stderr.fileno()
        start = max(0, os.fstat(descriptor).st_size - STDERR_READ)
        text = os.pread(descriptor, STDERR_READ, start).decode(errors="replace").strip()
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text[-STDERR_TAIL:]

    def wait_until(self, ready: Callable[[], bool], timeout: float) -> None:
        """Wait for `ready()`; raises ProgramFailed if the program ends first, TimedOut after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while not ready():
            if self.exit_code is not None:
                raise ProgramFailed(f"{self.name} ended at start (exit {self.exit_code}): {self.last_words()}")
            if time.monotonic() > deadline:
                raise TimedOut(f"{self.name} was not ready within {timeout:.0f} s: {self.last_words()}")
            time.sleep(0.005)

    def stop(self) -> None:
        """Ask it to end, then make it end; may be called twice."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_GRACE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


@contextmanager
def serving(
    args: Sequence[str | Path], *, env: Mapping[str, str] | None = None, secrets: Iterable[str] = ()
) -> Iterator[ServedProgram]:
    """Keep a program running inside the `with`; `secrets` never appear in what is said of it.

    Raises ProgramMissing.
    """
    command = _dying_with_us(args)
    with tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr, env=env)
        program = ServedProgram(process, str(args[0]), stderr, secrets)
        try:
            yield program
        finally:
            program.stop()


def _dying_with_us(args: Sequence[str | Path]) -> list[str]:
    """The command, killed when this thread ends; raises ProgramMissing, for setpriv says no more than exit 127."""
    command = ["setpriv", "--pdeathsig", "KILL", *map(str, args)]
    for program in (command[0], str(args[0])):
        if shutil.which(program) is None:
            raise ProgramMissing(f"{program} is not installed")
    return command
