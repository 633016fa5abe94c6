"""The hub at work: every object built by hand, two listeners, upkeep beside them, and a graceful end.

    unix socket   grpc.aio on the event loop     operators: backups, VMs, agents, repositories, tasks, restore
    agents' port  threads, mTLS                  agents: enrolment, control, transfers

Ingest has threads and a port of its own, so data coming in never holds up an operator's call.
"""

import asyncio
import fcntl
import os
import signal
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from hub import restores
from hub.agents import Agents
from hub.authority import Authority
from hub.backups import Backups
from hub.catalogue.engine import Catalogue
from hub.config import HubSettings
from hub.enrollment import Enrollment
from hub.repositories import Repositories
from hub.rpc.agent_service import AgentService
from hub.rpc.backup_service import BackupService
from hub.rpc.bridge import Bridge
from hub.rpc.callers import Callers
from hub.rpc.control_service import ControlService
from hub.rpc.enrollment_service import EnrollmentService
from hub.rpc.errors import AsyncErrors, ThreadErrors
from hub.rpc.reflection import Reflection
from hub.rpc.repository_service import RepositoryService
from hub.rpc.restore_service import RestoreService
from hub.rpc.streams import Streams
from hub.rpc.task_service import TaskService
from hub.rpc.transfer_service import TransferService
from hub.rpc.vm_service import VmService
from hub.tasks import Tasks
from hub.transfers import Transfers
from hub.upkeep import Upkeep
from sendense.v1 import (
    agent_pb2_grpc,
    backup_pb2_grpc,
    control_pb2_grpc,
    enrollment_pb2_grpc,
    repository_pb2_grpc,
    restore_pb2_grpc,
    task_pb2_grpc,
    transfer_pb2_grpc,
    vm_pb2_grpc,
)
from shared import logs
from shared.errors import Unavailable
from shared.units import MiB

API_SERVICES = (
    "sendense.v1.AgentService",
    "sendense.v1.BackupService",
    "sendense.v1.RepositoryService",
    "sendense.v1.RestoreService",
    "sendense.v1.TaskService",
    "sendense.v1.VmService",
)

SHORT_CALLS = 32
"""Threads of the agents' port that no stream takes: whatever streams, a backup can be sealed, committed and ended."""

DRAIN = 5.0
"""Seconds that calls under way get when the hub stops."""

log = logs.get(__name__)

