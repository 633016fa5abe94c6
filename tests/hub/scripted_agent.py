"""A scripted agent: a stand-in at the hub's foreign border, which a test moves step by step.

It enrols for real, holds a real control stream, and opens and writes real transfers; only the vSphere behind it is a
few `SourceDisk`s in memory.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from agent.identity import key_pem, new_key, signing_request
from sendense.v1 import (
    backup_pb2,
    control_pb2,
    control_pb2_grpc,
    enrollment_pb2,
    enrollment_pb2_grpc,
    transfer_pb2,
    transfer_pb2_grpc,
)
from shared import join
from shared.runs import ClusterRun, Encoding
from tests.hub.source_disk import SourceDisk, clusters, looked_at

PATIENCE = 10.0
"""Seconds to wait for what must come."""

FULL, INCREMENTAL, AUTO = (
    backup_pb2.BACKUP_TYPE_FULL,
    backup_pb2.BACKUP_TYPE_INCREMENTAL,
    backup_pb2.BACKUP_TYPE_AUTO,
)
ALLOCATION = transfer_pb2.COVERAGE_SOURCE_ALLOCATION
TRACKING = transfer_pb2.COVERAGE_SOURCE_CHANGE_TRACKING

_ENCODINGS = {
    Encoding.ZERO: transfer_pb2.ENCODING_ZERO,
    Encoding.RAW: transfer_pb2.ENCODING_RAW,
    Encoding.ZSTD: transfer_pb2.ENCODING_ZSTD,
}


def channel(address: str, ca: bytes, key: bytes | None, certificate: bytes | None) -> grpc.aio.Channel:
    """A connection to an agents' port; without key and certificate, no client certificate is shown."""
    credentials = grpc.ssl_channel_credentials(ca, key, certificate)
    return grpc.aio.secure_channel(address, credentials, [("grpc.use_local_subchannel_pool", 1)])


async def enroll(join_string: str, request: bytes | None = None) -> "ScriptedAgent":
    """Spend an invitation; `request` instead of a proper signing request."""
    invitation, key = join.parse(join_string), new_key()
    certificate, invitation_key = invitation.client_pem()
    async with channel(invitation.address, invitation.ca_pem(), invitation_key, certificate) as connection:
        content = signing_request(key) if request is None else request
        reply = await enrollment_pb2_grpc.EnrollmentServiceStub(connection).Enroll(
            enrollment_pb2.EnrollRequest(certificate_signing_request=content), timeout=PATIENCE
        )
    return ScriptedAgent(reply.agent_id, invitation.address, invitation.ca_pem(), key_pem(key), reply.certificate)


