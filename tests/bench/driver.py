"""Our side of the benchmarks: a hub as a real process, and the agent's own upload driving it, without vSphere.

Both live through all runs, so start-up is never measured. The source is any NBD server's socket.
"""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import grpc

from agent.assignment import Assignment, Counts, Progress
from agent.config import BackupSection
from agent.hub_client import HubClient, enroll
from agent.plan import plan_full
from agent.stop import Stop
from agent.upload import Pipeline, upload
from agent.vsphere.changes import Asked, Decision
from agent.vsphere.inventory import Disk, Vm
from agent.vsphere.snapshot import Snapshot, SnapshotDisk
from deploy.dev.lab import BIN, HUB_TOML, filled, free_port
from sendense.v1 import agent_pb2, agent_pb2_grpc, backup_pb2, backup_pb2_grpc, restore_pb2, restore_pb2_grpc
from shared.join import parse
from shared.nbd import NbdDisk

READY_LIMIT = 30.0


class NbdReader:
    """A DiskReader over a plain NBD server."""

    def __init__(self, disk: NbdDisk) -> None:
        self.capacity = disk.size
        self.allocated = disk.extents
        self.read = disk.read


class Driver:
    """A hub and an enrolled agent without vSphere; a context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._exit = ExitStack()

    def __enter__(self) -> Self:
        try:
            self._start_hub()
            self._join()
        except BaseException:
            self._exit.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def back_up(self, source: Path, compression: str) -> tuple[str, float]:
        """A full backup of the disk at an NBD socket; returns its name and the seconds from plan to commit."""
        with NbdDisk(source) as disk:
            vm = self._report(disk.size)
            assignment = self._start_backup(vm)
            began = time.monotonic()
            transfer_id = self._transfer(NbdReader(disk), assignment, compression)
            self._client.commit(assignment.backup_id, [transfer_id], _snapshot(vm))
            seconds = time.monotonic() - began
        self._client.finish(assignment.task_id, None, Counts())
        return f"backups/{assignment.backup_id}", seconds

    def restore(self, backup: str, target: Path) -> float:
        """Restore the backup's disk as a raw stream into a file; returns the seconds."""
        stub = restore_pb2_grpc.RestoreServiceStub(self._api)
        began = time.monotonic()
        with target.open("wb") as file:
            for message in stub.ReadDisk(restore_pb2.ReadDiskRequest(backup=backup)):
                if message.HasField("data"):
                    os.pwrite(file.fileno(), message.data.data, message.data.offset)
                elif message.HasField("header"):
                    file.truncate(message.header.size_bytes)
        return time.monotonic() - began

    def image(self, backup: str) -> Path:
        """The image that a backup made."""
        (found,) = (self.folder / "repository").glob(f"vms/*/*/{backup.removeprefix('backups/')}.qcow2")
        return found

    @property
    def hub_pid(self) -> int:
        return self._hub.pid

    def _start_hub(self) -> None:
        config, socket = self.folder / "hub.toml", self.folder / "hub.sock"
        listen = f"127.0.0.1:{free_port()}"
        config.write_text(filled(HUB_TOML, state=self.folder / "hub", socket=socket, listen=listen))
        init: list[str | Path] = [
            BIN / "sendense-hub",
            "init",
            "--config",
            config,
            "--repository",
            self.folder / "repository",
        ]
        subprocess.run(init, check=True, stdout=subprocess.DEVNULL)
        log = self._exit.enter_context((self.folder / "hub.log").open("wb"))
        self._hub = subprocess.Popen([BIN / "sendense-hub", "serve", "--config", config], stderr=log)
        self._exit.callback(self._stop_hub)
        self._api = self._exit.enter_context(grpc.insecure_channel(f"unix://{socket}"))
        grpc.channel_ready_future(self._api).result(READY_LIMIT)

    def _stop_hub(self) -> None:
        self._hub.send_signal(signal.SIGTERM)
        self._hub.wait(READY_LIMIT)

    def _join(self) -> None:
        stub = agent_pb2_grpc.AgentServiceStub(self._api)
        invited = stub.InviteAgent(agent_pb2.InviteAgentRequest(display_name="bench"))
        self._client = self._exit.enter_context(HubClient(enroll(parse(invited.join_string))))
        self._encoders: Executor = self._exit.enter_context(ThreadPoolExecutor(os.cpu_count()))
        self._stream = self._client.control("bench", "bench", [])
        self._exit.callback(self._stream.close)
        self._orders: Iterator[Any] = iter(self._stream)
        over = threading.Event()
        self._exit.callback(over.set)
        threading.Thread(target=self._live, args=(over,), daemon=True).start()

    def _live(self, over: threading.Event) -> None:
        while not over.wait(0.5):
            self._stream.heartbeat({})

    def _report(self, capacity: int) -> Vm:
        disk = Disk(2000, "backing", "1-2000", "Hard disk 1", capacity, "[ds] bench.vmdk", "persistent", "", "")
        vm = Vm("bench-vm", "vm-1", "bench", "POWERED_ON", "", 19, True, True, False, "/dc/vm", "esxi", (disk,))
        self._client.report_inventory("bench-vcenter", [vm])
        return vm

    def _start_backup(self, vm: Vm) -> Assignment:
        request = backup_pb2.CreateBackupRequest(vm_id=vm.instance_uuid, backup_type=backup_pb2.BACKUP_TYPE_FULL)
        backup_pb2_grpc.BackupServiceStub(self._api).CreateBackup(request)
        assignment = next(self._orders)
        assert isinstance(assignment, Assignment)
        return assignment

    def _transfer(self, reader: NbdReader, assignment: Assignment, compression: str) -> Any:
        settings = BackupSection(compression="zstd" if compression == "zstd" else "off")
        plan, coverage = plan_full(reader)
        disk = _snapshot_disk(reader.capacity)
        transfer = self._client.open_transfer(assignment.backup_id, 0, disk, Decision(Asked.FULL), None)
        pipe = Pipeline(settings, self._encoders, Progress(), Stop())
        totals = upload(self._client, transfer, plan, reader, pipe)
        plan.close()
        self._client.seal(transfer, coverage, totals)
        return transfer


def _snapshot_disk(capacity: int) -> SnapshotDisk:
    return SnapshotDisk(2000, "backing", "1-2000", "Hard disk 1", capacity, "", "[ds] bench.vmdk")


def _snapshot(vm: Vm) -> Snapshot:
    return Snapshot("snapshot-1", vm, datetime.now(UTC), "CRASH", (_snapshot_disk(vm.disks[0].capacity),), ())
