"""Disks with real file systems, judged by the file systems' own checkers."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from agent.simulator.content import SMALLEST, no_progress
from agent.simulator.description import DiskDescription, SiteDescription
from agent.simulator.main import DEMO
from agent.simulator.site import create, open_or_create
from shared.config import load
from shared.errors import NotFound, NotPossibleNow
from shared.units import GiB, KiB, MiB

CHECKERS = {"ext4": ["/sbin/e2fsck", "-fn"], "btrfs": ["btrfs", "check"]}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    (folder / "below").mkdir(parents=True)
    for number in range(10):
        (folder / "below" / f"{number}").write_bytes(bytes([number]) * 20 * KiB)
    (folder / "small").write_bytes(b"x" * (SMALLEST - 1))
    (folder / "link").symlink_to("/nowhere")
    return folder


def described(**disk: Any) -> SiteDescription:
    return SiteDescription.model_validate({"vms": [{"name": "vm", "disks": [disk]}]})


@pytest.mark.parametrize("file_system", CHECKERS)
def test_a_guest_finds_a_sound_file_system_with_the_files(tmp_path: Path, files: Path, file_system: str) -> None:
    site = open_or_create(
        tmp_path / "site",
        described(capacity=160 * MiB, file_system=file_system, folders=[files], content=500 * KiB),
    )
    disk = site.vms[0].disks[0]
    site.vms[0].create_snapshot("snapshot-1", "x", "", quiesced=False)
    with disk.frozen("snapshot-1") as view:
        view.export(tmp_path / "raw")
        assert 500 * KiB < sum(extent.length for extent in view.allocated()) < 80 * MiB
        assert any(bytes([9]) * 20 * KiB in view.read(extent.offset, extent.length) for extent in view.allocated())
    site.close()
    checked = subprocess.run([*CHECKERS[file_system], str(tmp_path / "raw")], capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_folders_without_files_to_take_are_an_error(tmp_path: Path, files: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFound, match="no readable files"):
        create(
            tmp_path / "site",
            described(capacity=8 * MiB, file_system="ext4", folders=[tmp_path / "empty"], content=10),
            no_progress,
        )


def test_a_site_is_not_made_twice(tmp_path: Path) -> None:
    create(tmp_path / "site", described(capacity=512))
    with pytest.raises(NotPossibleNow):
        create(tmp_path / "site", described(capacity=512))


def test_the_demo_is_two_vms_with_a_gibibyte_of_files() -> None:
    site = load(SiteDescription, DEMO)
    assert [[disk.file_system for disk in vm.disks] for vm in site.vms] == [["ext4", "btrfs"], ["ext4"]]
    assert sum(disk.content for vm in site.vms for disk in vm.disks) >= 1 * GiB


@pytest.mark.parametrize(
    "disk",
    [
        {"capacity": 511},
        {"capacity": 0},
        {"capacity": 512, "content": 5},
        {"capacity": "2 TiB", "file_system": "ext4"},
        {"capacity": 512, "colour": "blue"},
    ],
)
def test_descriptions_that_make_no_sense_are_refused(disk: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DiskDescription.model_validate(disk)
