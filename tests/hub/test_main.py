"""`sendense-hub`, as an administrator runs it."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from hub import main

SERVE = [sys.executable, "-c", "from hub.main import main; main()", "serve", "--config"]


@dataclass(frozen=True)
class Outcome:
    """How a program ended, and what it said."""

    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Outcome]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration whose state lies in the test's folder."""
    path = tmp_path / "hub.toml"
    path.write_text(f"state_dir = '{tmp_path}/state'\n[api]\nsocket = '{tmp_path}/hub.sock'\n")
    return path


@pytest.fixture
def run(config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `sendense-hub ARGUMENTS --config …` to its end, in this process."""

    def program(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["sendense-hub", *arguments, "--config", str(config)])
        with pytest.raises(SystemExit) as ended:
            main.main()
        return Outcome(int(ended.value.code or 0), *capsys.readouterr())

    return program


def serve(config: Path) -> Outcome:
    """`sendense-hub serve` in a process of its own, where it must end by itself."""
    done = subprocess.run([*SERVE, str(config)], capture_output=True, text=True, timeout=60, check=False)
    return Outcome(done.returncode, done.stdout, done.stderr)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_init_makes_state_and_repository(run: Run, tmp_path: Path) -> None:
    done = run("init", "--repository", str(tmp_path / "repository"))
    assert (done.returncode, "sendense-hub serve" in done.stdout) == (0, True)
    assert (tmp_path / "repository" / "sendense.json").exists()
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700


def test_a_second_init_is_refused_and_harms_nothing(run: Run, tmp_path: Path) -> None:
    run("init")
    before = contents(tmp_path)
    again = run("init", "--repository", str(tmp_path / "repository"))
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr.startswith("sendense-hub: there is a certificate authority in")
    assert contents(tmp_path) == before


def test_an_init_that_failed_half_way_is_run_again(run: Run, tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / "stranger").touch()
    assert run("init", "--repository", str(tmp_path / "repository")).returncode == 1
    (tmp_path / "repository" / "stranger").unlink()
    assert run("init", "--repository", str(tmp_path / "repository")).returncode == 0


def test_an_init_that_failed_after_adding_its_repository_is_run_again(run: Run, tmp_path: Path) -> None:
    (tmp_path / "state" / "hub-id").mkdir(parents=True)
    done = run("init", "--repository", str(tmp_path / "repository"))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    (tmp_path / "state" / "hub-id").rmdir()
    assert run("init", "--repository", str(tmp_path / "repository")).returncode == 0


def test_a_state_folder_that_cannot_be_made_is_said_in_one_line(run: Run, config: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config.write_text(f"state_dir = '{tmp_path}/file/state'\n")
    done = run("init")
    assert (done.returncode, done.stderr) == (1, f"sendense-hub: {tmp_path}/file/state: Not a directory\n")


def test_a_socket_folder_that_cannot_be_made_is_said_in_one_line(run: Run, config: Path, tmp_path: Path) -> None:
    run("init")
    (tmp_path / "file").touch()
    config.write_text(f"state_dir = '{tmp_path}/state'\n[api]\nsocket = '{tmp_path}/file/deep/hub.sock'\n")
    done = serve(config)
    assert done.returncode == 1
    expected = f"cannot make the folder of the unix socket {tmp_path}/file/deep/hub.sock: Not a directory"
    assert done.stderr.endswith(f"}}\nsendense-hub: {expected}\n"), "no traceback between the log and it"


def test_an_unexpected_error_shows_no_variables(config: Path) -> None:
    program = (
        "import asyncio; from hub import main\n"
        "def fail(*_):\n    word = ''.join(['hun', 'ter2']); raise LookupError(len(word))\n"
        "main.load = fail; main.main()"
    )
    command = [sys.executable, "-c", program, "config", "check", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "LookupError: 7" in done.stderr
    assert "hunter2" not in done.stderr


def test_serve_without_init_says_what_to_do_in_one_line(config: Path, tmp_path: Path) -> None:
    done = serve(config)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"sendense-hub: {tmp_path}/state is not a hub's state folder: run `sendense-hub init`\n"


def test_serve_with_a_missing_configuration_names_it(config: Path) -> None:
    config.unlink()
    done = serve(config)
    assert (done.returncode, done.stderr) == (1, f"sendense-hub: cannot read {config}: No such file or directory\n")


def test_config_check_shows_what_is_in_force(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENDENSE_HUB_TASKS__TIME_LIMIT", "5")
    done = run("config", "check")
    assert (done.returncode, done.stderr) == (0, "The configuration is valid.\n")
    assert json.loads(done.stdout)["tasks"]["time_limit"] == 5


@pytest.mark.parametrize("key", ["url", "url_file"])
def test_config_check_shows_no_secret(run: Run, config: Path, tmp_path: Path, key: str) -> None:
    url = "mariadb+asyncmy://hub:hunter2@db/sendense"
    (tmp_path / "url").touch(0o600)
    (tmp_path / "url").write_text(url)
    with config.open("a") as file:
        file.write(f"[database]\n{key} = '{url if key == 'url' else tmp_path / 'url'}'\n")
    done = run("config", "check")
    assert done.returncode == 0
    assert "hunter2" not in done.stdout + done.stderr


def test_a_secret_is_not_shown_in_an_error_either(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENDENSE_HUB_DATABASE__URL", "mysql://hub:hunter2@db/sendense")
    done = run("init")
    assert done.returncode == 1
    assert "hunter2" not in done.stdout + done.stderr


def test_database_upgrade_may_be_run_at_any_time(run: Run) -> None:
    run("init")
    assert run("database", "upgrade").returncode == 0


def test_config_check_names_what_is_wrong(run: Run, config: Path) -> None:
    with config.open("a") as file:
        file.write("[tasks]\ntime_limits = 5\n")
    done = run("config", "check")
    assert (done.returncode, "tasks.time_limits" in done.stderr) == (1, True)


def test_version_is_shown_without_a_configuration(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sendense-hub", "--version"])
    with pytest.raises(SystemExit):
        main.main()
    assert capsys.readouterr().out.startswith("sendense-hub 0.")
