"""The ledger of snapshots: on stable storage before vCenter is asked, and readable whatever happened."""

import os
from pathlib import Path

import pytest

from agent.vsphere.ledger import Ledger
from shared.errors import DataLoss, Unavailable


def reopened(path: Path) -> list[tuple[str, str]]:
    return [(entry.name, entry.snapshot_moref) for entry in Ledger(path).entries()]


def test_an_intended_snapshot_is_remembered_by_the_next_process(tmp_path: Path) -> None:
    Ledger(tmp_path / "ledger").intend("sendense-a-1", "uuid", "vm-1")
    assert reopened(tmp_path / "ledger") == [("sendense-a-1", "")]


def test_the_reference_is_remembered(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    ledger.intend("sendense-a-1", "uuid", "vm-1")
    ledger.made("sendense-a-1", "snapshot-7")
    assert reopened(tmp_path / "ledger") == [("sendense-a-1", "snapshot-7")]


def test_a_snapshot_that_is_gone_is_forgotten(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    ledger.intend("sendense-a-1", "uuid", "vm-1")
    ledger.intend("sendense-a-2", "uuid", "vm-1")
    ledger.gone("sendense-a-1")
    ledger.gone("sendense-a-1")
    assert reopened(tmp_path / "ledger") == [("sendense-a-2", "")]


def test_it_is_synced_before_it_replaces_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    sync, replace = os.fsync, Path.replace

    def noted_sync(descriptor: int) -> None:
        calls.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        sync(descriptor)

    def noted_replace(source: Path, target: Path) -> Path:
        calls.append("replace")
        return replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    Ledger(tmp_path / "ledger").intend("sendense-a-1", "uuid", "vm-1")
    assert calls == [f"{tmp_path}/ledger.new", "replace", str(tmp_path)]


def test_a_write_cut_short_leaves_the_old_one(tmp_path: Path) -> None:
    Ledger(tmp_path / "ledger").intend("sendense-a-1", "uuid", "vm-1")
    (tmp_path / "ledger.new").write_text('[{"name": "send')
    assert reopened(tmp_path / "ledger") == [("sendense-a-1", "")]


@pytest.mark.parametrize("text", ["", "{", "[1]", '[{"name": "x"}]', '[{"nom": "x"}]'])
def test_a_damaged_one_is_reported_not_ignored(tmp_path: Path, text: str) -> None:
    (tmp_path / "ledger").write_text(text)
    with pytest.raises(DataLoss, match="sendense-"):
        Ledger(tmp_path / "ledger")


def test_a_ledger_that_cannot_be_written_is_said_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable, match=r"the ledger of snapshots .*/file/ledger cannot be written: Not a directory"):
        Ledger(tmp_path / "file" / "ledger").intend("sendense-a-1", "uuid", "vm-1")
