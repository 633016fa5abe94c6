"""The backup of a VM by the agent: what it captures, what stops it, and that no snapshot stays behind."""

import asyncio
import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from pyVmomi import vim

from agent import backup as backup_module
from agent import tasks
from agent.assignment import Assignment, OnCbtLoss, Progress
from agent.backup import Backup, Site, Slots
from agent.config import BackupSection
from agent.hub_client import HubClient
from agent.vsphere import snapshot as snapshots
from agent.vsphere.changes import Asked, Base
from agent.vsphere.ledger import Ledger
from agent.vsphere.session import connect
from sendense.v1 import backup_pb2
from shared.errors import Cancelled, CbtLost, ReadFailed
from shared.units import CLUSTER, KiB, MiB
from tests.agent.appliance import PATIENCE, Appliance, ScriptedDisks, until
from tests.hub.scripted_agent import FULL, INCREMENTAL

COMPLETE, FAILED, CANCELLED = (
    backup_pb2.BACKUP_STATUS_COMPLETE,
    backup_pb2.BACKUP_STATUS_FAILED,
    backup_pb2.BACKUP_STATUS_CANCELLED,
)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "REMOVAL_PAUSES", (0.0, 0.0))


def nothing_left(appliance: Appliance) -> bool:
    """Whether vCenter has no snapshot, the ledger no entry and the repository no file of any backup."""
    ledger = Ledger(appliance.settings.state_dir / "snapshots.json")
    return not (
        appliance.snapshots("web01") or appliance.snapshots("db01") or ledger.entries() or appliance.hub.files()
    )


async def held(disks: ScriptedDisks, count: int) -> None:
    """Wait until so many disks are being read and held."""
    for _ in range(count):
        assert await asyncio.to_thread(disks.reading.acquire, timeout=PATIENCE)


# -- what it captures -------------------------------------------------------------------------------------------------


async def test_every_disk_of_a_full_and_an_incremental_restores_the_guests_bytes(appliance: Appliance) -> None:
    first = appliance.contents("web01")
    async with appliance.at_work():
        full = await appliance.back_up("web01", FULL)
        appliance.site.vm("web01").disks[0].write(100, b"new" * KiB)
        appliance.site.vm("web01").disks[0].trim(2 * MiB, MiB)
        appliance.site.vm("web01").disks[2].write(MiB - 5, b"end!!")
        second = appliance.contents("web01")
        incremental = await appliance.back_up("web01", INCREMENTAL)
        assert (full.status, incremental.status) == (COMPLETE, COMPLETE)
        assert await appliance.restored(full) == first
        assert await appliance.restored(incremental) == second


async def test_an_incremental_reads_what_changed_and_skips_what_was_trimmed(appliance: Appliance) -> None:
    async with appliance.at_work():
        await appliance.back_up("web01", FULL)
        appliance.site.vm("web01").disks[0].write(MiB, b"new")
        appliance.site.vm("web01").disks[0].trim(2 * MiB, 3 * CLUSTER)
        backup = await appliance.back_up("web01", INCREMENTAL)
    counts = [(disk.changed_bytes, disk.read_bytes, disk.skipped_bytes) for disk in backup.disks]
    assert counts == [(4 * CLUSTER, CLUSTER, 3 * CLUSTER), (0, 0, 0), (0, 0, 0)]


async def test_what_the_guest_writes_meanwhile_is_not_in_the_backup(appliance: Appliance, disks: ScriptedDisks) -> None:
    before = appliance.contents("web01")
    disks.held = {"web01"}
    async with appliance.at_work():
        started = await appliance.start("web01", FULL)
        await held(disks, 3)
        for disk in appliance.site.vm("web01").disks:
            disk.write(0, b"later" * 200 * KiB)
        disks.held = set()
        full = await appliance.end_of(started)
        incremental = await appliance.back_up("web01", INCREMENTAL)
        assert await appliance.restored(full) == before
        assert await appliance.restored(incremental) == appliance.contents("web01")


async def test_progress_ends_exact(appliance: Appliance) -> None:
    async with appliance.at_work():
        backup = await appliance.back_up("web01", FULL)
        task = await appliance.hub.task(backup.task.removeprefix("tasks/"))
    progress = task.progress
    assert progress.total_bytes == sum(disk.changed_bytes for disk in backup.disks) > 0
    assert progress.read_bytes + progress.skipped_bytes == progress.total_bytes


async def test_the_log_tells_the_steps(appliance: Appliance) -> None:
    async with appliance.at_work():
        backup = await appliance.back_up("db01", FULL)
        log = await appliance.log_of(backup)
    assert [line.split()[-1] for line in log] == ["(crash)", "MiB", "point", "removed"]
    assert log[1] == "Hard disk 1: full, 1.5 MiB of 2.0 MiB"


async def test_no_snapshot_stays_behind_a_success(appliance: Appliance) -> None:
    async with appliance.at_work():
        await appliance.back_up("web01")
    assert appliance.snapshots("web01") == []
    assert Ledger(appliance.settings.state_dir / "snapshots.json").entries() == ()


