"""What a backup does to a VM over the API: tracking, snapshots, changed areas, and the faults of each."""

import threading
from pathlib import Path
from typing import Any

import pytest
from pyVim.task import WaitForTask
from pyVmomi import vim, vmodl

from agent.simulator.layers import BLOCK
from agent.simulator.server import RunningSite
from tests.agent.simulator.test_api import find_vm, snapshot


@pytest.fixture
def vm(vcenter: RunningSite, client: Any) -> Any:
    return find_vm(client, vcenter)


def disks_of(config: Any) -> list[Any]:
    return [device for device in config.hardware.device if isinstance(device, vim.vm.device.VirtualDisk)]


def enable_tracking(vm: Any) -> None:
    WaitForTask(vm.ReconfigVM_Task(vim.vm.ConfigSpec(changeTrackingEnabled=True)))


def test_a_snapshot_appears_in_the_tree_and_goes(vm: Any) -> None:
    first, second = snapshot(vm), snapshot(vm)
    tree = vm.snapshot
    assert tree.currentSnapshot == second
    assert tree.rootSnapshotList[0].snapshot == first
    assert tree.rootSnapshotList[0].childSnapshotList[0].snapshot == second
    WaitForTask(first.RemoveSnapshot_Task(removeChildren=False))
    assert vm.snapshot.rootSnapshotList[0].snapshot == second
    WaitForTask(vm.RemoveAllSnapshots_Task())
    assert vm.snapshot is None


def test_removing_children_removes_the_snapshots_after_it(vm: Any) -> None:
    first, second, _ = snapshot(vm), snapshot(vm), snapshot(vm)
    WaitForTask(second.RemoveSnapshot_Task(removeChildren=True))
    assert vm.snapshot.currentSnapshot == first


def test_a_snapshots_config_names_the_frozen_file_and_not_the_guests(vm: Any) -> None:
    taken = snapshot(vm)
    assert disks_of(taken.config)[0].backing.fileName == "[datastore1] web01/web01.vmdk"
    assert disks_of(vm.config)[0].backing.fileName == "[datastore1] web01/web01-000001.vmdk"


def test_a_change_id_appears_with_the_first_snapshot_after_enabling(vm: Any) -> None:
    enable_tracking(vm)
    assert [disk.backing.changeId for disk in disks_of(vm.config)] == [None, None]
    ids = [disk.backing.changeId for disk in disks_of(snapshot(vm).config)]
    assert len(set(ids)) == 2
    assert all(ids)


def test_without_tracking_a_snapshot_has_no_change_id(vm: Any) -> None:
    assert disks_of(snapshot(vm).config)[0].backing.changeId is None


def test_changed_areas_are_those_between_two_snapshots(vcenter: RunningSite, vm: Any) -> None:
    enable_tracking(vm)
    before = disks_of(snapshot(vm).config)[0]
    guest = vcenter.vm("web01").disks[0]
    guest.write(BLOCK - 1, b"ab")
    guest.trim(10 * BLOCK, BLOCK)
    taken = snapshot(vm)
    guest.write(20 * BLOCK, b"later")
    answer = vm.QueryChangedDiskAreas(taken, before.key, 0, before.backing.changeId)
    areas = [(area.start, area.length) for area in answer.changedArea]
    assert areas == [(0, 2 * BLOCK), (10 * BLOCK, BLOCK)]
    assert (answer.startOffset, answer.length) == (0, before.capacityInBytes)


def test_the_page_size_is_the_sites(vcenter: RunningSite, vm: Any) -> None:
    enable_tracking(vm)
    before = disks_of(snapshot(vm).config)[0]
    for block in (0, 2, 4):
        vcenter.vm("web01").disks[0].write(block * BLOCK, b"x")
    vcenter.site.record.changed_areas_per_page = 2
    answer = vm.QueryChangedDiskAreas(snapshot(vm), before.key, 0, before.backing.changeId)
    assert (len(answer.changedArea), answer.length) == (2, 3 * BLOCK)


def test_a_star_asks_for_what_is_allocated(vcenter: RunningSite, vm: Any) -> None:
    vcenter.vm("web01").disks[0].write(BLOCK, b"x" * 2 * BLOCK)
    answer = vm.QueryChangedDiskAreas(snapshot(vm), 2000, 0, "*")
    assert [(area.start, area.length) for area in answer.changedArea] == [(BLOCK, 2 * BLOCK)]


@pytest.mark.parametrize("change_id", ["{other}/1", "{own}/9"])
def test_a_change_id_of_another_past_is_a_file_fault(vm: Any, change_id: str) -> None:
    enable_tracking(vm)
    taken = snapshot(vm)
    own, other = (disk.backing.changeId.split("/")[0] for disk in disks_of(taken.config))
    with pytest.raises(vim.fault.FileFault):
        vm.QueryChangedDiskAreas(taken, 2000, 0, change_id.format(own=own, other=other))


