"""A hub that runs in this process with both its listeners, and an operator's connection to it."""

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration

from hub import main, server
from hub.config import HubSettings
from sendense.v1 import (
    agent_pb2,
    agent_pb2_grpc,
    backup_pb2,
    backup_pb2_grpc,
    repository_pb2,
    repository_pb2_grpc,
    restore_pb2,
    restore_pb2_grpc,
    task_pb2,
    task_pb2_grpc,
    vm_pb2,
    vm_pb2_grpc,
)
from tests.hub.scripted_agent import FULL, PATIENCE, ScriptedAgent, enroll


def settings_in(folder: Path, **sections: Any) -> HubSettings:
    """Settings of a hub whose state lies in `folder`; `sections` over them. Its port was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    agents = {"listen": address, "address": address} | sections.pop("agents", {})
    api = {"socket": folder / "hub.sock"}
    return HubSettings(state_dir=folder / "state", agents=agents, api=api, **sections)  # type: ignore[arg-type]


async def initialise(settings: HubSettings) -> None:
    """What `sendense-hub init` does."""
    await main._init(settings, None)


@dataclass
class LiveHub:
    """A running hub, and stubs of an operator."""

    settings: HubSettings
    hub: server.Hub
    channel: grpc.aio.Channel
    repository: Path
    repository_id: str = ""
    agents: list[ScriptedAgent] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.backups = backup_pb2_grpc.BackupServiceStub(self.channel)
        self.vms = vm_pb2_grpc.VmServiceStub(self.channel)
        self.operators_agents = agent_pb2_grpc.AgentServiceStub(self.channel)
        self.repositories = repository_pb2_grpc.RepositoryServiceStub(self.channel)
        self.tasks = task_pb2_grpc.TaskServiceStub(self.channel)
        self.restores = restore_pb2_grpc.RestoreServiceStub(self.channel)

    async def invite(self, name: str, ttl: float | None = None) -> str:
        request = agent_pb2.InviteAgentRequest(display_name=name)
        if ttl is not None:
            request.ttl.CopyFrom(Duration(nanos=int(ttl % 1 * 1e9), seconds=int(ttl)))
        return (await self.operators_agents.InviteAgent(request)).join_string

    async def new_agent(self, name: str = "appliance") -> ScriptedAgent:
        """A new agent, enrolled and connected."""
        agent = await enroll(await self.invite(name))
        self.agents.append(agent)
        await agent.connect()
        return agent

    async def add_repository(self, name: str, path: Path) -> str:
        """Add a repository; its ID."""
        request = repository_pb2.CreateRepositoryRequest(display_name=name, path=str(path))
        return (await self.repositories.CreateRepository(request)).name.removeprefix("repositories/")

    async def create(self, vm_id: str = "vm-1", backup_type: Any = FULL, **other: Any) -> backup_pb2.Backup:
        request = backup_pb2.CreateBackupRequest(vm_id=vm_id, backup_type=backup_type, **other)
        return await self.backups.CreateBackup(request)

    async def backup(self, backup_id: str) -> backup_pb2.Backup:
        return await self.backups.GetBackup(backup_pb2.GetBackupRequest(name=f"backups/{backup_id}"))

    async def task(self, task_id: str) -> task_pb2.Task:
        return await self.tasks.GetTask(task_pb2.GetTaskRequest(name=f"tasks/{task_id}"))

    async def ended(self, task_id: str) -> task_pb2.Task:
        """The task, once it has ended."""
        request = task_pb2.WatchTaskRequest(name=f"tasks/{task_id}")
        *_, last = [message.task async for message in self.tasks.WatchTask(request, timeout=PATIENCE)]
        return last

    async def events(self, task_id: str, after: int = 0) -> list[task_pb2.TaskEvent]:
        """The log of a task that has ended."""
        request = task_pb2.WatchTaskRequest(name=f"tasks/{task_id}", after_event=after)
        return [event async for message in self.tasks.WatchTask(request) for event in message.events]

    async def seen(self, agent_id: str) -> agent_pb2.Agent:
        """An agent as it is shown now."""
        return await self.operators_agents.GetAgent(agent_pb2.GetAgentRequest(name=f"agents/{agent_id}"))

    async def disk(self, backup_id: str, index: int = 0, disk_format: Any = restore_pb2.DISK_FORMAT_RAW) -> bytes:
        """The bytes of the file that a restore makes."""
        return assembled([message async for message in self.read_disk(backup_id, index, disk_format)])

    def read_disk(self, backup_id: str, index: int = 0, disk_format: Any = restore_pb2.DISK_FORMAT_RAW) -> Any:
        request = restore_pb2.ReadDiskRequest(backup=f"backups/{backup_id}", disk_index=index, format=disk_format)
        return self.restores.ReadDisk(request, timeout=3 * PATIENCE)

    def files(self) -> list[str]:
        """All that lies in the repository, its own marker left out."""
        return sorted(
            str(path.relative_to(self.repository)) for path in (self.repository / "vms").rglob("*") if path.is_file()
        )

    async def everything(self) -> dict[str, Any]:
        """All that an operator can see, and all files: equal before and after what must not change anything."""
        repositories = (await self.repositories.ListRepositories(repository_pb2.ListRepositoriesRequest())).repositories
        for repository in repositories:
            repository.ClearField("free_bytes")
        agents = (await self.operators_agents.ListAgents(agent_pb2.ListAgentsRequest())).agents
        for agent in agents:
            agent.ClearField("seen_time")
        return {
            "backups": list((await self.backups.ListBackups(backup_pb2.ListBackupsRequest())).backups),
            "tasks": list((await self.tasks.ListTasks(task_pb2.ListTasksRequest())).tasks),
            "vms": list((await self.vms.ListVms(vm_pb2.ListVmsRequest())).vms),
            "repositories": list(repositories),
            "agents": list(agents),
            "files": self.files(),
        }


def assembled(messages: Iterable[restore_pb2.ReadDiskResponse]) -> bytes:
    """The file that a stream makes; checks what the contract says of the stream's order and completeness."""
    first, *middle, last = messages
    content = bytearray(first.header.size_bytes)
    reached = data_bytes = zero_bytes = 0
    for message in middle:
        if message.HasField("data"):
            assert message.data.offset == reached
            assert 0 < len(message.data.data) <= 1024 * 1024
            content[reached : reached + len(message.data.data)] = message.data.data
            data_bytes += len(message.data.data)
        else:
            assert message.zero.offset == reached
            zero_bytes += message.zero.length
        reached = data_bytes + zero_bytes
    assert reached == first.header.size_bytes
    assert (last.end.data_bytes, last.end.zero_bytes) == (data_bytes, zero_bytes)
    return bytes(content)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until something has become true; fails when it does not."""
    for _ in range(int(PATIENCE / 0.02)):
        if await condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not become true")


@asynccontextmanager
async def running(settings: HubSettings, repository: Path) -> AsyncIterator[LiveHub]:
    """A hub over what `settings` and `repository` name already, until the end of the `with`."""
    async with server.running(settings) as hub:
        async with grpc.aio.insecure_channel(
            f"unix:{settings.api.socket}", [("grpc.use_local_subchannel_pool", 1)]
        ) as channel:
            live = LiveHub(settings, hub, channel, repository)
            known = (await live.repositories.ListRepositories(repository_pb2.ListRepositoriesRequest())).repositories
            live.repository_id = known[0].name.removeprefix("repositories/") if known else ""
            try:
                yield live
            finally:
                for agent in live.agents:
                    await agent.close()


def copied(template: Path, folder: Path) -> None:
    """A hub's state as `initialise` left it, at another place."""
    shutil.copytree(template, folder)
