"""The hub as the agent sees it: the one place of the agent where wire messages are made and read.

Calls block and may be made from any thread. What gRPC raises becomes the error that the hub meant, by its reason.
"""

import queue
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_status import rpc_status

from agent.assignment import Assignment, Counts, OnCbtLoss, Severity
from agent.identity import Identity, key_pem, new_key, signing_request
from agent.plan import Coverage, Source
from agent.stop import Stop
from agent.vsphere.changes import Asked, Base, Decision
from agent.vsphere.inventory import Vm
from agent.vsphere.snapshot import Snapshot, SnapshotDisk
from sendense.v1 import (
    backup_pb2,
    control_pb2,
    control_pb2_grpc,
    enrollment_pb2,
    enrollment_pb2_grpc,
    task_pb2,
    transfer_pb2,
    transfer_pb2_grpc,
)
from shared.errors import SendenseError, Unavailable, error_for
from shared.join import JoinString
from shared.runs import ClusterRun, Encoding

PROTOCOL_VERSION = 1
CALL_TIMEOUT = 60.0
"""Seconds for a call that moves no disk's bytes."""
COMMIT_TIMEOUT = 600.0
"""Seconds for sealing or committing: the hub makes gigabytes of dirty pages durable meanwhile."""
WELCOME_TIMEOUT = 30.0
"""Seconds for the hub's first word on a control stream: one that accepts and is silent must not hold the agent."""
VMS_PER_PAGE = 200

