"""Chains of images read back as the disk was at each point: random disks, random changes, qemu as the judge."""

import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from hub.images import partial
from hub.images.manifest import ManifestRun, read_manifest
from hub.images.names import ImageFiles
from hub.images.partial import PartialImage, SealedImage
from hub.images.qcow2 import ParentImage
from hub.images.qemu_img import info
from shared.digests import DIGEST_SIZE
from shared.extents import Kind
from shared.runs import ClusterRun, check_digests, check_shape
from shared.units import CLUSTER, SECTOR, GiB, MiB
from tests.hub.images.sparse_disk import SparseDisk, assert_clean, assert_same

LEVELS = st.sampled_from([None, 1])


@dataclass(frozen=True)
class Change:
    """A write, or a range made zero. Position and length are parts of the disk, so that any disk can take it."""

    position: float
    length: int
    fill: str
    seed: int

    def apply(self, disk: SparseDisk) -> None:
        offset = min(int(self.position * disk.capacity), disk.capacity - 1) // SECTOR * SECTOR
        length = min(self.length, disk.capacity - offset)
        if self.fill == "zero":
            disk.zero(offset, length)
        else:
            disk.write(offset, self._bytes(length))

    def _bytes(self, length: int) -> bytes:
        numbers = random.Random(self.seed)
        if self.fill == "random":
            return numbers.randbytes(length)
        return (numbers.randbytes(97) * (length // 97 + 1))[:length]


@dataclass(frozen=True)
class Point:
    """What happens before a backup, and how the backup goes."""

    changes: list[Change]
    level: int | None
    interrupted: bool


def changes() -> st.SearchStrategy[Change]:
    positions = st.floats(0, 1)
    seeds = st.integers(0, 2**32)
    writes = st.builds(
        Change, positions, st.integers(1, 700).map(lambda n: n * SECTOR), st.sampled_from(["random", "text"]), seeds
    )
    zeros = st.builds(
        Change,
        positions,
        st.one_of(st.integers(1, 700).map(lambda n: n * SECTOR), st.sampled_from([512 * MiB, 1 * GiB, 4 * GiB])),
        st.just("zero"),
        seeds,
    )
    return st.one_of(writes, writes, zeros)


CAPACITIES = st.one_of(
    st.integers(1, 3000).map(lambda sectors: sectors * SECTOR),
    st.sampled_from([SECTOR, CLUSTER - SECTOR, CLUSTER, 512 * MiB, 512 * MiB + SECTOR, 1 * GiB + SECTOR]),
    st.integers(1, 3 * GiB // SECTOR).map(lambda sectors: sectors * SECTOR),
)
POINTS = st.lists(st.builds(Point, st.lists(changes(), max_size=6), LEVELS, st.booleans()), min_size=1, max_size=5)


# A reopened image is rebuilt from a checkpoint alone, or from an early one and the runs since.
CHECKPOINTS = st.sampled_from([0, partial.CHECKPOINT_AFTER])


# Not shrunk: each try runs qemu for every point, and a failure would be told only after minutes.
@settings(max_examples=90, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(capacity=CAPACITIES, points=POINTS, checkpoint_after=CHECKPOINTS)
def test_every_point_of_a_chain_reads_back_as_the_disk_was(
    capacity: int, points: list[Point], checkpoint_after: int
) -> None:
    disk = SparseDisk(capacity)
    with tempfile.TemporaryDirectory() as folder, patch.object(partial, "CHECKPOINT_AFTER", checkpoint_after):
        parent: ParentImage | None = None
        for number, point in enumerate(points):
            for change in point.changes:
                change.apply(disk)
            runs = disk.changed_runs(point.level) if parent else disk.all_runs(point.level)
            image = Path(folder, f"{number}.qcow2")
            sealed = backup(image, capacity, parent, runs, interrupted=point.interrupted)
            raw = Path(folder, "model.raw")
            disk.save(raw)
            assert_clean(image)
            assert_same(raw, image)
            assert info(image).capacity == capacity
            assert sealed.stored == image.stat().st_size
            assert_manifest_holds(image, runs)
            parent = ParentImage(image.name)


def backup(
    path: Path, capacity: int, parent: ParentImage | None, runs: list[ClusterRun], *, interrupted: bool
) -> SealedImage:
    """Write an image from runs; `interrupted`: lose what follows half of them, and go on from the durable offset."""
    image = PartialImage.create(path, capacity, parent)
    if interrupted:
        for number, run in enumerate(runs):
            image.append(run)
            if number == len(runs) // 2:
                image.sync()
        durable = image.durable
        image.close()
        image = PartialImage.reopen(path)
        assert image.durable == durable
        runs = [run for run in runs if run.offset >= durable]
    for run in runs:
        check_shape(run)
        check_digests(run)
        image.append(run)
    sealed = image.seal()
    image.commit()
    return sealed


def assert_manifest_holds(image: Path, runs: list[ClusterRun]) -> None:
    told = list(read_manifest(ImageFiles(image).manifest))
    assert all(before.offset + before.count * CLUSTER <= after.offset for before, after in pairwise(told))
    assert dict(_by_cluster(told)) == {
        run.offset // CLUSTER + index: run.digest(index) if run.digests else None
        for run in runs
        for index in range(run.count)
    }


def _by_cluster(told: list[ManifestRun]) -> Iterator[tuple[int, bytes | None]]:
    for run in told:
        for index in range(run.count):
            at = index * DIGEST_SIZE
            yield (
                run.offset // CLUSTER + index,
                run.digests[at : at + DIGEST_SIZE] if run.kind is Kind.DATA else None,
            )
