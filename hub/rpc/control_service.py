"""ControlService: the agents' control streams, inventories and task ends."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import grpc
from google.protobuf.duration_pb2 import Duration

from hub.agents import Agents, BackupOrder, Order, Session
from hub.backups import Backups
from hub.catalogue import agents, inventory
from hub.catalogue.disks import DiskIdentity
from hub.catalogue.engine import Catalogue
from hub.catalogue.inventory import Outcome, ReportedDisk, ReportedVm
from hub.catalogue.states import Level
from hub.rpc import messages
from hub.rpc.bridge import Bridge
from hub.rpc.callers import Callers
from hub.rpc.streams import Streams, first
from hub.tasks import Tasks
from sendense import __version__
from sendense.v1 import control_pb2, control_pb2_grpc, task_pb2
from shared import logs
from shared.errors import InvalidRequest, SendenseError, VersionMismatch, error_for

PROTOCOL_VERSIONS = range(1, 2)
"""The protocol versions this hub speaks."""

log = logs.get(__name__)

_VM_ID = re.compile("[0-9A-Za-z-]{1,36}")
"""What may stand as an instance UUID: it names a folder of the repository, and comes from outside."""

_LEVELS: dict[int, Level] = {task_pb2.SEVERITY_WARNING: Level.WARNING, task_pb2.SEVERITY_ERROR: Level.ERROR}


class ControlService(control_pb2_grpc.ControlServiceServicer):
    """Unpack, call, pack. Methods run in threads."""

    def __init__(
        self,
        catalogue: Catalogue,
        callers: Callers,
        streams: Streams,
        connected: Agents,
        running: Backups,
        tasks: Tasks,
        bridge: Bridge,
        heartbeat_interval: float,
    ) -> None:
        self._catalogue = catalogue
        self._callers = callers
        self._streams = streams
        self._agents = connected
        self._backups = running
        self._tasks = tasks
        self._bridge = bridge
        self._heartbeat_interval = heartbeat_interval

    def Connect(
        self, requests: Iterator[control_pb2.ConnectRequest], context: grpc.ServicerContext
    ) -> Iterator[control_pb2.ConnectResponse]:
        with self._streams.admitted():
            agent_id = self._callers.agent(context)
            hello = first(requests, context, control_pb2.ConnectRequest()).hello
            _check_version(hello)
            yield from self._attended(agent_id, hello, requests, context)

    def _attended(
        self,
        agent_id: str,
        hello: control_pb2.Hello,
        requests: Iterator[control_pb2.ConnectRequest],
        context: grpc.ServicerContext,
    ) -> Iterator[control_pb2.ConnectResponse]:
        """An agent's session, from its welcome on: what it is told, while what it says is taken in beside."""
        name = self._bridge(self._note(agent_id, hello, datetime.now(UTC)))
        session = self._bridge(self._backups.attach(agent_id, hello.task_ids))
        log.info("agent connected", agent=name, version=hello.software_version, host=hello.hostname)
        try:
            if context.add_callback(session.close):
                threading.Thread(target=self._listen, args=(requests, session), name="control", daemon=True).start()
                yield control_pb2.ConnectResponse(welcome=self._welcome(name))
                yield from map(_response, session.orders())
        finally:
            self._agents.disconnect(session)
            self._bridge(self._note(agent_id, hello, session.heard_at()))
            log.info("agent disconnected", agent=name)

    def ReportInventory(
        self, requests: Iterator[control_pb2.ReportInventoryRequest], context: grpc.ServicerContext
    ) -> control_pb2.ReportInventoryResponse:
        agent_id = self._callers.agent(context)
        vcenter_id, vms = "", list[ReportedVm]()
        for page in requests:
            if not page.vcenter_id or page.vcenter_id != (vcenter_id or page.vcenter_id):
                raise InvalidRequest("vcenter_id is empty or changes within the report", field="vcenter_id")
            vcenter_id = page.vcenter_id
            vms.extend(_reported(vm) for vm in page.vms)
        if not vcenter_id:
            raise InvalidRequest("the report has no page", field="vcenter_id")
        outcome = self._bridge(self._take_over(agent_id, vcenter_id, vms))
        return control_pb2.ReportInventoryResponse(conflicting_vm_ids=[clash.vm_id for clash in outcome.clashes])

    def FinishTask(
        self, request: control_pb2.FinishTaskRequest, context: grpc.ServicerContext
    ) -> control_pb2.FinishTaskResponse:
        agent_id = self._callers.agent(context)
        self._heard(agent_id, request.task_id, request.progress)
        failure: SendenseError | None = None
        if request.HasField("failure"):
            failure = error_for(request.failure.reason, "INTERNAL", request.failure.message)
        self._bridge(self._backups.finish(agent_id, request.task_id, failure))
        return control_pb2.FinishTaskResponse()

    def _welcome(self, name: str) -> control_pb2.Welcome:
        interval = Duration()
        interval.FromMilliseconds(int(self._heartbeat_interval * 1000))
        return control_pb2.Welcome(software_version=__version__, heartbeat_interval=interval, display_name=name)

    def _listen(self, requests: Iterator[control_pb2.ConnectRequest], session: Session) -> None:
        """Take in what the agent sends, until its stream ends; then the session ends too."""
        try:
            for request in requests:
                session.heard()
                self._take(session.agent_id, request)
        except grpc.RpcError as error:
            log.info("control stream broke", agent=session.agent_id, error=str(error))
        finally:
            session.close()

    def _take(self, agent_id: str, request: control_pb2.ConnectRequest) -> None:
        for progress in request.heartbeat.tasks:
            with _logged():
                if self._tasks.running(progress.task_id) is None:
                    self._bridge(self._backups.begin(agent_id, progress.task_id))
                self._heard(agent_id, progress.task_id, progress)
        if request.HasField("event"):
            level = _LEVELS.get(request.event.severity, Level.INFO)
            with _logged():
                self._bridge(self._tasks.quote(agent_id, request.event.task_id, level, request.event.message))

    def _heard(self, agent_id: str, task_id: str, progress: control_pb2.TaskProgress) -> None:
        """Take over what an agent counts of a task of its own."""
        running = self._tasks.running(task_id)
        if running is not None and running.agent_id == agent_id:
            running.heard(progress.total_bytes, progress.read_bytes, progress.skipped_bytes)

    async def _note(self, agent_id: str, hello: control_pb2.Hello, seen_at: datetime) -> str:
        """Write down what the agent said of itself and when it was heard; returns its name."""
        async with self._catalogue.writing() as session:
            await agents.note_seen(
                session,
                agent_id,
                software_version=hello.software_version,
                hostname=hello.hostname,
                now=seen_at,
            )
            return (await agents.get(session, agent_id)).name

    async def _take_over(self, agent_id: str, vcenter_id: str, vms: list[ReportedVm]) -> Outcome:
        async with self._catalogue.writing() as session:
            return await inventory.report(session, agent_id, vcenter_id, vms, datetime.now(UTC))