_CHANNEL_OPTIONS = [
    # A link that swallows bytes in silence is noticed within 30 s.
    ("grpc.keepalive_time_ms", 15_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # Ours is the only connection; a pool shared by target name would outlive a change of certificate.
    ("grpc.use_local_subchannel_pool", 1),
]
_ENCODINGS: Mapping[Encoding, transfer_pb2.Encoding.ValueType] = {
    Encoding.ZERO: transfer_pb2.ENCODING_ZERO,
    Encoding.RAW: transfer_pb2.ENCODING_RAW,
    Encoding.ZSTD: transfer_pb2.ENCODING_ZSTD,
}
_SOURCES: Mapping[Source, transfer_pb2.CoverageSource.ValueType] = {
    Source.CHANGE_TRACKING: transfer_pb2.COVERAGE_SOURCE_CHANGE_TRACKING,
    Source.ALLOCATION: transfer_pb2.COVERAGE_SOURCE_ALLOCATION,
}
_SEVERITIES: Mapping[Severity, task_pb2.Severity.ValueType] = {
    Severity.INFO: task_pb2.SEVERITY_INFO,
    Severity.WARNING: task_pb2.SEVERITY_WARNING,
}


@dataclass(frozen=True, slots=True)
class Welcome:
    """What the hub says first on a control stream."""

    heartbeat_interval: float
    """Seconds."""
    display_name: str
    hub_version: str


@dataclass(frozen=True, slots=True)
class Cancellation:
    """Stop a task."""

    task_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class OpenedTransfer:
    """A disk's transfer at the hub."""

    id: str
    durable_offset: int


@dataclass(frozen=True, slots=True)
class TransferTotals:
    """What a disk's transfer came to, for sealing it."""

    data_clusters: int
    zero_clusters: int
    changed_bytes: int
    read_bytes: int
    skipped_bytes: int


class ControlStream:
    """An open control stream: iterate for assignments and cancellations; the other methods may be called meanwhile."""

    def __init__(self, stub: control_pb2_grpc.ControlServiceStub, hello: control_pb2.Hello) -> None:
        self._outbox: queue.SimpleQueue[control_pb2.ConnectRequest | None] = queue.SimpleQueue()
        self._outbox.put(control_pb2.ConnectRequest(hello=hello))
        self._call = stub.Connect(iter(self._outbox.get, None))
        try:
            self.welcome = self._first()
        except SendenseError:
            self.close()
            raise

    def _first(self) -> Welcome:
        """The welcome. The call has no deadline, so a timer ends it when that does not come."""
        timer = threading.Timer(WELCOME_TIMEOUT, self._call.cancel)
        timer.daemon = True
        timer.start()
        try:
            with translated():
                first = next(iter(self._call)).welcome
        finally:
            timer.cancel()
        return Welcome(
            first.heartbeat_interval.ToTimedelta().total_seconds(), first.display_name, first.software_version
        )

    def __iter__(self) -> Iterator[Assignment | Cancellation]:
        """What the hub sends, until the stream ends; raises what ended it."""
        with translated():
            for message in self._call:
                if message.HasField("start_backup"):
                    yield _assignment(message.start_backup)
                elif message.HasField("cancel_task"):
                    yield Cancellation(message.cancel_task.task_id, message.cancel_task.reason)

    def heartbeat(self, tasks: Mapping[str, Counts]) -> None:
        """Say that the agent lives, and how far each task is."""
        progress = [_progress(task_id, counts) for task_id, counts in tasks.items()]
        self._outbox.put(control_pb2.ConnectRequest(heartbeat=control_pb2.Heartbeat(tasks=progress)))

    def event(self, task_id: str, severity: Severity, message: str) -> None:
        """Add a line to a task's log at the hub."""
        event = control_pb2.AgentEvent(task_id=task_id, severity=_SEVERITIES[severity], message=message)
        self._outbox.put(control_pb2.ConnectRequest(event=event))

    def close(self) -> None:
        """End the stream from this side; may be called twice."""
        self._outbox.put(None)  # or gRPC's thread would wait for the next message for ever
        self._call.cancel()


class HubClient:
    """Calls of an enrolled agent, over one connection."""

    def __init__(self, identity: Identity) -> None:
        self._channel = _channel(identity.address, identity.ca_certificate, identity.key, identity.certificate)
        self._control = control_pb2_grpc.ControlServiceStub(self._channel)
        self._transfer = transfer_pb2_grpc.TransferServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection, and with it every call under way; may be called twice."""
        self._channel.close()

    def control(self, software_version: str, hostname: str, task_ids: Iterable[str]) -> ControlStream:
        """Open the control stream; raises VersionMismatch or Unavailable."""
        hello = control_pb2.Hello(
            protocol_version=PROTOCOL_VERSION,
            software_version=software_version,
            hostname=hostname,
            task_ids=list(task_ids),
        )
        return ControlStream(self._control, hello)

    def report_inventory(self, vcenter_id: str, vms: Iterable[Vm]) -> list[str]:
        """Report all VMs; returns the IDs that were refused because another vCenter has them."""
        with translated():
            reply = self._control.ReportInventory(_inventory_pages(vcenter_id, vms), timeout=CALL_TIMEOUT)
        return list(reply.conflicting_vm_ids)

    def finish(self, task_id: str, failure: SendenseError | None, counts: Counts) -> None:
        """Say that a task has ended here, well or with `failure`."""
        request = control_pb2.FinishTaskRequest(task_id=task_id, progress=_progress(task_id, counts))
        if failure is not None:
            request.failure.CopyFrom(backup_pb2.Failure(reason=failure.reason, message=failure.message))
        with translated():
            self._control.FinishTask(request, timeout=CALL_TIMEOUT)

    def open_transfer(
        self, backup_id: str, index: int, disk: SnapshotDisk, decision: Decision, base: Base | None
    ) -> OpenedTransfer:
        """Begin a disk's transfer, or find the one begun; `base` for an incremental."""
        request = transfer_pb2.OpenTransferRequest(
            backup_id=backup_id,
            disk=control_pb2.DiskIdentity(
                device_key=disk.device_key, backing_uuid=disk.backing_uuid, disk_object_id=disk.disk_object_id
            ),
            disk_index=index,
            label=disk.label,
            capacity_bytes=disk.capacity,
            type_run=backup_pb2.BackupType.Value(f"BACKUP_TYPE_{decision.type_run.value}"),
            type_reason=decision.reason,
            change_id=disk.change_id,
            base_image_id=base.image_id if base else "",
            base_change_id=base.change_id if base else "",
        )
        with translated():
            reply = self._transfer.OpenTransfer(request, timeout=CALL_TIMEOUT)
        return OpenedTransfer(reply.transfer_id, reply.durable_offset)

    def write_extents(self, transfer: OpenedTransfer, runs: Iterable[ClusterRun], stop: Stop) -> Iterator[int]:
        """Stream runs, yielding durable offsets as the hub tells them; an error in `runs` is raised as it was.

        `stop` breaks the call, which has no deadline, at once; Unavailable is raised then.
        """
        outgoing = _Outgoing(transfer, runs)
        call = self._transfer.WriteExtents(iter(outgoing))
        with stop.interrupting(call.cancel), translated():
            for reply in call:
                yield reply.durable_offset
        if outgoing.error is not None:
            raise outgoing.error

    def seal(self, transfer: OpenedTransfer, coverage: Coverage, totals: TransferTotals) -> None:
        """Say that all of the disk was sent."""
        request = transfer_pb2.SealTransferRequest(
            transfer_id=transfer.id,
            coverage=transfer_pb2.Coverage(
                source=_SOURCES[coverage.source],
                to_offset=coverage.to_offset,
                pages=coverage.pages,
                extents=coverage.extents,
                bytes=coverage.bytes,
            ),
            data_clusters=totals.data_clusters,
            zero_clusters=totals.zero_clusters,
            changed_bytes=totals.changed_bytes,
            read_bytes=totals.read_bytes,
            skipped_bytes=totals.skipped_bytes,
        )
        with translated():
            self._transfer.SealTransfer(request, timeout=COMMIT_TIMEOUT)

    def commit(self, backup_id: str, transfers: Iterable[OpenedTransfer], snapshot: Snapshot) -> None:
        """Make the sealed disks a restore point."""
        request = transfer_pb2.CommitBackupRequest(
            backup_id=backup_id,
            transfer_ids=[transfer.id for transfer in transfers],
            snapshot_time=_timestamp(snapshot.taken_at),
            consistency=backup_pb2.Consistency.Value(f"CONSISTENCY_{snapshot.consistency}"),
            skipped_disks=[
                backup_pb2.SkippedDisk(device_key=disk.device_key, label=disk.label, reason=disk.reason)
                for disk in snapshot.skipped
            ],
        )
        with translated():
            self._transfer.CommitBackup(request, timeout=COMMIT_TIMEOUT)


def enroll(join: JoinString) -> Identity:
    """Exchange an invitation for an identity; raises NotAuthenticated when it is used up or too old."""
    key = new_key()
    certificate, invitation_key = join.client_pem()
    with _channel(join.address, join.ca_pem(), invitation_key, certificate) as channel, translated():
        stub = enrollment_pb2_grpc.EnrollmentServiceStub(channel)
        request = enrollment_pb2.EnrollRequest(certificate_signing_request=signing_request(key))
        reply = stub.Enroll(request, timeout=CALL_TIMEOUT)
    return Identity(join.address, reply.ca_certificate.encode(), reply.certificate.encode(), key_pem(key))


@contextmanager
def translated() -> Iterator[None]:
    """Turn gRPC's errors into ours: by ErrorInfo's reason where the hub gave one, else by status."""
    try:
        yield
    except grpc.RpcError as error:
        raise _error_of(error) from error
    except StopIteration as error:
        raise Unavailable("the hub closed the stream") from error


def _error_of(error: Any) -> SendenseError:
    """`error` is a grpc.RpcError that is a grpc.Call too, which its types do not say."""
    status = rpc_status.from_call(error)
    info, reason = ErrorInfo(), ""
    for detail in status.details if status is not None else []:
        if detail.Unpack(info):
            reason = info.reason
    message = error.details() or "the connection to the hub broke"
    if error.code() is grpc.StatusCode.CANCELLED and not reason:
        # gRPC's own: a hub that drains, or this side gave the call up. Nobody asked for a task to stop.
        return Unavailable(f"the call to the hub was ended: {message}")
    return error_for(reason, error.code().name, message)


def _channel(address: str, ca: bytes, key: bytes, certificate: bytes) -> grpc.Channel:
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(ca, key, certificate), _CHANNEL_OPTIONS)


