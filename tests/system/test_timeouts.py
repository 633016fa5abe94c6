"""A backup that takes too long, and one whose agent hangs: both are ended by the hub."""

import os
import signal
from collections.abc import Iterator

import pytest

from shared.units import MiB
from tests.system.labs import SMALL_READS, SystemLab, blank_vm, check_nothing_left, system_lab, until

pytestmark = pytest.mark.slow

LIMITS = "[tasks]\ntime_limit = 10\nstall_limit = 3\n"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SystemLab]:
    vms = blank_vm("web01", 16 * MiB), blank_vm("db01", 16 * MiB)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SENDENSE_HUB_AGENTS__LEASE", "60")  # else a hanging agent's lease ends first
        with system_lab(tmp_path_factory.mktemp("lab"), *vms, hub_toml=LIMITS, agent_toml=SMALL_READS) as lab:
            for vm in lab.vcenter.site.vms:
                vm.disks[0].write(0, os.urandom(16 * MiB))
            yield lab


def test_a_backup_over_its_time_limit_fails_and_leaves_nothing(lab: SystemLab) -> None:
    started = lab.start_slow_backup("db01", "full", latency=0.3)
    failed = lab.ended(started)
    assert failed["status"] == "BACKUP_STATUS_FAILED"
    assert failed["failure"]["reason"] == "TIMED_OUT"
    assert "time limit of 10 s" in failed["failure"]["message"]
    check_nothing_left(lab, started)


def test_the_next_backup_waits_until_the_snapshot_of_an_ended_one_is_gone(lab: SystemLab) -> None:
    lab.vcenter.site.disk_faults.latency = 7  # at the time limit of 10 s the second read has begun
    ended_by_hub = lab.start_backup("db01", "full")
    until(lab.unfinished_files)
    lab.vcenter.site.disk_faults.latency = 0
    assert lab.ended(ended_by_hub)["status"] == "BACKUP_STATUS_FAILED"
    assert lab.snapshots("db01"), "the agent should be in the middle of a read still"
    following = lab.start_backup("db01", "full")
    counts = []

    def is_complete() -> bool:
        counts.append(len(lab.snapshots("db01")))
        return bool(lab.look(following)["status"] == "BACKUP_STATUS_COMPLETE")

    until(is_complete)
    assert max(counts) == 1


def test_a_backup_whose_agent_hangs_fails_and_the_agent_tidies_up_when_it_wakes(lab: SystemLab) -> None:
    started = lab.start_slow_backup("web01", "full")
    agent = lab.programs["agent"].process
    agent.send_signal(signal.SIGSTOP)
    try:
        failed = lab.ended(started)
    finally:
        agent.send_signal(signal.SIGCONT)
    assert failed["status"] == "BACKUP_STATUS_FAILED"
    assert failed["failure"]["reason"] == "TIMED_OUT"
    assert "neither data nor a heartbeat" in failed["failure"]["message"]
    until(lab.agent_connected)
    check_nothing_left(lab, started)
    assert lab.back_up("web01", "full")["status"] == "BACKUP_STATUS_COMPLETE"
