"""Helper programs: ended whatever happens, and their last words kept, without the secrets."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.errors import Cancelled, TimedOut
from shared.process import STDERR_TAIL, ProgramFailed, ProgramMissing, ServedProgram, run, serving

PATIENCE = 20.0
"""Seconds."""


def shell(script: str) -> list[str]:
    return ["sh", "-c", script]


def eventually(true: Callable[[], bool]) -> bool:
    """Whether it becomes true in time."""
    deadline = time.monotonic() + PATIENCE
    while not true() and time.monotonic() < deadline:
        time.sleep(0.01)
    return true()


def alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def ended(program: ServedProgram) -> bool:
    return eventually(lambda: program.exit_code is not None)


# -- run --------------------------------------------------------------------------------------------------------------


def test_run_returns_what_the_program_prints() -> None:
    assert run(shell("echo told; echo not told >&2"), timeout=PATIENCE) == "told\n"


def test_run_hands_stdin_over() -> None:
    assert run(["cat"], timeout=PATIENCE, stdin="words") == "words"


def test_arguments_are_never_read_by_a_shell() -> None:
    assert run(["printf", "%s", "$HOME; `id` 'x'"], timeout=PATIENCE) == "$HOME; `id` 'x'"


def test_a_failed_program_is_an_error_with_its_status_and_last_words() -> None:
    with pytest.raises(ProgramFailed, match=r"^sh failed \(exit 3\): it broke$"):
        run(shell("echo it broke >&2; exit 3"), timeout=PATIENCE)


def test_only_the_end_of_many_words_is_kept() -> None:
    with pytest.raises(ProgramFailed) as raised:
        run(shell("seq 100000 >&2; exit 1"), timeout=PATIENCE)
    assert raised.value.message.endswith("\n100000")
    assert len(raised.value.message) < STDERR_TAIL + 100


def test_a_program_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with pytest.raises(TimedOut, match="sh did not end within 1 s"):
        run(shell(f"echo $$ > {pid}; exec sleep 60"), timeout=1)
    assert eventually(lambda: not alive(int(pid.read_text())))


def test_a_program_that_is_stopped_is_ended(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with pytest.raises(Cancelled, match="sh was stopped"):
        run(shell(f"echo $$ > {tmp_path}/new; mv {tmp_path}/new {pid}; exec sleep 60"), timeout=60, stopped=pid.exists)
    assert not alive(int(pid.read_text()))


def test_a_program_that_ends_late_gets_all_its_stdin_and_keeps_all_its_words() -> None:
    words = "word " * 100_000
    assert run(shell("sleep 0.5; cat"), timeout=PATIENCE, stdin=words) == words


def test_run_names_a_program_that_is_missing() -> None:
    with pytest.raises(ProgramMissing, match="no-such-program is not installed"):
        run(["no-such-program"], timeout=PATIENCE)


# -- serving ----------------------------------------------------------------------------------------------------------


def test_a_program_serves_inside_the_with_and_not_after_it() -> None:
    with serving(["sleep", "60"]) as program:
        assert alive(program.pid)
    assert program.exit_code == -signal.SIGTERM
    assert not alive(program.pid)


def test_it_is_ended_when_the_with_ends_by_an_error() -> None:
    pids: list[int] = []
    with pytest.raises(ValueError, match="not in list"), serving(["sleep", "60"]) as program:
        pids.append(program.pid)
        pids.remove(-1)
    assert not alive(pids[0])


@pytest.mark.slow
def test_one_that_does_not_want_to_end_is_killed(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    with serving(shell(f"trap '' TERM; touch {ready}; while :; do sleep 1; done")) as program:
        program.wait_until(ready.exists, PATIENCE)
    assert program.exit_code == -signal.SIGKILL


def test_stopping_twice_is_stopping_once() -> None:
    with serving(["sleep", "60"]) as program:
        program.stop()
        program.stop()


def test_serving_names_a_program_that_is_missing() -> None:
    with pytest.raises(ProgramMissing, match="no-such-program is not installed"), serving(["no-such-program"]):
        pass


def test_waiting_ends_when_it_is_ready(tmp_path: Path) -> None:
    with serving(shell(f"sleep 0.1; touch {tmp_path}/ready; exec sleep 60")) as program:
        program.wait_until((tmp_path / "ready").exists, PATIENCE)


def test_waiting_ends_with_its_last_words_when_it_has_ended() -> None:
    with serving(shell("echo no such disk >&2; exit 1")) as program:
        with pytest.raises(ProgramFailed, match=r"sh ended at start \(exit 1\): no such disk"):
            program.wait_until(lambda: False, PATIENCE)


def test_waiting_ends_after_its_time(tmp_path: Path) -> None:
    with serving(shell("echo still thinking >&2; exec sleep 60")) as program:
        assert eventually(lambda: program.last_words() != "")
        with pytest.raises(TimedOut, match="was not ready within 0 s: still thinking"):
            program.wait_until(lambda: False, 0.1)


def test_secrets_are_struck_out_of_its_last_words() -> None:
    secrets = ["word", "password1", ""]
    with serving(shell("echo login with password1 or word failed >&2"), secrets=secrets) as program:
        assert ended(program)
        assert program.last_words() == "login with *** or *** failed"


@pytest.mark.parametrize("behind", range(STDERR_TAIL - 12, STDERR_TAIL + 3))
def test_a_secret_at_the_edge_of_what_is_kept_is_struck_out_too(behind: int) -> None:
    with serving(
        shell(f"printf '%03000d' 0 >&2; printf hunter2 >&2; printf '%0{behind}d' 0 >&2"), secrets=["hunter2"]
    ) as program:
        assert ended(program)
        words = program.last_words()
    assert len(words) == STDERR_TAIL
    assert "unter2" not in words
    assert not set(words) - set("0*")


def test_listening_to_it_does_not_disturb_what_it_writes(tmp_path: Path) -> None:
    """Reader and writer have the same open file: whoever moves the position moves it for both."""
    with serving(shell("for i in $(seq 2000); do echo line $i >&2; done")) as program:
        while program.exit_code is None:
            program.last_words()
        expected = "".join(f"line {number}\n" for number in range(1, 2001)).strip()
        assert program.last_words() == expected[-STDERR_TAIL:]


def test_its_environment_is_the_one_given() -> None:
    with serving(shell("echo $COLOUR >&2"), env={**os.environ, "COLOUR": "blue"}) as program:
        assert ended(program)
        assert program.last_words() == "blue"


# -- nothing is left behind -------------------------------------------------------------------------------------------

USES = {
    "run": "run({command}, timeout=60)",
    "serving": "with serving({command}): time.sleep(60)",
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_program_dies_with_a_killed_starter(tmp_path: Path, use: str) -> None:
    pid_file = tmp_path / "pid"
    command = shell(f"echo $$ > {tmp_path}/new; mv {tmp_path}/new {pid_file}; exec sleep 60")
    script = f"import time\nfrom shared.process import run, serving\n{use.format(command=command)}"
    with subprocess.Popen([sys.executable, "-c", script]) as starter:
        assert eventually(pid_file.exists)
        pid = int(pid_file.read_text())
        assert alive(pid)
        starter.kill()
    assert eventually(lambda: not alive(pid))


def test_a_program_dies_with_the_thread_that_started_it() -> None:
    started: list[int] = []

    def start() -> None:
        context = serving(["sleep", "60"])
        started.append(context.__enter__().pid)
        keep.append(context)
        # The kernel is told to end it by what runs before the program itself.
        assert eventually(lambda: Path(f"/proc/{started[0]}/comm").read_text() == "sleep\n")

    keep: list[object] = []
    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert eventually(lambda: not alive(started[0]))
