"""Snapshots of ours: taken once, described exactly, removed whatever happens, and never anybody else's."""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pyVmomi import vim, vmodl

from agent.simulator import machine
from agent.simulator.server import RunningSite, running
from agent.stop import Stop
from agent.vsphere import snapshot as snapshots
from agent.vsphere.inventory import Vm, find_vm
from agent.vsphere.ledger import Ledger
from agent.vsphere.session import VSphereSession, connect
from agent.vsphere.snapshot import SkippedDisk, Snapshot, snapshot_name, taken
from shared.errors import Cancelled, Conflict, NotBackupable, SendenseError, SourceUnavailable, TimedOut
from shared.units import MiB
from tests.agent.vsphere.sites import described, found, vcenter_settings, vm_with

Take = Callable[..., AbstractContextManager[Snapshot]]


@pytest.fixture
def vm(site: RunningSite, session: VSphereSession) -> Vm:
    return found(session, site, "web01")


@pytest.fixture
def take(session: VSphereSession, vm: Vm, ledger: Ledger) -> Take:
    """Takes a snapshot of web01, or of the VM given."""

    def take(of: Vm = vm, *, quiesce: bool = False, timeout: float = 10) -> AbstractContextManager[Snapshot]:
        return taken(session, of, agent_id="agent", task_id="task", ledger=ledger, quiesce=quiesce, timeout=timeout)

    return take


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "REMOVAL_PAUSES", (0.0, 0.0))


def present(site: RunningSite, name: str = "web01") -> list[str]:
    """Names of the VM's snapshots, as the simulator knows them."""
    return [snapshot.name for snapshot in site.vm(name).snapshots()]


def quiesce_fault() -> Any:
    return vim.fault.ApplicationQuiesceFault(msg="The guest did not quiesce.")


def busy_fault() -> Any:
    return vim.fault.TaskInProgress(task=vim.Task("task-1"), msg="Another task is already in progress.")


# -- what it says -----------------------------------------------------------------------------------------------------


def test_all_disks_are_frozen_by_one_snapshot(site: RunningSite, take: Take) -> None:
    with take() as snapshot:
        assert [item.moref for item in site.vm("web01").snapshots()] == [snapshot.moref]
        assert [disk.device_key for disk in snapshot.disks] == [disk.record.key for disk in site.vm("web01").disks]
    assert site.site.calls.methods().count("CreateSnapshot_Task") == 1


def test_files_are_named_as_the_snapshot_records_them(site: RunningSite, take: Take) -> None:
    with take() as snapshot:
        for told, disk in zip(snapshot.disks, site.vm("web01").disks, strict=True):
            assert told.file_name == disk.frozen_file_name(snapshot.moref) != disk.file_name


def test_identity_and_size_are_those_of_the_disk(site: RunningSite, take: Take) -> None:
    with take() as snapshot:
        for told, disk in zip(snapshot.disks, site.vm("web01").disks, strict=True):
            record = disk.record
            assert (told.backing_uuid, told.disk_object_id, told.capacity) == (
                record.uuid,
                record.object_id,
                record.capacity,
            )


def test_there_is_no_change_id_where_tracking_is_off(take: Take) -> None:
    with take() as snapshot:
        assert [disk.change_id for disk in snapshot.disks] == ["", ""]


def test_each_disk_has_its_own_change_id_of_the_snapshot(site: RunningSite, take: Take) -> None:
    site.vm("web01").set_change_tracking(True)
    with take() as snapshot:
        frozen = site.vm("web01").snapshot(snapshot.moref).change_ids
        assert {disk.device_key: disk.change_id for disk in snapshot.disks} == frozen
    assert len(set(frozen.values())) == 2


def test_the_instant_is_vcenters_in_utc(site: RunningSite, take: Take) -> None:
    with take() as snapshot:
        assert snapshot.taken_at == site.vm("web01").snapshot(snapshot.moref).created
        assert snapshot.taken_at.tzinfo is UTC
        assert abs(datetime.now(UTC) - snapshot.taken_at) < timedelta(minutes=1)


