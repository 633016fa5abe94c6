"""A VM as the API describes it: configuration, hardware, runtime, snapshot tree."""

from datetime import UTC, datetime
from typing import Any

from pyVmomi import vim

from agent.simulator.disk import VirtualDisk
from agent.simulator.machine import VirtualMachine
from agent.simulator.records import SnapshotRecord
from shared.units import KiB

DATASTORE = vim.Datastore("datastore-11", None)
HOST = vim.HostSystem("host-9", None)

CONFIGURED = datetime(2024, 1, 1, tzinfo=UTC)
UNSUPPORTED = {"recordReplaySupported", "npivWwnOnNonRdmVmSupported", "lockSnapshotsSupported"}

PowerState = vim.VirtualMachine.PowerState


def reference(vm: VirtualMachine) -> Any:
    """The VM's managed object."""
    return vim.VirtualMachine(vm.record.moref, None)


def config(vm: VirtualMachine, datastore: str, snapshot: SnapshotRecord | None = None) -> Any:
    """Its vim.vm.ConfigInfo, as it is now or as it was at a snapshot."""
    record = vm.record
    folder = f"[{datastore}] {record.name}"
    return vim.vm.ConfigInfo(
        changeVersion=CONFIGURED.isoformat(),
        modified=CONFIGURED,
        name=record.name,
        guestFullName=record.guest_id,
        version=record.hardware_version,
        uuid=record.uuid,
        instanceUuid=record.instance_uuid,
        template=False,
        guestId=record.guest_id,
        alternateGuestName="",
        files=vim.vm.FileInfo(
            vmPathName=f"{folder}/{record.name}.vmx",
            snapshotDirectory=folder,
            suspendDirectory=folder,
            logDirectory=folder,
        ),
        flags=vim.vm.FlagInfo(snapshotDisabled=False, snapshotLocked=False, diskUuidEnabled=True),
        defaultPowerOps=vim.vm.DefaultPowerOpInfo(powerOffType="soft"),
        hardware=vim.vm.VirtualHardware(numCPU=record.cpus, memoryMB=record.memory_mib, device=_devices(vm, snapshot)),
        changeTrackingEnabled=record.change_tracking,
        firmware="efi",
    )


def _devices(vm: VirtualMachine, snapshot: SnapshotRecord | None) -> list[Any]:
    controllers = sorted({disk.record.controller_key for disk in vm.disks})
    return [
        *(_controller(vm, key, bus) for bus, key in enumerate(controllers)),
        *(_disk(index, disk, snapshot) for index, disk in enumerate(vm.disks)),
    ]


def _controller(vm: VirtualMachine, key: int, bus: int) -> Any:
    return vim.vm.device.ParaVirtualSCSIController(
        key=key,
        deviceInfo=vim.Description(label=f"SCSI controller {bus}", summary="VMware paravirtual SCSI"),
        busNumber=bus,
        device=[disk.record.key for disk in vm.disks if disk.record.controller_key == key],
        hotAddRemove=True,
        sharedBus=vim.vm.device.VirtualSCSIController.Sharing.noSharing,
        scsiCtlrUnitNumber=7,
    )


def _disk(index: int, disk: VirtualDisk, snapshot: SnapshotRecord | None) -> Any:
    record = disk.record
    if snapshot is None:
        file_name, change_id = disk.file_name, disk.change_id
    else:
        file_name, change_id = disk.frozen_file_name(snapshot.moref), snapshot.change_ids.get(record.key)
    return vim.vm.device.VirtualDisk(
        key=record.key,
        deviceInfo=vim.Description(label=f"Hard disk {index + 1}", summary=f"{record.capacity // KiB:,} KB"),
        backing=vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
            fileName=file_name,
            datastore=DATASTORE,
            diskMode=vim.vm.device.VirtualDiskOption.DiskMode.persistent,
            thinProvisioned=True,
            uuid=record.uuid,
            changeId=change_id,
            sharing=vim.vm.device.VirtualDisk.Sharing.sharingNone,
        ),
        controllerKey=record.controller_key,
        unitNumber=record.unit,
        capacityInKB=record.capacity // KiB,
        capacityInBytes=record.capacity,
        diskObjectId=record.object_id,
    )


def runtime(vm: VirtualMachine) -> Any:
    """Its vim.vm.RuntimeInfo."""
    return vim.vm.RuntimeInfo(
        host=HOST,
        connectionState=vim.VirtualMachine.ConnectionState.connected,
        powerState=_power(vm.record.powered_on),
        faultToleranceState=vim.VirtualMachine.FaultToleranceState.notConfigured,
        toolsInstallerMounted=False,
        numMksConnections=0,
        recordReplayState=vim.VirtualMachine.RecordReplayState.inactive,
        onlineStandby=False,
        consolidationNeeded=vm.consolidation_needed,
    )


def summary(vm: VirtualMachine, datastore: str) -> Any:
    """Its vim.vm.Summary."""
    record = vm.record
    return vim.vm.Summary(
        vm=reference(vm),
        runtime=runtime(vm),
        config=vim.vm.Summary.ConfigSummary(
            name=record.name,
            template=False,
            vmPathName=f"[{datastore}] {record.name}/{record.name}.vmx",
            memorySizeMB=record.memory_mib,
            numCpu=record.cpus,
            numVirtualDisks=len(vm.disks),
            uuid=record.uuid,
            instanceUuid=record.instance_uuid,
            guestId=record.guest_id,
            guestFullName=record.guest_id,
            hwVersion=record.hardware_version,
        ),
        quickStats=vim.vm.Summary.QuickStats(guestHeartbeatStatus=vim.ManagedEntity.Status.green),
        overallStatus=vim.ManagedEntity.Status.green,
    )


def guest(vm: VirtualMachine) -> Any:
    """Its vim.vm.GuestInfo: VMware Tools run whenever the VM does."""
    return vim.vm.GuestInfo(
        guestState="running" if vm.record.powered_on else "notRunning",
        toolsStatus=vim.vm.GuestInfo.ToolsStatus.toolsOk,
        toolsRunningStatus="guestToolsRunning" if vm.record.powered_on else "guestToolsNotRunning",
        hostName=vm.name,
    )


def capability() -> Any:
    """The vim.vm.Capability that all VMs here have."""
    flags = {
        item.name: item.name not in UNSUPPORTED for item in vim.vm.Capability._GetPropertyList() if item.type is bool
    }
    return vim.vm.Capability(**flags)


def snapshot_tree(vm: VirtualMachine) -> Any | None:
    """Its vim.vm.SnapshotInfo, None without snapshots. Each snapshot here is the parent of the next."""
    children: list[Any] = []
    current: Any = None
    for snapshot in reversed(vm.snapshots()):
        moref = vim.vm.Snapshot(snapshot.moref, None)
        current = current or moref
        children = [
            vim.vm.SnapshotTree(
                snapshot=moref,
                vm=reference(vm),
                name=snapshot.name,
                description=snapshot.description,
                id=snapshot.number,
                createTime=snapshot.created,
                state=_power(snapshot.powered_on),
                quiesced=snapshot.quiesced,
                childSnapshotList=children,
                replaySupported=False,
            )
        ]
    return vim.vm.SnapshotInfo(currentSnapshot=current, rootSnapshotList=children) if children else None


def _power(powered_on: bool) -> Any:
    return PowerState.poweredOn if powered_on else PowerState.poweredOff
