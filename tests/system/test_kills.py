"""Agent, hub and nbdkit, killed or asked to end in the middle of an incremental backup; and what is left of it.

Each way of interrupting is gone through once, up to the next incremental; the tests look at what came of it.
"""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from shared.units import KiB, MiB
from tests.system.labs import SMALL_READS, SystemLab, blank_vm, check_restores, system_lab, until

pytestmark = pytest.mark.slow

Interrupt = Callable[[SystemLab, dict[str, Any]], None]

OTHERS = "before the upgrade"
"""A snapshot that an administrator has taken."""


def kill_agent(lab: SystemLab, backup: dict[str, Any]) -> None:
    lab.programs["agent"].kill()
    lab.ended(backup)
    assert len(lab.snapshots("web01")) == 2, "nobody can have removed the snapshot of a killed agent yet"
    lab.start_agent()


def kill_agent_and_start_it_at_once(lab: SystemLab, backup: dict[str, Any]) -> None:
    lab.programs["agent"].kill()
    lab.start_agent()


def terminate_agent(lab: SystemLab, backup: dict[str, Any]) -> None:
    lab.programs["agent"].stop()
    assert len(lab.snapshots("web01")) == 1, "an agent that is asked to end removes its snapshot first"
    lab.ended(backup)
    lab.start_agent()


def kill_hub(lab: SystemLab, backup: dict[str, Any]) -> None:
    lab.programs["hub"].kill()
    lab.start_hub()


def terminate_hub(lab: SystemLab, backup: dict[str, Any]) -> None:
    lab.programs["hub"].stop()
    lab.start_hub()


def kill_nbdkit(lab: SystemLab, backup: dict[str, Any]) -> None:
    os.kill(lab.nbdkits()[0], signal.SIGKILL)


REASONS: dict[Interrupt, tuple[str, str]] = {
    kill_agent: ("AGENT_UNAVAILABLE", "not heard"),
    kill_agent_and_start_it_at_once: ("AGENT_UNAVAILABLE", "agent was"),  # restarted, or, if that took long, not heard
    terminate_agent: ("AGENT_UNAVAILABLE", "agent was stopped"),
    kill_hub: ("UNAVAILABLE", "hub was restarted"),
    terminate_hub: ("UNAVAILABLE", "hub was stopped"),
    kill_nbdkit: ("SOURCE_UNAVAILABLE", "nbdkit ended"),
}


@dataclass(frozen=True)
class Aftermath:
    """What came of an interrupted backup."""

    interrupt: Interrupt
    before: dict[str, Any]
    """The restore point before it."""
    interrupted: dict[str, Any]
    files_left: list[Path]
    chain_head: str
    snapshots: list[str]
    """Names in vCenter, once the agent is back."""
    following: dict[str, Any]
    """The next incremental."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SystemLab]:
    folder = tmp_path_factory.mktemp("lab")
    with system_lab(folder, blank_vm("web01", 16 * MiB, 8 * MiB), agent_toml=SMALL_READS) as lab:
        for disk in lab.vcenter.vm("web01").disks:
            disk.write(0, os.urandom(1 * MiB))
        lab.back_up("web01", "full")
        number = lab.vcenter.site.next_number()
        lab.vcenter.vm("web01").create_snapshot(f"snapshot-{number}", OTHERS, "", quiesced=False)
        yield lab


@pytest.fixture(scope="module", params=list(REASONS), ids=lambda interrupt: interrupt.__name__)
def aftermath(lab: SystemLab, request: pytest.FixtureRequest) -> Aftermath:
    """A backup that was interrupted in one of the ways."""
    interrupt: Interrupt = request.param
    before = lab.back_up("web01", "incremental")
    _guest_writes(lab)
    started = lab.start_slow_backup("web01", "incremental")
    interrupt(lab, started)
    interrupted = lab.ended(started)
    until(lab.agent_connected)
    until(lambda: len(lab.snapshots("web01")) == 1)
    files_left = lab.unfinished_files() + lab.files_of(started)
    head = lab.sendense_json("backup", "chain", "web01")["chains"][0]["images"][-1]["backup"]
    snapshots = [snapshot.name for snapshot in lab.snapshots("web01")]
    lab.vcenter.vm("web01").disks[1].write(7 * MiB, os.urandom(300 * KiB))
    following = lab.back_up("web01", "incremental")
    return Aftermath(interrupt, before, interrupted, files_left, head, snapshots, following)


def _guest_writes(lab: SystemLab) -> None:
    """Enough for the backup to be in the middle of it for seconds."""
    for disk in lab.vcenter.vm("web01").disks:
        disk.write(512 * KiB, os.urandom(7 * MiB))
        disk.trim(0, 256 * KiB)


def test_the_backup_has_failed_and_says_what_happened(aftermath: Aftermath) -> None:
    reason, words = REASONS[aftermath.interrupt]
    assert aftermath.interrupted["status"] == "BACKUP_STATUS_FAILED"
    assert aftermath.interrupted["failure"]["reason"] == reason
    assert words in aftermath.interrupted["failure"]["message"]


def test_no_file_of_it_is_left_in_the_repository(aftermath: Aftermath) -> None:
    assert aftermath.files_left == []


def test_the_chain_head_stands(aftermath: Aftermath) -> None:
    assert aftermath.chain_head == aftermath.before["name"]


def test_our_snapshot_is_gone_and_the_administrators_stands(aftermath: Aftermath) -> None:
    assert aftermath.snapshots == [OTHERS]


def test_the_next_incremental_is_laid_over_the_last_good_point(aftermath: Aftermath) -> None:
    assert [disk["parent_backup"] for disk in aftermath.following["disks"]] == [aftermath.before["name"]] * 2


def test_the_next_incremental_restores(lab: SystemLab, aftermath: Aftermath, tmp_path: Path) -> None:
    check_restores(lab, aftermath.following, tmp_path)
