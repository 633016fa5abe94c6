"""An agent at work in this process, for tests: a real hub on one side, a simulated vCenter on the other.

nbdkit, the vddk plugin, gRPC and mTLS are real. Where a test must hold reading up, or let it fail at an exact place,
`ScriptedDisks` stand for nbdkit.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from agent.config import AgentSettings
from agent.identity import Identity
from agent.service import serve
from agent.simulator.disk import FrozenView
from agent.simulator.server import RunningSite
from sendense.v1 import backup_pb2, vm_pb2
from shared.errors import ReadFailed
from shared.extents import Extent
from shared.nbd import Piece
from tests.hub.live_hub import LiveHub
from tests.hub.scripted_agent import AUTO

PATIENCE = 30.0
"""Seconds until a test that waits gives up."""

POLL = 0.01


async def until(true: Callable[[], bool | Awaitable[bool]]) -> None:
    """Wait for something to become true."""
    for _ in range(int(PATIENCE / POLL)):
        answer = true()
        if answer if isinstance(answer, bool) else await answer:
            return
        await asyncio.sleep(POLL)
    raise AssertionError(f"it did not become true within {PATIENCE:.0f} s")


@dataclass
class Appliance:
    """An enrolled agent that can be set to work."""

    hub: LiveHub
    site: RunningSite
    settings: AgentSettings
    identity: Identity

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """The agent runs inside the `with`, and the hub knows its VMs."""
        stop = threading.Event()
        running = asyncio.create_task(asyncio.to_thread(serve, self.settings, self.identity, stop))
        try:
            await until(self._is_known)
            yield
        finally:
            stop.set()
            await running

    async def start(self, vm: str, backup_type: Any = AUTO) -> backup_pb2.Backup:
        """Start a backup of the VM of this name."""
        return await self.hub.create(self.site.vm(vm).record.instance_uuid, backup_type)

    async def back_up(self, vm: str, backup_type: Any = AUTO) -> backup_pb2.Backup:
        """Make a backup; how it ended."""
        return await self.end_of(await self.start(vm, backup_type))

    async def end_of(self, backup: backup_pb2.Backup) -> backup_pb2.Backup:
        """The backup, once its task has ended."""
        async with asyncio.timeout(PATIENCE):
            await self.hub.ended(backup.task.removeprefix("tasks/"))
        return await self.hub.backup(backup.name.removeprefix("backups/"))

    async def cancel(self, backup: backup_pb2.Backup) -> None:
        await self.hub.backups.CancelBackup(backup_pb2.CancelBackupRequest(name=backup.name))

    async def log_of(self, backup: backup_pb2.Backup) -> list[str]:
        """Lines of the log of a task that has ended."""
        return [event.message for event in await self.hub.events(backup.task.removeprefix("tasks/"))]

    async def restored(self, backup: backup_pb2.Backup) -> list[bytes]:
        """Each disk's bytes."""
        name = backup.name.removeprefix("backups/")
        return [await self.hub.disk(name, disk.disk_index) for disk in backup.disks]

    def contents(self, vm: str) -> list[bytes]:
        """What the guest's disks hold now."""
        return [disk.read(0, disk.record.capacity) for disk in self.site.vm(vm).disks]

    def snapshots(self, vm: str) -> list[str]:
        """Names of the snapshots that vCenter has of the VM."""
        return [snapshot.name for snapshot in self.site.vm(vm).snapshots()]

    async def _is_known(self) -> bool:
        return bool((await self.hub.vms.ListVms(vm_pb2.ListVmsRequest())).vms)


@dataclass
class ScriptedDisks:
    """Opens a site's frozen disks in the place of nbdkit. Reading a held one goes on when it is released or stopped."""

    site: RunningSite
    held: set[str] = field(default_factory=set)
    """VMs whose disks give their first piece and then no more."""
    failing: set[int] = field(default_factory=set)
    """Disks, by their number in the VM, whose reading fails once another one is held."""
    opened: list[tuple[str, int]] = field(default_factory=list)
    """VM and number of each disk that was opened."""
    reading: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    """Released once for each disk that is held."""

    @contextmanager
    def __call__(
        self, vddk: Any, vcenter: Any, thumbprint: str, vm_moref: str, snapshot: str, file: str
    ) -> Iterator["ScriptedReader"]:
        """As agent.disks.vddk.opened."""
        vm = self.site.site.vm_by_moref(vm_moref)
        number = next(i for i, disk in enumerate(vm.disks) if disk.frozen_file_name(snapshot) == file)
        self.opened.append((vm.name, number))
        with vm.disks[number].frozen(snapshot) as view:
            yield ScriptedReader(self, vm.name, view, fails=number in self.failing)


@dataclass
class ScriptedReader:
    """A DiskReader all of whose disk is allocated."""

    script: ScriptedDisks
    vm: str
    view: FrozenView
    fails: bool

    @property
    def capacity(self) -> int:
        return self.view.capacity

    def allocated(self) -> Iterator[Extent]:
        yield Extent(0, self.capacity)

    def read(self, pieces: Iterable[Extent], *, depth: int = 4, stopped: Callable[[], bool] = bool) -> Iterator[Piece]:
        for piece in pieces:
            if self.fails and self.script.reading.acquire(timeout=PATIENCE):
                raise ReadFailed(f"bad sector at offset {piece.offset}")
            yield piece, memoryview(self.view.read(piece.offset, piece.length))
            if self.vm in self.script.held:
                self.script.reading.release()
                self._wait(stopped)
            if stopped():
                return

    def _wait(self, stopped: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while self.vm in self.script.held and not stopped() and time.monotonic() < deadline:
            time.sleep(0.01)
