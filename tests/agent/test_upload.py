"""The upload of a disk: everything in order, little of it in memory, and errors as they are."""

import random
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest

from agent.assignment import Counts, Progress
from agent.config import BackupSection
from agent.disks.memory import MemoryDisk, MemoryReader
from agent.hub_client import HubClient, OpenedTransfer, TransferTotals
from agent.plan import Plan, plan_full
from agent.stop import Stop
from agent.upload import ENCODE_AHEAD, Pipeline, upload
from shared.errors import Cancelled, ReadFailed, RepositoryFull, TimedOut, Unavailable
from shared.extents import Extent, Kind
from shared.nbd import Piece
from shared.runs import ClusterRun, Encoding, check_digests, check_shape
from shared.units import CLUSTER, SECTOR, MiB

DISK = 16 * MiB


class ReceivingHub(HubClient):
    """Takes runs one at a time; `on_run` is called with each."""

    def __init__(self, on_run: Callable[[ClusterRun], None] = lambda run: None) -> None:
        self.runs: list[ClusterRun] = []
        self._on_run = on_run

    def write_extents(self, transfer: OpenedTransfer, runs: Iterable[ClusterRun], stop: Stop) -> Iterator[int]:
        for run in runs:
            self.runs.append(run)
            self._on_run(run)
        yield DISK


@dataclass
class CountingReader:
    """A DiskReader that counts the pieces it gave out, may fail at an offset, and does not look at `stopped`."""

    disk: MemoryReader
    fails_at: int | None = None
    given: int = 0

    @property
    def capacity(self) -> int:
        return self.disk.capacity

    def allocated(self) -> Iterator[Extent]:
        return self.disk.allocated()

    def read(self, pieces: Iterable[Extent], *, depth: int = 4, stopped: Callable[[], bool] = bool) -> Iterator[Piece]:
        for piece, data in self.disk.read(pieces, depth=depth):
            if piece.offset == self.fails_at:
                raise ReadFailed(f"bad sector at {piece.offset}")
            self.given += 1
            yield piece, data


@dataclass
class Bench:
    """Uploads with everything at hand."""

    encoders: Executor
    reader: CountingReader
    progress: Progress = field(default_factory=Progress)
    stop: Stop = field(default_factory=Stop)

    def upload(self, hub: HubClient, plan: Plan | None = None, start: int = 0, **settings: object) -> TransferTotals:
        pipe = Pipeline(BackupSection.model_validate(settings), self.encoders, self.progress, self.stop)
        return upload(hub, OpenedTransfer("transfer", start), plan or plan_full(self.reader)[0], self.reader, pipe)


@pytest.fixture
def bench() -> Iterator[Bench]:
    """A disk full of noise."""
    disk = MemoryDisk(DISK)
    disk.write(0, random.Random(1).randbytes(DISK))
    with ThreadPoolExecutor(4) as encoders:
        yield Bench(encoders, CountingReader(disk.freeze()))


@pytest.mark.parametrize("request_size", [CLUSTER, 3 * CLUSTER, MiB, 32 * MiB])
def test_runs_come_in_order_without_a_gap(bench: Bench, request_size: int) -> None:
    hub = ReceivingHub()
    bench.upload(hub, request_size=request_size)
    assert [run.offset for run in hub.runs] == [0, *(run.end for run in hub.runs[:-1])]
    assert hub.runs[-1].end == DISK


@pytest.mark.parametrize("compression", ["zstd", "off"])
def test_runs_are_such_as_a_hub_takes(bench: Bench, compression: str) -> None:
    hub = ReceivingHub()
    bench.upload(hub, compression=compression)
    for run in hub.runs:
        check_shape(run)
        check_digests(run)


def test_order_is_kept_though_encoding_takes_unlike_times(bench: Bench) -> None:
    disk = MemoryDisk(DISK)
    for megabyte in range(0, DISK, 2 * MiB):
        disk.write(megabyte, b"quickly done " * 20)
        disk.write(megabyte + MiB, random.Random(megabyte).randbytes(MiB))
    bench.reader = CountingReader(disk.freeze())
    hub = ReceivingHub()
    bench.upload(hub, compression_level=19)
    offsets = [run.offset for run in hub.runs]
    assert offsets == sorted(offsets)


