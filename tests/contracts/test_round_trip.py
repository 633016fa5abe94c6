"""The round trip: whatever a guest does to a disk, each of its restore points holds the bytes of its instant.

MemoryDisk ─ agent.plan ─ agent.upload ─ hub.transfers ─ QCOW2 chain ─ hub.restores ─ compared with Model
              changes, as vCenter might tell them                 └──── qemu-img compare, qemu-img check
"""

import random
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.assignment import Progress
from agent.config import BackupSection
from agent.disks.memory import MemoryDisk
from agent.hub_client import HubClient, OpenedTransfer, TransferTotals
from agent.plan import Coverage, Plan, plan_full, plan_incremental
from agent.stop import Stop
from agent.upload import Pipeline, upload
from agent.vsphere.changes import Changes
from hub import transfers
from hub.catalogue.disks import DiskIdentity
from hub.catalogue.states import BackupType
from hub.images.partial import PartialImage
from hub.images.qcow2 import ParentImage
from hub.images.qemu_nbd import served
from hub.restores import DiskFormat, opened
from hub.tasks import RunningTask
from hub.transfers import CoverageSource, IncomingDisk, Totals, Transfer
from shared.extents import Extent, Kind, merge
from shared.nbd import NbdDisk
from shared.runs import ClusterRun
from shared.units import CLUSTER, SECTOR, GiB, KiB, MiB, TiB, align_down, align_up

LONGEST_WRITE = 2 * MiB


class Model:
    """What a disk has to hold: its non-zero sectors, by number. It shares nothing with the product."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.sectors: dict[int, bytes] = {}

    def write(self, offset: int, data: bytes) -> None:
        first = offset // SECTOR
        old = b"".join(self._sector(index) for index in range(first, -(-(offset + len(data)) // SECTOR)))
        begin = offset % SECTOR
        self.load(first * SECTOR, old[:begin] + data + old[begin + len(data) :])

    def clear(self, offset: int, length: int) -> None:
        """Zeros over whole sectors."""
        for index in [index for index in self.sectors if offset <= index * SECTOR < offset + length]:
            del self.sectors[index]

    def load(self, offset: int, data: bytes) -> None:
        """Put whole sectors."""
        for at in range(0, len(data), SECTOR):
            sector = data[at : at + SECTOR]
            self.sectors[(offset + at) // SECTOR] = sector
            if not any(sector):
                del self.sectors[(offset + at) // SECTOR]

    def copy(self) -> "Model":
        copied = Model(self.capacity)
        copied.sectors = dict(self.sectors)
        return copied

    def save(self, path: Path) -> None:
        """As a sparse raw file."""
        with path.open("wb") as file:
            file.truncate(self.capacity)
            for index, sector in self.sectors.items():
                file.seek(index * SECTOR)
                file.write(sector)

    def _sector(self, index: int) -> bytes:
        return self.sectors.get(index, bytes(SECTOR))


class DirectHub(HubClient):
    """The hub's transfer in the place of the connection to it."""

    def __init__(self, transfer: Transfer) -> None:
        self._into = transfer

    def write_extents(self, transfer: OpenedTransfer, runs: Iterable[ClusterRun], stop: Stop) -> Iterator[int]:
        return self._into.write(transfer.durable_offset, runs)


@dataclass(frozen=True)
class Point:
    """A restore point: its image, what it has to hold, and what its transfer came to."""

    image: Path
    truth: Model
    totals: TransferTotals


