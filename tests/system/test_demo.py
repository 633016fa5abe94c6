"""The demo's judge can fail: one byte that differs is seen, said in the last line, and told by the exit status.

The demo itself is not run here; `make demo` is.
"""

import os
from pathlib import Path

import pytest

from deploy.dev.demo import Restored, verdict
from deploy.dev.lab import images_equal
from shared.units import MiB


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two files of the same bytes."""
    data = os.urandom(3 * MiB)
    left, right = tmp_path / "restored.raw", tmp_path / "frozen.raw"
    left.write_bytes(data)
    right.write_bytes(data)
    return left, right


def flip_a_bit(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        (old,) = file.read(1)
        file.seek(offset)
        file.write(bytes([old ^ 1]))


def test_equal_files_are_equal(pair: tuple[Path, Path]) -> None:
    assert images_equal(*pair)


@pytest.mark.parametrize("which", [0, 1], ids=["restored", "frozen"])
@pytest.mark.parametrize("offset", [0, 2 * MiB + 77, 3 * MiB - 1])
def test_one_flipped_bit_is_seen(pair: tuple[Path, Path], which: int, offset: int) -> None:
    flip_a_bit(pair[which], offset)
    assert not images_equal(*pair)


def test_a_restored_disk_that_is_too_short_is_seen(pair: tuple[Path, Path]) -> None:
    os.truncate(pair[0], 3 * MiB - 512)
    assert not images_equal(*pair)


def test_the_verdict_on_equal_disks_is_the_line_and_exit_status_0() -> None:
    assert verdict([_restored(equal=True)] * 9, 9) == ("sendense demo: 9 of 9 restored disks equal their source", 0)


def test_one_disk_that_differs_makes_the_exit_status_1() -> None:
    restored = [_restored(equal=True)] * 8 + [_restored(equal=False)]
    assert verdict(restored, 9) == ("sendense demo: 8 of 9 restored disks equal their source", 1)


def test_a_disk_that_was_not_restored_makes_the_exit_status_1() -> None:
    assert verdict([_restored(equal=True)] * 8, 9) == ("sendense demo: 8 of 9 restored disks equal their source", 1)


def _restored(equal: bool) -> Restored:
    return Restored(backup={}, disk={}, point=1, seconds=1.0, equal=equal)
