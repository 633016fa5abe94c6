"""TransferService: the way of the data, on the hub's side."""

from collections.abc import Iterator

import grpc

from hub.backups import Backups
from hub.catalogue.backups import SkippedDisk
from hub.catalogue.disks import DiskIdentity
from hub.catalogue.states import BackupType, Consistency
from hub.points import Captured
from hub.rpc import messages
from hub.rpc.bridge import Bridge
from hub.rpc.callers import Callers
from hub.rpc.streams import Streams, first
from hub.transfers import Coverage, CoverageSource, IncomingDisk, Totals, Transfer, Transfers
from sendense.v1 import backup_pb2, transfer_pb2, transfer_pb2_grpc
from shared.errors import InvalidRequest, NotFound
from shared.runs import ClusterRun, Encoding
from shared.units import SECTOR, TiB, human_size

LARGEST_DISK = 64 * TiB
"""Bytes; vSphere's own limit is 62 TiB. Memory grows with the size that an agent states, so it must have a bound."""

_ENCODINGS: dict[int, Encoding] = {
    transfer_pb2.ENCODING_ZERO: Encoding.ZERO,
    transfer_pb2.ENCODING_RAW: Encoding.RAW,
    transfer_pb2.ENCODING_ZSTD: Encoding.ZSTD,
}
_SOURCES: dict[int, CoverageSource] = {
    transfer_pb2.COVERAGE_SOURCE_CHANGE_TRACKING: CoverageSource.CHANGE_TRACKING,
    transfer_pb2.COVERAGE_SOURCE_ALLOCATION: CoverageSource.ALLOCATION,
}
_CONSISTENCIES: dict[int, Consistency] = {
    backup_pb2.CONSISTENCY_CRASH: Consistency.CRASH,
    backup_pb2.CONSISTENCY_QUIESCED: Consistency.QUIESCED,
}


class TransferService(transfer_pb2_grpc.TransferServiceServicer):
    """Unpack, call, pack. Methods run in threads."""

    def __init__(
        self, callers: Callers, streams: Streams, running: Backups, transfers: Transfers, bridge: Bridge
    ) -> None:
        self._callers = callers
        self._streams = streams
        self._backups = running
        self._transfers = transfers
        self._bridge = bridge

    def OpenTransfer(
        self, request: transfer_pb2.OpenTransferRequest, context: grpc.ServicerContext
    ) -> transfer_pb2.OpenTransferResponse:
        agent_id = self._callers.agent(context)
        transfer = self._bridge(self._backups.open_transfer(agent_id, request.backup_id, _incoming(request)))
        return transfer_pb2.OpenTransferResponse(transfer_id=transfer.id, durable_offset=transfer.durable_offset())

    def WriteExtents(
        self, requests: Iterator[transfer_pb2.WriteExtentsRequest], context: grpc.ServicerContext
    ) -> Iterator[transfer_pb2.WriteExtentsResponse]:
        with self._streams.admitted():
            opening = first(requests, context, transfer_pb2.WriteExtentsRequest())
            if not opening.HasField("start"):
                raise InvalidRequest("the first message of this stream says which transfer", field="start")
            transfer = self._own(opening.start.transfer_id, context)
            for durable in transfer.write(opening.start.offset, map(_run, requests)):
                yield transfer_pb2.WriteExtentsResponse(durable_offset=durable)

    def SealTransfer(
        self, request: transfer_pb2.SealTransferRequest, context: grpc.ServicerContext
    ) -> transfer_pb2.SealTransferResponse:
        transfer = self._own(request.transfer_id, context)
        sealed = transfer.seal(_coverage(request.coverage), _totals(request))
        return transfer_pb2.SealTransferResponse(root_digest=sealed.image.root.hex(), stored_bytes=sealed.image.stored)

    def CommitBackup(
        self, request: transfer_pb2.CommitBackupRequest, context: grpc.ServicerContext
    ) -> transfer_pb2.CommitBackupResponse:
        agent_id = self._callers.agent(context)
        complete = self._bridge(
            self._backups.commit(agent_id, request.backup_id, request.transfer_ids, _captured(request))
        )
        return transfer_pb2.CommitBackupResponse(complete_time=messages.timestamp(complete.completed_at))

    def _own(self, transfer_id: str, context: grpc.ServicerContext) -> Transfer:
        """The calling agent's transfer; another agent's does not exist for it."""
        agent_id = self._callers.agent(context)
        transfer = self._transfers.get(transfer_id)
        if self._bridge(self._backups.agent_of(transfer.backup_id)) != agent_id:
            raise NotFound(f"there is no transfer {transfer_id}")
        return transfer


def _incoming(request: transfer_pb2.OpenTransferRequest) -> IncomingDisk:
    type_run = messages.asked_type(request.type_run, "type_run")
    if type_run not in (BackupType.FULL, BackupType.INCREMENTAL):
        raise InvalidRequest("what runs for a disk is FULL or INCREMENTAL", field="type_run")
    if not request.HasField("disk"):
        raise InvalidRequest("say which disk", field="disk")
    if request.disk_index < 0:
        raise InvalidRequest("disks are counted from 0", field="disk_index")
    if not 0 < request.capacity_bytes <= LARGEST_DISK or request.capacity_bytes % SECTOR:
        message = f"{request.capacity_bytes} bytes are no disk: whole sectors, up to {human_size(LARGEST_DISK)}"
        raise InvalidRequest(message, field="capacity_bytes")
    identity = DiskIdentity(request.disk.device_key, request.disk.backing_uuid, request.disk.disk_object_id)
    return IncomingDisk(
        identity=identity,
        index=request.disk_index,
        label=request.label,
        capacity=request.capacity_bytes,
        type_run=type_run,
        type_reason=request.type_reason,
        change_id=request.change_id,
        base_image_id=request.base_image_id,
        base_change_id=request.base_change_id,
    )


def _run(request: transfer_pb2.WriteExtentsRequest) -> ClusterRun:
    run = request.run
    if run.encoding not in _ENCODINGS:
        raise InvalidRequest("a message of this stream has no run, or one of unknown encoding", field="run.encoding")
    return ClusterRun(run.offset, run.count, _ENCODINGS[run.encoding], run.payload, tuple(run.lengths), run.digests)


def _coverage(coverage: transfer_pb2.Coverage) -> Coverage:
    if coverage.source not in _SOURCES:
        raise InvalidRequest("say where the coverage comes from", field="coverage.source")
    return Coverage(
        source=_SOURCES[coverage.source],
        from_offset=coverage.from_offset,
        to_offset=coverage.to_offset,
        pages=coverage.pages,
        extents=coverage.extents,
        bytes=coverage.bytes,
    )


def _totals(request: transfer_pb2.SealTransferRequest) -> Totals:
    return Totals(
        data_clusters=request.data_clusters,
        zero_clusters=request.zero_clusters,
        changed_bytes=request.changed_bytes,
        read_bytes=request.read_bytes,
        skipped_bytes=request.skipped_bytes,
    )


def _captured(request: transfer_pb2.CommitBackupRequest) -> Captured:
    if request.consistency not in _CONSISTENCIES:
        raise InvalidRequest("say what the snapshot shows of the guest", field="consistency")
    if not request.HasField("snapshot_time"):
        raise InvalidRequest("say when the snapshot was taken", field="snapshot_time")
    skipped = tuple(SkippedDisk(disk.device_key, disk.label, disk.reason) for disk in request.skipped_disks)
    return Captured(
        messages.moment(request.snapshot_time, "snapshot_time"), _CONSISTENCIES[request.consistency], skipped
    )
