"""Changed block tracking against the simulator: turned on only where safe, asked completely, never guessed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from pyVmomi import vim, vmodl

from agent.simulator.server import RunningSite
from agent.vsphere.changes import Asked, Base, changed, decide, enable_tracking
from agent.vsphere.inventory import Vm
from agent.vsphere.ledger import Ledger
from agent.vsphere.session import VSphereSession
from agent.vsphere.snapshot import Snapshot, taken
from shared.errors import CbtLost, NotFound, SourceUnavailable
from shared.extents import Extent
from shared.units import CLUSTER, MiB
from tests.agent.vsphere.sites import found

Enable = Callable[..., str]


@pytest.fixture
def vm(site: RunningSite, session: VSphereSession) -> Vm:
    return found(session, site, "web01")


@pytest.fixture
def enable(session: VSphereSession, vm: Vm, ledger: Ledger) -> Enable:
    def enable(of: Vm = vm) -> str:
        return enable_tracking(session, of, agent_id="agent", task_id="task", ledger=ledger, timeout=10)

    return enable


@contextmanager
def snapshot_of(session: VSphereSession, vm: Vm, ledger: Ledger) -> Iterator[Snapshot]:
    with taken(session, vm, agent_id="a", task_id="t", ledger=ledger, quiesce=False, timeout=10) as snapshot:
        yield snapshot


@pytest.fixture
def bases(site: RunningSite, session: VSphereSession, vm: Vm, ledger: Ledger) -> list[str]:
    """Change IDs of web01's disks at a first snapshot, which is gone again."""
    site.vm("web01").set_change_tracking(True)
    with snapshot_of(session, vm, ledger) as snapshot:
        return [disk.change_id for disk in snapshot.disks]


def calls(site: RunningSite, method: str) -> int:
    return site.site.calls.methods().count(method)


# -- turning it on ----------------------------------------------------------------------------------------------------


def test_tracking_is_on_afterwards_and_counts_from_the_next_snapshot(
    site: RunningSite, session: VSphereSession, vm: Vm, ledger: Ledger, enable: Enable
) -> None:
    assert enable() == ""
    assert site.vm("web01").snapshots() == []
    with snapshot_of(session, vm, ledger) as snapshot:
        assert all(disk.change_id for disk in snapshot.disks)


def test_a_running_vm_is_stunned_so_that_tracking_begins(site: RunningSite, enable: Enable) -> None:
    enable()
    assert all(disk.change_id for disk in site.vm("web01").disks)


def test_nothing_is_done_where_it_is_on(site: RunningSite, enable: Enable) -> None:
    enable()
    assert enable() == ""
    assert calls(site, "ReconfigVM_Task") == calls(site, "CreateSnapshot_Task") == 1


def test_it_is_not_turned_on_under_a_snapshot(site: RunningSite, enable: Enable) -> None:
    site.vm("web01").create_snapshot("snapshot-900", "before the update", "", quiesced=False)
    assert enable() == "CBT_BLOCKED_BY_SNAPSHOT"
    assert calls(site, "ReconfigVM_Task") == 0


def test_it_is_not_turned_on_over_unmerged_deltas(site: RunningSite, enable: Enable) -> None:
    site.vm("web01").create_snapshot("snapshot-900", "x", "", quiesced=False)
    site.vm("web01").remove_snapshots({"snapshot-900"}, consolidate=False)
    assert enable() == "CBT_BLOCKED_BY_CONSOLIDATION"
    assert calls(site, "ReconfigVM_Task") == 0


def test_a_vm_that_cannot_track_is_left_alone(site: RunningSite, vm: Vm, enable: Enable) -> None:
    assert enable(replace(vm, cbt_supported=False)) == "CBT_UNSUPPORTED"
    assert enable(replace(vm, hardware_version=4)) == "CBT_UNSUPPORTED"
    assert calls(site, "ReconfigVM_Task") == 0


def test_a_missing_privilege_is_a_reason_not_an_error(site: RunningSite, enable: Enable) -> None:
    site.site.faults.add("ReconfigVM_Task", vim.fault.NoPermission(privilegeId="VirtualMachine.Config.ChangeTracking"))
    assert enable() == "CBT_NOT_PERMITTED"


def test_other_faults_are_errors(site: RunningSite, enable: Enable) -> None:
    site.site.faults.add("ReconfigVM_Task", vim.fault.GenericVmConfigFault(msg="no", reason="x"), in_task=True)
    with pytest.raises(SourceUnavailable, match="turning change tracking on for web01: GenericVmConfigFault"):
        enable()


def test_an_order_that_vcenter_did_not_carry_out_is_noticed(
    site: RunningSite, enable: Enable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site.vm("web01"), "set_change_tracking", lambda enabled: None)
    assert enable() == "CBT_NOT_ENABLED"


# -- asking -----------------------------------------------------------------------------------------------------------


def scatter(site: RunningSite, disk: int = 0) -> list[Extent]:
    """Write every other cluster of a disk's first 4 MiB."""
    extents = [Extent(offset, CLUSTER) for offset in range(0, 4 * MiB, 2 * CLUSTER)]
    for extent in extents:
        site.vm("web01").disks[disk].write(extent.offset, b"x" * 512)
    return extents