@contextmanager
def _logged() -> Iterator[None]:
    """A part of what an agent said: when it cannot be taken in, the others still are."""
    try:
        yield
    except SendenseError as error:
        log.warning("what an agent said was not taken in", reason=error.reason, error=error.message)


def _check_version(hello: control_pb2.Hello) -> None:
    if hello.protocol_version not in PROTOCOL_VERSIONS:
        raise VersionMismatch(
            f"the agent (version {hello.software_version or 'unknown'}) speaks protocol {hello.protocol_version}, "
            f"this hub (version {__version__}) {PROTOCOL_VERSIONS.start} to {PROTOCOL_VERSIONS.stop - 1}: "
            "bring both to one version"
        )


def _response(order: Order) -> control_pb2.ConnectResponse:
    if not isinstance(order, BackupOrder):
        cancel = control_pb2.CancelTask(task_id=order.task_id, reason=order.reason)
        return control_pb2.ConnectResponse(cancel_task=cancel)
    limit = Duration()
    limit.FromTimedelta(order.time_limit)
    start = control_pb2.StartBackup(
        task_id=order.task_id,
        backup_id=order.backup_id,
        vm_id=order.vm_id,
        backup_type=messages.backup_type(order.asked),
        on_cbt_loss=control_pb2.ON_CBT_LOSS_FULL,
        bases=[
            control_pb2.DiskBase(
                disk=control_pb2.DiskIdentity(**base.disk._asdict()),
                image_id=base.image_id,
                change_id=base.change_id,
                capacity_bytes=base.capacity,
            )
            for base in order.bases
        ],
        time_limit=limit,
    )
    return control_pb2.ConnectResponse(start_backup=start)


def _reported(vm: control_pb2.ReportedVm) -> ReportedVm:
    if not _VM_ID.fullmatch(vm.vm_id):
        raise InvalidRequest(f"{vm.vm_id!r} of {vm.display_name} is no instance UUID", field="vms.vm_id")
    return ReportedVm(
        id=vm.vm_id,
        moref=vm.moref,
        name=vm.display_name,
        power_state=vm.power_state,
        guest_os=vm.guest_os,
        hardware_version=vm.hardware_version,
        cbt_enabled=vm.cbt_enabled,
        is_template=vm.template,
        folder_path=vm.folder_path,
        host_name=vm.host_name,
        disks=tuple(
            ReportedDisk(
                DiskIdentity(disk.disk.device_key, disk.disk.backing_uuid, disk.disk.disk_object_id),
                disk.label,
                disk.capacity_bytes,
            )
            for disk in vm.disks
        ),
    )
