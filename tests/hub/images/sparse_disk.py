"""A disk as a test means it, images made of it, and qemu as the judge of whether they are the same."""

import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

from hub.images.partial import PartialImage, SealedImage
from hub.images.qcow2 import ParentImage
from shared.extents import Extent, align_outwards, merge
from shared.runs import ClusterRun, encode, zero_run
from shared.units import CLUSTER, align_up

ZEROS = bytes(CLUSTER)


class SparseDisk:
    """Holds only what was written, so it may have any capacity; in bytes."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._clusters: dict[int, bytes] = {}
        self._changed: list[Extent] = []

    def write(self, offset: int, data: bytes) -> None:
        self._changed.append(Extent(offset, len(data)))
        while data:
            index, at = divmod(offset, CLUSTER)
            part, data = data[: CLUSTER - at], data[CLUSTER - at :]
            old = self._clusters.get(index, ZEROS)
            self._clusters[index] = old[:at] + part + old[at + len(part) :]
            offset += len(part)

    def zero(self, offset: int, length: int) -> None:
        """Make a range zero; a trim the source answers with zeros is the same."""
        self._changed.append(Extent(offset, length))
        end = offset + length
        for index in [key for key in self._clusters if offset <= key * CLUSTER and (key + 1) * CLUSTER <= end]:
            del self._clusters[index]
        for edge in {offset // CLUSTER, (end - 1) // CLUSTER} & self._clusters.keys():
            base = edge * CLUSTER
            start, stop = max(offset - base, 0), min(end - base, CLUSTER)
            old = self._clusters[edge]
            self._clusters[edge] = old[:start] + bytes(stop - start) + old[stop:]

    def all_runs(self, level: int | None) -> list[ClusterRun]:
        """A full backup: what is not in the dictionary is not sent."""
        self._changed.clear()
        return list(self._data_runs(sorted(self._clusters), level))

    def changed_runs(self, level: int | None) -> list[ClusterRun]:
        """An incremental backup: what changed since the last, zeros where nothing is left."""
        changed = merge(sorted(self._changed, key=lambda extent: extent.offset))
        runs = [run for part in align_outwards(changed, CLUSTER, self.capacity) for run in self._runs_of(part, level)]
        self._changed.clear()
        return runs

    def save(self, path: Path) -> None:
        """Write the disk as a sparse raw file."""
        with path.open("wb") as file:
            file.truncate(align_up(self.capacity, CLUSTER))
            for index, cluster in self._clusters.items():
                file.seek(index * CLUSTER)
                file.write(cluster)
            file.truncate(self.capacity)

    def _runs_of(self, extent: Extent, level: int | None) -> Iterator[ClusterRun]:
        at = extent.offset
        last = -(-extent.end // CLUSTER)
        for index in sorted(key for key in self._clusters if extent.offset // CLUSTER <= key < last):
            if index * CLUSTER > at:
                yield zero_run(Extent(at, index * CLUSTER - at))
            yield from self._data_runs([index], level)
            at = (index + 1) * CLUSTER
        if at < extent.end:
            yield zero_run(Extent(at, extent.end - at))

    def _data_runs(self, indexes: list[int], level: int | None) -> Iterator[ClusterRun]:
        stretch: list[int] = []
        for index in [*indexes, -1]:
            if stretch and index != stretch[-1] + 1:
                data = b"".join(self._clusters[key] for key in stretch)
                yield from encode(stretch[0] * CLUSTER, memoryview(data), level)
                stretch = []
            stretch.append(index)


def store(path: Path, capacity: int, parent: ParentImage | None, runs: Iterable[ClusterRun]) -> SealedImage:
    """Write a committed image of the runs."""
    with PartialImage.create(path, capacity, parent) as image:
        for run in runs:
            image.append(run)
        sealed = image.seal()
        image.commit()
    return sealed


def assert_same(raw: Path, image: Path) -> None:
    """Fail unless qemu reads the same bytes from the raw file and from the QCOW2 image with its chain."""
    done = subprocess.run(
        ["qemu-img", "compare", "-f", "raw", "-F", "qcow2", raw, image], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def assert_clean(image: Path) -> None:
    """Fail unless qemu finds no error and no leak in the image."""
    done = subprocess.run(["qemu-img", "check", "-f", "qcow2", image], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
