"""After a crash an image goes on where it was durable: never before what was told, and to the same final bytes."""

import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hub.files import DurableFile
from hub.images import journal
from hub.images.manifest import ManifestDamaged
from hub.images.names import ImageFiles
from hub.images.partial import PartialImage
from hub.images.qcow2 import ParentImage
from shared.errors import DataLoss, NotFound
from shared.extents import Extent
from shared.runs import ClusterRun, zero_run
from shared.units import CLUSTER, GiB, MiB
from tests.hub.images.conftest import MakeRun
from tests.hub.images.sparse_disk import SparseDisk, assert_clean, assert_same

CAPACITY = 2 * GiB


@pytest.fixture
def runs(data_run: MakeRun) -> list[ClusterRun]:
    """Of all encodings, over three L2 tables, one of them all zeros."""
    return [
        data_run(0),
        data_run(CLUSTER, level=1),
        data_run(9 * CLUSTER, level=1),
        zero_run(Extent(511 * MiB, 600 * MiB)),
        data_run(1200 * MiB, 3, level=1),
        data_run(1300 * MiB, 2),
    ]


@pytest.fixture
def parent(tmp_path: Path) -> ParentImage:
    with PartialImage.create(tmp_path / "full.qcow2", CAPACITY, None) as image:
        image.seal()
        image.commit()
    return ParentImage("full.qcow2")


@pytest.fixture
def expected(tmp_path: Path, parent: ParentImage, runs: list[ClusterRun]) -> tuple[bytes, bytes]:
    """Image and manifest as they are without a crash."""
    path = tmp_path / "expected.qcow2"
    finish(PartialImage.create(path, CAPACITY, parent), runs)
    assert_clean(path)
    return content(path)


def content(path: Path) -> tuple[bytes, bytes]:
    return path.read_bytes(), ImageFiles(path).manifest.read_bytes()


def finish(image: PartialImage, runs: list[ClusterRun]) -> None:
    """Append what lies from the durable offset on, seal and commit."""
    for run in runs:
        if run.offset >= image.durable:
            image.append(run)
    image.seal()
    image.commit()


@pytest.fixture
def synced(tmp_path: Path, parent: ParentImage, runs: list[ClusterRun]) -> "Synced":
    return Synced(tmp_path, parent, runs)


class Synced:
    """An image in flight, synced after each of its first four runs, then left as a crash leaves it."""

    def __init__(self, folder: Path, parent: ParentImage, runs: list[ClusterRun]) -> None:
        self.files = ImageFiles(folder / "a.qcow2")
        self.saved = folder / "saved"
        image = PartialImage.create(self.files.image, CAPACITY, parent)
        self.durable_at = {self.files.journal.stat().st_size: 0}
        for run in runs[:4]:
            image.append(run)
            durable = image.sync()
            self.durable_at[self.files.journal.stat().st_size] = durable
        self.durable = durable
        image.append(runs[4])  # in the image, unknown to the journal
        image.close()
        shutil.copytree(folder, self.saved)

    def restore(self) -> None:
        """Put all files back as the crash left them."""
        for path in (self.files.partial_image, self.files.partial_manifest, self.files.journal):
            shutil.copyfile(self.saved / path.name, path)
        for path in (self.files.image, self.files.manifest):
            path.unlink(missing_ok=True)


def test_a_journal_torn_at_any_byte_gives_the_last_whole_sync(
    synced: Synced, runs: list[ClusterRun], expected: tuple[bytes, bytes]
) -> None:
    whole = synced.files.journal.read_bytes()
    for length in range(min(synced.durable_at), len(whole) + 1):
        synced.restore()
        synced.files.journal.write_bytes(whole[:length])
        image = PartialImage.reopen(synced.files.image)
        assert image.durable == max(offset for size, offset in synced.durable_at.items() if size <= length)
        finish(image, runs)
        assert content(synced.files.image) == expected


@pytest.mark.parametrize("tail", [bytes(10_000), b"\xff" * 10_000, journal.record(b"x" * 50)[:-1]])
def test_garbage_after_the_journal_is_ignored(
    synced: Synced, runs: list[ClusterRun], expected: tuple[bytes, bytes], tail: bytes
) -> None:
    with synced.files.journal.open("ab") as file:
        file.write(tail)
    image = PartialImage.reopen(synced.files.image)
    assert image.durable == synced.durable
    finish(image, runs)
    assert content(synced.files.image) == expected


@pytest.mark.parametrize("name", ["partial_image", "partial_manifest"])
def test_bytes_after_the_durable_part_of_a_file_are_cut_off(
    synced: Synced, runs: list[ClusterRun], expected: tuple[bytes, bytes], name: str
) -> None:
    with getattr(synced.files, name).open("ab") as file:
        file.write(random.Random(0).randbytes(3 * CLUSTER))
    finish(PartialImage.reopen(synced.files.image), runs)
    assert content(synced.files.image) == expected


def test_an_image_shorter_than_its_durable_part_is_data_loss(synced: Synced) -> None:
    os.truncate(synced.files.partial_image, CLUSTER)
    with pytest.raises(DataLoss, match="were durable"):
        PartialImage.reopen(synced.files.image)


