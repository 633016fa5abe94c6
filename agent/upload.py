"""The upload of one disk: read ahead, digest and compress in threads, one ordered stream to the hub.

    plan ─ DiskReader (several reads in flight) ─ encode (worker threads) ─ runs in order ─ WriteExtents
                                                                   durable offsets back ◄──┘

Bytes in flight are bounded by the reader's depth and the window of encoded pieces; nothing grows with the disk.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass

from agent.assignment import Progress
from agent.config import BackupSection
from agent.disks.reader import DiskReader
from agent.hub_client import HubClient, OpenedTransfer, TransferTotals
from agent.plan import Plan
from shared.errors import Cancelled
from shared.extents import Extent, Kind, split_data
from shared.runs import ClusterRun, Encoding, encode, zero_run

ENCODE_AHEAD = 4
"""Pieces being encoded, or encoded and not sent yet, per disk."""


@dataclass(frozen=True, slots=True)
class Pipeline:
    """What an upload works with."""

    settings: BackupSection
    encoders: Executor
    progress: Progress
    stopped: Callable[[], bool]
    """Turns true when the task is cancelled or another disk of it failed."""


def upload(hub: HubClient, transfer: OpenedTransfer, plan: Plan, reader: DiskReader, pipe: Pipeline) -> TransferTotals:
    """Send a disk by its plan; raises what reading or the hub raised, or Cancelled."""
    sent = _Sent(_runs(plan, reader, pipe, transfer.durable_offset))
    for _ in hub.write_extents(transfer, sent):
        pass  # durable offsets: what a resumed upload would start from
    if pipe.stopped():
        raise Cancelled("the upload was stopped")
    return TransferTotals(sent.data_clusters, sent.zero_clusters, plan.total_bytes, plan.data_bytes, plan.zero_bytes)


class _Sent:
    """Counts the clusters that pass."""

    def __init__(self, runs: Iterator[ClusterRun]) -> None:
        self._runs = runs
        self.data_clusters = 0
        self.zero_clusters = 0

    def __iter__(self) -> Iterator[ClusterRun]:
        for run in self._runs:
            if run.encoding is Encoding.ZERO:
                self.zero_clusters += run.count
            else:
                self.data_clusters += run.count
            yield run


def _runs(plan: Plan, reader: DiskReader, pipe: Pipeline, start: int) -> Iterator[ClusterRun]:
    """The disk's runs in order, encoded a few pieces ahead of the one being sent."""
    window: deque[list[ClusterRun] | Future[list[ClusterRun]]] = deque()
    pieces = reader.read(
        split_data(plan.extents(start), pipe.settings.request_size),
        depth=pipe.settings.requests_in_flight,
        stopped=pipe.stopped,
    )
    for piece, data in pieces:
        if pipe.stopped():
            return
        window.append(_encoded(piece, data, pipe))
        if len(window) > ENCODE_AHEAD:
            yield from _result(window.popleft())
    while window:
        yield from _result(window.popleft())


def _encoded(piece: Extent, data: memoryview, pipe: Pipeline) -> list[ClusterRun] | Future[list[ClusterRun]]:
    if piece.kind is Kind.ZERO:
        pipe.progress.add(skipped=piece.length)
        return [zero_run(piece)]
    pipe.progress.add(read=piece.length)
    level = pipe.settings.compression_level if pipe.settings.compression == "zstd" else None
    return pipe.encoders.submit(encode, piece.offset, data, level)


def _result(slot: list[ClusterRun] | Future[list[ClusterRun]]) -> list[ClusterRun]:
    return slot if isinstance(slot, list) else slot.result()
