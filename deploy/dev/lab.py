"""A lab: a simulated vSphere site, a hub and an agent as real processes on this machine, everything under one folder.

    DIR/site     the simulated vCenter and its VMs' disks     DIR/frozen      every disk as each snapshot held it
    DIR/hub      the hub's state                              DIR/repository  its first repository
    DIR/agent    the agent's state                            DIR/logs        what each of them said
    DIR/tmp      their temporary files

`make lab` keeps a lab in the foreground; the demo and the system tests use it too.
"""

import json
import os
import random
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from agent.simulator.control import ControlClient, connected

BIN = Path(sys.executable).parent

READY_LIMIT = 60.0
"""Seconds a program may take to be ready."""

SITE_LIMIT = 600.0
"""The same for a site whose disks have to be made first."""

SOCKET_PATH_LIMIT = 100
"""Bytes; the kernel takes 107. In a folder with a longer path the hub's socket lies in a temporary folder instead."""

PORTS = range(20_000, 30_000)
"""Below those that the kernel gives to outgoing connections: a hub that is started again has to find its port free."""

HUB_TOML = """\
state_dir = {state}
[api]
socket = {socket}
[agents]
listen = {listen}
address = {listen}
heartbeat_interval = 0.5
lease = 5
"""

AGENT_TOML = """\
state_dir = {state}
[vcenter]
server = {host}
port = {port}
username = {username}
password_file = {password_file}
thumbprint = {thumbprint_sha256}
[vddk]
libdir = {libdir}
"""


class LabError(Exception):
    """A program of the lab did not do what it should; the message has its last words."""


