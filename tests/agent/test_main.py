"""`sendense-agent`, as a process of its own: joining, checking its configuration, running until SIGTERM."""

import asyncio
import configparser
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent import identity
from agent.simulator.server import RunningSite
from agent.simulator.server import running as simulated
from sendense import __version__
from sendense.v1 import agent_pb2
from tests.agent.appliance import until
from tests.agent.vsphere.sites import described, vm_with
from tests.hub.live_hub import LiveHub

PROGRAM = Path(sys.executable).with_name("sendense-agent")
UNIT = Path(__file__).parents[2] / "deploy" / "agent" / "sendense-agent.service"
PATIENCE = 60.0


@pytest.fixture
def vcenter(tmp_path: Path) -> Iterator[RunningSite]:
    with simulated(tmp_path / "site", described(vm_with("vm", 1024 * 1024))) as site:
        yield site


@pytest.fixture
def config(tmp_path: Path, vcenter: RunningSite) -> Path:
    path = tmp_path / "agent.toml"
    path.write_text(
        f"""
        state_dir = "{tmp_path}/agent"
        [vcenter]
        server = "{vcenter.host}"
        port = {vcenter.port}
        username = "{vcenter.username}"
        password_file = "{vcenter.password_file}"
        thumbprint = "{vcenter.thumbprint_sha256}"
        [vddk]
        libdir = "{vcenter.libdir}"
        """
    )
    return path


def agent(*words: str | Path, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    command = [PROGRAM, *words]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=PATIENCE, check=False)


async def joined(config: Path, hub: LiveHub) -> None:
    done = await asyncio.to_thread(agent, "join", "--config", config, stdin=await hub.invite("appliance"))
    assert done.returncode == 0, done.stderr


@contextmanager
def at_work(config: Path) -> Iterator["subprocess.Popen[str]"]:
    command: list[str | Path] = [PROGRAM, "run", "--config", config]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


# -- the configuration ------------------------------------------------------------------------------------------------


def test_the_version_is_told() -> None:
    assert agent("--version").stdout == f"sendense-agent {__version__}\n"


def test_a_good_configuration_is_shown_without_the_password(config: Path, vcenter: RunningSite) -> None:
    done = agent("config", "check", "--config", config)
    assert done.returncode == 0
    assert json.loads(done.stdout)["vcenter"]["server"] == vcenter.host
    assert vcenter.password not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        ("[vddk]", "[vddk]\nlibdri = 1", "vddk.libdri"),
        ("[vddk]", "[backup]\nrequest_size = 100000\n[vddk]", "backup.request_size"),
        ('thumbprint = "', 'thumbprint = "xx:', "vcenter.thumbprint"),
        ("username", "user", "vcenter.username"),
    ],
)
def test_a_bad_configuration_is_refused_in_a_few_words(config: Path, old: str, new: str, where: str) -> None:
    config.write_text(config.read_text().replace(old, new))
    done = agent("config", "check", "--config", config)
    assert done.returncode == os.EX_CONFIG
    assert done.stderr.startswith("sendense-agent: ")
    assert f"\n  {where}: " in done.stderr
    assert "Traceback" not in done.stderr


# -- joining ----------------------------------------------------------------------------------------------------------


async def test_joining_makes_an_identity_that_the_hub_knows(config: Path, hub: LiveHub, tmp_path: Path) -> None:
    await joined(config, hub)
    (known,) = (await hub.operators_agents.ListAgents(agent_pb2.ListAgentsRequest())).agents
    assert known.name == f"agents/{identity.load(tmp_path / 'agent').agent_id}"
    assert known.display_name == "appliance"


async def test_an_invitation_is_good_once(config: Path, hub: LiveHub, tmp_path: Path) -> None:
    invitation = tmp_path / "invitation"
    invitation.touch(0o600)
    invitation.write_text(await hub.invite("appliance"))
    first = await asyncio.to_thread(agent, "join", "--config", config, "--file", invitation)
    (tmp_path / "agent" / "identity").rename(tmp_path / "put aside")
    second = await asyncio.to_thread(agent, "join", "--config", config, "--file", invitation)
    assert (first.returncode, second.returncode) == (0, os.EX_CONFIG)
    assert "used" in second.stderr
    assert not (tmp_path / "agent" / "identity").exists()


