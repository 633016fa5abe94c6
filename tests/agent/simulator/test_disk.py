"""The disk against a model: bytes, frozen views and changed areas, over random histories."""

import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.simulator.description import DiskDescription, SiteDescription, VmDescription
from agent.simulator.disk import VirtualDisk
from agent.simulator.layers import BLOCK
from agent.simulator.machine import VirtualMachine
from agent.simulator.site import Site, open_or_create
from shared.units import MiB, TiB


def make_site(folder: Path, *capacities: int, change_tracking: bool = True) -> Site:
    disks = tuple(DiskDescription.model_validate({"capacity": capacity}) for capacity in capacities)
    vm = VmDescription(name="vm", disks=disks, change_tracking=change_tracking)
    return open_or_create(folder, SiteDescription(vms=(vm,)))


@pytest.fixture
def vm(tmp_path: Path) -> Any:
    site = make_site(tmp_path, 1 * MiB + 512)
    yield site.vms[0]
    site.close()


@pytest.fixture
def disk(vm: VirtualMachine) -> VirtualDisk:
    return vm.disks[0]


def freeze(vm: VirtualMachine, moref: str) -> None:
    vm.create_snapshot(moref, moref, "", quiesced=False)


def frozen_bytes(disk: VirtualDisk, moref: str) -> bytes:
    with disk.frozen(moref) as view:
        return view.read(0, disk.record.capacity)


def all_changes(vm: VirtualMachine, moref: str, change_id: str, page: int) -> list[tuple[int, int]]:
    """Every changed area as a client collects them, checking that pages tile the disk."""
    capacity, key = vm.disks[0].record.capacity, vm.disks[0].record.key
    areas: list[tuple[int, int]] = []
    offset = 0
    while offset < capacity:
        answer = vm.changed_page(moref, key, offset, change_id, page)
        assert answer.offset == offset
        assert 0 < answer.length <= capacity - offset
        assert len(answer.areas) <= page
        assert all(offset <= area.offset < area.end <= offset + answer.length for area in answer.areas)
        areas += [(area.offset, area.end) for area in answer.areas]
        offset += answer.length
    return areas


def test_a_guest_reads_what_it_wrote_across_block_edges(disk: VirtualDisk) -> None:
    disk.write(BLOCK - 3, b"abcdef")
    assert disk.read(BLOCK - 5, 10) == b"\0\0abcdef\0\0"


def test_a_write_beyond_the_disk_is_refused(disk: VirtualDisk) -> None:
    with pytest.raises(ValueError, match="not inside"):
        disk.write(disk.record.capacity - 1, b"ab")


def test_what_a_guest_writes_after_a_snapshot_is_not_in_it(vm: VirtualMachine, disk: VirtualDisk) -> None:
    disk.write(100, b"before")
    freeze(vm, "snapshot-1")
    disk.write(103, b"AFTER")
    assert frozen_bytes(disk, "snapshot-1")[100:106] == b"before"
    assert disk.read(100, 8) == b"befAFTER"


def test_a_trimmed_block_is_unallocated_and_hides_what_lies_below(vm: VirtualMachine, disk: VirtualDisk) -> None:
    disk.write(0, b"x" * 2 * BLOCK)
    freeze(vm, "snapshot-1")
    disk.trim(0, BLOCK)
    freeze(vm, "snapshot-2")
    with disk.frozen("snapshot-2") as view:
        assert [(extent.offset, extent.length) for extent in view.allocated()] == [(BLOCK, BLOCK)]
        assert view.read(0, BLOCK) == bytes(BLOCK)


def test_a_trim_between_two_snapshots_outlives_the_first_of_them(vm: VirtualMachine, disk: VirtualDisk) -> None:
    disk.write(0, b"x" * BLOCK)
    for moref in ("snapshot-0", "snapshot-1"):
        freeze(vm, moref)
    disk.trim(0, BLOCK)
    freeze(vm, "snapshot-2")
    vm.remove_snapshots({"snapshot-1"})
    assert frozen_bytes(disk, "snapshot-2")[:BLOCK] == bytes(BLOCK)
    assert frozen_bytes(disk, "snapshot-0")[:BLOCK] == b"x" * BLOCK