class _Outgoing:
    """The requests of a WriteExtents stream. An error in the runs ends them and is kept: gRPC would swallow it."""

    def __init__(self, transfer: OpenedTransfer, runs: Iterable[ClusterRun]) -> None:
        self._transfer = transfer
        self._runs = runs
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[transfer_pb2.WriteExtentsRequest]:
        start = transfer_pb2.WriteExtentsStart(transfer_id=self._transfer.id, offset=self._transfer.durable_offset)
        yield transfer_pb2.WriteExtentsRequest(start=start)
        try:
            for run in self._runs:
                yield transfer_pb2.WriteExtentsRequest(run=_run(run))
        except Exception as error:  # whatever it was: this is gRPC's thread, and the caller's is to have it
            self.error = error


def _run(run: ClusterRun) -> transfer_pb2.ClusterRun:
    return transfer_pb2.ClusterRun(
        offset=run.offset,
        count=run.count,
        encoding=_ENCODINGS[run.encoding],
        lengths=run.lengths,
        digests=run.digests,
        payload=bytes(run.payload),
    )


def _assignment(message: control_pb2.StartBackup) -> Assignment:
    bases = {
        (base.disk.device_key, base.disk.backing_uuid, base.disk.disk_object_id): Base(
            image_id=base.image_id, change_id=base.change_id, capacity=base.capacity_bytes
        )
        for base in message.bases
    }
    on_loss = OnCbtLoss.FAIL if message.on_cbt_loss == control_pb2.ON_CBT_LOSS_FAIL else OnCbtLoss.FULL
    return Assignment(
        task_id=message.task_id,
        backup_id=message.backup_id,
        vm_id=message.vm_id,
        asked=Asked(backup_pb2.BackupType.Name(message.backup_type).removeprefix("BACKUP_TYPE_")),
        on_cbt_loss=on_loss,
        bases=bases,
        time_limit=message.time_limit.ToTimedelta(),
    )