@pytest.mark.parametrize("per_page", [1, 7, 32, 2000])
def test_every_change_is_named_whatever_the_page_size(
    site: RunningSite, session: VSphereSession, vm: Vm, ledger: Ledger, bases: list[str], per_page: int
) -> None:
    site.site.record.changed_areas_per_page = per_page
    written = scatter(site)
    with snapshot_of(session, vm, ledger) as snapshot:
        changes = changed(session, snapshot, snapshot.disks[0], bases[0])
        assert list(changes) == written
    proof = changes.coverage
    assert (proof.from_offset, proof.to_offset) == (0, snapshot.disks[0].capacity)
    assert (proof.extents, proof.bytes) == (len(written), len(written) * CLUSTER)
    assert proof.pages == calls(site, "QueryChangedDiskAreas") == -(-len(written) // per_page)


def test_each_disk_is_asked_about_itself(
    site: RunningSite, session: VSphereSession, vm: Vm, ledger: Ledger, bases: list[str]
) -> None:
    site.vm("web01").disks[1].write(3 * MiB, b"x")
    with snapshot_of(session, vm, ledger) as snapshot:
        named = [list(changed(session, snapshot, disk, base)) for disk, base in zip(snapshot.disks, bases, strict=True)]
    assert named == [[], [Extent(3 * MiB, CLUSTER)]]


def test_the_last_sectors_of_an_odd_disk_are_named(
    site: RunningSite, session: VSphereSession, vm: Vm, ledger: Ledger, bases: list[str]
) -> None:
    site.vm("web01").disks[1].write(4 * MiB, b"x")  # the disk ends 512 bytes later
    with snapshot_of(session, vm, ledger) as snapshot:
        named = list(changed(session, snapshot, snapshot.disks[1], bases[1]))
    assert named == [Extent(4 * MiB, 512)]


def test_what_the_guest_writes_after_the_snapshot_is_not_named(
    site: RunningSite, session: VSphereSession, vm: Vm, ledger: Ledger, bases: list[str]
) -> None:
    with snapshot_of(session, vm, ledger) as snapshot:
        scatter(site)
        assert list(changed(session, snapshot, snapshot.disks[0], bases[0])) == []


def test_a_session_lost_in_mid_query_loses_no_change(
    site: RunningSite, session: VSphereSession, vm: Vm, ledger: Ledger, bases: list[str]
) -> None:
    site.site.record.changed_areas_per_page = 7
    written = scatter(site)
    with snapshot_of(session, vm, ledger) as snapshot:
        changes = changed(session, snapshot, snapshot.disks[0], bases[0])
        named = []
        for extent in changes:
            named.append(extent)
            site.service.sessions.expire_all()
    assert named == written
    assert changes.coverage.extents == len(written)


LOSSES = [
    vim.fault.FileFault(file="[ds] web01-ctk.vmdk", msg="Error caused by file"),
    vmodl.fault.InvalidArgument(invalidProperty="changeId", msg="A specified parameter was not correct"),
    vim.fault.NotFound(msg="not found"),
]


@pytest.mark.parametrize("fault", LOSSES, ids=lambda fault: type(fault).__name__)
def test_a_loss_is_asked_about_once_more_after_a_new_login(
    site: RunningSite, session: VSphereSession, vm: Vm, ledger: Ledger, bases: list[str], fault: Any
) -> None:
    written = scatter(site)
    with snapshot_of(session, vm, ledger) as snapshot:
        site.site.faults.add("QueryChangedDiskAreas", fault)
        assert list(changed(session, snapshot, snapshot.disks[0], bases[0])) == written
    assert calls(site, "Login") == 2


@pytest.mark.parametrize("fault", LOSSES, ids=lambda fault: type(fault).__name__)
def test_a_loss_that_stays_is_an_error_with_disk_and_fault(
    site: RunningSite, session: VSphereSession, vm: Vm, ledger: Ledger, bases: list[str], fault: Any
) -> None:
    kind = type(fault).__name__.rpartition(".")[2]
    with snapshot_of(session, vm, ledger) as snapshot:
        site.site.faults.add("QueryChangedDiskAreas", fault, times=2)
        with pytest.raises(CbtLost, match=f"what changed on Hard disk 1 of web01 since .* \\({kind}: ") as caught:
            list(changed(session, snapshot, snapshot.disks[0], bases[0]))
    assert isinstance(caught.value.__cause__, type(fault))


def test_tracking_that_began_anew_is_noticed_before_and_by_the_query(
    site: RunningSite, session: VSphereSession, vm: Vm, ledger: Ledger, bases: list[str]
) -> None:
    site.vm("web01").set_change_tracking(False)
    site.vm("web01").set_change_tracking(True)
    with snapshot_of(session, vm, ledger) as snapshot:
        disk = snapshot.disks[0]
        assert decide(disk, Base("image", bases[0], disk.capacity), Asked.AUTO).reason == "CBT_RESET"
        with pytest.raises(CbtLost):
            list(changed(session, snapshot, disk, bases[0]))


def test_a_snapshot_that_is_gone_is_no_loss_of_tracking(
    site: RunningSite, session: VSphereSession, vm: Vm, ledger: Ledger, bases: list[str]
) -> None:
    with snapshot_of(session, vm, ledger) as snapshot:
        site.vm("web01").remove_snapshots({snapshot.moref})
        with pytest.raises(NotFound):
            list(changed(session, snapshot, snapshot.disks[0], bases[0]))


def test_another_fault_is_no_loss_of_tracking(
    site: RunningSite, session: VSphereSession, vm: Vm, ledger: Ledger, bases: list[str]
) -> None:
    with snapshot_of(session, vm, ledger) as snapshot:
        site.site.faults.add("QueryChangedDiskAreas", vmodl.fault.SystemError(reason="x", msg="busy"))
        with pytest.raises(SourceUnavailable):
            list(changed(session, snapshot, snapshot.disks[0], bases[0]))