class ScriptedAgent:
    """An enrolled agent."""

    def __init__(self, agent_id: str, address: str, ca: bytes, key: bytes, certificate: str) -> None:
        self.id = agent_id
        self.key, self.certificate = key, certificate.encode()
        self.channel = channel(address, ca, key, self.certificate)
        self.control = control_pb2_grpc.ControlServiceStub(self.channel)
        self.transfer = transfer_pb2_grpc.TransferServiceStub(self.channel)
        self.stream: Any = None

    async def connect(self, *task_ids: str, version: int = 1) -> control_pb2.Welcome:
        """Open the control stream and be welcomed."""
        self.stream = self.control.Connect()
        hello = control_pb2.Hello(
            protocol_version=version, software_version="0.1-test", hostname="appliance", task_ids=task_ids
        )
        await self.stream.write(control_pb2.ConnectRequest(hello=hello))
        return (await self._next()).welcome

    async def order(self) -> control_pb2.StartBackup:
        """The next assignment; what else comes before it is a mistake."""
        message = await self._next()
        assert message.HasField("start_backup"), message
        return message.start_backup

    async def cancellation(self) -> control_pb2.CancelTask:
        message = await self._next()
        assert message.HasField("cancel_task"), message
        return message.cancel_task

    async def leave(self) -> None:
        """End the control stream; the hub has taken in all that was said on it then."""
        await self.stream.done_writing()
        assert await asyncio.wait_for(self.stream.read(), PATIENCE) is grpc.aio.EOF

    async def _next(self) -> control_pb2.ConnectResponse:
        message = await asyncio.wait_for(self.stream.read(), PATIENCE)
        assert isinstance(message, control_pb2.ConnectResponse), "the hub ended the control stream"
        return message

    async def heartbeat(self, **progress: tuple[int, int, int]) -> None:
        """Total, read and skipped bytes by task ID, dashes as underscores."""
        tasks = [
            control_pb2.TaskProgress(
                task_id=task_id.replace("_", "-"), total_bytes=total, read_bytes=read, skipped_bytes=skipped
            )
            for task_id, (total, read, skipped) in progress.items()
        ]
        await self.stream.write(control_pb2.ConnectRequest(heartbeat=control_pb2.Heartbeat(tasks=tasks)))

    async def event(self, task_id: str, message: str, severity: Any = 1) -> None:
        event = control_pb2.AgentEvent(task_id=task_id, severity=severity, message=message)
        await self.stream.write(control_pb2.ConnectRequest(event=event))

    async def report(self, *vms: control_pb2.ReportedVm, vcenter: str = "vcenter-1") -> list[str]:
        page = control_pb2.ReportInventoryRequest(vcenter_id=vcenter, vms=vms)
        return list((await self.control.ReportInventory(iter([page]), timeout=PATIENCE)).conflicting_vm_ids)

    async def open(
        self, backup_id: str, disk: SourceDisk, base: control_pb2.DiskBase | None = None, **other: Any
    ) -> transfer_pb2.OpenTransferResponse:
        """Begin a disk's transfer; `base` for an incremental, `other` for fields that are to be otherwise."""
        fields: dict[str, Any] = {
            "backup_id": backup_id,
            "disk": identity(disk),
            "label": disk.label,
            "capacity_bytes": disk.capacity,
            "type_run": INCREMENTAL if base is not None else FULL,
            "change_id": disk.change_id,
            "base_image_id": base.image_id if base is not None else "",
            "base_change_id": base.change_id if base is not None else "",
        }
        return await self.transfer.OpenTransfer(transfer_pb2.OpenTransferRequest(**(fields | other)), timeout=PATIENCE)

    async def write(self, transfer_id: str, runs: Iterable[ClusterRun], offset: int = 0) -> list[int]:
        """Stream runs to their end; the durable offsets that the hub answered."""
        call = self.transfer.WriteExtents(_requests(transfer_id, offset, runs), timeout=PATIENCE)
        return [reply.durable_offset async for reply in call]

    async def seal(self, transfer_id: str, disk: SourceDisk, runs: Sequence[ClusterRun], **other: Any) -> Any:
        """Seal with what fits; `other` for fields of the request or of the coverage that are to be otherwise."""
        data, zero = clusters(list(runs))
        size = looked_at(list(runs), disk.capacity)
        coverage = {"source": ALLOCATION, "to_offset": disk.capacity, "pages": 1, "extents": len(runs), "bytes": size}
        given = {name: other.pop(name) for name in list(other) if name in {*coverage, "from_offset"}}
        fields = {"data_clusters": data, "zero_clusters": zero, "changed_bytes": size, "read_bytes": size}
        return await self.transfer.SealTransfer(
            transfer_pb2.SealTransferRequest(
                transfer_id=transfer_id, coverage=transfer_pb2.Coverage(**(coverage | given)), **(fields | other)
            ),
            timeout=PATIENCE,
        )

    async def fill(self, transfer_id: str, disk: SourceDisk) -> str:
        """Write and seal a full in a transfer that is open; its ID."""
        runs = disk.full()
        await self.write(transfer_id, runs)
        await self.seal(transfer_id, disk, runs)
        return transfer_id

    async def commit(self, backup_id: str, *transfer_ids: str, **other: Any) -> transfer_pb2.CommitBackupResponse:
        taken_at = Timestamp()
        taken_at.FromDatetime(datetime.now(UTC))
        fields: dict[str, Any] = {"snapshot_time": taken_at, "consistency": backup_pb2.CONSISTENCY_CRASH} | other
        request = transfer_pb2.CommitBackupRequest(backup_id=backup_id, transfer_ids=transfer_ids, **fields)
        return await self.transfer.CommitBackup(request, timeout=PATIENCE)

    async def finish(self, task_id: str, reason: str = "", message: str = "", **progress: int) -> None:
        request = control_pb2.FinishTaskRequest(task_id=task_id)
        request.progress.CopyFrom(control_pb2.TaskProgress(task_id=task_id, **progress))
        if reason:
            request.failure.CopyFrom(backup_pb2.Failure(reason=reason, message=message))
        await self.control.FinishTask(request, timeout=PATIENCE)

    async def send(self, order: control_pb2.StartBackup, disk: SourceDisk, index: int = 0) -> str:
        """Transfer and seal a disk as the order wants it; the transfer's ID."""
        base = base_of(order, disk)
        runs = disk.full() if base is None else disk.incremental()
        reason = "FIRST_BACKUP" if base is None and order.backup_type != FULL else ""
        opened = await self.open(order.backup_id, disk, base, disk_index=index, type_reason=reason)
        await self.write(opened.transfer_id, runs)
        await self.seal(opened.transfer_id, disk, runs, source=ALLOCATION if base is None else TRACKING)
        return opened.transfer_id

    async def make(self, order: control_pb2.StartBackup, *disks: SourceDisk) -> None:
        """Make a backup from its order to its end."""
        sent = [await self.send(order, disk, index) for index, disk in enumerate(disks)]
        await self.commit(order.backup_id, *sent)
        await self.finish(order.task_id)
        for disk in disks:
            disk.next_generation()

    async def close(self) -> None:
        if self.stream is not None:
            self.stream.cancel()
        await self.channel.close()


