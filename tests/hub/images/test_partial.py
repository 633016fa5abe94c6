"""Images in flight: what may be appended, what the names on disk are, and what ends one."""

import shutil
from pathlib import Path

import pytest
import zstandard

from hub.images.names import ImageFiles, commit, discard
from hub.images.partial import PartialImage
from hub.images.qcow2 import ParentImage
from hub.images.qemu_img import check, info
from shared.errors import AlreadyExists, Conflict, InvalidRequest, NotFound, NotPossibleNow, RepositoryUnavailable
from shared.extents import Extent
from shared.runs import ClusterRun, Encoding, zero_run
from shared.units import CLUSTER, SECTOR, GiB, MiB
from tests.hub.images.conftest import MakeRun
from tests.hub.images.sparse_disk import SparseDisk, assert_clean, assert_same, store


def test_a_run_below_what_was_appended_is_refused_and_does_no_harm(tmp_path: Path, data_run: MakeRun) -> None:
    with PartialImage.create(tmp_path / "a.qcow2", MiB, None) as image:
        image.append(data_run(2 * CLUSTER, 2))
        with pytest.raises(InvalidRequest, match="cannot follow offset 262144"):
            image.append(data_run(3 * CLUSTER))
        image.append(data_run(4 * CLUSTER))
        assert image.sync() == 5 * CLUSTER


@pytest.mark.parametrize("run", [zero_run(Extent(MiB - CLUSTER, 2 * CLUSTER)), ClusterRun(512, 1, Encoding.ZERO)])
def test_a_run_that_leaves_the_disk_or_its_clusters_is_refused(tmp_path: Path, run: ClusterRun) -> None:
    with PartialImage.create(tmp_path / "a.qcow2", MiB, None) as image, pytest.raises(InvalidRequest):
        image.append(run)


def test_the_durable_offset_is_what_was_synced_and_never_beyond_the_disk(tmp_path: Path, data_run: MakeRun) -> None:
    with PartialImage.create(tmp_path / "a.qcow2", CLUSTER + SECTOR, None) as image:
        assert image.sync() == 0
        image.append(data_run(0))
        assert image.durable == 0
        assert image.sync() == CLUSTER
        image.append(data_run(CLUSTER))
        assert image.sync() == image.durable == CLUSTER + SECTOR


def test_memory_is_bounded_by_syncing_when_the_caller_does_not(
    tmp_path: Path, data_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hub.images.partial.MOST_UNSYNCED", 100)
    with PartialImage.create(tmp_path / "a.qcow2", MiB, None) as image:
        image.append(data_run(0))
        assert image.durable == 0
        image.append(data_run(CLUSTER))
        assert image.durable == 2 * CLUSTER


def test_before_the_commit_no_file_has_a_final_name_or_opens_as_an_image(tmp_path: Path, data_run: MakeRun) -> None:
    files = ImageFiles(tmp_path / "a.qcow2")
    with PartialImage.create(files.image, MiB, None) as image:
        image.append(data_run(0, 16))
        image.sync()
        assert {path.name for path in tmp_path.iterdir()} == {
            "a.qcow2.partial",
            "a.manifest.partial",
            "a.qcow2.journal",
        }
        assert files.partial_image.read_bytes()[:4] == bytes(4)
        image.seal()
        assert not files.image.exists()
        assert not files.manifest.exists()
        image.commit()
    assert {path.name for path in tmp_path.iterdir()} == {"a.qcow2", "a.manifest"}


def test_an_image_that_is_not_sealed_cannot_be_committed(tmp_path: Path, data_run: MakeRun) -> None:
    image = PartialImage.create(tmp_path / "a.qcow2", MiB, None)
    image.append(data_run(0))
    image.sync()
    with pytest.raises(NotPossibleNow, match="not sealed"):
        image.commit()
    assert PartialImage.reopen(tmp_path / "a.qcow2").durable == CLUSTER


def test_a_sealed_image_takes_no_more(tmp_path: Path, data_run: MakeRun) -> None:
    with PartialImage.create(tmp_path / "a.qcow2", MiB, None) as image:
        image.seal()
        for again in (lambda: image.append(data_run(0)), image.sync, image.seal):
            with pytest.raises(NotPossibleNow, match="is sealed"):
                again()


@pytest.mark.parametrize("done", ["nothing", "manifest renamed", "image renamed", "journal removed"])
def test_a_commit_that_a_crash_cut_short_is_completed_by_another(tmp_path: Path, data_run: MakeRun, done: str) -> None:
    files = ImageFiles(tmp_path / "a.qcow2")
    with PartialImage.create(files.image, MiB, None) as image:
        image.append(data_run(0))
        image.seal()
    if done != "nothing":
        files.partial_manifest.rename(files.manifest)
    if done in ("image renamed", "journal removed"):
        files.partial_image.rename(files.image)
    if done == "journal removed":
        files.journal.unlink()
    commit(files.image)
    commit(files.image)
    assert {path.name for path in tmp_path.iterdir()} == {"a.qcow2", "a.manifest"}
    check(files.image)


def test_a_commit_of_nothing_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        commit(tmp_path / "a.qcow2")


def test_discard_leaves_no_file(tmp_path: Path, data_run: MakeRun) -> None:
    image = PartialImage.create(tmp_path / "a.qcow2", MiB, None)
    image.append(data_run(0))
    image.discard()
    assert list(tmp_path.iterdir()) == []
    discard(tmp_path / "a.qcow2")


def test_an_image_being_written_is_neither_reopened_nor_discarded_by_another(tmp_path: Path) -> None:
    with PartialImage.create(tmp_path / "a.qcow2", MiB, None):
        with pytest.raises(Conflict):
            PartialImage.reopen(tmp_path / "a.qcow2")
        with pytest.raises(Conflict):
            discard(tmp_path / "a.qcow2")
    PartialImage.reopen(tmp_path / "a.qcow2").discard()


@pytest.mark.parametrize("name", ["a.qcow2", "a.manifest", "a.qcow2.partial", "a.qcow2.journal"])
def test_a_file_of_that_name_is_never_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("somebody's")
    with pytest.raises(AlreadyExists):
        PartialImage.create(tmp_path / "a.qcow2", MiB, None)
    assert (tmp_path / name).read_text() == "somebody's"
    assert len(list(tmp_path.iterdir())) == 1


def test_what_was_never_begun_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        PartialImage.reopen(tmp_path / "a.qcow2")


def test_a_repository_whose_folder_is_gone_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(RepositoryUnavailable):
        PartialImage.create(tmp_path / "gone" / "a.qcow2", MiB, None)


def test_a_parent_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"full\.qcow2"):
        PartialImage.create(tmp_path / "a.qcow2", MiB, ParentImage("full.qcow2"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "/absolute.qcow2", "nbd:host:10809", "json:{}", "x" * 1024, "a\0b"])
