"""The backup of one VM: one snapshot, all its disks at once, one commit, and the snapshot gone in every outcome.

    find VM ─ reap leftovers ─ tracking on ─ snapshot ┬ disk: decide ─ plan ─ open ─ upload ─ seal ┬ commit ─ removed
                                                      └ disk: …                                    ┘

The first disk that fails stops the others; its error is the backup's.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass

from agent.assignment import Assignment, OnCbtLoss, Progress, Severity
from agent.config import AgentSettings
from agent.disks.reader import DiskReader
from agent.disks.vddk import opened
from agent.hub_client import HubClient, OpenedTransfer
from agent.plan import Coverage, Plan, plan_full, plan_incremental
from agent.stop import Stop
from agent.upload import Pipeline, upload
from agent.vsphere.changes import Asked, Base, Decision, changed, decide, enable_tracking
from agent.vsphere.inventory import find_vm
from agent.vsphere.ledger import Ledger
from agent.vsphere.session import VSphereSession
from agent.vsphere.snapshot import Snapshot, SnapshotDisk, reap, taken
from shared.errors import CbtLost, NotBackupable
from shared.units import human_size

STOP_NOTICE = 0.5
"""Seconds until somebody who waits for a slot sees that it has been stopped."""

Tell = Callable[[Severity, str], None]
"""Adds a line to the task's log at the hub."""


class Slots:
    """Places to work at, fewer than there may be work; whoever waits for one can be stopped."""

    def __init__(self, count: int) -> None:
        self._free = threading.Semaphore(count)

    @contextmanager
    def one(self, check_stop: Callable[[], None]) -> Iterator[None]:
        """Hold a slot inside the `with`; what `check_stop` raises ends the waiting."""
        while not self._free.acquire(timeout=STOP_NOTICE):
            check_stop()
        try:
            check_stop()
            yield
        finally:
            self._free.release()


@dataclass(frozen=True, slots=True)
class Site:
    """What every backup of this agent works with; built once by `main`."""

    settings: AgentSettings
    vsphere: VSphereSession
    hub: HubClient
    ledger: Ledger
    agent_id: str
    encoders: Executor
    disk_slots: Slots
    """As many as disks may be read at once, over all backups."""
    active_tasks: Callable[[], frozenset[str]]
    """IDs of the tasks whose snapshots are in use."""


