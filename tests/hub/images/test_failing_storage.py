"""Storage that fails: no offset is called durable that is not, and the image goes on once the storage is well."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hub.images.partial import PartialImage
from shared.errors import NotPossibleNow, RepositoryFull, RepositoryUnavailable, SendenseError
from shared.runs import ClusterRun
from shared.units import CLUSTER, MiB
from tests.hub.images.conftest import MakeRun
from tests.hub.images.sparse_disk import assert_clean


class Script:
    """Stands before a system call and fails its n-th use, counted from when it was told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self._real = getattr(os, name)
        self._left = -1
        self._errno = 0
        monkeypatch.setattr(os, name, self)

    def fail(self, use: int, number: int) -> None:
        self._left, self._errno = use, number

    def well_again(self) -> None:
        self._left = -1

    def __call__(self, *args: object) -> object:
        if self._left == 0:
            raise OSError(self._errno, os.strerror(self._errno))
        self._left -= 1
        return self._real(*args)


@pytest.fixture
def runs(data_run: MakeRun) -> list[ClusterRun]:
    return [data_run(offset, level=1) for offset in range(0, 8 * CLUSTER, 2 * CLUSTER)]


@pytest.mark.parametrize("call", ["fdatasync", "pwrite"])
@pytest.mark.parametrize(
    ("number", "error"),
    [(errno.EIO, RepositoryUnavailable), (errno.EROFS, RepositoryUnavailable), (errno.ENOSPC, RepositoryFull)],
)
@pytest.mark.parametrize("use", range(4))
def test_a_failing_call_makes_nothing_durable_and_stops_the_image(
    tmp_path: Path,
    runs: list[ClusterRun],
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    number: int,
    error: type[SendenseError],
    use: int,
) -> None:
    monkeypatch.setattr("hub.images.partial.CHECKPOINT_AFTER", 0)  # so that a sync is all its four steps
    script = Script(monkeypatch, call)
    path = tmp_path / "a.qcow2"
    image = PartialImage.create(path, MiB, None)
    image.append(runs[0])
    before = image.sync()
    script.fail(use, number)
    with pytest.raises(error, match=r"a\.(qcow2|manifest)"):
        for run in runs[1:]:
            image.append(run)
            image.sync()
    script.well_again()
    told = image.durable
    assert told >= before
    for refused in (lambda: image.append(runs[3]), image.sync, image.seal):
        with pytest.raises(NotPossibleNow, match="reopened"):
            refused()
    assert image.durable == told
    image.close()

    image = PartialImage.reopen(path)
    assert image.durable >= told
    for run in runs:
        if run.offset >= image.durable:
            image.append(run)
    image.seal()
    image.commit()
    assert_clean(path)


def test_when_the_data_cannot_be_synced_the_journal_does_not_speak_of_it(
    tmp_path: Path, runs: list[ClusterRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script(monkeypatch, "fdatasync")
    image = PartialImage.create(tmp_path / "a.qcow2", MiB, None)
    image.append(runs[0])
    script.fail(0, errno.EIO)
    with pytest.raises(RepositoryUnavailable):
        image.sync()
    script.well_again()
    image.close()
    assert PartialImage.reopen(tmp_path / "a.qcow2").durable == 0


@pytest.mark.parametrize("use", range(3))
def test_a_seal_that_fails_can_be_done_again_after_reopening(
    tmp_path: Path, runs: list[ClusterRun], monkeypatch: pytest.MonkeyPatch, use: int
) -> None:
    script = Script(monkeypatch, "fdatasync")
    path = tmp_path / "a.qcow2"
    image = PartialImage.create(path, MiB, None)
    for run in runs:
        image.append(run)
    image.sync()
    script.fail(use, errno.EIO)
    with pytest.raises(RepositoryUnavailable):
        image.seal()
    script.well_again()
    image.close()
    image = PartialImage.reopen(path)
    assert image.durable == runs[-1].end
    image.seal()
    image.commit()
    assert_clean(path)


@pytest.mark.parametrize("use", range(3))
def test_an_image_that_could_not_be_begun_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: int
) -> None:
    Script(monkeypatch, "pwrite").fail(use, errno.ENOSPC)
    if use < 2:  # the manifest's header and the journal
        with pytest.raises(RepositoryFull):
            PartialImage.create(tmp_path / "a.qcow2", MiB, None)
        assert list(tmp_path.iterdir()) == []
    else:
        PartialImage.create(tmp_path / "a.qcow2", MiB, None).close()


def test_a_system_call_that_takes_less_than_it_was_given_is_repeated(
    tmp_path: Path, runs: list[ClusterRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, memoryview(data)[:1000], offset))
    path = tmp_path / "a.qcow2"
    with PartialImage.create(path, MiB, None) as image:
        for run in runs:
            image.append(run)
        image.seal()
        image.commit()
    assert_clean(path)


LIMITED_WRITER = """
import os, resource, sys
from pathlib import Path
from hub.images.partial import PartialImage
from shared.errors import RepositoryFull
from shared.runs import encode
from shared.units import MiB

resource.setrlimit(resource.RLIMIT_FSIZE, (3 * MiB + 5000, 3 * MiB + 5000))
image = PartialImage.create(Path(sys.argv[1]), 16 * MiB, None)
try:
    for offset in range(0, 16 * MiB, MiB):
        [run] = encode(offset, memoryview(os.urandom(MiB)), None)
        image.append(run)
        image.sync()
except RepositoryFull:
    print(image.durable)
"""


def test_a_file_system_that_fills_up_in_mid_write_leaves_what_was_durable(tmp_path: Path) -> None:
    path = tmp_path / "a.qcow2"
    done = subprocess.run([sys.executable, "-c", LIMITED_WRITER, path], capture_output=True, text=True, check=True)
    assert int(done.stdout) == 2 * MiB
    image = PartialImage.reopen(path)
    assert image.durable == 2 * MiB
    image.seal()
    image.commit()
    assert_clean(path)
