"""The main job with real processes: full and incremental backups of two disks, every point of every disk restored.

The guest's writes are kept in a model of each disk as well, so the frozen disks that restores are compared with are
known to be what the guest had written.
"""

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from agent.simulator.disk import VirtualDisk
from deploy.dev.lab import images_equal
from shared.units import CLUSTER, KiB, MiB
from tests.system.labs import SMALL_READS, SystemLab, blank_vm, check_restores, sha256, system_lab

pytestmark = pytest.mark.slow

CAPACITIES = (24 * MiB, 16 * MiB + 512)
INCREMENTALS = 5
DURING = 3
"""The incremental during which the guest goes on writing."""


class Guest:
    """The guest's use of one disk, mirrored in memory."""

    def __init__(self, disk: VirtualDisk) -> None:
        self._disk = disk
        self.model = bytearray(disk.record.capacity)
        self.touched: set[int] = set()
        """Clusters written since the last point."""

    def write(self, offset: int, data: bytes) -> None:
        self._disk.write(offset, data)
        self._mirror(offset, data)

    def zero(self, offset: int, length: int) -> None:
        self._disk.zero(offset, length)
        self._mirror(offset, bytes(length))

    def trim(self, offset: int, length: int) -> None:
        self._disk.trim(offset, length)
        self._mirror(offset, bytes(length))

    def _mirror(self, offset: int, data: bytes) -> None:
        self.model[offset : offset + len(data)] = data
        self.touched.update(range(offset // CLUSTER, -(-(offset + len(data)) // CLUSTER)))


@dataclass
class Point:
    """A restore point, and what the guest's disks held and had changed at its instant."""

    backup: dict[str, Any] = field(default_factory=dict)
    digests: list[str] = field(default_factory=list)
    touched: list[int] = field(default_factory=list)
    """Bytes of the clusters written since the point before, per disk."""


def _close(guests: list[Guest]) -> Point:
    """What the guests had at this instant; what they write from now on belongs to the next point."""
    point = Point(
        digests=[hashlib.sha256(guest.model).hexdigest() for guest in guests],
        touched=[len(guest.touched) * CLUSTER for guest in guests],
    )
    for guest in guests:
        guest.touched.clear()
    return point


def _fill(first: Guest, second: Guest) -> None:
    first.write(0, os.urandom(6 * MiB))
    first.write(12 * MiB, b"compressible " * 100_000)
    second.write(1 * MiB, os.urandom(4 * MiB))
    second.write(CAPACITIES[1] - 512, os.urandom(512))


def _change(number: int, first: Guest, second: Guest) -> None:
    """What the guest does before incremental `number`: over old data, beside it, zeros, trims, sub-cluster edges."""
    if number == 1:
        first.write(5 * MiB + 777, os.urandom(2 * MiB))
        second.write(2 * MiB - 1, b"across a cluster's edge")
    elif number == 2:
        first.write(20 * MiB, os.urandom(1 * MiB))
        first.zero(1 * MiB + 4 * KiB, 1 * MiB)
    elif number == DURING:
        first.write(5 * MiB, os.urandom(5 * MiB))
        second.write(8 * MiB, os.urandom(3 * MiB))
    elif number == 4:
        first.trim(5 * MiB - 512, 2 * MiB)
        second.trim(1 * MiB, 2 * MiB)
        second.write(CAPACITIES[1] - 512, os.urandom(512))
    else:
        first.write(1 * MiB + 300 * KiB, b"\x01")
        first.write(5 * MiB + 64 * KiB, os.urandom(64 * KiB))
        second.zero(CAPACITIES[1] - 512, 512)


def _write_during(lab: SystemLab, guests: list[Guest], running: dict[str, Any]) -> None:
    """Write into what is being read, and beside it."""
    for number in range(8):
        for guest in guests:
            guest.write(9 * MiB + number * 100 * KiB, os.urandom(100 * KiB))
            guest.write(3 * MiB + number * 100 * KiB, os.urandom(300))
    assert lab.look(running)["status"] == "BACKUP_STATUS_RUNNING", "the backup was over before the guest had written"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SystemLab]:
    with system_lab(tmp_path_factory.mktemp("lab"), blank_vm("web01", *CAPACITIES), agent_toml=SMALL_READS) as lab:
        yield lab


@pytest.fixture(scope="module")
def points(lab: SystemLab) -> list[Point]:
    """A full backup and five incrementals."""
    guests = [Guest(disk) for disk in lab.vcenter.vm("web01").disks]
    _fill(*guests)
    points = [_close(guests)]
    points[0].backup = lab.back_up("web01", "full")
    for number in range(1, INCREMENTALS + 1):
        _change(number, *guests)
        points.append(point := _close(guests))
        if number == DURING:
            started = lab.start_slow_backup("web01", "incremental", latency=0.25)
            _write_during(lab, guests, started)
            point.backup = lab.ended(started)
        else:
            point.backup = lab.back_up("web01", "incremental")
    return points


@pytest.mark.parametrize("number", range(INCREMENTALS + 1))
def test_every_disk_of_the_point_restores_to_its_frozen_source(
    lab: SystemLab, points: list[Point], number: int, tmp_path: Path
) -> None:
    assert len(points[number].backup["disks"]) == len(CAPACITIES)
    check_restores(lab, points[number].backup, tmp_path)


def test_the_frozen_sources_are_what_the_guest_had_written(lab: SystemLab, points: list[Point]) -> None:
    frozen = [[sha256(lab.frozen_disk(point.backup, disk)) for disk in range(len(CAPACITIES))] for point in points]
    assert frozen == [point.digests for point in points]


def test_a_full_and_then_incrementals_ran_for_every_disk(points: list[Point]) -> None:
    ran = [[disk["type_run"] for disk in point.backup["disks"]] for point in points]
    assert ran == [["BACKUP_TYPE_FULL"] * 2] + [["BACKUP_TYPE_INCREMENTAL"] * 2] * INCREMENTALS


def test_an_incremental_sends_no_more_than_what_changed(points: list[Point]) -> None:
    for point in points[1:]:
        for disk, touched in zip(point.backup["disks"], point.touched, strict=True):
            assert int(disk.get("sent_bytes", 0)) <= int(disk.get("changed_bytes", 0)) <= touched


def test_what_was_trimmed_is_neither_read_nor_sent(points: list[Point]) -> None:
    trimmed = points[4].backup["disks"][1]
    assert int(trimmed["skipped_bytes"]) == 2 * MiB
    assert int(trimmed["read_bytes"]) == int(trimmed["changed_bytes"]) - 2 * MiB


def test_a_point_restored_as_qcow2_is_sound_and_stands_alone(
    lab: SystemLab, points: list[Point], tmp_path: Path
) -> None:
    image = tmp_path / "disk.qcow2"
    point = points[-1].backup
    lab.sendense("restore", "disk", point["name"], "--disk", "1", "--format", "qcow2", "--output", image)
    subprocess.run(["qemu-img", "check", "-q", image], check=True)
    about = json.loads(
        subprocess.run(["qemu-img", "info", "--output=json", image], capture_output=True, check=True).stdout
    )
    assert (about["format"], "backing-filename" in about) == ("qcow2", False)
    assert _holds(image, lab.frozen_disk(point, 1))


def test_the_newest_image_in_the_repository_equals_the_source_without_sendense(
    lab: SystemLab, points: list[Point]
) -> None:
    for index, disk in enumerate(points[-1].backup["disks"]):
        image = lab.repository / disk["image_path"]
        subprocess.run(["qemu-img", "check", "-q", image], check=True)
        assert _holds(image, lab.frozen_disk(points[-1].backup, index))


def test_restoring_to_a_file_gives_the_same_bytes_as_the_stream(
    lab: SystemLab, points: list[Point], tmp_path: Path
) -> None:
    lab.restore(points[2].backup, 0, tmp_path / "disk.raw")
    assert images_equal(tmp_path / "disk.raw", lab.frozen_disk(points[2].backup, 0))


def test_every_disk_of_every_point_has_a_change_id_of_its_own(points: list[Point]) -> None:
    change_ids = [disk["change_id"] for point in points for disk in point.backup["disks"]]
    assert len(set(change_ids)) == len(points) * len(CAPACITIES)


def test_every_incremental_asked_about_its_parents_change_id(points: list[Point]) -> None:
    for before, point in pairwise(points):
        for older, disk in zip(before.backup["disks"], point.backup["disks"], strict=True):
            assert disk["parent_backup"] == before.backup["name"]
            assert disk["base_change_id"] == older["change_id"]


def test_backup_list_and_show_tell_what_ran(lab: SystemLab, points: list[Point]) -> None:
    made = [point.backup for point in points]
    newest_first = lab.sendense_json("backup", "list", "--vm", "web01", "--status", "complete")["backups"]
    assert [backup["name"] for backup in newest_first] == [backup["name"] for backup in reversed(made)]
    shown = lab.sendense_json("backup", "show", made[2]["name"])
    assert shown == next(backup for backup in newest_first if backup["name"] == made[2]["name"])
    assert shown["disks"] == made[2]["disks"]


def test_backup_chain_shows_each_disks_images_oldest_first(lab: SystemLab, points: list[Point]) -> None:
    chains = lab.sendense_json("backup", "chain", "web01")["chains"]
    assert len(chains) == len(CAPACITIES)
    for index, chain in enumerate(chains):
        disks = [point.backup["disks"][index] for point in points]
        assert [image["backup"] for image in chain["images"]] == [point.backup["name"] for point in points]
        assert [image["type_run"] for image in chain["images"]] == [disk["type_run"] for disk in disks]
        assert [image["change_id"] for image in chain["images"]] == [disk["change_id"] for disk in disks]
        assert [image.get("parent_backup", "") for image in chain["images"]] == [
            disk.get("parent_backup", "") for disk in disks
        ]


@pytest.mark.parametrize("number", [0, DURING, INCREMENTALS])
def test_the_progress_of_the_task_ends_exact(lab: SystemLab, points: list[Point], number: int) -> None:
    backup = points[number].backup
    progress = lab.sendense_json("task", "show", backup["task"])["progress"]
    counted = {name: int(progress[f"{name}_bytes"]) for name in ("total", "read", "skipped", "sent", "stored")}
    of_disks = {
        name: sum(int(disk.get(f"{name}_bytes", 0)) for disk in backup["disks"])
        for name in ("changed", "read", "skipped", "sent", "stored")
    }
    assert counted == {"total": of_disks.pop("changed"), **of_disks}


def test_no_snapshot_is_left_in_vcenter(lab: SystemLab, points: list[Point]) -> None:
    assert points
    assert lab.snapshots("web01") == []


def _holds(image: Path, source: Path) -> bool:
    """Whether a QCOW2 image holds the bytes of a raw disk, as qemu-img sees it."""
    command = ["qemu-img", "compare", "-f", "qcow2", "-F", "raw", str(image), str(source)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