_AGENT_OPTIONS = [
    # A run carries up to 1 MiB and its digests; inventories come in pages.
    ("grpc.max_receive_message_length", 4 * MiB),
    # Half-open connections are noticed within 30 s; an idle agent's pings are welcome.
    ("grpc.keepalive_time_ms", 15_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.so_reuseport", 0),
]


class Hub:
    """A hub that is open: its parts, built in order."""

    def __init__(self, settings: HubSettings, catalogue: Catalogue, hub_id: str) -> None:
        self.settings = settings
        self.catalogue = catalogue
        self.authority = Authority(settings.pki_dir)
        self.agents = Agents(max_silence=4 * settings.agents.heartbeat_interval)
        self.tasks = Tasks(catalogue, hub_id, settings.agents.lease)
        self.transfers = Transfers()
        self.backups = Backups(catalogue, self.agents, self.tasks, self.transfers, settings.tasks.time_limit)
        self.enrollment = Enrollment(catalogue, self.authority, settings.agents.address)
        self.upkeep = Upkeep(catalogue, self.agents, self.backups, self.tasks, settings.tasks.stall_limit)


async def serve(settings: HubSettings) -> None:
    """Run a hub until SIGTERM or SIGINT; raises what keeps it from starting."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with running(settings):
        log.info("hub is ready", api=str(settings.api.socket), agents=settings.agents.listen)
        await stop.wait()
        log.info("hub is stopping")


@asynccontextmanager
async def running(settings: HubSettings) -> AsyncIterator[Hub]:
    """A hub that serves inside the `with`."""
    with _taken(settings.state_dir) as hub_id:
        restores.clear(settings.staging_dir)
        catalogue = await Catalogue.open(settings.database_url)
        try:
            hub = Hub(settings, catalogue, hub_id)
            await hub.upkeep.give_up_work("the hub was restarted in the middle of it")
            # The operators' socket first: while it is made the umask is another, for the agents' threads too.
            async with _api_listener(hub), _agents_listener(hub), _beside(hub.upkeep):
                yield hub
            await hub.upkeep.give_up_work("the hub was stopped in the middle of it")
        finally:
            await catalogue.close()


@contextmanager
def _taken(state_dir: Path) -> Iterator[str]:
    """Keep every other hub off the state folder; yields the hub's ID, which names it as the owner of leases.

    A second hub would take the work of the first for what an earlier run left, and give it up.
    """
    try:
        file = (state_dir / "hub-id").open()
    except FileNotFoundError as error:
        raise Unavailable(f"{state_dir} is not a hub's state folder: run `sendense-hub init`") from error
    except OSError as error:
        raise Unavailable(f"cannot use the state folder {state_dir}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Unavailable(f"another hub is running with the state folder {state_dir}") from error
        yield file.read().strip()


@asynccontextmanager
async def _api_listener(hub: Hub) -> AsyncIterator[None]:
    """The operators' listener, on the unix socket."""
    server = grpc.aio.server(interceptors=[AsyncErrors()])
    backup_pb2_grpc.add_BackupServiceServicer_to_server(BackupService(hub.catalogue, hub.backups), server)
    vm_pb2_grpc.add_VmServiceServicer_to_server(VmService(hub.catalogue), server)
    agent_pb2_grpc.add_AgentServiceServicer_to_server(AgentService(hub.catalogue, hub.enrollment, hub.agents), server)
    repository_pb2_grpc.add_RepositoryServiceServicer_to_server(
        RepositoryService(hub.catalogue, Repositories(hub.catalogue)), server
    )
    task_pb2_grpc.add_TaskServiceServicer_to_server(TaskService(hub.catalogue, hub.backups), server)
    restore_pb2_grpc.add_RestoreServiceServicer_to_server(
        RestoreService(hub.catalogue, hub.settings.staging_dir), server
    )
    states = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(states, server)
    Reflection([*API_SERVICES, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name]).add_to(server)
    _bind_socket(server, hub.settings.api.socket)
    await server.start()
    for service in ("", *API_SERVICES):
        await states.set(service, health_pb2.HealthCheckResponse.SERVING)
    try:
        yield
    finally:
        await states.enter_graceful_shutdown()
        await server.stop(DRAIN)
        hub.settings.api.socket.unlink(missing_ok=True)


def _bind_socket(server: grpc.aio.Server, path: Path) -> None:
    """Listen on a socket of mode 0600; by umask, since a later chmod would leave a moment for others to connect."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Unavailable(f"cannot make the folder of the unix socket {path}: {error.strerror}") from error
    before = os.umask(0o177)
    try:
        if path.is_socket():
            path.unlink()  # of an earlier run: there is no other hub with this state folder
        server.add_insecure_port(f"unix:{path}")
    except (OSError, RuntimeError) as error:
        raise Unavailable(f"cannot listen on the unix socket {path}: {error}") from error
    finally:
        os.umask(before)


@asynccontextmanager
async def _agents_listener(hub: Hub) -> AsyncIterator[None]:
    """The agents' port: mTLS, methods in threads."""
    settings = hub.settings.agents
    bridge = Bridge(asyncio.get_running_loop())
    callers = Callers(hub.enrollment, bridge)
    streams = Streams(settings.max_streams)
    threads = ThreadPoolExecutor(settings.max_streams + SHORT_CALLS, thread_name_prefix="agents")
    server = grpc.server(threads, interceptors=[ThreadErrors()], options=_AGENT_OPTIONS)
    enrollment_pb2_grpc.add_EnrollmentServiceServicer_to_server(EnrollmentService(hub.enrollment, bridge), server)
    control_pb2_grpc.add_ControlServiceServicer_to_server(
        ControlService(
            hub.catalogue, callers, streams, hub.agents, hub.backups, hub.tasks, bridge, settings.heartbeat_interval
        ),
        server,
    )
    transfer_pb2_grpc.add_TransferServiceServicer_to_server(
        TransferService(callers, streams, hub.backups, hub.transfers, bridge), server
    )
    credentials = grpc.ssl_server_credentials(
        [hub.authority.server(settings.address)], hub.authority.ca.pem, require_client_auth=True
    )
    try:
        server.add_secure_port(settings.listen, credentials)
    except RuntimeError as error:
        raise Unavailable(f"cannot listen for agents on {settings.listen}: {error}") from error
    server.start()
    try:
        yield
    finally:
        hub.agents.close()
        # In a thread: the methods that drain need the event loop for their last words.
        await asyncio.to_thread(server.stop(DRAIN).wait)
        await asyncio.to_thread(threads.shutdown)


@asynccontextmanager
async def _beside(upkeep: Upkeep) -> AsyncIterator[None]:
    """Upkeep runs inside the `with`."""
    task = asyncio.create_task(upkeep.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
