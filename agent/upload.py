"""The upload of one disk: read ahead, digest and compress in threads, one ordered stream to the hub.

    plan ─ DiskReader (several reads in flight) ─ encode (worker threads) ─ runs in order ─ WriteExtents
                                                                   durable offsets back ◄──┘

Bytes in flight are bounded by the reader's depth and the window of encoded pieces; nothing grows with the disk.
"""

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass

from agent.assignment import Progress
from agent.config import BackupSection
from agent.disks.reader import DiskReader
from agent.hub_client import HubClient, OpenedTransfer, TransferTotals
from agent.plan import Plan
from agent.stop import Stop
from shared.errors import SendenseError
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
    stop: Stop
    """Asked for when the task is cancelled or a disk of it failed, be it this one."""


def upload(hub: HubClient, transfer: OpenedTransfer, plan: Plan, reader: DiskReader, pipe: Pipeline) -> TransferTotals:
    """Send a disk by its plan; raises what reading or the hub raised, or what stopped it."""
    sent = _Sent(_runs(plan, reader, pipe, transfer.durable_offset))
    with sent:
        try:
            for _ in hub.write_extents(transfer, sent, pipe.stop):
                pass  # durable offsets: what a resumed upload would start from
        except SendenseError as error:
            pipe.stop.ask(error)  # reading, too, which goes on in gRPC's thread
    pipe.stop.check()
    return TransferTotals(sent.data_clusters, sent.zero_clusters, plan.total_bytes, plan.data_bytes, plan.zero_bytes)


class _Sent:
    """Counts the clusters that pass; none does after the `with`, when the reader may be closed.

    gRPC takes runs in a thread of its own, which it does not wait for when a call breaks.
    """

    def __init__(self, runs: Iterator[ClusterRun]) -> None:
        self._runs = runs
        self._being_made = threading.Lock()
        self._over = False
        self.data_clusters = 0
        self.zero_clusters = 0

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        with self._being_made:
            self._over = True

    def __iter__(self) -> Iterator[ClusterRun]:
        while (run := self._next()) is not None:
            if run.encoding is Encoding.ZERO:
                self.zero_clusters += run.count
            else:
                self.data_clusters += run.count
            yield run

    def _next(self) -> ClusterRun | None:
        with self._being_made:
            return None if self._over else next(self._runs, None)


def _runs(plan: Plan, reader: DiskReader, pipe: Pipeline, start: int) -> Iterator[ClusterRun]:
    """The disk's runs in order, encoded a few pieces ahead of the one being sent."""
    window: deque[list[ClusterRun] | Future[list[ClusterRun]]] = deque()
    pieces = reader.read(
        split_data(plan.extents(start), pipe.settings.request_size),
        depth=pipe.settings.requests_in_flight,
        stopped=pipe.stop.asked,
    )
    for piece, data in pieces:
        if pipe.stop.asked():
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