async def test_a_snapshot_that_cannot_be_removed_is_said_and_spoils_nothing(appliance: Appliance) -> None:
    fault = vim.fault.TaskInProgress(task=vim.Task("task-1"), msg="Another task is already in progress.")
    appliance.site.site.faults.add("RemoveSnapshot_Task", fault, times=3)
    async with appliance.at_work():
        backup = await appliance.back_up("db01")
        assert backup.status == COMPLETE
        assert (await appliance.log_of(backup))[-1].endswith("could not be removed; it will be tried again")
        assert len(appliance.snapshots("db01")) == 1
        await appliance.back_up("db01")
    assert appliance.snapshots("db01") == []


async def test_a_vm_under_somebodys_snapshot_without_tracking_is_full_for_that_reason(appliance: Appliance) -> None:
    vm = appliance.site.vm("db01")
    vm.set_change_tracking(False)
    vm.create_snapshot("snapshot-1", "before the upgrade", "", quiesced=False)
    async with appliance.at_work():
        backup = await appliance.back_up("db01")
        log = await appliance.log_of(backup)
    assert [disk.type_reason for disk in backup.disks] == ["CBT_BLOCKED_BY_SNAPSHOT"]
    assert log[0].startswith("change tracking is off: CBT_BLOCKED_BY_SNAPSHOT")
    assert appliance.snapshots("db01") == ["before the upgrade"]


# -- lost change tracking ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("section", [BackupSection(max_disks=1)])
async def test_a_failing_change_query_makes_that_disk_full_and_no_other(appliance: Appliance) -> None:
    async with appliance.at_work():
        await appliance.back_up("web01", FULL)
        for disk in appliance.site.vm("web01").disks:
            disk.write(0, b"new")
        fault = vim.fault.FileFault(file="web01-ctk.vmdk", msg="Error caused by file web01-ctk.vmdk")
        appliance.site.site.faults.add("QueryChangedDiskAreas", fault, times=2)
        backup = await appliance.back_up("web01", INCREMENTAL)
        ran = sorted((disk.type_run, disk.type_reason) for disk in backup.disks)
        assert ran == [(FULL, "CBT_QUERY_FAILED"), (INCREMENTAL, ""), (INCREMENTAL, "")]
        assert await appliance.restored(backup) == appliance.contents("web01")


async def test_a_reset_of_change_tracking_makes_the_disks_full(appliance: Appliance) -> None:
    async with appliance.at_work():
        await appliance.back_up("db01", FULL)
        appliance.site.vm("db01").set_change_tracking(False)
        appliance.site.vm("db01").set_change_tracking(True)
        appliance.site.vm("db01").set_power(False)
        appliance.site.vm("db01").set_power(True)
        backup = await appliance.back_up("db01", INCREMENTAL)
    assert [(disk.type_run, disk.type_reason) for disk in backup.disks] == [(FULL, "CBT_RESET")]


@pytest.fixture
def site(appliance: Appliance, disks: ScriptedDisks) -> Any:
    """What backups of the agent work with, without the agent around it."""
    settings = appliance.settings
    with connect(settings.vcenter) as vsphere, HubClient(appliance.identity) as hub, ThreadPoolExecutor() as encoders:
        ledger = Ledger(settings.state_dir / "snapshots.json")
        yield Site(settings, vsphere, hub, ledger, "agent", encoders, Slots(4), frozenset)


def assignment(appliance: Appliance, on_cbt_loss: OnCbtLoss, change_id: str) -> Assignment:
    """An incremental of db01, over a restore point of this change ID."""
    vm = appliance.site.vm("db01").record
    disk = vm.disks[0]
    base = Base("image", change_id, disk.capacity)
    bases = {(disk.key, disk.uuid, disk.object_id): base}
    return Assignment("task", "backup", vm.instance_uuid, Asked.INCREMENTAL, on_cbt_loss, bases, time_limit=timedelta())


async def test_a_policy_that_forbids_a_full_instead_fails_the_backup(appliance: Appliance, site: Site) -> None:
    order = assignment(appliance, OnCbtLoss.FAIL, f"{uuid4()}/1")
    backup = Backup(site, order, lambda severity, message: None, Progress())
    with pytest.raises(CbtLost, match="Hard disk 1: CBT_RESET"):
        await asyncio.to_thread(backup.run)
    assert nothing_left(appliance)


# -- what stops it ----------------------------------------------------------------------------------------------------


async def test_the_first_disk_that_fails_stops_the_others_and_its_error_is_the_backups(
    appliance: Appliance, disks: ScriptedDisks
) -> None:
    disks.held, disks.failing = {"web01"}, {1}
    async with appliance.at_work():
        backup = await appliance.back_up("web01")
    assert backup.status == FAILED
    assert (backup.failure.reason, backup.failure.message) == ("READ_FAILED", "bad sector at offset 0")
    assert nothing_left(appliance)


@pytest.mark.parametrize("section", [BackupSection(max_disks=1)])
async def test_a_disk_that_waits_is_not_begun_when_another_has_failed(
    appliance: Appliance, disks: ScriptedDisks, monkeypatch: pytest.MonkeyPatch
) -> None:
    def looking_late(futures: list[Future[Any]]) -> list[Future[Any]]:
        return list(wait(futures).done)

    monkeypatch.setattr(backup_module, "as_completed", looking_late)
    disks.failing = {0, 1, 2}
    disks.reading.release()
    async with appliance.at_work():
        await appliance.back_up("web01")
    assert len(disks.opened) == 1


async def test_a_cancel_in_mid_upload_ends_it(appliance: Appliance, disks: ScriptedDisks) -> None:
    disks.held = {"web01"}
    async with appliance.at_work():
        started = await appliance.start("web01")
        await held(disks, 3)
        await appliance.cancel(started)
        backup = await appliance.end_of(started)
    assert (backup.status, backup.failure.reason) == (CANCELLED, "CANCELLED")
    assert nothing_left(appliance)


@pytest.mark.parametrize("section", [BackupSection(max_disks=1, request_size=MiB // 4)])
async def test_a_cancel_ends_it_while_it_waits_for_another_vms_disks(
    appliance: Appliance, disks: ScriptedDisks
) -> None:
    disks.held = {"web01"}
    async with appliance.at_work():
        running = await appliance.start("web01")
        await held(disks, 1)
        waiting = await appliance.start("db01")
        await until(lambda: len(appliance.snapshots("db01")) == 1)
        await appliance.cancel(waiting)
        assert (await appliance.end_of(waiting)).status == CANCELLED
        assert appliance.snapshots("db01") == []
        disks.held = set()
        assert (await appliance.end_of(running)).status == COMPLETE


@pytest.mark.parametrize("section", [BackupSection(max_vms=1, request_size=MiB // 4)])
async def test_a_cancel_ends_it_while_it_waits_for_its_turn_and_no_snapshot_is_taken(
    appliance: Appliance, disks: ScriptedDisks
) -> None:
    disks.held = {"web01"}
    async with appliance.at_work():
        running = await appliance.start("web01")
        await held(disks, 3)
        waiting = await appliance.start("db01")
        await appliance.cancel(waiting)
        assert (await appliance.end_of(waiting)).status == CANCELLED
        disks.held = set()
        assert (await appliance.end_of(running)).status == COMPLETE
    assert appliance.site.vm("db01").record.snapshots_made == 0


async def test_a_cancel_before_the_snapshot_prevents_it(
    appliance: Appliance, disks: ScriptedDisks, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, cancelled, go_on = threading.Event(), threading.Event(), threading.Event()

    def slowly(*args: Any, **options: Any) -> str:
        reached.set()
        go_on.wait(PATIENCE)
        return ""

    class Watched(Backup):
        def stop(self, why: BaseException) -> None:
            super().stop(why)
            cancelled.set()

    monkeypatch.setattr(backup_module, "enable_tracking", slowly)
    monkeypatch.setattr(tasks, "Backup", Watched)
    async with appliance.at_work():
        started = await appliance.start("db01")
        await until(reached.is_set)
        await appliance.cancel(started)
        await asyncio.to_thread(cancelled.wait, PATIENCE)
        go_on.set()
        assert (await appliance.end_of(started)).status == CANCELLED
    assert appliance.site.vm("db01").record.snapshots_made == 0


async def test_an_agent_that_stops_fails_its_backup_and_removes_the_snapshot(
    appliance: Appliance, disks: ScriptedDisks
) -> None:
    disks.held = {"web01"}
    async with appliance.at_work():
        started = await appliance.start("web01")
        await held(disks, 3)
    backup = await appliance.end_of(started)
    assert (backup.status, backup.failure.reason) == (FAILED, "AGENT_UNAVAILABLE")
    assert "the agent was stopped" in backup.failure.message
    assert nothing_left(appliance)


async def test_the_first_word_of_why_it_stops_counts(site: Site, appliance: Appliance) -> None:
    order = assignment(appliance, OnCbtLoss.FULL, "")
    backup = Backup(site, order, lambda severity, message: None, Progress())
    backup.stop(ReadFailed("first"))
    backup.stop(Cancelled("second"))
    with pytest.raises(ReadFailed, match="first"):
        await asyncio.to_thread(backup.run)


async def test_the_next_incremental_after_a_failure_goes_on_from_the_last_point(
    appliance: Appliance, disks: ScriptedDisks
) -> None:
    async with appliance.at_work():
        full = await appliance.back_up("db01", FULL)
        appliance.site.vm("db01").disks[0].write(MiB, b"first")
        disks.failing = {0}
        disks.reading.release()
        assert (await appliance.back_up("db01", INCREMENTAL)).status == FAILED
        disks.failing = set()
        appliance.site.vm("db01").disks[0].write(0, b"second")
        incremental = await appliance.back_up("db01", INCREMENTAL)
        assert [disk.parent_backup for disk in incremental.disks] == [full.name]
        assert await appliance.restored(incremental) == appliance.contents("db01")