def identity(disk: SourceDisk) -> control_pb2.DiskIdentity:
    return control_pb2.DiskIdentity(device_key=disk.key, backing_uuid=disk.uuid, disk_object_id=disk.object_id)


def base_of(order: control_pb2.StartBackup, disk: SourceDisk) -> control_pb2.DiskBase | None:
    """What the order gives to go on from, for this disk."""
    return next((base for base in order.bases if base.disk == identity(disk)), None)


def vm(vm_id: str, name: str, *disks: SourceDisk, **other: Any) -> control_pb2.ReportedVm:
    """A VM as an agent reports it."""
    reported = [
        control_pb2.ReportedDisk(disk=identity(disk), label=disk.label, capacity_bytes=disk.capacity) for disk in disks
    ]
    return control_pb2.ReportedVm(vm_id=vm_id, display_name=name, moref=f"vm-{vm_id}", disks=reported, **other)


def run_message(run: ClusterRun) -> transfer_pb2.WriteExtentsRequest:
    return transfer_pb2.WriteExtentsRequest(
        run=transfer_pb2.ClusterRun(
            offset=run.offset,
            count=run.count,
            encoding=_ENCODINGS[run.encoding],
            lengths=run.lengths,
            digests=run.digests,
            payload=bytes(run.payload),
        )
    )


def start_message(transfer_id: str, offset: int = 0) -> transfer_pb2.WriteExtentsRequest:
    start = transfer_pb2.WriteExtentsStart(transfer_id=transfer_id, offset=offset)
    return transfer_pb2.WriteExtentsRequest(start=start)


async def _requests(
    transfer_id: str, offset: int, runs: Iterable[ClusterRun]
) -> AsyncIterator[transfer_pb2.WriteExtentsRequest]:
    yield start_message(transfer_id, offset)
    for run in runs:
        yield run_message(run)
