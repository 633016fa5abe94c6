"""Helper programs: run one to its end, or keep one serving while it is needed. The one door to subprocesses.

Arguments are lists, never a shell. A served program dies with the thread that started it (the kernel's parent-death
signal, by `setpriv`), so a killed hub or agent leaves no helper behind; whoever starts one keeps its thread alive
until it is stopped. Stderr is kept per program, and its last lines go into the error, less the secrets.
"""

import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from shared.errors import SendenseError, TimedOut, Unavailable

STDERR_TAIL = 2000
"""Characters of a program's stderr that an error carries."""

STOP_GRACE = 5.0
"""Seconds between asking a program to end and killing it."""


class ProgramMissing(Unavailable):
    """A program this software needs is not installed."""

    reason = "PROGRAM_MISSING"
    retry_helps = False


class ProgramFailed(SendenseError):
    """A program ended with an error; its last words are in the message."""

    reason = "PROGRAM_FAILED"


def run(args: Sequence[str | Path], *, timeout: float, stdin: str = "") -> str:
    """Run a program to its end and return its stdout; raises ProgramFailed, ProgramMissing or TimedOut."""
    words = [str(arg) for arg in args]
    try:
        done = subprocess.run(words, input=stdin, capture_output=True, text=True, timeout=timeout, check=False)
    except FileNotFoundError as error:
        raise ProgramMissing(f"{words[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise TimedOut(f"{words[0]} did not end within {timeout:.0f} s") from error
    if done.returncode:
        raise ProgramFailed(f"{words[0]} failed (exit {done.returncode}): {done.stderr.strip()[-STDERR_TAIL:]}")
    return done.stdout


class ServedProgram:
    """A helper program that runs until it is stopped."""

    def __init__(
        self, process: "subprocess.Popen[bytes]", name: str, stderr: IO[bytes], secrets: Iterable[str]
    ) -> None:
        self._process = process
        self._stderr = stderr
        self._secrets = [secret for secret in secrets if secret]
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
        size = self._stderr.seek(0, 2)
        self._stderr.seek(max(0, size - STDERR_TAIL))
        text = self._stderr.read().decode(errors="replace").strip()
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

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
    """Keep a program running inside the `with`; `secrets` never appear in what is said of it."""
    words = [str(arg) for arg in args]
    with tempfile.TemporaryFile() as stderr:
        try:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env=env,
            )
        except FileNotFoundError as error:
            raise ProgramMissing("setpriv (package util-linux) is not installed") from error
        program = ServedProgram(process, words[0], stderr, secrets)
        try:
            yield program
        finally:
            program.stop()