async def test_joining_twice_is_refused_and_the_second_invitation_stays_good(
    config: Path, hub: LiveHub, tmp_path: Path
) -> None:
    await joined(config, hub)
    second = await hub.invite("another")
    refused = await asyncio.to_thread(agent, "join", "--config", config, stdin=second)
    assert (refused.returncode, "has joined a hub already" in refused.stderr) == (os.EX_CONFIG, True)
    (tmp_path / "agent" / "identity").rename(tmp_path / "put aside")
    assert (await asyncio.to_thread(agent, "join", "--config", config, stdin=second)).returncode == 0


@pytest.mark.parametrize("text", ["", "hello\n", "sendense1.QQ.QQ.QQ.QQ.QQ\n"])
def test_what_is_no_join_string_is_refused_in_one_line(config: Path, text: str) -> None:
    done = agent("join", "--config", config, stdin=text)
    assert done.returncode == os.EX_CONFIG
    assert done.stderr.count("\n") == 1
    assert "join string" in done.stderr


def test_a_missing_file_with_the_join_string_is_named_in_one_line(config: Path, tmp_path: Path) -> None:
    done = agent("join", "--config", config, "--file", tmp_path / "absent")
    assert (done.returncode, done.stderr.count("\n")) == (os.EX_CONFIG, 1)
    assert "absent" in done.stderr


# -- running ----------------------------------------------------------------------------------------------------------


def test_running_without_having_joined_says_what_to_do(config: Path) -> None:
    done = agent("run", "--config", config)
    assert (done.returncode, done.stderr.count("\n")) == (os.EX_CONFIG, 1)
    assert "sendense-agent join" in done.stderr


def test_a_state_folder_that_cannot_be_used_is_named_in_one_line(config: Path, tmp_path: Path) -> None:
    """It may be a disk that is not mounted yet: the status does not forbid another start."""
    (tmp_path / "agent").touch()
    done = agent("run", "--config", config)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert f"{tmp_path}/agent" in done.stderr


async def test_a_refused_password_ends_it_with_the_status_that_systemd_does_not_restart_after(
    config: Path, hub: LiveHub, vcenter: RunningSite
) -> None:
    """Sent every few seconds it would lock the account."""
    await joined(config, hub)
    vcenter.password_file.write_text("hunter2\n")
    done = await asyncio.to_thread(agent, "run", "--config", config)
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.read(UNIT)
    assert str(done.returncode) == unit["Service"]["RestartPreventExitStatus"]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_cleanly(config: Path, hub: LiveHub, tmp_path: Path, number: signal.Signals) -> None:
    await joined(config, hub)
    agent_id = identity.load(tmp_path / "agent").agent_id
    with at_work(config) as process:
        await until(lambda: hub.hub.agents.connected(agent_id))
        process.send_signal(number)
        _, said = await asyncio.to_thread(process.communicate, timeout=PATIENCE)
    assert process.returncode == 0
    assert "agent is stopping" in said
    assert "Traceback" not in said


async def test_what_it_says_is_json_for_a_journal_and_without_the_password(
    config: Path, hub: LiveHub, vcenter: RunningSite, tmp_path: Path
) -> None:
    await joined(config, hub)
    agent_id = identity.load(tmp_path / "agent").agent_id
    with at_work(config) as process:
        await until(lambda: hub.hub.agents.connected(agent_id))
        process.terminate()
        _, said = await asyncio.to_thread(process.communicate, timeout=PATIENCE)
    lines = [json.loads(line) for line in said.splitlines()]
    assert {"event", "level", "logger", "timestamp"} <= lines[0].keys()
    assert vcenter.password not in said