class Backup:
    """One run; `run()` returns when the restore point is committed and the snapshot removed."""

    def __init__(self, site: Site, assignment: Assignment, tell: Tell, progress: Progress) -> None:
        self._site = site
        self._assignment = assignment
        self._tell = tell
        self._progress = progress
        self._stop = Stop()

    def stop(self, why: BaseException) -> None:
        """Ask it to end with this error, the snapshot removed; the first word counts."""
        self._stop.ask(why)

    def check_stop(self) -> None:
        """Raise what it was stopped by, if it was."""
        self._stop.check()

    def run(self) -> None:
        """Make the backup; raises what stopped it."""
        site, task_id = self._site, self._assignment.task_id
        vsphere, ledger, agent_id = site.vsphere, site.ledger, site.agent_id
        timeout = site.settings.vcenter.snapshot_timeout
        vm = find_vm(vsphere, self._assignment.vm_id)
        reap(vsphere, ledger, agent_id, site.active_tasks, timeout=timeout, instance_uuid=vm.instance_uuid)
        untracked = enable_tracking(vsphere, vm, agent_id=agent_id, task_id=task_id, ledger=ledger, timeout=timeout)
        if untracked:
            self._tell(Severity.WARNING, f"change tracking is off: {untracked}; the next backup has nothing to go on")
        self.check_stop()
        quiesce = site.settings.backup.quiesce
        with taken(
            vsphere,
            vm,
            agent_id=agent_id,
            task_id=task_id,
            ledger=ledger,
            quiesce=quiesce,
            timeout=timeout,
            check_stop=self.check_stop,
        ) as snapshot:
            self._tell(Severity.INFO, f"snapshot {snapshot.moref} of {vm.name} taken ({snapshot.consistency.lower()})")
            self._capture(snapshot, untracked)
        self._tell_of_removal(snapshot)

    def _capture(self, snapshot: Snapshot, untracked: str) -> None:
        for disk in snapshot.skipped:
            self._tell(Severity.WARNING, f"{disk.label} is not captured: {disk.reason}")
        if not snapshot.disks:
            raise NotBackupable(f"{snapshot.vm.name} has no disk that a snapshot captures")
        transfers = self._all_disks(snapshot, untracked)
        self.check_stop()
        self._site.hub.commit(self._assignment.backup_id, transfers, snapshot)
        self._tell(Severity.INFO, "committed: the backup is a restore point")

    def _all_disks(self, snapshot: Snapshot, untracked: str) -> list[OpenedTransfer]:
        """Transfer all disks, each in its thread; the first error stops the others and is raised."""
        with ThreadPoolExecutor(len(snapshot.disks), thread_name_prefix="disk") as threads:
            futures = [
                threads.submit(self._one_disk, snapshot, index, disk, untracked)
                for index, disk in enumerate(snapshot.disks)
            ]
            for future in as_completed(futures):
                if (error := future.exception()) is not None:
                    self.stop(error)
        self.check_stop()
        return [future.result() for future in futures]

    def _one_disk(self, snapshot: Snapshot, index: int, disk: SnapshotDisk, untracked: str) -> OpenedTransfer:
        site, settings = self._site, self._site.settings
        with site.disk_slots.one(self.check_stop), self._stopping_others():
            with opened(
                settings.vddk,
                settings.vcenter,
                site.vsphere.thumbprint_sha1,
                snapshot.vm.moref,
                snapshot.moref,
                disk.file_name,
            ) as reader:
                with self._prepared(snapshot, disk, reader, untracked) as work:
                    transfer = site.hub.open_transfer(self._assignment.backup_id, index, disk, work.decision, work.base)
                    pipe = Pipeline(settings.backup, site.encoders, self._progress, self._stop)
                    totals = upload(site.hub, transfer, work.plan, reader, pipe)
        site.hub.seal(transfer, work.coverage, totals)
        return transfer

    @contextmanager
    def _stopping_others(self) -> Iterator[None]:
        """Inside the slot: once that is free, a disk that waits for it would begin."""
        try:
            yield
        except BaseException as error:
            self.stop(error)
            raise

    @contextmanager
    def _prepared(
        self, snapshot: Snapshot, disk: SnapshotDisk, reader: DiskReader, untracked: str
    ) -> Iterator["_Work"]:
        """What to do with a disk, its plan complete; the plan is given back at the end."""
        base = self._assignment.bases.get((disk.device_key, disk.backing_uuid, disk.disk_object_id))
        work = self._plan(snapshot, disk, reader, decide(disk, base, self._assignment.asked), base, untracked)
        try:
            self._progress.add(total=work.plan.total_bytes)
            self._tell(Severity.INFO, work.described(disk))
            yield work
        finally:
            work.plan.close()

    def _plan(
        self,
        snapshot: Snapshot,
        disk: SnapshotDisk,
        reader: DiskReader,
        decision: Decision,
        base: Base | None,
        untracked: str,
    ) -> "_Work":
        if decision.type_run is Asked.INCREMENTAL and base is not None:
            try:
                changes = changed(self._site.vsphere, snapshot, disk, base.change_id)
                return _Work(decision, base, *plan_incremental(reader, changes))
            except CbtLost as error:
                decision = Decision(Asked.FULL, "CBT_QUERY_FAILED")
                self._tell(Severity.WARNING, f"{disk.label}: {error.message}")
        if base is not None and decision.reason and self._assignment.on_cbt_loss is OnCbtLoss.FAIL:
            raise CbtLost(f"{disk.label}: {decision.reason}, and the policy forbids a full backup instead")
        if decision.reason and untracked:
            decision = Decision(Asked.FULL, untracked)
        return _Work(decision, None, *plan_full(reader))

    def _tell_of_removal(self, snapshot: Snapshot) -> None:
        """The ledger knows: a removal that failed spoils nothing, so it is no error."""
        if any(entry.snapshot_moref == snapshot.moref for entry in self._site.ledger.entries()):
            self._tell(Severity.WARNING, f"snapshot {snapshot.moref} could not be removed; it will be tried again")
        else:
            self._tell(Severity.INFO, f"snapshot {snapshot.moref} removed")


@dataclass(frozen=True, slots=True)
class _Work:
    """What is done with one disk."""

    decision: Decision
    base: Base | None
    """The restore point to go on from; None for a full."""
    plan: Plan
    coverage: Coverage

    def described(self, disk: SnapshotDisk) -> str:
        """For the task's log."""
        reason = f" ({self.decision.reason})" if self.decision.reason else ""
        size = human_size(self.plan.total_bytes)
        return f"{disk.label}: {self.decision.type_run.value.lower()}{reason}, {size} of {human_size(disk.capacity)}"