def test_zeros_a_guest_writes_are_allocated(vm: VirtualMachine, disk: VirtualDisk) -> None:
    disk.zero(0, BLOCK)
    freeze(vm, "snapshot-1")
    with disk.frozen("snapshot-1") as view:
        assert [(extent.offset, extent.length) for extent in view.allocated()] == [(0, BLOCK)]


def test_a_view_that_is_read_keeps_its_layers_until_it_closes(vm: VirtualMachine, disk: VirtualDisk) -> None:
    disk.write(0, b"old")
    freeze(vm, "snapshot-1")
    disk.write(0, b"new")
    with disk.frozen("snapshot-1") as view:
        vm.remove_snapshots({"snapshot-1"})
        left_over = vm.consolidation_needed
        assert view.read(0, 3) == b"old"
    vm.consolidate()
    assert (left_over, vm.consolidation_needed) == (True, False)
    assert disk.read(0, 3) == b"new"


def test_a_view_stays_true_while_the_snapshots_below_and_above_it_go(vm: VirtualMachine, disk: VirtualDisk) -> None:
    for index in range(3):
        disk.write(index * BLOCK, b"%d" % index)
        freeze(vm, f"snapshot-{index}")
    disk.write(0, b"x" * 3 * BLOCK)
    truth = frozen_bytes(disk, "snapshot-1")
    with disk.frozen("snapshot-1") as view:
        vm.remove_snapshots({"snapshot-0"})
        vm.remove_snapshots({"snapshot-2"})
        vm.remove_snapshots({"snapshot-1"})
        assert view.read(0, disk.record.capacity) == truth


def test_an_interrupted_consolidation_is_finished_by_the_next(tmp_path: Path) -> None:
    site = make_site(tmp_path, 4 * BLOCK)
    vm, disk = site.vms[0], site.vms[0].disks[0]
    disk.write(0, b"a" * 2 * BLOCK)
    freeze(vm, "snapshot-1")
    disk.write(BLOCK, b"b" * 2 * BLOCK)
    disk.trim(0, BLOCK)
    truth = disk.read(0, 4 * BLOCK)
    disk.release("snapshot-1")
    vm.record.snapshots.clear()
    site.save()
    # What a kill in the middle leaves: the lower layer has taken over, the record still names both.
    disk._layers[0].absorb(disk._layers[1], is_bottom=True)
    site.close()

    site = Site(tmp_path)
    assert site.vms[0].consolidation_needed
    assert site.vms[0].disks[0].read(0, 4 * BLOCK) == truth
    site.vms[0].consolidate()
    assert site.vms[0].disks[0].read(0, 4 * BLOCK) == truth
    site.close()


def test_files_of_a_folded_layer_that_a_kill_left_do_not_come_back(vm: VirtualMachine, disk: VirtualDisk) -> None:
    freeze(vm, "snapshot-1")
    disk.write(0, b"old")
    folder = disk._layers[1].prefix.parent
    left = {path: path.read_bytes() for path in folder.glob("layer-000001.*")}
    vm.remove_snapshots({"snapshot-1"})
    disk.write(0, b"new")
    for path, data in left.items():
        path.write_bytes(data)
    freeze(vm, "snapshot-2")
    assert disk.read(0, 3) == b"new"


def test_a_snapshot_that_was_being_made_when_the_simulator_was_killed_never_was(tmp_path: Path) -> None:
    site = make_site(tmp_path, 4 * BLOCK, 4 * BLOCK)
    site.vms[0].disks[0].write(0, b"kept")
    site.vms[0].disks[0].freeze("snapshot-1")
    site.save()
    site.close()

    site = Site(tmp_path)
    assert site.vms[0].consolidation_needed
    site.vms[0].consolidate()
    assert site.vms[0].disks[0].read(0, 4) == b"kept"
    assert len(site.vms[0].disks[0].record.layers) == 1
    site.close()


