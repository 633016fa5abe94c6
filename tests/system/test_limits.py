"""What ends a backup early (operators, a full repository, an unreadable disk), and how many may run at once."""

import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.dev.lab import BIN
from shared.units import KiB, MiB
from tests.system.labs import (
    SMALL_READS,
    UNFINISHED,
    SystemLab,
    blank_vm,
    check_nothing_left,
    check_restores,
    system_lab,
    until,
)

pytestmark = pytest.mark.slow

MAX_VMS = 2
MAX_DISKS = 3
SIZE = 8 * MiB


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SystemLab]:
    vms = [blank_vm(name, SIZE, SIZE) for name in ("web01", "db01", "app01")]
    limits = f"max_vms = {MAX_VMS}\nmax_disks = {MAX_DISKS}\n"
    with system_lab(tmp_path_factory.mktemp("lab"), *vms, agent_toml=SMALL_READS + limits) as lab:
        for vm in lab.vcenter.site.vms:
            for disk in vm.disks:
                disk.write(0, os.urandom(SIZE))
        yield lab


@pytest.fixture(scope="module")
def full(lab: SystemLab) -> dict[str, Any]:
    """A restore point of web01, which has to stand whatever happens after it."""
    return lab.back_up("web01", "full")


@pytest.mark.usefixtures("full")
def test_a_cancelled_backup_leaves_nothing_and_the_next_one_restores(lab: SystemLab, tmp_path: Path) -> None:
    started = lab.start_slow_backup("web01", "full")
    lab.sendense("backup", "cancel", started["name"])
    cancelled = lab.ended(started)
    assert cancelled["status"] == "BACKUP_STATUS_CANCELLED"
    assert cancelled["failure"]["reason"] == "CANCELLED"
    check_nothing_left(lab, started)
    check_goes_on(lab, tmp_path)


def test_a_busy_vm_is_refused_and_another_one_is_not(lab: SystemLab) -> None:
    busy = lab.start_slow_backup("db01", "full", latency=0.5)
    refused = lab.sendense("backup", "start", "db01", check=False)
    other = lab.back_up("app01", "full")
    assert lab.look(busy)["status"] == "BACKUP_STATUS_RUNNING", "it was over before it could be in the way"
    assert (refused.returncode, "VM_BUSY" in refused.stderr) == (4, True)
    assert other["status"] == "BACKUP_STATUS_COMPLETE"
    lab.sendense("backup", "cancel", busy["name"])
    lab.ended(busy)


def test_vms_and_disks_are_read_at_once_up_to_the_limits_and_all_complete(lab: SystemLab, tmp_path: Path) -> None:
    lab.vcenter.site.disk_faults.latency = 0.05
    try:
        started = [lab.start_backup(vm.name, "full") for vm in lab.vcenter.site.vms]
        vms, disks = _most_at_once(lab, started)
    finally:
        lab.vcenter.site.disk_faults.latency = 0
    assert (vms, disks) == (MAX_VMS, MAX_DISKS)
    for backup in started:
        check_restores(lab, lab.ended(backup), tmp_path)


def test_a_full_repository_fails_the_backup_and_earlier_points_stand(
    lab: SystemLab, full: dict[str, Any], tmp_path: Path
) -> None:
    hub = lab.programs["hub"].process.pid
    before = resource.prlimit(hub, resource.RLIMIT_FSIZE)
    # To whoever writes a file, its size limit is what a full file system is, but for one letter of the error's name.
    resource.prlimit(hub, resource.RLIMIT_FSIZE, (5 * MiB, before[1]))
    try:
        started = lab.start_backup("web01", "full")
        failed = lab.ended(started)
    finally:
        resource.prlimit(hub, resource.RLIMIT_FSIZE, before)
    assert failed["status"] == "BACKUP_STATUS_FAILED"
    assert failed["failure"]["reason"] == "REPOSITORY_FULL"
    check_nothing_left(lab, started)
    check_restores(lab, full, tmp_path)
    check_goes_on(lab, tmp_path)


@pytest.mark.usefixtures("full")
def test_an_unreadable_disk_fails_the_backup_naming_disk_and_offset(lab: SystemLab, tmp_path: Path) -> None:
    lab.vcenter.site.disk_faults.fail_after = 4 * MiB
    try:
        started = lab.start_slow_backup("web01", "full")
        lab.vcenter.site.disk_faults.fail_after = 0  # or nbdkit would open the disk again and get on
        failed = lab.ended(started)
    finally:
        lab.vcenter.site.disk_faults.fail_after = None
    assert failed["status"] == "BACKUP_STATUS_FAILED"
    assert failed["failure"]["reason"] == "READ_FAILED"
    assert "[datastore1] web01/web01" in failed["failure"]["message"]
    assert "at offset 4194304" in failed["failure"]["message"]
    check_nothing_left(lab, started)
    check_goes_on(lab, tmp_path)


def test_a_wrong_vcenter_password_ends_the_agent_at_once_without_telling_it(lab: SystemLab, tmp_path: Path) -> None:
    wrong = tmp_path / "password"
    wrong.touch(0o600)
    wrong.write_text("correct-horse\n")
    ended = _run_agent(lab, tmp_path, str(lab.vcenter.password_file), str(wrong))
    assert ended.returncode == 78
    assert "refuses the login of administrator@vsphere.local" in ended.stderr
    assert "correct-horse" not in ended.stderr + ended.stdout


def test_a_wrong_thumbprint_ends_the_agent_at_once(lab: SystemLab, tmp_path: Path) -> None:
    pinned = lab.vcenter.thumbprint_sha256
    other = pinned[:-1] + ("0" if pinned[-1] != "0" else "1")
    ended = _run_agent(lab, tmp_path, pinned, other)
    assert ended.returncode == 78
    assert "certificate" in ended.stderr
    assert lab.vcenter.password not in ended.stderr


def check_goes_on(lab: SystemLab, scratch: Path) -> None:
    """The next incremental of web01 goes on from its newest restore point, and restores."""
    newest = lab.sendense_json("backup", "list", "--vm", "web01", "--status", "complete")["backups"][0]
    lab.vcenter.vm("web01").disks[0].write(3 * MiB + 5, os.urandom(100 * KiB))
    following = lab.back_up("web01", "incremental")
    assert [disk["parent_backup"] for disk in following["disks"]] == [newest["name"]] * 2
    check_restores(lab, following, scratch)


def _most_at_once(lab: SystemLab, started: list[dict[str, Any]]) -> tuple[int, int]:
    """How many VMs had a snapshot, and how many disks were being read, at most at one time."""
    vms, disks = [], []

    def all_ended() -> bool:
        vms.append(sum(bool(lab.snapshots(backup["vm_name"])) for backup in started))
        disks.append(len(lab.nbdkits()))
        return all(lab.look(backup)["status"] not in UNFINISHED for backup in started)

    until(all_ended)
    return max(vms), max(disks)


def _run_agent(lab: SystemLab, folder: Path, old: str, new: str) -> Any:
    """Run an agent to its end, with one value of its configuration replaced."""
    config = folder / "agent.toml"
    config.write_text((lab.folder / "agent.toml").read_text().replace(old, new))
    return lab.run("timeout", "30", BIN / "sendense-agent", "run", "--config", config, check=False)
