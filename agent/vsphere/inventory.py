"""The inventory: VMs and their disks as vCenter shows them now."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pyVmomi import vim

from agent.vsphere import properties
from agent.vsphere.faults import translated
from agent.vsphere.properties import Properties
from agent.vsphere.session import VSphereSession
from shared import logs
from shared.errors import NotFound
from shared.units import KiB

PAGE = 100
"""VMs per call: their devices make some 10 KiB each."""

log = logs.get(__name__)


@dataclass(frozen=True, slots=True)
class Disk:
    """A virtual disk as configured now. Its identity is device key, backing UUID and disk object ID together."""

    device_key: int
    backing_uuid: str
    disk_object_id: str
    label: str
    capacity: int
    """Bytes."""
    file_name: str
    """'[datastore] folder/name.vmdk'; changes with every snapshot and with Storage vMotion."""
    mode: str
    """VMware's word: 'persistent', 'independent_persistent', …"""
    sharing: str
    """'sharingNone', 'sharingMultiWriter' or ''."""
    rdm: str
    """'physicalMode', 'virtualMode' or '' for a disk that is no raw device mapping."""


@dataclass(frozen=True, slots=True)
class Vm:
    """A VM. `instance_uuid` names it for ever, `moref` today; `name` neither is unique nor stays."""

    instance_uuid: str
    moref: str
    name: str
    power_state: str
    """POWERED_ON, POWERED_OFF or SUSPENDED."""
    guest_os: str
    hardware_version: int
    cbt_enabled: bool
    cbt_supported: bool
    is_template: bool
    folder_path: str
    """'/datacenter/vm/folder', names escaped as vCenter does."""
    host_name: str
    disks: tuple[Disk, ...]
    """By device key."""


def inventory(session: VSphereSession, page_size: int = PAGE) -> Iterator[Vm]:
    """Every VM the account may see, fetched `page_size` at a time as they are iterated.

    VMs that vCenter cannot describe now (inaccessible, being made) are logged and left out.
    """
    places = _places(session)
    for managed, values in properties.of_all(session, {vim.VirtualMachine: _VM_PATHS}, page_size):
        moref = managed._GetMoId()
        if values.get("config.instanceUuid"):
            yield _vm(moref, values, places)
        else:
            log.warning("a VM is left out: vCenter does not show its configuration", moref=moref, name=_name(values))


def find_vm(session: VSphereSession, instance_uuid: str) -> Vm:
    """The VM with this instance UUID; raises NotFound."""
    managed = managed_vm(session, instance_uuid)
    values = properties.of(session, managed, *_VM_PATHS)
    if not values.get("config.instanceUuid"):
        raise NotFound(f"vCenter does not show the configuration of VM {instance_uuid} now", vm=instance_uuid)
    return _vm(managed._GetMoId(), values, _places(session))


def managed_vm(session: VSphereSession, instance_uuid: str) -> Any:
    """The managed object of the VM with this instance UUID; raises NotFound."""
    with translated(f"looking for VM {instance_uuid}"):
        found = session.content.searchIndex.FindByUuid(None, instance_uuid, True, True)
    if found is None:
        raise NotFound(f"vCenter has no VM with instance UUID {instance_uuid}", vm=instance_uuid)
    return found


def skipped(disk: Disk) -> str | None:
    """Why a snapshot cannot capture the disk, upper-snake; None when it can."""
    if disk.mode.startswith("independent"):
        return "INDEPENDENT"
    if disk.rdm == "physicalMode":
        return "PHYSICAL_RDM"
    if disk.sharing == "sharingMultiWriter":
        return "MULTI_WRITER"
    return None


def disk_of(device: Any) -> Disk:
    """The disk that a vim VirtualDisk device describes."""
    backing = device.backing
    return Disk(
        device_key=device.key,
        backing_uuid=_text(backing, "uuid"),
        disk_object_id=device.diskObjectId or "",
        label=_text(device.deviceInfo, "label"),
        capacity=device.capacityInBytes or device.capacityInKB * KiB,
        file_name=_text(backing, "fileName"),
        mode=_text(backing, "diskMode"),
        sharing=_text(backing, "sharing"),
        rdm=_text(backing, "compatibilityMode"),
    )


def virtual_disks(devices: Any) -> list[Any]:
    """The VirtualDisk devices among all devices of a VM, by device key: SCSI, SATA, NVMe and IDE alike."""
    return sorted((device for device in devices if isinstance(device, vim.vm.device.VirtualDisk)), key=lambda d: d.key)


_VM_PATHS = (
    "name",
    "parent",
    "capability.changeTrackingSupported",
    "config.changeTrackingEnabled",
    "config.guestFullName",
    "config.hardware.device",
    "config.instanceUuid",
    "config.template",
    "config.version",
    "runtime.host",
    "runtime.powerState",
)

_POWER_STATES = {"poweredOn": "POWERED_ON", "poweredOff": "POWERED_OFF", "suspended": "SUSPENDED"}

_Places = dict[str, Properties]
"""Name and parent of folders, datacenters and hosts, by reference."""


def _places(session: VSphereSession) -> _Places:
    paths = {vim.Folder: ("name", "parent"), vim.Datacenter: ("name", "parent"), vim.HostSystem: ("name",)}
    return {managed._GetMoId(): values for managed, values in properties.of_all(session, paths, 10 * PAGE)}


def _vm(moref: str, values: Properties, places: _Places) -> Vm:
    host = values.get("runtime.host")
    return Vm(
        instance_uuid=values["config.instanceUuid"],
        moref=moref,
        name=_name(values),
        power_state=_POWER_STATES.get(str(values.get("runtime.powerState")), ""),
        guest_os=values.get("config.guestFullName", ""),
        hardware_version=_hardware_version(values.get("config.version", "")),
        cbt_enabled=bool(values.get("config.changeTrackingEnabled")),
        cbt_supported=bool(values.get("capability.changeTrackingSupported")),
        is_template=bool(values.get("config.template")),
        folder_path=_path(values.get("parent"), places),
        host_name=places.get(host._GetMoId(), {}).get("name", "") if host else "",
        disks=tuple(disk_of(device) for device in virtual_disks(values.get("config.hardware.device", ()))),
    )


def _name(values: Properties) -> str:
    """The name as people typed it: vCenter escapes exactly these three."""
    name: str = values.get("name", "")
    return name.replace("%2f", "/").replace("%5c", "\\").replace("%25", "%")


def _hardware_version(version: str) -> int:
    """'vmx-19' → 19."""
    digits = version.rpartition("-")[2]
    return int(digits) if digits.isdigit() else 0


def _path(parent: Any, places: _Places) -> str:
    names: list[str] = []
    while parent is not None and (place := places.get(parent._GetMoId())):
        names.append(place.get("name", ""))
        parent = place.get("parent")
    return "/" + "/".join(reversed(names))


def _text(value: Any, attribute: str) -> str:
    return str(getattr(value, attribute, None) or "")
