"""Logs: what they show, and what never stands in them."""

import os
import pty
import subprocess
import sys

PROGRAM = """
from shared import logs

def login(password: str) -> None:
    raise ValueError("it was refused")

logs.set_up()
try:
    login("".join(["hun", "ter2"]))
except ValueError:
    logs.get("test").exception("unexpected error")
"""


def on_a_terminal() -> str:
    """What the program logs when its stderr is a terminal."""
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        subprocess.run([sys.executable, "-c", PROGRAM], stderr=theirs, check=True, timeout=60)
        os.close(theirs)
        return terminal.read(65536).decode()


def piped() -> str:
    """What the program logs into a pipe."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM], stderr=subprocess.PIPE, check=True, timeout=60
    ).stderr.decode()


def test_a_traceback_on_a_terminal_shows_no_variables() -> None:
    said = on_a_terminal()
    assert "ValueError" in said
    assert "it was refused" in said
    assert "hunter2" not in said


def test_a_traceback_in_a_pipe_shows_no_variables() -> None:
    said = piped()
    assert "it was refused" in said
    assert "hunter2" not in said
