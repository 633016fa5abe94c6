"""Journals: records come back as they were written, and reading stops where a crash tore the last write."""

from pathlib import Path

import pytest

from hub.images import journal
from hub.images.journal import Journal, JournalDamaged
from shared.errors import NotFound
from shared.extents import Extent
from shared.runs import ClusterRun, Encoding, encode, zero_run
from shared.units import CLUSTER, TiB
from tests.hub.images.conftest import MakeRun


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal of a checkpoint and two records."""
    path = tmp_path / "journal"
    opened = Journal.start(path, tmp_path / "next", b"checkpoint")
    opened.append(journal.record(b"one"))
    opened.append(journal.record(b"two"))
    opened.close()
    return path


def test_records_come_back_in_order(path: Path) -> None:
    assert list(journal.read(path)) == [b"checkpoint", b"one", b"two"]


def test_a_new_journal_takes_the_place_of_the_old_one(path: Path, tmp_path: Path) -> None:
    Journal.start(path, tmp_path / "next", b"newer").close()
    assert list(journal.read(path)) == [b"newer"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_tail_torn_at_any_byte_is_left_out(path: Path) -> None:
    whole = path.read_bytes()
    record = len(journal.record(b"two"))
    for cut in range(1, record + 1):
        path.write_bytes(whole[:-cut])
        assert list(journal.read(path)) == [b"checkpoint", b"one"]


@pytest.mark.parametrize("tail", [bytes(1), bytes(4096), b"\xff" * 100, b"\0\0\0\4\0\0\0\0four", b"\xff" * 7])
def test_garbage_after_the_last_record_is_left_out(path: Path, tail: bytes) -> None:
    path.write_bytes(path.read_bytes() + tail)
    assert list(journal.read(path)) == [b"checkpoint", b"one", b"two"]


def test_any_flipped_bit_of_a_record_ends_the_reading_there(path: Path) -> None:
    whole = path.read_bytes()
    record = len(journal.record(b"two"))
    for at in range(len(whole) - record, len(whole)):
        for bit in range(8):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
            assert list(journal.read(path)) == [b"checkpoint", b"one"]


@pytest.mark.parametrize("content", [b"", b"SNDJRNL", b"something else", journal.MAGIC, journal.MAGIC + b"\0\0\0\1"])
def test_a_journal_without_a_whole_checkpoint_is_damaged(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(JournalDamaged):
        list(journal.read(path))


def test_no_journal_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        list(journal.read(tmp_path / "journal"))


@pytest.mark.parametrize("level", [None, 1])
def test_a_run_comes_back_without_its_payload(data_run: MakeRun, level: int | None) -> None:
    run = data_run(62 * TiB, 16, level=level)
    back = journal.run_of(journal.run_body(run))
    assert back == ClusterRun(run.offset, run.count, run.encoding, b"", run.lengths, run.digests)


def test_a_zero_run_of_a_whole_disk_comes_back() -> None:
    run = zero_run(Extent(0, 62 * TiB))
    assert journal.run_of(journal.run_body(run)) == run


def test_a_run_whose_digests_are_cut_short_is_damaged() -> None:
    [run] = encode(0, memoryview(b"x" * CLUSTER), None)
    assert run.encoding is Encoding.RAW
    with pytest.raises(JournalDamaged):
        journal.run_of(journal.run_body(run)[:-1])


@pytest.mark.parametrize("sections", [[], [b""], [b"one", b"", b"three" * 1000]])
def test_sections_come_back(sections: list[bytes]) -> None:
    assert journal.unpack_sections(journal.pack_sections(sections)) == sections
