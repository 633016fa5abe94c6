"""Labs whose vSphere site runs in the test's own process: hub and agent are real processes, the site is at hand.

What a test scripts (latency, read errors, other people's snapshots) goes through `lab.vcenter`; what it asks of
Sendense goes through the command line, or through the API where that would be too slow.
"""

import hashlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict
from pydantic import ByteSize

from agent.simulator.description import DiskDescription, SiteDescription, VmDescription
from agent.simulator.records import SnapshotRecord
from agent.simulator.server import RunningSite, running
from deploy.dev.lab import BIN, Lab, images_equal
from sendense.v1 import backup_pb2, backup_pb2_grpc, task_pb2, task_pb2_grpc

PATIENCE = 60.0
"""Seconds until a test that waits gives up; on a machine with nothing else to do it is a few."""

UNFINISHED = ("BACKUP_STATUS_PENDING", "BACKUP_STATUS_RUNNING")

SMALL_READS = "[backup]\nrequest_size = 262144\n"
"""For an agent that is to be caught in the middle of small disks."""

CONNECTION = ("host", "port", "username", "password_file", "thumbprint_sha256", "libdir")


class SystemLab(Lab):
    """A lab with its site at hand."""

    def __init__(self, folder: Path, vcenter: RunningSite, hub_toml: str, agent_toml: str) -> None:
        connection = {name: getattr(vcenter, name) for name in CONNECTION}
        super().__init__(folder, connection=connection, hub_toml=hub_toml, agent_toml=agent_toml)
        self.vcenter = vcenter

    def back_up(self, vm: str, backup_type: str, repository: str = "default") -> dict[str, Any]:
        """Make a backup and wait for it; raises LabError unless it completes."""
        command = ("backup", "start", vm, "--type", backup_type, "--repository", repository, "--wait")
        made: dict[str, Any] = self.sendense_json(*command)
        return made

    def start_backup(self, vm: str, backup_type: str) -> dict[str, Any]:
        """Start a backup in the first repository and return at once, sooner than the command line could start."""
        request = backup_pb2.CreateBackupRequest(
            vm_name=vm,
            repository_id=json.loads((self.repository / "sendense.json").read_text())["id"],
            backup_type=backup_pb2.BackupType.Value(f"BACKUP_TYPE_{backup_type.upper()}"),
        )
        with grpc.insecure_channel(self.hub_address) as channel:
            started = backup_pb2_grpc.BackupServiceStub(channel).CreateBackup(request)
        return MessageToDict(started, preserving_proto_field_name=True)

    def start_slow_backup(self, vm: str, backup_type: str, latency: float = 0.2) -> dict[str, Any]:
        """Start a backup whose every read takes `latency` seconds longer, and return when it is in the middle."""
        self.vcenter.site.disk_faults.latency = latency
        try:
            started = self.start_backup(vm, backup_type)
            until(lambda: self._bytes_received(started) > 0)
        finally:
            self.vcenter.site.disk_faults.latency = 0
        assert self.unfinished_files(), "in mid-backup there must be files that could be left behind"
        return started

    def look(self, backup: dict[str, Any]) -> dict[str, Any]:
        """The backup as it is now."""
        with grpc.insecure_channel(self.hub_address) as channel:
            request = backup_pb2.GetBackupRequest(name=backup["name"])
            found = backup_pb2_grpc.BackupServiceStub(channel).GetBackup(request, wait_for_ready=True, timeout=PATIENCE)
        return MessageToDict(found, preserving_proto_field_name=True)

    def ended(self, backup: dict[str, Any]) -> dict[str, Any]:
        """The backup once it has ended, well or not."""
        until(lambda: self.look(backup)["status"] not in UNFINISHED)
        return self.look(backup)

    def snapshots(self, vm: str) -> list[SnapshotRecord]:
        """The VM's snapshots in vCenter."""
        return self.vcenter.vm(vm).snapshots()

    def unfinished_files(self) -> list[Path]:
        """What lies in the repository under names that are no restore point's."""
        finished = {".qcow2", ".manifest", ".json"}
        return [path for path in self.repository.rglob("*") if path.is_file() and path.suffix not in finished]

    def files_of(self, backup: dict[str, Any]) -> list[Path]:
        """Every file of a backup in the repository."""
        return list(self.repository.rglob(f"{backup['name'].removeprefix('backups/')}*"))

    def nbdkits(self) -> list[int]:
        """Process IDs of the agent's nbdkits."""
        agent = self.programs["agent"].process.pid
        return [int(pid) for path in Path(f"/proc/{agent}/task").glob("*/children") for pid in path.read_text().split()]

    def _bytes_received(self, backup: dict[str, Any]) -> int:
        """Payload bytes of a running backup that have come to the hub; fails the test when it has ended."""
        assert (now := self.look(backup))["status"] in UNFINISHED, f"ended too soon: {now}"
        with grpc.insecure_channel(self.hub_address) as channel:
            request = task_pb2.GetTaskRequest(name=backup["task"])
            return task_pb2_grpc.TaskServiceStub(channel).GetTask(request).progress.sent_bytes


@contextmanager
def system_lab(folder: Path, *vms: VmDescription, hub_toml: str = "", agent_toml: str = "") -> Iterator[SystemLab]:
    """A lab with these VMs, their disks empty."""
    with running(folder / "site", SiteDescription(vms=vms)) as vcenter:
        with SystemLab(folder, vcenter, hub_toml, agent_toml) as lab:
            vcenter.site.keep_frozen = lab.frozen
            yield lab


def blank_vm(name: str, *capacities: int) -> VmDescription:
    """A VM with empty disks of these sizes in bytes."""
    disks = tuple(DiskDescription(capacity=ByteSize(capacity)) for capacity in capacities)
    return VmDescription(name=name, disks=disks)


def until(condition: Callable[[], object], patience: float = PATIENCE) -> None:
    """Wait for something to become true; fails the test when it does not."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, f"waited {patience:.0f} s in vain"
        time.sleep(0.05)


def check_restores(lab: Lab, backup: dict[str, Any], scratch: Path) -> None:
    """Restore every disk of a restore point as a stream; SHA-256 and qemu-img must both find the frozen source."""
    for index in range(len(backup["disks"])):
        source = lab.frozen_disk(backup, index)
        restored = restore_stream(lab, backup, index, scratch / "restored.raw")
        assert sha256(restored) == sha256(source), f"disk {index} of {backup['name']}"
        assert images_equal(restored, source), f"disk {index} of {backup['name']}"
        restored.unlink()


def check_nothing_left(lab: SystemLab, backup: dict[str, Any]) -> None:
    """Of a backup that ended badly there is no file in the repository and no snapshot in vCenter."""
    until(lambda: not lab.snapshots(backup["vm_name"]))
    assert lab.files_of(backup) + lab.unfinished_files() == []


def restore_stream(lab: Lab, backup: dict[str, Any], disk_index: int, output: Path) -> Path:
    """What `sendense restore disk … --output -` writes, in a file."""
    command = [BIN / "sendense", "--hub", lab.hub_address, "restore", "disk", backup["name"], "--output", "-"]
    with output.open("wb") as stream:
        subprocess.run([*command, "--disk", str(disk_index)], stdout=stream, check=True)
    return output


def sha256(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
