"""Leftovers of a killed agent are removed, whenever it was killed; whatever is not ours stays."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pyVmomi import vim

from agent.simulator.server import RunningSite
from agent.vsphere import snapshot as snapshots
from agent.vsphere.inventory import Vm
from agent.vsphere.ledger import Ledger
from agent.vsphere.session import VSphereSession
from agent.vsphere.snapshot import reap, snapshot_name, taken
from shared.errors import TimedOut
from tests.agent.vsphere.sites import found

OURS = snapshot_name("agent", "task")

Reap = Callable[..., None]


@pytest.fixture
def vm(site: RunningSite, session: VSphereSession) -> Vm:
    return found(session, site, "web01")


@pytest.fixture
def reaped(session: VSphereSession, ledger: Ledger) -> Reap:
    def reaped(*active: str, instance_uuid: str = "") -> None:
        reap(session, ledger, "agent", lambda: active, timeout=10, instance_uuid=instance_uuid)

    return reaped


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "REMOVAL_PAUSES", ())


def leave(site: RunningSite, name: str, moref: str = "snapshot-900") -> None:
    """Leave a snapshot of web01 behind."""
    site.vm("web01").create_snapshot(moref, name, "", quiesced=False)


def present(site: RunningSite) -> list[str]:
    return [snapshot.name for snapshot in site.vm("web01").snapshots()]


def aged(path: Path, age: timedelta) -> Ledger:
    """The ledger at `path` as if its entries were that old."""
    entries = json.loads(path.read_text())
    for entry in entries:
        entry["intended_at"] = (datetime.now(UTC) - age).isoformat()
    path.write_text(json.dumps(entries))
    return Ledger(path)


def test_killed_before_the_snapshot_was_asked_for(site: RunningSite, vm: Vm, ledger: Ledger, reaped: Reap) -> None:
    ledger.intend(OURS, vm.instance_uuid, vm.moref)
    reaped()
    assert present(site) == []


def test_killed_before_its_reference_was_known(site: RunningSite, vm: Vm, ledger: Ledger, reaped: Reap) -> None:
    ledger.intend(OURS, vm.instance_uuid, vm.moref)
    leave(site, OURS)
    reaped()
    assert present(site) == []
    assert ledger.entries() == ()


def test_killed_while_the_backup_was_reading(site: RunningSite, vm: Vm, ledger: Ledger, reaped: Reap) -> None:
    ledger.intend(OURS, vm.instance_uuid, vm.moref)
    leave(site, OURS)
    ledger.made(OURS, "snapshot-900")
    reaped()
    assert present(site) == []
    assert ledger.entries() == ()


def test_killed_after_it_was_removed(site: RunningSite, vm: Vm, ledger: Ledger, reaped: Reap) -> None:
    ledger.intend(OURS, vm.instance_uuid, vm.moref)
    ledger.made(OURS, "snapshot-900")
    reaped()
    assert ledger.entries() == ()


def test_a_snapshot_that_vcenter_makes_late_is_found_later(
    site: RunningSite, session: VSphereSession, vm: Vm, ledger: Ledger, reaped: Reap
) -> None:
    with site.vm("web01").busy:
        with pytest.raises(TimedOut):
            with taken(session, vm, agent_id="agent", task_id="task", ledger=ledger, quiesce=False, timeout=0.1):
                pass
        reaped()
        assert [entry.name for entry in ledger.entries()] == [OURS]
    wait_for_tasks(site)
    assert present(site) == [OURS]
    reaped()
    assert present(site) == []
    assert ledger.entries() == ()


def test_an_intent_without_a_snapshot_is_forgotten_after_a_day(
    session: VSphereSession, vm: Vm, ledger: Ledger, tmp_path: Path
) -> None:
    ledger.intend(OURS, vm.instance_uuid, vm.moref)
    old = aged(tmp_path / "ledger", timedelta(hours=25))
    reap(session, old, "agent", tuple, timeout=10)
    assert old.entries() == ()


@pytest.mark.parametrize(("hours", "left"), [(1, 1), (25, 0)])
def test_a_vm_that_is_gone_is_remembered_for_a_day(
    session: VSphereSession, ledger: Ledger, tmp_path: Path, hours: int, left: int
) -> None:
    ledger.intend(OURS, "5003-gone", "vm-999")
    ledger.made(OURS, "snapshot-900")
    old = aged(tmp_path / "ledger", timedelta(hours=hours))
    reap(session, old, "agent", tuple, timeout=10)
    assert len(old.entries()) == left


@pytest.mark.parametrize(
    "name",
    [
        "before the update",
        "sendense",
        "sendense-agent",
        snapshot_name("other", "task"),
        snapshot_name("agent2", "task"),
        "sendense-agent-task-of-somebody",
    ],
)
def test_what_is_not_ours_stays(site: RunningSite, vm: Vm, ledger: Ledger, reaped: Reap, name: str) -> None:
    ledger.intend(OURS, vm.instance_uuid, vm.moref)
    leave(site, name, "snapshot-900")
    leave(site, OURS, "snapshot-901")
    leave(site, name, "snapshot-902")
    reaped()
    assert present(site) == [name, name]
    assert "RemoveAllSnapshots_Task" not in site.site.calls.methods()


def test_the_snapshot_of_an_active_task_stays(site: RunningSite, vm: Vm, ledger: Ledger, reaped: Reap) -> None:
    ledger.intend(OURS, vm.instance_uuid, vm.moref)
    leave(site, OURS)
    reaped("task")
    assert present(site) == [OURS]
    assert [entry.name for entry in ledger.entries()] == [OURS]


def test_a_task_that_begins_while_vcenter_is_asked_keeps_its_snapshot(
    site: RunningSite, session: VSphereSession, vm: Vm, ledger: Ledger
) -> None:
    old, new = snapshot_name("agent", "old"), snapshot_name("agent", "new")
    ledger.intend(old, vm.instance_uuid, vm.moref)
    leave(site, old)

    def active() -> list[str]:
        """First asked before vCenter is."""
        if new not in present(site):
            ledger.intend(new, vm.instance_uuid, vm.moref)
            leave(site, new, "snapshot-901")
            return []
        return ["new"]

    reap(session, ledger, "agent", active, timeout=10)
    assert present(site) == [new]
    assert [entry.name for entry in ledger.entries()] == [new]


def test_before_a_backup_a_leftover_is_found_though_the_ledger_was_lost(
    site: RunningSite, vm: Vm, reaped: Reap
) -> None:
    leave(site, OURS)
    reaped(instance_uuid=vm.instance_uuid)
    assert present(site) == []


def test_before_a_backup_other_vms_are_left_for_another_time(
    site: RunningSite, session: VSphereSession, vm: Vm, ledger: Ledger, reaped: Reap
) -> None:
    ledger.intend(OURS, vm.instance_uuid, vm.moref)
    leave(site, OURS)
    reaped(instance_uuid=found(session, site, "db01").instance_uuid)
    assert present(site) == [OURS]


def test_one_that_cannot_be_removed_now_is_removed_next_time(
    site: RunningSite, vm: Vm, ledger: Ledger, reaped: Reap
) -> None:
    ledger.intend(OURS, vm.instance_uuid, vm.moref)
    leave(site, OURS)
    site.site.faults.add("RemoveSnapshot_Task", vim.fault.FileFault(file="x", msg="locked"), in_task=True)
    reaped()
    assert [entry.name for entry in ledger.entries()] == [OURS]
    reaped()
    assert present(site) == []
    assert ledger.entries() == ()


def test_a_vm_that_fails_does_not_keep_the_others_from_being_cleared(
    site: RunningSite, session: VSphereSession, vm: Vm, ledger: Ledger, reaped: Reap
) -> None:
    other = found(session, site, "db01")
    ledger.intend(OURS, vm.instance_uuid, vm.moref)
    ledger.intend(snapshot_name("agent", "task2"), other.instance_uuid, other.moref)
    leave(site, OURS)
    site.vm("db01").create_snapshot("snapshot-901", snapshot_name("agent", "task2"), "", quiesced=False)
    site.site.faults.add("RemoveSnapshot_Task", vim.fault.FileFault(file="x", msg="locked"), in_task=True)
    reaped()
    assert len(present(site)) + len(site.vm("db01").snapshots()) == 1
    assert len(ledger.entries()) == 1


def wait_for_tasks(site: RunningSite) -> None:
    """Until web01's queued task has ended."""
    with site.site.changed:
        assert site.site.changed.wait_for(lambda: present(site) == [OURS], timeout=10)
