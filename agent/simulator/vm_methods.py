"""The API methods of VirtualMachine and Snapshot: what a backup asks a host to do, and about changed blocks."""

from collections.abc import Callable
from typing import Any

from pyVmomi import vim, vmodl

from agent.simulator.disk import LayerInUse
from agent.simulator.hardware import PowerState
from agent.simulator.inventory import Inventory, not_found
from agent.simulator.machine import ChangesUnknown, VirtualMachine
from agent.simulator.sessions import Session
from agent.simulator.site import Site
from agent.simulator.soap import Fault
from agent.simulator.tasks import Tasks


class VmMethods:
    """What can be done to the site's VMs."""

    def __init__(self, site: Site, inventory: Inventory, tasks: Tasks) -> None:
        self._site = site
        self._inventory = inventory
        self._tasks = tasks

    def table(self) -> dict[str, Callable[..., Any]]:
        """The methods by WSDL name."""
        return {
            "ReconfigVM_Task": self._reconfigure,
            "PowerOnVM_Task": lambda target, session, host: self._power("PowerOnVM_Task", target, session, True),
            "PowerOffVM_Task": lambda target, session: self._power("PowerOffVM_Task", target, session, False),
            "CreateSnapshot_Task": self._create_snapshot,
            "CreateSnapshotEx_Task": self._create_snapshot_ex,
            "RemoveSnapshot_Task": self._remove_snapshot,
            "RemoveAllSnapshots_Task": self._remove_all_snapshots,
            "ConsolidateVMDisks_Task": self._consolidate,
            "QueryChangedDiskAreas": self._query_changed_disk_areas,
        }

    def _reconfigure(self, target: Any, session: Session, spec: Any) -> Any:
        vm = self._inventory.vm(target)

        def work() -> None:
            if spec.changeTrackingEnabled is not None:
                vm.set_change_tracking(spec.changeTrackingEnabled)

        return self._tasks.start("ReconfigVM_Task", vm, session.username, work)

    def _power(self, method: str, target: Any, session: Session, wanted: bool) -> Any:
        vm = self._inventory.vm(target)

        def work() -> None:
            if vm.record.powered_on == wanted:
                state = PowerState.poweredOn if wanted else PowerState.poweredOff
                message = f"The attempted operation cannot be performed in the current state ({state})."
                raise Fault(vim.fault.InvalidPowerState(requestedState=state, existingState=state, msg=message))
            vm.set_power(wanted)

        return self._tasks.start(method, vm, session.username, work)

    def _create_snapshot(
        self, target: Any, session: Session, name: str, description: str | None, memory: bool, quiesce: bool
    ) -> Any:
        return self._snapshot("CreateSnapshot_Task", target, session, name, description, quiesce)

    def _create_snapshot_ex(
        self,
        target: Any,
        session: Session,
        name: str,
        description: str | None,
        memory: bool,
        quiesceSpec: Any,
    ) -> Any:
        return self._snapshot("CreateSnapshotEx_Task", target, session, name, description, quiesceSpec is not None)

    def _snapshot(
        self, method: str, target: Any, session: Session, name: str, description: str | None, quiesce: bool
    ) -> Any:
        vm = self._inventory.vm(target)

        def work() -> Any:
            moref = f"snapshot-{self._site.next_number()}"
            quiesced = quiesce and vm.record.powered_on
            vm.create_snapshot(moref, name, description or "", quiesced=quiesced, keep=self._site.keep_frozen)
            return vim.vm.Snapshot(moref, None)

        return self._tasks.start(method, vm, session.username, work)

    def _remove_snapshot(
        self,
        target: Any,
        session: Session,
        removeChildren: bool,
        consolidate: bool | None,
    ) -> Any:
        vm, moref = self._inventory.snapshot(target)

        def work() -> None:
            morefs = [snapshot.moref for snapshot in vm.snapshots()]
            if moref not in morefs:
                raise not_found(target)
            doomed = morefs[morefs.index(moref) :] if removeChildren else [moref]
            vm.remove_snapshots(set(doomed), consolidate=consolidate is not False)

        return self._tasks.start("RemoveSnapshot_Task", vm, session.username, work)

    def _remove_all_snapshots(self, target: Any, session: Session, consolidate: bool | None, spec: Any) -> Any:
        vm = self._inventory.vm(target)

        def work() -> None:
            doomed = {snapshot.moref for snapshot in vm.snapshots()}
            vm.remove_snapshots(doomed, consolidate=consolidate is not False)

        return self._tasks.start("RemoveAllSnapshots_Task", vm, session.username, work)

    def _consolidate(self, target: Any, session: Session) -> Any:
        vm = self._inventory.vm(target)

        def work() -> None:
            try:
                vm.consolidate()
            except LayerInUse as error:
                message = f"Unable to access file {error} since it is locked."
                raise Fault(vim.fault.FileLocked(file=str(error), msg=message)) from error

        return self._tasks.start("ConsolidateVMDisks_Task", vm, session.username, work)

    def _query_changed_disk_areas(
        self,
        target: Any,
        session: Session,
        snapshot: Any,
        deviceKey: int,
        startOffset: int,
        changeId: str,
    ) -> Any:
        vm = self._inventory.vm(target)
        moref = self._own_snapshot(vm, snapshot)
        limit = self._site.record.changed_areas_per_page
        if deviceKey not in [disk.record.key for disk in vm.disks]:
            raise _invalid("deviceKey")
        try:
            page = vm.changed_page(moref, deviceKey, startOffset, changeId, limit)
        except (KeyError, FileNotFoundError) as error:  # removed meanwhile
            raise not_found(snapshot) from error
        except ValueError as error:
            raise _invalid(str(error)) from error
        except ChangesUnknown as error:
            file = vm.disk(deviceKey).frozen_file_name(moref)
            raise Fault(vim.fault.FileFault(file=file, msg=f"Error caused by file {file}")) from error
        extent = vim.VirtualMachine.DiskChangeInfo.DiskChangeExtent
        return vim.VirtualMachine.DiskChangeInfo(
            startOffset=page.offset,
            length=page.length,
            changedArea=[extent(start=area.offset, length=area.length) for area in page.areas],
        )

    def _own_snapshot(self, vm: VirtualMachine, snapshot: Any) -> str:
        if snapshot is None:
            raise _invalid("snapshot")
        owner, moref = self._inventory.snapshot(snapshot)
        if owner is not vm:
            raise _invalid("snapshot")
        return moref


def _invalid(parameter: str) -> Fault:
    message = f"A specified parameter was not correct: {parameter}"
    return Fault(vmodl.fault.InvalidArgument(invalidProperty=parameter, msg=message))