def _progress(task_id: str, counts: Counts) -> control_pb2.TaskProgress:
    return control_pb2.TaskProgress(
        task_id=task_id, total_bytes=counts.total, read_bytes=counts.read, skipped_bytes=counts.skipped
    )


def _inventory_pages(vcenter_id: str, vms: Iterable[Vm]) -> Iterator[control_pb2.ReportInventoryRequest]:
    page = control_pb2.ReportInventoryRequest(vcenter_id=vcenter_id)
    for vm in vms:
        page.vms.append(_reported(vm))
        if len(page.vms) == VMS_PER_PAGE:
            yield page
            page = control_pb2.ReportInventoryRequest(vcenter_id=vcenter_id)
    yield page


def _reported(vm: Vm) -> control_pb2.ReportedVm:
    return control_pb2.ReportedVm(
        vm_id=vm.instance_uuid,
        moref=vm.moref,
        display_name=vm.name,
        power_state=vm.power_state,
        guest_os=vm.guest_os,
        hardware_version=vm.hardware_version,
        cbt_enabled=vm.cbt_enabled,
        template=vm.is_template,
        folder_path=vm.folder_path,
        host_name=vm.host_name,
        disks=[
            control_pb2.ReportedDisk(
                disk=control_pb2.DiskIdentity(
                    device_key=disk.device_key, backing_uuid=disk.backing_uuid, disk_object_id=disk.disk_object_id
                ),
                label=disk.label,
                capacity_bytes=disk.capacity,
            )
            for disk in vm.disks
        ],
    )


def _timestamp(moment: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp
