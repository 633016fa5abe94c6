"""The hub as a process part: its socket, its state folder, its end."""

import asyncio
import errno
import os
import socket
import stat
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from hub import server
from hub.catalogue import vms
from hub.config import HubSettings
from sendense.v1 import vm_pb2, vm_pb2_grpc
from shared.errors import Unavailable
from tests.hub.live_hub import LiveHub, running, settings_in
from tests.hub.scripted_agent import PATIENCE, ScriptedAgent


async def test_the_socket_is_for_the_operator_alone(hub: LiveHub) -> None:
    assert stat.S_IMODE(hub.settings.api.socket.stat().st_mode) == 0o600


async def test_the_socket_was_never_open_to_others(
    settings: HubSettings, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    implementation = type(grpc.aio.server())
    start = implementation.start

    async def start_later(self: grpc.aio.Server) -> None:
        seen.append(stat.S_IMODE(settings.api.socket.stat().st_mode))
        await start(self)

    monkeypatch.setattr(implementation, "start", start_later)
    async with running(settings, folder / "repository"):
        assert seen == [0o600]


async def test_no_agent_is_served_while_the_umask_is_that_of_the_socket(
    settings: HubSettings, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds for all threads, so for the files of an agent's backup too."""
    host, _, port = settings.agents.listen.rpartition(":")
    bind, answers = server._bind_socket, []

    def bind_later(listener: grpc.aio.Server, path: Path) -> None:
        with socket.socket() as caller:
            answers.append(caller.connect_ex((host, int(port))))
        bind(listener, path)

    monkeypatch.setattr(server, "_bind_socket", bind_later)
    async with running(settings, folder / "repository"):
        assert answers == [errno.ECONNREFUSED]


async def test_the_process_keeps_its_umask(settings: HubSettings, folder: Path) -> None:
    before = os.umask(0o027)
    try:
        async with running(settings, folder / "repository"):
            assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


async def test_the_socket_is_gone_when_the_hub_has_stopped(settings: HubSettings, folder: Path) -> None:
    async with running(settings, folder / "repository"):
        assert settings.api.socket.is_socket()
    assert not settings.api.socket.exists()


async def test_a_socket_that_a_crash_left_is_taken_over(settings: HubSettings, folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(settings.api.socket))
    assert settings.api.socket.is_socket()
    async with running(settings, folder / "repository") as hub:
        assert (await hub.everything())["backups"] == []


async def test_a_file_in_the_sockets_place_is_left_alone(settings: HubSettings, folder: Path) -> None:
    settings.api.socket.write_text("precious")
    with pytest.raises(Unavailable, match="cannot listen on the unix socket"):
        async with running(settings, folder / "repository"):
            pass
    assert settings.api.socket.read_text() == "precious"


async def test_a_second_hub_on_one_state_folder_is_refused_and_harms_nothing(hub: LiveHub, folder: Path) -> None:
    second = settings_in(folder)
    with pytest.raises(Unavailable, match="another hub is running"):
        async with server.running(second):
            pass
    assert (await hub.everything())["backups"] == []


async def test_a_taken_port_is_said(settings: HubSettings, folder: Path) -> None:
    host, _, port = settings.agents.listen.rpartition(":")
    taken = await asyncio.start_server(lambda *_: None, host, int(port))
    async with taken:
        with pytest.raises(Unavailable, match=f"cannot listen for agents on {settings.agents.listen}"):
            async with running(settings, folder / "repository"):
                pass


async def test_without_init_it_says_what_to_do(folder: Path) -> None:
    with pytest.raises(Unavailable, match="run `sendense-hub init`"):
        async with server.running(settings_in(folder)):
            pass


async def test_a_hub_that_drains_says_that_it_does_not_serve(
    settings: HubSettings, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "DRAIN", 1.0)
    states = []
    async with running(settings, folder / "repository") as hub:
        address = f"unix:{settings.api.socket}"
        observer = grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])
        health: Any = health_pb2_grpc.HealthStub(observer)
        watch = health.Watch(health_pb2.HealthCheckRequest(service="sendense.v1.BackupService"))
        states.append((await watch.read()).status)
        assert hub.hub is not None
    states.append((await asyncio.wait_for(watch.read(), PATIENCE)).status)
    await observer.close()
    assert states == [health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING]


async def test_a_call_under_way_gets_time_to_end(
    settings: HubSettings, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = asyncio.Event()

    async def slow(*_: object, **__: object) -> list[Any]:
        begun.set()
        await asyncio.sleep(0.3)
        return []

    monkeypatch.setattr(vms, "list_vms", slow)
    async with running(settings, folder / "repository"):
        client = grpc.aio.insecure_channel(f"unix:{settings.api.socket}", [("grpc.use_local_subchannel_pool", 1)])
        call = asyncio.ensure_future(vm_pb2_grpc.VmServiceStub(client).ListVms(vm_pb2.ListVmsRequest()))
        await begun.wait()
    assert list((await call).vms) == []
    await client.close()


async def test_connected_agents_are_let_go_at_once(
    settings: HubSettings, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(settings, folder / "repository") as hub:
        agent: ScriptedAgent = await hub.new_agent()
        hub.agents.clear()
        before = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - before < server.DRAIN / 2
    assert await asyncio.wait_for(agent.stream.read(), PATIENCE) is grpc.aio.EOF
    await agent.close()
