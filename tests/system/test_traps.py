"""Traps about chains, change IDs and extents that have cost other people's data, each tried on the running product."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.dev.lab import images_equal
from shared.units import CLUSTER, GiB, KiB, MiB
from tests.system.labs import (
    SMALL_READS,
    SystemLab,
    blank_vm,
    check_restores,
    restore_stream,
    sha256,
    system_lab,
    until,
)

pytestmark = pytest.mark.slow

ODD = (1 * GiB + 512, 64 * KiB - 512, 512)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SystemLab]:
    """One VM per test, so that none depends on another."""
    vms = [
        blank_vm("odd", *ODD),
        blank_vm("idle", 4 * MiB),
        blank_vm("again", 2 * MiB),
        blank_vm("two-places", 4 * MiB, 1 * MiB),
        blank_vm("web01", 2 * MiB),
        blank_vm("twin", 2 * MiB),
        blank_vm("twin", 2 * MiB),
        blank_vm("reset", 2 * MiB, 2 * MiB),
        blank_vm("one-byte", 2 * MiB),
        blank_vm("secret", 4 * MiB),
    ]
    folder = tmp_path_factory.mktemp("lab")
    with system_lab(folder, *vms, agent_toml=SMALL_READS + "[inventory]\ninterval = 0.5\n") as lab:
        lab.sendense("repository", "add", "second", folder / "second")
        yield lab


def test_disks_of_odd_sizes_restore(lab: SystemLab, tmp_path: Path) -> None:
    disks = lab.vcenter.vm("odd").disks
    for disk in disks:
        disk.write(disk.record.capacity - 512, os.urandom(512))
    full = lab.back_up("odd", "full")
    disks[0].write(1 * GiB - 100, os.urandom(200))
    disks[2].write(0, os.urandom(512))
    incremental = lab.back_up("odd", "incremental")
    for backup in (full, incremental):
        for index, capacity in enumerate(ODD):
            lab.restore(backup, index, tmp_path / "restored.raw")  # sparse: the first disk is a GiB of nothing
            assert (tmp_path / "restored.raw").stat().st_size == capacity
            assert images_equal(tmp_path / "restored.raw", lab.frozen_disk(backup, index))
            (tmp_path / "restored.raw").unlink()


def test_an_incremental_without_any_change_completes_and_restores(lab: SystemLab, tmp_path: Path) -> None:
    lab.vcenter.vm("idle").disks[0].write(0, os.urandom(1 * MiB))
    full = lab.back_up("idle", "full")
    incremental = lab.back_up("idle", "incremental")
    assert _ran(incremental) == ["INCREMENTAL"]
    assert int(incremental["disks"][0].get("changed_bytes", 0)) == 0
    assert incremental["disks"][0]["parent_backup"] == full["name"]
    assert lab.sendense_json("task", "show", incremental["task"])["state"] == "TASK_STATE_SUCCEEDED"
    check_restores(lab, incremental, tmp_path)


def test_a_full_stays_full_where_history_exists_and_begins_a_new_chain(lab: SystemLab, tmp_path: Path) -> None:
    (disk,) = lab.vcenter.vm("again").disks
    disk.write(0, os.urandom(1 * MiB))
    lab.back_up("again", "full")
    disk.write(512 * KiB, os.urandom(64 * KiB))
    second_full = lab.back_up("again", "full")
    disk.write(600 * KiB, os.urandom(64 * KiB))
    incremental = lab.back_up("again", "auto")
    assert (_ran(second_full), _parents(second_full)) == (["FULL"], [""])
    assert int(second_full["disks"][0]["changed_bytes"]) == 1 * MiB
    assert (_ran(incremental), _parents(incremental)) == (["INCREMENTAL"], [second_full["name"]])
    check_restores(lab, incremental, tmp_path)


def test_two_repositories_interleaved_each_go_on_from_their_own_parent(lab: SystemLab, tmp_path: Path) -> None:
    disk, _ = lab.vcenter.vm("two-places").disks
    disk.write(0, os.urandom(2 * MiB))
    made: list[dict[str, Any]] = []
    for number, repository in enumerate(("default", "second", "default", "second", "default")):
        disk.write(number * 300 * KiB, os.urandom(400 * KiB))
        made.append(lab.back_up("two-places", "auto", repository))
    assert [_ran(backup)[0] for backup in made] == ["FULL", "FULL", "INCREMENTAL", "INCREMENTAL", "INCREMENTAL"]
    for before, backup in zip(made, made[2:], strict=False):
        assert _parents(backup) == [before["name"]] * 2
        assert _base_change_ids(backup) == _change_ids(before)
    for backup in made:
        check_restores(lab, backup, tmp_path)


def test_a_renamed_vm_goes_on_with_its_chain(lab: SystemLab, tmp_path: Path) -> None:
    machine = lab.vcenter.vm("web01")
    machine.disks[0].write(0, os.urandom(1 * MiB))
    full = lab.back_up("web01", "full")
    machine.record.name = "web01-old"
    lab.vcenter.site.save()
    until(lambda: "web01-old" in lab.sendense("vm", "list").stdout)
    machine.disks[0].write(900 * KiB, os.urandom(300 * KiB))
    incremental = lab.back_up("web01-old", "incremental")
    assert _parents(incremental) == [full["name"]]
    check_restores(lab, incremental, tmp_path)


def test_of_two_vms_with_one_name_the_id_chooses(lab: SystemLab, tmp_path: Path) -> None:
    twins = [vm for vm in lab.vcenter.site.vms if vm.name == "twin"]
    for twin in twins:
        twin.disks[0].write(0, os.urandom(1 * MiB))
    fulls = [lab.back_up(twin.record.instance_uuid, "full") for twin in twins]
    for twin in twins:
        twin.disks[0].write(512 * KiB, os.urandom(512 * KiB))
    incrementals = [lab.back_up(twin.record.instance_uuid, "incremental") for twin in twins]
    assert [_parents(backup) for backup in incrementals] == [[backup["name"]] for backup in fulls]
    for twin, backup in zip(twins, incrementals, strict=True):
        restored = restore_stream(lab, backup, 0, tmp_path / "restored.raw")
        assert restored.read_bytes() == twin.disks[0].read(0, 2 * MiB)


def test_a_name_that_two_vms_have_is_refused(lab: SystemLab) -> None:
    refused = lab.sendense("backup", "start", "twin", "--repository", "default", check=False)
    assert refused.returncode == 2
    assert "several VMs are named twin" in refused.stderr
    assert "vm_name" in refused.stderr


def test_each_disk_is_judged_by_its_own_change_id(lab: SystemLab, tmp_path: Path) -> None:
    first, second = lab.vcenter.vm("reset").disks
    first.write(0, os.urandom(1 * MiB))
    second.write(0, os.urandom(1 * MiB))
    full = lab.back_up("reset", "full")
    second.track(False)
    second.write(512 * KiB, os.urandom(64 * KiB))  # nobody has tracked this
    second.track(True)
    first.write(512 * KiB, os.urandom(64 * KiB))
    incremental = lab.back_up("reset", "incremental")
    assert _ran(incremental) == ["INCREMENTAL", "FULL"]
    assert [disk.get("type_reason", "") for disk in incremental["disks"]] == ["", "CBT_RESET"]
    assert _parents(incremental) == [full["name"], ""]
    check_restores(lab, incremental, tmp_path)


def test_a_single_byte_in_a_cluster_of_zeros_survives(lab: SystemLab, tmp_path: Path) -> None:
    (disk,) = lab.vcenter.vm("one-byte").disks
    disk.zero(0, 2 * MiB)
    lab.back_up("one-byte", "full")
    disk.write(5 * CLUSTER + 54_321, b"\x01")
    incremental = lab.back_up("one-byte", "incremental")
    restored = restore_stream(lab, incremental, 0, tmp_path / "restored.raw")
    expected = bytearray(2 * MiB)
    expected[5 * CLUSTER + 54_321] = 1
    assert restored.read_bytes() == expected
    assert sha256(restored) == sha256(lab.frozen_disk(incremental, 0))


def test_the_vcenter_password_is_in_no_argv_no_log_and_nothing_of_the_hub(lab: SystemLab) -> None:
    (disk,) = lab.vcenter.vm("secret").disks
    disk.write(0, os.urandom(4 * MiB))
    running = lab.start_slow_backup("secret", "full")
    seen = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in lab.nbdkits()]
    assert seen, "there must be an nbdkit whose arguments could hold it"
    lab.ended(running)
    folders = (lab.folder / "logs", lab.folder / "hub", lab.repository)
    seen += [path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert not any(lab.vcenter.password.encode() in content for content in seen)


def _ran(backup: dict[str, Any]) -> list[str]:
    return [disk["type_run"].removeprefix("BACKUP_TYPE_") for disk in backup["disks"]]


def _parents(backup: dict[str, Any]) -> list[str]:
    return [disk.get("parent_backup", "") for disk in backup["disks"]]


def _change_ids(backup: dict[str, Any]) -> list[str]:
    return [disk["change_id"] for disk in backup["disks"]]


def _base_change_ids(backup: dict[str, Any]) -> list[str]:
    return [disk["base_change_id"] for disk in backup["disks"]]