def test_untracked_disks_cannot_say_what_changed(vm: Any) -> None:
    with pytest.raises(vim.fault.FileFault):
        vm.QueryChangedDiskAreas(snapshot(vm), 2000, 0, "52 de c0 d9 b9 43 9d 10-61 5b 4d 63 6b 49 5d 8d/1")


@pytest.mark.parametrize(
    ("key", "start", "change_id", "wrong"),
    [
        (2000, 0, "nonsense", "changeId"),
        (2000, 8 << 20, "*", "startOffset"),
        (2000, -1, "*", "startOffset"),
        (2999, 0, "*", "deviceKey"),
    ],
)
def test_wrong_arguments_are_named(vm: Any, key: int, start: int, change_id: str, wrong: str) -> None:
    with pytest.raises(vmodl.fault.InvalidArgument) as caught:
        vm.QueryChangedDiskAreas(snapshot(vm), key, start, change_id)
    assert caught.value.invalidProperty == wrong


def test_a_snapshot_of_another_vm_is_refused(vcenter: RunningSite, client: Any, vm: Any) -> None:
    other = snapshot(find_vm(client, vcenter, "db01"))
    with pytest.raises(vmodl.fault.InvalidArgument):
        vm.QueryChangedDiskAreas(other, 2000, 0, "*")


def test_a_scripted_fault_comes_after_the_good_calls_and_only_as_often(vcenter: RunningSite, vm: Any) -> None:
    taken = snapshot(vm)
    vcenter.site.faults.add("QueryChangedDiskAreas", vim.fault.FileFault(file="x"), times=1, after=1)
    vm.QueryChangedDiskAreas(taken, 2000, 0, "*")
    with pytest.raises(vim.fault.FileFault):
        vm.QueryChangedDiskAreas(taken, 2000, 0, "*")
    vm.QueryChangedDiskAreas(taken, 2000, 0, "*")


def test_a_scripted_task_fault_ends_the_task_and_changes_nothing(vcenter: RunningSite, vm: Any) -> None:
    fault = vim.fault.ApplicationQuiesceFault(msg="The guest did not quiesce.")
    vcenter.site.faults.add("CreateSnapshot_Task", fault, in_task=True)
    task = vm.CreateSnapshot_Task("test", "", False, True)
    with pytest.raises(vim.fault.ApplicationQuiesceFault, match="did not quiesce"):
        WaitForTask(task)
    assert task.info.error.msg == "The guest did not quiesce."
    assert vm.snapshot is None


def test_power_goes_off_and_on_and_not_twice(vm: Any) -> None:
    WaitForTask(vm.PowerOffVM_Task())
    assert vm.runtime.powerState == "poweredOff"
    with pytest.raises(vim.fault.InvalidPowerState):
        WaitForTask(vm.PowerOffVM_Task())
    WaitForTask(vm.PowerOnVM_Task())
    assert vm.runtime.powerState == "poweredOn"


def test_a_powered_off_vm_tracks_from_the_moment_it_is_told_to(vm: Any) -> None:
    WaitForTask(vm.PowerOffVM_Task())
    enable_tracking(vm)
    assert all(disk.backing.changeId for disk in disks_of(vm.config))


def test_consolidation_waits_for_a_reader_and_can_be_asked_for(vcenter: RunningSite, vm: Any) -> None:
    taken = snapshot(vm)
    with vcenter.vm("web01").disks[0].frozen(taken._moId):
        WaitForTask(taken.RemoveSnapshot_Task(removeChildren=False))
        assert vm.snapshot is None
        assert vm.runtime.consolidationNeeded
        with pytest.raises(vim.fault.FileLocked):
            WaitForTask(vm.ConsolidateVMDisks_Task())
    WaitForTask(vm.ConsolidateVMDisks_Task())
    assert not vm.runtime.consolidationNeeded


def test_all_disks_of_a_snapshot_are_of_one_instant(vcenter: RunningSite, vm: Any, tmp_path: Path) -> None:
    """A guest writes the same number to both disks, first to one, then to the other: they never differ by more."""
    machine, stop = vcenter.vm("web01"), threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            for disk in machine.disks:
                disk.write(0, number.to_bytes(8, "big"))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(5):
            taken = snapshot(vm)
            numbers = []
            for disk in machine.disks:
                with disk.frozen(taken._moId) as view:
                    numbers.append(int.from_bytes(view.read(0, 8), "big"))
            assert numbers[0] - numbers[1] in (0, 1)
    finally:
        stop.set()
        writer.join()


def test_frozen_disks_are_kept_when_asked(vcenter: RunningSite, vm: Any, tmp_path: Path) -> None:
    vcenter.site.keep_frozen = tmp_path / "frozen"
    guest = vcenter.vm("web01").disks[1]
    guest.write(12345, b"kept")
    truth = guest.read(0, guest.record.capacity)
    taken = snapshot(vm)
    guest.write(12345, b"lost")
    WaitForTask(taken.RemoveSnapshot_Task(removeChildren=False))
    folder = tmp_path / "frozen" / "web01" / taken._moId
    assert (folder / "2001.raw").read_bytes() == truth
    assert '"name": "test"' in (folder / "snapshot.json").read_text()