@dataclass(frozen=True)
class Program:
    """One running program and its log."""

    name: str
    process: "subprocess.Popen[bytes]"
    log: Path

    def last_words(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-2000:]

    def kill(self) -> None:
        """As `kill -9` does."""
        self.process.kill()
        self.process.wait()

    def stop(self, limit: float = 30) -> None:
        """Ask it to end; may be called twice. Raises LabError when it does not."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(limit)
            except subprocess.TimeoutExpired:
                self.kill()
                raise LabError(f"{self.name} did not stop within {limit:.0f} s:\n{self.last_words()}") from None


class Lab:
    """The lab in a folder. `with Lab(folder) as lab:` starts it, with what the folder holds already, and stops it."""

    def __init__(
        self,
        folder: Path,
        *,
        description: Path | None = None,
        connection: dict[str, Any] | None = None,
        hub_toml: str = "",
        agent_toml: str = "",
    ) -> None:
        """`description`: the site's, else the demo's. `connection`: a site that runs already, to be used instead.

        `hub_toml`, `agent_toml`: tables to be added to the configurations.
        """
        self.folder = folder.absolute()
        self.connection = connection
        self.programs: dict[str, Program] = {}
        self._description = description
        self._hub_toml = hub_toml
        self._agent_toml = agent_toml
        self._exit = ExitStack()

    def __enter__(self) -> Self:
        (self.folder / "logs").mkdir(parents=True, exist_ok=True)
        self._socket = self.folder / "hub.sock"
        if len(bytes(self._socket)) > SOCKET_PATH_LIMIT:
            short = self._exit.enter_context(tempfile.TemporaryDirectory(prefix="sendense-"))
            self._socket = Path(short, "hub.sock")
        try:
            # A new site takes seconds to make its disks: the hub is set up meanwhile.
            await_site = self._launch_site() if self.connection is None else None
            self.start_hub()
            if await_site is not None:
                await_site()
            self.start_agent()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop all programs."""
        for name in ("agent", "hub", "site"):
            if name in self.programs:
                self.programs[name].stop()
        self._exit.close()

    @property
    def hub_address(self) -> str:
        """What `sendense --hub` takes."""
        return f"unix://{self._socket}"

    @property
    def site_folder(self) -> Path:
        """What `sendense-simulator --site` takes."""
        return self.folder / "site"

    @property
    def frozen(self) -> Path:
        """The truth: every disk as each of the site's snapshots held it, `<VM>/<snapshot>/<device key>.raw`."""
        return self.folder / "frozen"

    @property
    def repository(self) -> Path:
        """The folder of the first repository, `default`."""
        return self.folder / "repository"

    def start_site(self) -> None:
        """Start the simulated vCenter and wait until it answers; its disks are made if they are not there."""
        self._launch_site()()

    def _launch_site(self) -> Callable[[], None]:
        """Start the simulated vCenter; returns what waits until it answers."""
        told = self.site_folder / "connection.json"
        told.unlink(missing_ok=True)
        command: list[str | Path] = [BIN / "sendense-simulator", "run", "--site", self.site_folder]
        command += ["--keep-frozen", self.frozen]
        if self._description is not None:
            command += ["--description", self._description]
        program = self._start("site", command)

        def await_site() -> None:
            self._wait(program, told.exists, SITE_LIMIT)
            self.connection = json.loads(told.read_text())

        return await_site

    def start_hub(self) -> None:
        """Start the hub, set up first when it is not, and wait until it answers."""
        config, state = self.folder / "hub.toml", self.folder / "hub"
        if not config.exists():
            listen = f"127.0.0.1:{free_port()}"
            config.write_text(filled(HUB_TOML, state=state, socket=self._socket, listen=listen) + self._hub_toml)
            self.run(BIN / "sendense-hub", "init", "--config", config, "--repository", self.repository)
        program = self._start("hub", [BIN / "sendense-hub", "serve", "--config", config])
        self._wait(program, lambda: self.sendense("repository", "list", check=False).returncode == 0)

    def start_agent(self) -> None:
        """Start the agent, enrolled first when it is not, and wait until the hub knows the site's VMs."""
        config = self.folder / "agent.toml"
        config.write_text(filled(AGENT_TOML, state=self.folder / "agent", **(self.connection or {})) + self._agent_toml)
        if not (self.folder / "agent" / "identity").exists():
            invitation = self.folder / "join.txt"
            self.sendense("agent", "invite", "lab", "--output", invitation)
            self.run(BIN / "sendense-agent", "join", "--config", config, "--file", invitation)
        program = self._start("agent", [BIN / "sendense-agent", "run", "--config", config])
        self._wait(program, lambda: self.agent_connected() and bool(self.sendense_json("vm", "list")["vms"]))

    def agent_connected(self) -> bool:
        """Whether the hub hears the agent."""
        return any(agent.get("connected") for agent in self.sendense_json("agent", "list")["agents"])

    def sendense(self, *args: str | Path, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Run the command line against this lab's hub; raises LabError when it fails and `check` is set."""
        return self.run(BIN / "sendense", "--hub", self.hub_address, *args, check=check)

    def sendense_json(self, *args: str | Path) -> Any:
        """The same with `--json`, parsed."""
        return json.loads(self.sendense(*args, "--json").stdout)

    def guest(self) -> AbstractContextManager[ControlClient]:
        """A connection that acts as the guests: `call("write", data, vm=…, disk=…, offset=…)`, zero, trim."""
        return connected(self.site_folder)

    def capacities(self, vm: str) -> list[int]:
        """Sizes of a VM's disks in bytes."""
        with self.guest() as guest:
            (found,) = [known for known in guest.call("vms")["vms"] if known["name"] == vm]
        return [disk["capacity"] for disk in found["disks"]]

    def frozen_disk(self, backup: dict[str, Any], disk_index: int) -> Path:
        """A disk as the site froze it for a backup: what its restore has to equal."""
        taken_at = datetime.fromisoformat(backup["snapshot_time"])
        for described in Path(self.frozen, backup["vm_name"]).glob("*/snapshot.json"):
            if datetime.fromisoformat(json.loads(described.read_text())["created"]) == taken_at:
                key = int(backup["disks"][disk_index]["device_key"])
                return described.with_name(f"{key}.raw")
        raise LabError(f"the site froze nothing at {taken_at}")

    def restore(self, backup: dict[str, Any], disk_index: int, output: Path) -> None:
        """Restore a disk to a raw file."""
        self.sendense("restore", "disk", backup["name"], "--disk", str(disk_index), "--output", output)

    @staticmethod
    def run(*command: str | Path, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Run a program to its end; raises LabError when it fails and `check` is set."""
        words = [str(word) for word in command]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if check and done.returncode:
            raise LabError(f"{shlex.join(words)} failed:\n{done.stderr}")
        return done

    def _start(self, name: str, command: Sequence[str | Path]) -> Program:
        log = self.folder / "logs" / f"{name}.log"
        with log.open("ab") as output:
            words = [str(word) for word in command]
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=self._environment()
            )
        self.programs[name] = program = Program(name, process, log)
        return program

    def _environment(self) -> dict[str, str]:
        """Temporary files lie under the lab's folder too, unless the sockets among them would have too long a path."""
        folder = self.folder / "tmp"
        if len(bytes(folder)) > SOCKET_PATH_LIMIT - len("/sendense-nbd-xxxxxxxx/socket"):
            return dict(os.environ)
        folder.mkdir(exist_ok=True)
        return os.environ | {"TMPDIR": str(folder)}

    @staticmethod
    def _wait(program: Program, ready: Callable[[], bool], limit: float = READY_LIMIT) -> None:
        deadline = time.monotonic() + limit
        while not ready():
            if program.process.poll() is not None:
                raise LabError(f"{program.name} ended at start:\n{program.last_words()}")
            if time.monotonic() > deadline:
                raise LabError(f"{program.name} was not ready within {limit:.0f} s:\n{program.last_words()}")
            time.sleep(0.1)


def images_equal(left: Path, right: Path) -> bool:
    """Whether two raw disks hold the same bytes, as qemu-img sees it."""
    command = ["qemu-img", "compare", "-f", "raw", "-F", "raw", str(left), str(right)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def main() -> None:
    """Keep a lab in the foreground until SIGTERM or Ctrl-C."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".lab")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    print(f"lab: starting in {folder.absolute()}", flush=True)
    with Lab(folder) as lab:
        print(_instructions(lab), flush=True)
        stop.wait()
        print("lab: stopping", flush=True)


def _instructions(lab: Lab) -> str:
    site = shlex.quote(str(lab.site_folder))
    return f"""\
lab: ready. In another terminal:

  export SENDENSE_HUB={lab.hub_address}
  export PATH={shlex.quote(str(BIN))}:$PATH

  sendense vm list
  sendense backup start web01 --type full --wait
  head -c 1M /dev/urandom | sendense-simulator guest write --site {site} --vm web01 --disk 0 --offset 1048576 --input -
  sendense backup start web01 --type incremental --wait
  sendense backup chain web01
  sendense restore disk BACKUP --disk 0 --output disk0.raw

  grpcurl -plaintext -unix ${{SENDENSE_HUB#unix://}} list
  grpcurl -plaintext -unix ${{SENDENSE_HUB#unix://}} sendense.v1.VmService/ListVms

lab: logs are in {lab.folder / "logs"}; Ctrl-C ends it."""


def filled(template: str, **values: object) -> str:
    """The template with each value as TOML (JSON's strings and numbers are TOML's too)."""
    return template.format(**{name: json.dumps(_plain(value)) for name, value in values.items()})


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    for port in random.sample(PORTS, 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise LabError(f"no free port from {PORTS.start} to {PORTS.stop}")


if __name__ == "__main__":
    main()