def test_tracking_begins_at_the_stun_after_it_was_enabled(tmp_path: Path) -> None:
    site = make_site(tmp_path, BLOCK, change_tracking=False)
    vm = site.vms[0]
    freeze(vm, "snapshot-1")
    vm.remove_snapshots({"snapshot-1"})
    vm.set_change_tracking(True)
    assert vm.disks[0].change_id is None
    freeze(vm, "snapshot-2")
    assert vm.snapshot("snapshot-2").change_ids.keys() == {vm.disks[0].record.key}
    assert vm.disks[0].change_id != vm.snapshot("snapshot-2").change_ids[vm.disks[0].record.key]
    site.close()


def test_enabling_tracking_again_gives_another_identifier(vm: VirtualMachine) -> None:
    freeze(vm, "snapshot-1")
    vm.set_change_tracking(False)
    vm.set_change_tracking(True)
    freeze(vm, "snapshot-2")
    before, after = (next(iter(snapshot.change_ids.values())) for snapshot in vm.snapshots())
    assert before.split("/")[0] != after.split("/")[0]


def test_a_full_page_ends_where_its_last_area_does(vm: VirtualMachine, disk: VirtualDisk) -> None:
    freeze(vm, "snapshot-1")
    for block in (1, 3, 5):
        disk.write(block * BLOCK, b"x")
    freeze(vm, "snapshot-2")
    since = vm.snapshot("snapshot-1").change_ids[disk.record.key]
    page = vm.changed_page("snapshot-2", disk.record.key, 0, since, 2)
    assert (page.offset, page.length) == (0, 4 * BLOCK)


def test_a_start_inside_a_changed_block_is_answered_from_there(vm: VirtualMachine, disk: VirtualDisk) -> None:
    freeze(vm, "snapshot-1")
    disk.write(0, b"x")
    freeze(vm, "snapshot-2")
    since = vm.snapshot("snapshot-1").change_ids[disk.record.key]
    page = vm.changed_page("snapshot-2", disk.record.key, 512, since, 10)
    assert [(area.offset, area.end) for area in page.areas] == [(512, BLOCK)]


def test_a_disk_of_62_tib_costs_neither_memory_nor_space(tmp_path: Path) -> None:
    site = make_site(tmp_path, 62 * TiB)
    vm, disk = site.vms[0], site.vms[0].disks[0]
    freeze(vm, "snapshot-1")
    since = vm.snapshot("snapshot-1").change_ids[disk.record.key]
    tracemalloc.start()
    disk.write(1 * TiB - 5, b"0123456789")
    disk.write(62 * TiB - 3, b"end")
    freeze(vm, "snapshot-2")
    areas = all_changes(vm, "snapshot-2", since, 2000)
    with disk.frozen("snapshot-2") as view:
        allocated = sum(extent.length for extent in view.allocated())
        assert view.read(1 * TiB - 5, 10) == b"0123456789"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert areas == [(1 * TiB - BLOCK, 1 * TiB + BLOCK), (62 * TiB - BLOCK, 62 * TiB)]
    assert allocated == 3 * BLOCK
    assert peak < 16 * MiB
    assert sum(path.stat().st_blocks * 512 for path in tmp_path.rglob("*")) < 2 * MiB
    site.close()


OFFSETS = st.one_of(st.integers(0, 700_000), st.integers(0, 10).map(lambda block: block * BLOCK))
LENGTHS = st.one_of(st.integers(1, 200_000), st.integers(1, 4).map(lambda blocks: blocks * BLOCK))
GUEST = st.one_of(
    st.tuples(st.just("write"), OFFSETS, LENGTHS, st.integers(1, 255)),
    st.tuples(st.just("zero"), OFFSETS, LENGTHS),
    st.tuples(st.just("trim"), OFFSETS, LENGTHS),
)
REMOVAL = st.tuples(st.just("remove"), st.integers(0, 5))
ROUND = st.tuples(st.lists(GUEST, max_size=3), st.just([("snapshot",)]), st.lists(REMOVAL, max_size=1))