def test_a_manifest_shorter_than_its_durable_part_is_damaged(synced: Synced) -> None:
    os.truncate(synced.files.partial_manifest, 3)
    with pytest.raises(ManifestDamaged):
        PartialImage.reopen(synced.files.image)


def test_without_its_journal_an_image_is_not_reopened(synced: Synced) -> None:
    synced.files.journal.unlink()
    with pytest.raises(NotFound):
        PartialImage.reopen(synced.files.image)


def test_a_journal_left_half_written_beside_the_old_one_is_ignored(
    synced: Synced, runs: list[ClusterRun], expected: tuple[bytes, bytes]
) -> None:
    synced.files.next_journal.write_bytes(journal.MAGIC + b"\0\0")
    finish(PartialImage.reopen(synced.files.image), runs)
    assert content(synced.files.image) == expected
    assert not synced.files.next_journal.exists()


def test_an_image_sealed_but_not_committed_is_sealed_again(
    tmp_path: Path, parent: ParentImage, runs: list[ClusterRun], expected: tuple[bytes, bytes]
) -> None:
    image = PartialImage.create(tmp_path / "a.qcow2", CAPACITY, parent)
    for run in runs:
        image.append(run)
    sealed = image.seal()
    image.close()
    image = PartialImage.reopen(tmp_path / "a.qcow2")
    assert ImageFiles(tmp_path / "a.qcow2").partial_image.read_bytes()[:4] == bytes(4)
    assert image.seal() == sealed
    image.commit()
    assert content(tmp_path / "a.qcow2") == expected


class PowerCut:
    """Storage that keeps of each file what it was at its last sync; cuts the power after every single sync."""

    def __init__(self, folder: Path, cuts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told = 0
        """The durable offset the writer was told last."""
        self.after: list[tuple[Path, int]] = []
        """What a machine finds when the power is back, and what had been told."""
        self._folder = folder
        self._cuts = cuts
        self._kept: dict[int, bytes] = {}
        sync = DurableFile.sync

        def keep(file: DurableFile) -> None:
            sync(file)
            if file.path.parent == folder:
                self._kept[file.path.stat().st_ino] = file.path.read_bytes()
                self._cut()

        monkeypatch.setattr(DurableFile, "sync", keep)

    def _cut(self) -> None:
        target = self._cuts / str(len(self.after))
        target.mkdir(parents=True)
        for path in self._folder.iterdir():
            (target / path.name).write_bytes(self._kept.get(path.stat().st_ino, b""))
        self.after.append((target, self.told))


@pytest.mark.parametrize("checkpoint_after", [0, 8 * MiB])
def test_a_power_cut_after_any_sync_loses_nothing_that_was_durable(
    tmp_path: Path, data_run: MakeRun, monkeypatch: pytest.MonkeyPatch, checkpoint_after: int
) -> None:
    monkeypatch.setattr("hub.images.partial.CHECKPOINT_AFTER", checkpoint_after)
    runs = [data_run(offset, 1, level=offset // (100 * MiB) % 2 or None) for offset in range(0, CAPACITY, 100 * MiB)]
    live = tmp_path / "live" / "a.qcow2"
    live.parent.mkdir()
    power = PowerCut(live.parent, tmp_path / "cuts", monkeypatch)
    image = PartialImage.create(live, CAPACITY, None)
    begun = len(power.after)
    for number, run in enumerate(runs):
        image.append(run)
        if number % 3 == 1:
            power.told = image.sync()
    image.seal()
    image.commit()
    assert len(power.after) - begun > 2 * len(runs) // 3
    for folder, told in power.after[begun:]:
        again = PartialImage.reopen(folder / "a.qcow2")
        assert again.durable >= told
        finish(again, runs)
        assert content(folder / "a.qcow2") == content(live)


WRITER = """
import sys
from pathlib import Path
from hub.images.partial import PartialImage
from shared.runs import encode
from shared.units import CLUSTER, GiB, MiB, align_up

path = Path(sys.argv[1])
image = PartialImage.reopen(path) if path.with_name(path.name + ".journal").exists() else (
    PartialImage.create(path, 2 * GiB, None))
for offset in range(align_up(image.durable, MiB), 2 * GiB, MiB):
    for run in encode(offset, memoryview(b"%16d" % offset * (MiB // 64)), 1):
        image.append(run)
    print(image.sync(), flush=True)
"""


def test_kill_9_at_any_moment_keeps_what_was_told(tmp_path: Path) -> None:
    path = tmp_path / "a.qcow2"
    told = 0
    for lines in (1, 7, 40, 150):
        with subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for _ in range(lines):
                told = int(writer.stdout.readline())
            writer.send_signal(signal.SIGKILL)
            rest = writer.stdout.read().splitlines(keepends=True)
        told = max([told, *(int(line) for line in rest if line.endswith("\n"))])
        image = PartialImage.reopen(path)
        assert image.durable >= told
        image.close()
    image = PartialImage.reopen(path)
    disk = SparseDisk(2 * GiB)
    for offset in range(0, image.durable, MiB):
        disk.write(offset, b"%16d" % offset * (MiB // 64))
    image.seal()
    image.commit()
    assert_clean(path)
    disk.save(tmp_path / "model.raw")
    assert_same(tmp_path / "model.raw", path)