def test_disks_it_cannot_capture_are_listed_though_the_snapshot_does_not_show_them(vm: Vm, take: Take) -> None:
    independent = replace(vm.disks[0], device_key=2009, label="Hard disk 9", mode="independent_persistent")
    with take(replace(vm, disks=(*vm.disks, independent))) as snapshot:
        assert snapshot.skipped == (SkippedDisk(2009, "Hard disk 9", "INDEPENDENT"),)
        assert len(snapshot.disks) == 2


def test_a_template_is_refused_before_anything_is_asked(site: RunningSite, vm: Vm, take: Take, ledger: Ledger) -> None:
    with pytest.raises(NotBackupable, match="web01 is a template"), take(replace(vm, is_template=True)):
        pass
    assert "CreateSnapshot_Task" not in site.site.calls.methods()
    assert ledger.entries() == ()


def test_a_vm_without_a_disk_to_capture_is_refused(vm: Vm, take: Take) -> None:
    disks = tuple(replace(disk, mode="independent_persistent") for disk in vm.disks)
    with pytest.raises(NotBackupable, match="no disk"), take(replace(vm, disks=disks)):
        pass


def test_of_two_vms_with_one_name_the_right_one_is_taken(tmp_path: Path, ledger: Ledger) -> None:
    with running(tmp_path / "twins", described(vm_with("twin", MiB), vm_with("twin", MiB))) as site:
        first, second = site.site.vms
        with connect(vcenter_settings(site)) as session:
            vm = find_vm(session, second.record.instance_uuid)
            with taken(session, vm, agent_id="a", task_id="t", ledger=ledger, quiesce=False, timeout=10):
                assert (len(first.snapshots()), len(second.snapshots())) == (0, 1)
            assert second.snapshots() == []


# -- quiescing --------------------------------------------------------------------------------------------------------


def test_a_quiesced_snapshot_says_so(take: Take) -> None:
    with take(quiesce=True) as snapshot:
        assert snapshot.consistency == "QUIESCED"


def test_a_snapshot_that_was_not_to_be_quiesced_is_crash_consistent(take: Take) -> None:
    with take(quiesce=False) as snapshot:
        assert snapshot.consistency == "CRASH"


@pytest.mark.parametrize(
    "fault",
    [
        vim.fault.ApplicationQuiesceFault(msg=""),
        vim.fault.FilesystemQuiesceFault(msg=""),
        vim.fault.ToolsUnavailable(msg=""),
        vim.fault.GenericVmConfigFault(msg="An error occurred while quiescing the virtual machine.", reason="x"),
    ],
    ids=lambda fault: type(fault).__name__,
)
def test_quiescing_is_tried_again_once(site: RunningSite, take: Take, fault: Any) -> None:
    site.site.faults.add("CreateSnapshot_Task", fault, in_task=True)
    with take(quiesce=True) as snapshot:
        assert snapshot.consistency == "QUIESCED"


def test_a_guest_that_does_not_quiesce_is_taken_crash_consistent_and_marked(site: RunningSite, take: Take) -> None:
    site.site.faults.add("CreateSnapshot_Task", quiesce_fault(), times=2, in_task=True)
    with take(quiesce=True) as snapshot:
        assert snapshot.consistency == "CRASH"
        assert len(present(site)) == 1


def test_other_faults_are_no_reason_to_give_quiescing_up(site: RunningSite, take: Take) -> None:
    site.site.faults.add("CreateSnapshot_Task", vim.fault.FileFault(file="x", msg="no"), in_task=True)
    with pytest.raises(SourceUnavailable, match="FileFault"), take(quiesce=True):
        pass


def test_a_vm_that_does_not_run_is_not_quiesced(site: RunningSite, vm: Vm, take: Take) -> None:
    site.vm("web01").set_power(False)
    with take(replace(vm, power_state="POWERED_OFF"), quiesce=True) as snapshot:
        assert snapshot.consistency == "CRASH"


