"""What runs for a disk: an increment only where the change ID proves that it goes on from the base."""

from dataclasses import replace

import pytest

from agent.vsphere.changes import Asked, Base, ChangeId, Decision, decide, parse_change_id
from agent.vsphere.snapshot import SnapshotDisk
from shared.units import GiB

UUID = "52 de c0 d9 b9 43 9d 10-61 d5 4c 1b e9 7b 65 63"
DISK = SnapshotDisk(2000, "6000C29a", "1-2000", "Hard disk 1", 8 * GiB, f"{UUID}/81", "[ds] vm/vm.vmdk")
BASE = Base("image", f"{UUID}/80", 8 * GiB)
WANTED = [Asked.INCREMENTAL, Asked.AUTO]


@pytest.mark.parametrize("asked", WANTED)
def test_same_tracking_and_same_size_is_an_increment(asked: Asked) -> None:
    assert decide(DISK, BASE, asked) == Decision(Asked.INCREMENTAL)


def test_a_full_asked_for_is_a_full_though_history_exists() -> None:
    assert decide(DISK, BASE, Asked.FULL) == Decision(Asked.FULL)


@pytest.mark.parametrize("asked", WANTED)
def test_a_disk_without_restore_point_is_read_in_full(asked: Asked) -> None:
    assert decide(DISK, None, asked) == Decision(Asked.FULL, "FIRST_BACKUP")


@pytest.mark.parametrize("asked", WANTED)
@pytest.mark.parametrize(
    ("disk", "base", "reason"),
    [
        (replace(DISK, capacity=9 * GiB), BASE, "CAPACITY_CHANGED"),
        (replace(DISK, change_id=""), BASE, "CHANGE_ID_MISSING"),
        (DISK, replace(BASE, change_id=""), "CHANGE_ID_MISSING"),
        (replace(DISK, change_id="*"), BASE, "CHANGE_ID_MISSING"),
        (replace(DISK, change_id="another/81"), BASE, "CBT_RESET"),
        (replace(DISK, change_id=f"{UUID}/79"), BASE, "CBT_SEQUENCE_DROPPED"),
    ],
)
def test_an_increment_that_cannot_be_proven_is_a_full_with_its_reason(
    asked: Asked, disk: SnapshotDisk, base: Base, reason: str
) -> None:
    assert decide(disk, base, asked) == Decision(Asked.FULL, reason)


def test_sequences_are_compared_as_numbers() -> None:
    assert (
        decide(replace(DISK, change_id=f"{UUID}/100"), replace(BASE, change_id=f"{UUID}/99"), Asked.AUTO).reason == ""
    )


def test_a_change_id_is_uuid_and_sequence() -> None:
    assert parse_change_id(f"{UUID}/81") == ChangeId(UUID, 81)


@pytest.mark.parametrize("text", ["", "*", "81", "/81", f"{UUID}/", f"{UUID}/x", f"{UUID}/-1"])
def test_what_is_not_uuid_and_sequence_is_no_change_id(text: str) -> None:
    with pytest.raises(ValueError):
        parse_change_id(text)