@settings(max_examples=100, deadline=None)
@given(
    capacity=st.one_of(st.integers(1, 1400), st.integers(3, 11).map(lambda blocks: blocks * 128)),
    rounds=st.lists(ROUND, min_size=1, max_size=6),
    page=st.integers(1, 5),
)
def test_random_histories_match_the_model(capacity: int, rounds: list[tuple[Any, ...]], page: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = Model(capacity * 512)
        site = make_site(Path(folder), capacity * 512)
        actions = [action for parts in rounds for part in parts for action in part]
        for number, action in enumerate(actions):
            play(site.vms[0], site.vms[0].disks[0], model, action, f"snapshot-{number}")
        site.close()
        site = Site(Path(folder))  # what is checked is what a restart finds
        check(site.vms[0], model, page)
        site.close()


class Model:
    """A disk as an array of bytes, with the history of its blocks."""

    def __init__(self, capacity: int) -> None:
        self.data = bytearray(capacity)
        self.touched: set[int] = set()
        self.intervals: list[set[int]] = []
        """Blocks written in each interval before a snapshot, also of snapshots that are gone."""
        self.frozen: dict[str, tuple[bytes, int]] = {}
        """Bytes, and number of the interval, of each snapshot that still is."""

    def put(self, offset: int, data: bytes) -> None:
        self.data[offset : offset + len(data)] = data
        self.touched |= set(range(offset // BLOCK, -(-(offset + len(data)) // BLOCK)))


def play(vm: VirtualMachine, disk: VirtualDisk, model: Model, action: tuple[Any, ...], moref: str) -> None:
    if action[0] == "snapshot":
        freeze(vm, moref)
        model.intervals.append(model.touched)
        model.touched = set()
        model.frozen[moref] = (bytes(model.data), len(model.intervals))
    elif action[0] == "remove" and model.frozen:
        victim = list(model.frozen)[action[1] % len(model.frozen)]
        vm.remove_snapshots({victim})
        del model.frozen[victim]
    elif action[0] in ("write", "zero", "trim"):
        offset = action[1] % len(model.data)
        length = min(action[2], len(model.data) - offset)
        data = bytes([action[3]]) * length if action[0] == "write" else bytes(length)
        model.put(offset, data)
        if action[0] == "write":
            disk.write(offset, data)
        else:
            {"zero": disk.zero, "trim": disk.trim}[action[0]](offset, length)


def check(vm: VirtualMachine, model: Model, page: int) -> None:
    disk, capacity = vm.disks[0], len(model.data)
    assert disk.read(0, capacity) == model.data
    assert not vm.consolidation_needed
    assert [snapshot.moref for snapshot in vm.snapshots()] == list(model.frozen)
    for moref, (data, at) in model.frozen.items():
        assert frozen_bytes(disk, moref) == data
        with disk.frozen(moref) as view:
            covered = bytearray(capacity)
            for extent in view.allocated():
                covered[extent.offset : extent.end] = data[extent.offset : extent.end]
            assert covered == data, "what is not allocated is zero"
        uuid = vm.snapshot(moref).change_ids[disk.record.key].split("/")[0]
        for since in range(1, at + 1):
            changed = set().union(*model.intervals[since:at])
            assert all_changes(vm, moref, f"{uuid}/{since}", page) == byte_ranges(changed, capacity)


def byte_ranges(blocks: set[int], capacity: int) -> list[tuple[int, int]]:
    ranges: list[tuple[int, int]] = []
    for block in sorted(blocks):
        start, end = block * BLOCK, min((block + 1) * BLOCK, capacity)
        if ranges and ranges[-1][1] == start:
            ranges[-1] = (ranges[-1][0], end)
        else:
            ranges.append((start, end))
    return ranges