# -- removed whatever happens -----------------------------------------------------------------------------------------


def test_it_is_removed_after_success(site: RunningSite, take: Take, ledger: Ledger) -> None:
    with take():
        assert present(site) == [snapshot_name("agent", "task")]
    assert present(site) == []
    assert ledger.entries() == ()


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt(), GeneratorExit()])
def test_it_is_removed_after_any_exception(site: RunningSite, take: Take, ledger: Ledger, error: BaseException) -> None:
    with pytest.raises(type(error)), take():
        raise error
    assert present(site) == []
    assert ledger.entries() == ()


def test_it_is_removed_after_the_session_was_lost(site: RunningSite, take: Take) -> None:
    with take():
        site.service.sessions.expire_all()
    assert present(site) == []


def test_it_is_removed_when_reading_its_config_fails(site: RunningSite, take: Take) -> None:
    site.site.faults.add("RetrievePropertiesEx", vim.fault.HostConnectFault(msg="no host"))
    with pytest.raises(SourceUnavailable), take():
        pass
    assert present(site) == []


def test_it_is_removed_when_the_ledger_cannot_be_written_any_more(
    site: RunningSite, take: Take, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Ledger, name: str, moref: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Ledger, "made", full)
    with pytest.raises(OSError, match="No space"), take():
        pass
    assert present(site) == []


def test_nothing_is_asked_when_the_ledger_cannot_be_written(
    site: RunningSite, take: Take, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Ledger, *facts: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Ledger, "intend", full)
    with pytest.raises(OSError, match="No space"), take():
        pass
    assert "CreateSnapshot_Task" not in site.site.calls.methods()


def test_a_removal_that_finds_the_vm_busy_is_tried_again(site: RunningSite, take: Take, ledger: Ledger) -> None:
    with take():
        site.site.faults.add("RemoveSnapshot_Task", busy_fault(), times=2, in_task=True)
    assert present(site) == []
    assert ledger.entries() == ()


def test_a_failing_removal_does_not_hide_the_first_error_and_stays_in_the_ledger(
    site: RunningSite, take: Take, ledger: Ledger
) -> None:
    with pytest.raises(ValueError, match="first"), take() as snapshot:
        site.site.faults.add("RemoveSnapshot_Task", vim.fault.FileFault(file="x", msg="locked"), times=9, in_task=True)
        raise ValueError("first")
    assert [entry.snapshot_moref for entry in ledger.entries()] == [snapshot.moref]


def test_a_failing_removal_does_not_spoil_what_succeeded(site: RunningSite, take: Take, ledger: Ledger) -> None:
    with take():
        site.site.faults.add("RemoveSnapshot_Task", vim.fault.FileFault(file="x", msg="locked"), times=9, in_task=True)
    assert present(site) == [entry.name for entry in ledger.entries()]


def test_one_that_somebody_else_removed_meanwhile_is_gone_all_the_same(
    site: RunningSite, take: Take, ledger: Ledger
) -> None:
    with take() as snapshot:
        site.vm("web01").remove_snapshots({snapshot.moref})
    assert ledger.entries() == ()


def test_one_that_somebody_else_removes_at_the_same_time_is_gone_all_the_same(
    site: RunningSite, take: Take, ledger: Ledger
) -> None:
    with take() as snapshot:
        gone = vmodl.fault.ManagedObjectNotFound(obj=vim.vm.Snapshot(snapshot.moref), msg="already deleted")
        site.site.faults.add("RemoveSnapshot_Task", gone)
    assert ledger.entries() == ()


def test_a_snapshot_taken_on_top_of_ours_stays(site: RunningSite, take: Take) -> None:
    with take():
        site.vm("web01").create_snapshot("snapshot-900", "before the update", "", quiesced=False)
    assert present(site) == ["before the update"]