def test_a_parent_is_named_relative_and_never_by_a_protocol(name: str) -> None:
    with pytest.raises(InvalidRequest):
        ParentImage(name)


@pytest.mark.parametrize("name", ["full.qcow2", "../2/full.qcow2", "x" * 200 + ".qcow2"])
def test_the_parent_is_found_relative_to_the_image(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "1"
    folder.mkdir()
    (folder / name).parent.mkdir(exist_ok=True)
    store(folder / name, MiB, None, [])
    store(folder / "incremental.qcow2", MiB, ParentImage(name), [])
    assert info(folder / "incremental.qcow2").parent == name


def test_a_chain_opens_after_its_repository_was_moved(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    disk = SparseDisk(GiB)
    disk.write(0, b"old" * MiB)
    store(before / "full.qcow2", GiB, None, disk.all_runs(None))
    disk.write(MiB, b"new")
    disk.zero(2 * MiB, CLUSTER)
    store(before / "incremental.qcow2", GiB, ParentImage("full.qcow2"), disk.changed_runs(None))
    shutil.move(before, after)
    disk.save(tmp_path / "model.raw")
    assert_same(tmp_path / "model.raw", after / "incremental.qcow2")


def test_clusters_that_do_not_shrink_may_stand_in_a_compressed_run(tmp_path: Path, data_run: MakeRun) -> None:
    noise = bytes(data_run(0).payload)
    disk = SparseDisk(MiB)
    disk.write(0, noise + b"text" * (CLUSTER // 4) * 14 + noise)
    [run] = disk.all_runs(level=1)
    assert run.encoding is Encoding.ZSTD
    assert max(run.lengths) > CLUSTER
    store(tmp_path / "a.qcow2", MiB, None, [run])
    assert_clean(tmp_path / "a.qcow2")
    disk.save(tmp_path / "model.raw")
    assert_same(tmp_path / "model.raw", tmp_path / "a.qcow2")


def test_compressed_clusters_lie_back_to_back(tmp_path: Path, data_run: MakeRun) -> None:
    runs = [data_run(offset, 16, level=1) for offset in range(0, 64 * MiB, MiB)]
    with PartialImage.create(tmp_path / "a.qcow2", 64 * MiB, None) as image:
        for run in runs:
            image.append(run)
        sealed = image.seal()
    tables = 5 * CLUSTER  # header, L2, L1, refcount block, refcount table
    assert sealed.stored <= sum(len(run.payload) for run in runs) + tables + CLUSTER


def test_runs_compressed_and_plain_by_turns_read_back(tmp_path: Path, data_run: MakeRun) -> None:
    disk = SparseDisk(600 * MiB)
    with PartialImage.create(tmp_path / "a.qcow2", disk.capacity, None) as image:
        for number, offset in enumerate(range(510 * MiB, 515 * MiB, CLUSTER)):
            run = data_run(offset, level=number % 2 or None, seed=number)
            disk.write(offset, plain(run))
            image.append(run)
        image.seal()
        image.commit()
    assert_clean(tmp_path / "a.qcow2")
    disk.save(tmp_path / "model.raw")
    assert_same(tmp_path / "model.raw", tmp_path / "a.qcow2")


def plain(run: ClusterRun) -> bytes:
    if run.encoding is Encoding.RAW:
        return bytes(run.payload)
    return b"".join(zstandard.decompress(frame) for frame in run.frames())