class Guest:
    """A disk in use, backed up into a chain of images in `folder`."""

    def __init__(self, folder: Path, capacity: int, encoders: Executor, backup: BackupSection | None = None) -> None:
        self.points: list[Point] = []
        self.noise = random.Random(capacity)
        self._folder = folder
        self._encoders = encoders
        self._settings = backup or BackupSection()
        self._disk = MemoryDisk(capacity)
        self._model = Model(capacity)
        self._changed: list[Extent] = []

    @property
    def capacity(self) -> int:
        return self._disk.capacity

    def write(self, offset: int, data: bytes) -> None:
        self._disk.write(offset, data)
        self._model.write(offset, data)
        self._changed.append(Extent(offset, len(data)))

    def zero(self, offset: int, length: int) -> None:
        self._disk.zero(offset, length)
        self._model.clear(offset, length)
        self._changed.append(Extent(offset, length))

    def trim(self, offset: int, length: int) -> None:
        self._disk.trim(offset, length)
        self._model.clear(offset, length)
        self._changed.append(Extent(offset, length))

    def back_up(self, over_reported: int = 0) -> Point:
        """A full the first time, then increments; changes are told with up to so many bytes too much at each end."""
        reader = self._disk.freeze()
        if self.points:
            plan, coverage = plan_incremental(reader, Changes(self._answers(over_reported), self.capacity))
        else:
            plan, coverage = plan_full(reader)
        transfer = self._transfer()
        pipe = Pipeline(self._settings, self._encoders, Progress(), Stop())
        totals = upload(DirectHub(transfer), OpenedTransfer(transfer.id, 0), plan, reader, pipe)
        image = _sealed(transfer, plan, coverage, totals)
        self._changed.clear()
        self.points.append(Point(image, self._model.copy(), totals))
        return self.points[-1]

    def _transfer(self) -> Transfer:
        parent = self.points[-1].image.name if self.points else ""
        name = f"{len(self.points):03}"
        disk = IncomingDisk(
            identity=DiskIdentity(2000, "uuid", "1-2000"),
            index=0,
            label="Hard disk 1",
            capacity=self.capacity,
            type_run=BackupType.INCREMENTAL if parent else BackupType.FULL,
            type_reason="",
            change_id="uuid/2",
            base_image_id=parent,
            base_change_id="uuid/1" if parent else "",
        )
        path = self._folder / f"{name}.qcow2"
        image = PartialImage.create(path, self.capacity, ParentImage(parent) if parent else None)
        return Transfer(name, "disk", disk, None, image, RunningTask("agent"))

    def _answers(self, over_reported: int) -> Callable[[int], SimpleNamespace]:
        """What vCenter says changed: extents without any alignment, in pages that end anywhere."""
        told = list(merge(sorted((self._grown(extent, over_reported) for extent in self._changed), key=_offset)))

        def ask(offset: int) -> SimpleNamespace:
            end = min(offset + self.noise.randrange(self.capacity // 20 + 1, self.capacity + 2), self.capacity)
            areas = [
                SimpleNamespace(
                    start=max(extent.offset, offset), length=min(extent.end, end) - max(extent.offset, offset)
                )
                for extent in told
                if extent.offset < end and offset < extent.end
            ]
            return SimpleNamespace(startOffset=offset, length=end - offset, changedArea=areas)

        return ask

    def _grown(self, extent: Extent, most: int) -> Extent:
        start = max(extent.offset - self.noise.randint(0, most), 0)
        return Extent(start, min(extent.end + self.noise.randint(0, most), self.capacity) - start)


def _offset(extent: Extent) -> int:
    return extent.offset


def _sealed(transfer: Transfer, plan: Plan, coverage: Coverage, totals: TransferTotals) -> Path:
    proof = transfers.Coverage(
        source=CoverageSource(coverage.source.value),
        from_offset=0,
        to_offset=coverage.to_offset,
        pages=coverage.pages,
        extents=coverage.extents,
        bytes=coverage.bytes,
    )
    sealed = transfer.seal(proof, Totals(**asdict(totals)))
    transfer.publish()
    plan.close()
    return sealed.image.path


def assert_restores(*points: Point) -> None:
    """Fail unless each point holds its truth, by our restore and by qemu's own tools."""
    for point in points:
        _qemu_img("check", "-f", "qcow2", point.image)
        assert restored(point.image).sectors == point.truth.sectors
        raw = point.image.with_suffix(".raw")
        point.truth.save(raw)
        _qemu_img("compare", "-f", "raw", "-F", "qcow2", raw, point.image)
        raw.unlink()


def assert_holds(point: Point, *offsets: int) -> None:
    """The same for some clusters of a disk that is too large to be looked at as a whole."""
    _qemu_img("check", "-f", "qcow2", point.image)
    with served(point.image) as socket, NbdDisk(socket) as disk:
        assert disk.size == point.truth.capacity
        for piece, data in disk.read([Extent(offset, CLUSTER) for offset in offsets]):
            held = Model(disk.size)
            held.load(piece.offset, bytes(data))
            inside = range(piece.offset // SECTOR, piece.end // SECTOR)
            assert held.sectors == {index: data for index, data in point.truth.sectors.items() if index in inside}


def restored(image: Path) -> Model:
    """What a restore of the image and its chain gives."""
    with opened(image, DiskFormat.RAW, image.parent / "staging") as stream:
        model, reached = Model(stream.size), 0
        for piece, data in stream.pieces:
            assert piece.offset == reached
            if piece.kind is Kind.DATA:
                model.load(piece.offset, bytes(data))
            reached = piece.end
        assert reached == stream.size
    return model


def _qemu_img(*args: str | Path) -> None:
    done = subprocess.run(["qemu-img", *args], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def encoders() -> Iterator[Executor]:
    with ThreadPoolExecutor(2) as threads:
        yield threads


@pytest.fixture
def disk_of(tmp_path: Path, encoders: Executor) -> Callable[[int], Guest]:
    """Makes a disk of so many bytes."""
    return lambda capacity: Guest(tmp_path, capacity, encoders)


DiskOf = Callable[[int], Guest]


# -- anything a guest may do ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Deed:
    """Something a guest does, wherever it fits on the disk."""

    what: str
    place: int
    sectors: int
    fill: int

    def do(self, guest: Guest) -> None:
        offset = align_down(self.place % guest.capacity, SECTOR)
        length = min(self.sectors * SECTOR, guest.capacity - offset)
        if self.what == "zero":
            guest.zero(offset, min(length, LONGEST_WRITE))
        elif self.what == "trim":
            guest.trim(offset, length)
        else:
            guest.write(offset, self._data(min(length, LONGEST_WRITE)))

    def _data(self, length: int) -> bytes:
        if self.what == "noise":
            return random.Random(self.fill).randbytes(length)
        if self.what == "text":
            return (b"%d and so on, " % self.fill * length)[:length]
        lonely = self.fill % length
        return bytes(lonely) + b"\x01" + bytes(length - lonely - 1)


CAPACITIES = st.one_of(
    st.sampled_from([SECTOR, CLUSTER - SECTOR, CLUSTER, CLUSTER + SECTOR, 512 * MiB, 512 * MiB + SECTOR, GiB + SECTOR]),
    st.integers(1, 64 * KiB).map(lambda sectors: sectors * SECTOR),
    st.integers(1, 3 * GiB // SECTOR).map(lambda sectors: sectors * SECTOR),
)

PLACES = st.one_of(
    st.integers(0, 3 * GiB),
    st.integers(0, 4 * MiB),  # close together, so that deeds overlap
    st.integers(-200, -1).map(lambda sectors: sectors * SECTOR),  # at the disk's end
    st.integers(-200, 200).map(lambda sectors: 512 * MiB + sectors * SECTOR),  # where one table ends
)

LENGTHS = st.one_of(st.integers(1, 130), st.just(CLUSTER // SECTOR), st.integers(1, 10_000), st.just(GiB // SECTOR))

DEEDS = st.lists(
    st.builds(
        Deed, st.sampled_from(["noise", "text", "lonely", "zero", "trim"]), PLACES, LENGTHS, st.integers(0, 10**6)
    ),
    max_size=8,
)

SECTIONS = st.builds(
    BackupSection,
    request_size=st.integers(1, 40).map(lambda clusters: clusters * CLUSTER),
    requests_in_flight=st.integers(1, 4),
    compression=st.sampled_from(["zstd", "off"]),
)


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(
    capacity=CAPACITIES,
    rounds=st.lists(DEEDS, min_size=2, max_size=5),
    section=SECTIONS,
    over_reported=st.sampled_from([0, 1, 5000, 200_000]),
)
def test_every_point_of_a_chain_restores_the_bytes_of_its_instant(
    encoders: Executor, capacity: int, rounds: list[list[Deed]], section: BackupSection, over_reported: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        guest = Guest(Path(folder), capacity, encoders, section)
        for deeds in rounds:
            for deed in deeds:
                deed.do(guest)
            guest.back_up(over_reported)
        assert_restores(*guest.points)


# -- what has been somebody's lost data -------------------------------------------------------------------------------


@pytest.mark.parametrize("capacity", [SECTOR, CLUSTER - SECTOR, CLUSTER, GiB + SECTOR])
def test_a_disk_of_this_size_keeps_its_first_and_last_sectors(disk_of: DiskOf, capacity: int) -> None:
    guest = disk_of(capacity)
    guest.write(capacity - SECTOR, b"last".ljust(SECTOR))
    guest.write(0, b"first")
    guest.back_up()
    guest.write(0, b"other")
    guest.back_up()
    guest.trim(capacity - SECTOR, SECTOR)
    guest.back_up()
    assert_restores(*guest.points)


@pytest.mark.parametrize("capacity", [2 * TiB + SECTOR, pytest.param(62 * TiB, marks=pytest.mark.slow)])
def test_an_enormous_disk_keeps_what_was_written_anywhere(disk_of: DiskOf, capacity: int) -> None:
    guest = disk_of(capacity)
    places = [0, 4 * GiB, align_down(capacity // 2, CLUSTER), capacity - CLUSTER]
    for place in places:
        guest.write(place, b"%d" % place)
    guest.back_up()
    guest.write(places[2] + 1000, b"other")
    guest.trim(TiB, capacity - CLUSTER - TiB)
    guest.write(capacity - SECTOR, b"last".ljust(SECTOR))
    guest.back_up()
    for point in guest.points:
        assert_holds(point, *(align_down(place, SECTOR) for place in places))


@pytest.mark.parametrize("compression", ["zstd", "off"])
def test_one_non_zero_byte_survives_wherever_it_is(tmp_path: Path, encoders: Executor, compression: str) -> None:
    backup = BackupSection.model_validate({"compression": compression})
    guest = Guest(tmp_path, 8 * MiB, encoders, backup)
    guest.back_up()
    for index, offset in enumerate(range(0, guest.capacity, CLUSTER)):
        guest.write(offset + (index * 521) % CLUSTER, b"\x01")
    guest.write(guest.capacity - 1, b"\x01")
    guest.back_up()
    assert_restores(*guest.points)


@pytest.mark.parametrize("clear", [Guest.zero, Guest.trim])
@pytest.mark.parametrize("length", [SECTOR, 4 * KiB, 60 * KiB, CLUSTER - SECTOR, CLUSTER, CLUSTER + SECTOR])
def test_old_data_does_not_show_through_what_was_cleared(
    disk_of: DiskOf, clear: Callable[[Guest, int, int], None], length: int
) -> None:
    guest = disk_of(4 * MiB)
    guest.write(0, b"old " * MiB)
    guest.back_up()
    clear(guest, CLUSTER - SECTOR, length)
    clear(guest, 2 * MiB, length)
    clear(guest, guest.capacity - length, length)
    guest.back_up()
    assert_restores(*guest.points)


def test_what_changed_and_is_unallocated_is_said_to_be_zero_without_being_read(disk_of: DiskOf) -> None:
    guest = disk_of(4 * MiB)
    guest.write(0, b"old " * MiB)
    guest.back_up()
    guest.trim(MiB, 2 * MiB)
    totals = guest.back_up().totals
    assert (totals.data_clusters, totals.zero_clusters, totals.read_bytes) == (0, 2 * MiB // CLUSTER, 0)
    assert_restores(*guest.points)


def test_zeros_written_over_data_are_read_and_stored_as_zeros(disk_of: DiskOf) -> None:
    guest = disk_of(4 * MiB)
    guest.write(0, b"old " * MiB)
    guest.back_up()
    guest.zero(MiB, 2 * MiB)
    totals = guest.back_up().totals
    assert (totals.data_clusters, totals.zero_clusters, totals.read_bytes) == (0, 2 * MiB // CLUSTER, 2 * MiB)
    assert_restores(*guest.points)


@pytest.mark.parametrize("start", [0, 100 * MiB, GiB])
def test_a_hole_of_exactly_4_gib_hides_what_was_there(disk_of: DiskOf, start: int) -> None:
    guest = disk_of(6 * GiB)
    for offset in range(0, guest.capacity, 512 * MiB):
        guest.write(offset, b"old " * CLUSTER)
    guest.write(start + 4 * GiB, b"after")
    guest.back_up()
    guest.trim(start, 4 * GiB)
    assert guest.back_up().totals.zero_clusters == 4 * GiB // CLUSTER
    assert_restores(*guest.points)


def test_a_full_of_a_disk_with_a_hole_of_exactly_4_gib_restores(disk_of: DiskOf) -> None:
    guest = disk_of(4 * GiB + 2 * CLUSTER)
    guest.write(0, b"before")
    guest.write(4 * GiB + CLUSTER, b"after")
    guest.back_up()
    assert_restores(*guest.points)


def test_an_incremental_without_changes_completes_and_restores(disk_of: DiskOf) -> None:
    guest = disk_of(4 * MiB)
    guest.write(0, b"old " * MiB)
    guest.back_up()
    assert guest.back_up().totals == TransferTotals(0, 0, changed_bytes=0, read_bytes=0, skipped_bytes=0)
    assert_restores(*guest.points)


def test_a_chain_of_increments_shows_at_each_point_what_was_written_last(disk_of: DiskOf) -> None:
    guest = disk_of(2 * MiB)
    for generation in range(6):
        guest.write(generation * 100 * KiB, b"%d" % generation * 3 * CLUSTER)  # overlaps the one before
        guest.write(MiB + generation * CLUSTER, b"%d" % generation)  # does not
        guest.back_up(over_reported=70_000)
    assert_restores(*guest.points)


def test_changes_told_too_generously_still_cost_whole_clusters_only(disk_of: DiskOf) -> None:
    guest = disk_of(4 * MiB)
    guest.write(0, b"old " * MiB)
    guest.back_up()
    guest.write(MiB + 1, b"x")
    totals = guest.back_up(over_reported=10_000).totals
    assert totals.read_bytes == totals.changed_bytes == align_up(totals.read_bytes, CLUSTER) <= 2 * CLUSTER
    assert_restores(*guest.points)
