"""A simulated site for tests, and how the agent is told of it."""

from pydantic import ByteSize

from agent.config import VCenterSection, VddkSection
from agent.simulator.description import DiskDescription, SiteDescription, VmDescription
from agent.simulator.server import RunningSite
from agent.vsphere.inventory import Vm, find_vm
from agent.vsphere.session import VSphereSession


def vcenter_settings(site: RunningSite, **changes: object) -> VCenterSection:
    """[vcenter] that fits the site, but for `changes`."""
    values: dict[str, object] = {
        "server": site.host,
        "port": site.port,
        "username": site.username,
        "password_file": site.password_file,
        "thumbprint": site.thumbprint_sha256,
        "request_timeout": 10,
    }
    return VCenterSection.model_validate(values | changes)


def vddk_settings(site: RunningSite, **changes: object) -> VddkSection:
    """[vddk] that fits the site, but for `changes`."""
    return VddkSection.model_validate({"libdir": site.libdir} | changes)


def described(*vms: VmDescription) -> SiteDescription:
    return SiteDescription(vms=vms)


def vm_with(name: str, *capacities: int, change_tracking: bool = False) -> VmDescription:
    """A VM with blank disks of these sizes in bytes."""
    disks = tuple(DiskDescription(capacity=ByteSize(capacity)) for capacity in capacities)
    return VmDescription(name=name, disks=disks, change_tracking=change_tracking)


def found(session: VSphereSession, site: RunningSite, name: str) -> Vm:
    """The VM of this name as the agent sees it."""
    return find_vm(session, site.vm(name).record.instance_uuid)