def test_what_compresses_is_sent_compressed_unless_that_is_off(bench: Bench) -> None:
    disk = MemoryDisk(MiB)
    disk.write(0, b"text " * (MiB // 5))
    bench.reader = CountingReader(disk.freeze())
    on, off = ReceivingHub(), ReceivingHub()
    bench.upload(on, compression="zstd")
    bench.upload(off, compression="off")
    assert {run.encoding for run in on.runs} == {Encoding.ZSTD}
    assert {run.encoding for run in off.runs} == {Encoding.RAW}


def test_a_slow_hub_holds_reading_up(bench: Bench) -> None:
    most_ahead = 0

    def on_run(run: ClusterRun) -> None:
        nonlocal most_ahead
        most_ahead = max(most_ahead, bench.reader.given - run.end // MiB)

    bench.upload(ReceivingHub(on_run), request_size=MiB)
    assert most_ahead <= ENCODE_AHEAD


def test_zeros_of_any_length_are_one_run_and_are_not_read(bench: Bench) -> None:
    hub = ReceivingHub()
    plan = Plan([Extent(0, CLUSTER), Extent(CLUSTER, DISK - CLUSTER, Kind.ZERO)])
    bench.upload(hub, plan)
    assert [(run.encoding, run.count) for run in hub.runs] == [(Encoding.RAW, 1), (Encoding.ZERO, DISK // CLUSTER - 1)]


def test_an_upload_goes_on_where_the_hub_has_it_durable(bench: Bench) -> None:
    hub = ReceivingHub()
    bench.upload(hub, start=5 * MiB + CLUSTER)
    assert (hub.runs[0].offset, hub.runs[-1].end) == (5 * MiB + CLUSTER, DISK)


def test_the_totals_are_the_clusters_sent_and_the_bytes_planned(bench: Bench) -> None:
    disk = MemoryDisk(DISK - CLUSTER + SECTOR)
    disk.write(0, b"x" * 3 * CLUSTER)
    disk.zero(3 * CLUSTER, 2 * CLUSTER)
    disk.write(disk.capacity - SECTOR, b"x" * SECTOR)
    bench.reader = CountingReader(disk.freeze())
    plan = Plan(
        [
            Extent(0, 5 * CLUSTER),
            Extent(5 * CLUSTER, 7 * CLUSTER, Kind.ZERO),
            Extent(disk.capacity - SECTOR, SECTOR),
        ]
    )
    totals = bench.upload(ReceivingHub(), plan)
    assert totals == TransferTotals(
        data_clusters=4,
        zero_clusters=2 + 7,
        changed_bytes=12 * CLUSTER + SECTOR,
        read_bytes=5 * CLUSTER + SECTOR,
        skipped_bytes=7 * CLUSTER,
    )


def test_progress_ends_with_everything_read_or_skipped(bench: Bench) -> None:
    plan = Plan([Extent(0, 5 * MiB), Extent(6 * MiB, 2 * MiB, Kind.ZERO)])
    bench.progress.add(total=plan.total_bytes)
    bench.upload(ReceivingHub(), plan)
    assert bench.progress.counts() == Counts(total=7 * MiB, read=5 * MiB, skipped=2 * MiB)


def test_an_error_in_reading_is_raised_as_it_is(bench: Bench) -> None:
    bench.reader.fails_at = 7 * MiB
    with pytest.raises(ReadFailed, match="bad sector at 7340032"):
        bench.upload(ReceivingHub())


def test_an_error_of_the_hub_is_raised_as_it_is(bench: Bench) -> None:
    def full(run: ClusterRun) -> None:
        raise RepositoryFull("no room")

    with pytest.raises(RepositoryFull):
        bench.upload(ReceivingHub(full))


def test_a_stop_ends_the_upload_at_once(bench: Bench) -> None:
    hub = ReceivingHub(lambda run: bench.stop.ask(Cancelled("enough")))
    with pytest.raises(Cancelled):
        bench.upload(hub)
    assert len(hub.runs) <= 1 + ENCODE_AHEAD


def test_a_stop_is_seen_though_nothing_is_read_any_more(bench: Bench) -> None:
    hub = ReceivingHub(lambda run: bench.stop.ask(Cancelled("enough")))
    plan = Plan(Extent(2 * index * CLUSTER, CLUSTER, Kind.ZERO) for index in range(100_000))
    with pytest.raises(Cancelled):
        bench.upload(hub, plan)
    assert len(hub.runs) <= 1 + ENCODE_AHEAD


def test_a_stop_before_the_first_byte_sends_none(bench: Bench) -> None:
    bench.stop.ask(Cancelled("enough"))
    hub = ReceivingHub()
    with pytest.raises(Cancelled):
        bench.upload(hub)
    assert hub.runs == []


class BrokenHub(ReceivingHub):
    """Breaks its call when stopped, while a run is being made in gRPC's thread, which nobody waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: list[threading.Thread] = []

    def write_extents(self, transfer: OpenedTransfer, runs: Iterable[ClusterRun], stop: Stop) -> Iterator[int]:
        broken = threading.Event()
        self.threads.append(threading.Thread(target=self.runs.extend, args=(runs,)))
        with stop.interrupting(broken.set):
            self.threads[0].start()
            yield 0
            assert broken.wait(20)
        raise Unavailable("the call was ended")


def test_a_broken_call_ends_with_what_stopped_the_backup(bench: Bench) -> None:
    threading.Timer(0.05, bench.stop.ask, [TimedOut("it took too long")]).start()
    with pytest.raises(TimedOut, match="it took too long"):
        bench.upload(BrokenHub())


def test_nothing_is_read_any_more_once_a_broken_upload_has_ended(bench: Bench) -> None:
    """Its reader is closed then, and gRPC's thread must not be in it."""
    reading, going_on = threading.Event(), threading.Event()
    slow = bench.reader.disk.read

    def read(*arguments: Any, **options: Any) -> Iterator[Piece]:
        reading.set()
        assert going_on.wait(20)
        yield from slow(*arguments, **options)

    bench.reader.disk.read = read  # type: ignore[method-assign]
    with ThreadPoolExecutor(1) as thread:
        uploaded = thread.submit(bench.upload, BrokenHub())
        assert reading.wait(20)
        bench.stop.ask(Cancelled("enough"))
        with pytest.raises(TimeoutError):
            uploaded.result(timeout=0.2)
        going_on.set()
        assert isinstance(uploaded.exception(timeout=20), Cancelled)