def test_disks_are_consolidated_before_it_counts_as_gone(
    site: RunningSite, take: Take, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "READER_GRACE", 0.05)
    monkeypatch.setattr(snapshots, "REMOVAL_PAUSES", (0.5, 5.0))
    with take() as snapshot:
        view = site.vm("web01").disks[0].frozen(snapshot.moref)
        view.__enter__()  # somebody still reads: the host removes the snapshot and leaves the delta for later
        threading.Timer(0.3, view.__exit__, (None, None, None)).start()
    assert not site.vm("web01").consolidation_needed
    assert site.site.calls.methods().count("ConsolidateVMDisks_Task") == 2
    assert ledger.entries() == ()


def test_disks_that_cannot_be_consolidated_yet_stay_in_the_ledger(
    site: RunningSite, take: Take, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "READER_GRACE", 0.05)
    with take() as snapshot:
        view = site.vm("web01").disks[0].frozen(snapshot.moref)
        view.__enter__()
    assert [entry.snapshot_moref for entry in ledger.entries()] == [snapshot.moref]
    view.__exit__(None, None, None)


def test_a_task_that_does_not_end_is_said_to_hang(site: RunningSite, take: Take) -> None:
    with site.vm("web01").busy:
        with pytest.raises(
            TimedOut, match=r"taking a snapshot of web01: .* has not ended its task task-\d+ within 0 s"
        ):
            with take(timeout=0.2):
                pass


def test_a_stop_ends_the_wait_for_a_snapshot_and_leaves_a_late_one_to_be_reaped(
    site: RunningSite, session: VSphereSession, vm: Vm, ledger: Ledger
) -> None:
    stop = Stop()
    threading.Timer(0.1, stop.ask, [Cancelled("enough")]).start()
    late = taken(
        session, vm, agent_id="a", task_id="t", ledger=ledger, quiesce=False, timeout=60, check_stop=stop.check
    )
    with site.vm("web01").busy:
        with pytest.raises(Cancelled, match="enough"), late:
            pass
    assert [entry.name for entry in ledger.entries()] == [snapshot_name("a", "t")]


# -- the ledger comes first -------------------------------------------------------------------------------------------


def test_the_intent_is_on_disk_before_vcenter_is_asked(
    site: RunningSite, session: VSphereSession, take: Take, ledger: Ledger, tmp_path: Path, monkeypatch: Any
) -> None:
    seen: list[list[str]] = []
    send = session._stub.soapStub.InvokeMethod

    def invoke(managed: Any, info: Any, *rest: Any) -> Any:
        if info.wsdlName == "CreateSnapshot_Task":
            seen.append([entry.name for entry in Ledger(tmp_path / "ledger").entries()])
        return send(managed, info, *rest)

    monkeypatch.setattr(session._stub.soapStub, "InvokeMethod", invoke)
    with take():
        pass
    assert seen == [[snapshot_name("agent", "task")]]


def test_the_reference_is_on_disk_while_the_backup_reads(take: Take, tmp_path: Path) -> None:
    with take() as snapshot:
        assert [entry.snapshot_moref for entry in Ledger(tmp_path / "ledger").entries()] == [snapshot.moref]


def test_a_refused_snapshot_leaves_none(site: RunningSite, take: Take) -> None:
    site.site.faults.add("CreateSnapshot_Task", busy_fault())
    with pytest.raises(Conflict), take():
        pass
    assert present(site) == []


def test_the_name_of_two_uuids_is_within_vcenters_80_letters() -> None:
    assert len(snapshot_name(str(uuid4()), str(uuid4()))) <= 80


def test_every_error_of_taking_one_is_ours(site: RunningSite, take: Take) -> None:
    site.site.faults.add(
        "CreateSnapshot_Task", vim.fault.NoPermission(privilegeId="VirtualMachine.State.CreateSnapshot")
    )
    with pytest.raises(SendenseError, match=r"lacks the privilege VirtualMachine\.State\.CreateSnapshot"), take():
        pass
