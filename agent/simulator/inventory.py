"""The managed objects a client finds, and what their properties say.

group-d1 Datacenters ─ datacenter-2 ┬ group-v3 vm ── vm-101, vm-102, …
                                    ├ group-h4 host ── domain-s8 ─ host-9, resgroup-10
                                    ├ group-s5 datastore ── datastore-11
                                    └ group-n6 network
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pyVmomi import vim, vmodl

from agent.simulator import hardware
from agent.simulator.hardware import DATASTORE, HOST
from agent.simulator.machine import VirtualMachine
from agent.simulator.site import Site
from agent.simulator.soap import ROOT, Fault
from agent.simulator.tasks import Tasks
from shared.units import GiB, TiB

Properties = Mapping[str, Callable[[], Any]]
"""What is known of a managed object: for each property, how to get its value now."""

ROOT_FOLDER = vim.Folder("group-d1", None)
DATACENTER = vim.Datacenter("datacenter-2", None)
VM_FOLDER = vim.Folder("group-v3", None)
HOST_FOLDER = vim.Folder("group-h4", None)
DATASTORE_FOLDER = vim.Folder("group-s5", None)
NETWORK_FOLDER = vim.Folder("group-n6", None)
CLUSTER = vim.ComputeResource("domain-s8", None)
RESOURCE_POOL = vim.ResourcePool("resgroup-10", None)

PROPERTY_COLLECTOR = vmodl.query.PropertyCollector("propertyCollector", None)
SESSION_MANAGER = vim.SessionManager("SessionManager", None)
SEARCH_INDEX = vim.SearchIndex("SearchIndex", None)
VIEW_MANAGER = vim.view.ViewManager("ViewManager", None)
TASK_MANAGER = vim.TaskManager("TaskManager", None)

GREEN = vim.ManagedEntity.Status.green


def not_found(target: Any) -> Fault:
    """The fault for a reference to what does not exist (any more)."""
    message = f"The object '{type(target).__name__}:{target._moId}' has already been deleted or has not been created."
    return Fault(vmodl.fault.ManagedObjectNotFound(obj=target, msg=message))


class Inventory:
    """Finds managed objects of the site and their properties."""

    def __init__(self, site: Site, tasks: Tasks) -> None:
        self.site = site
        self._tasks = tasks
        self._fixed: dict[str, Properties] = {
            **{target._moId: properties for target, properties in self._folders()},
            ROOT._moId: {"content": self.content, "capability": lambda: vim.Capability(**_all_false(vim.Capability))},
            SESSION_MANAGER._moId: {},
            TASK_MANAGER._moId: {"recentTask": lambda: [vim.Task(moref, None) for moref in tasks.all()]},
        }

    def properties(self, target: Any) -> Properties:
        """What is known of an object that does not belong to a session; raises Fault with ManagedObjectNotFound."""
        moref = target._moId
        if moref in self._fixed:
            return self._fixed[moref]
        if isinstance(target, vim.Task) and (info := self._tasks.info(moref)) is not None:
            return {"info": lambda: info}
        if isinstance(target, vim.VirtualMachine):
            return self._vm_properties(self.vm(target))
        if isinstance(target, vim.vm.Snapshot):
            return self._snapshot_properties(*self.snapshot(target))
        raise not_found(target)

    def vm(self, target: Any) -> VirtualMachine:
        """The VM a reference means; raises Fault."""
        try:
            return self.site.vm_by_moref(target._moId)
        except KeyError as error:
            raise not_found(target) from error

    def snapshot(self, target: Any) -> tuple[VirtualMachine, str]:
        """The VM that has the snapshot, and the snapshot's reference; raises Fault."""
        for vm in self.site.vms:
            if any(snapshot.moref == target._moId for snapshot in vm.snapshots()):
                return vm, target._moId
        raise not_found(target)

    def vms(self) -> list[Any]:
        """References of all VMs."""
        return [hardware.reference(vm) for vm in self.site.vms]

    def below(self, container: Any) -> Iterator[Any]:
        """All managed entities inside a container, at any depth."""
        for child in self.children(container):
            yield child
            yield from self.below(child)

    def children(self, container: Any) -> list[Any]:
        """The managed entities directly inside a container."""
        children: dict[str, Callable[[], list[Any]]] = {
            ROOT_FOLDER._moId: lambda: [DATACENTER],
            DATACENTER._moId: lambda: [VM_FOLDER, HOST_FOLDER, DATASTORE_FOLDER, NETWORK_FOLDER],
            VM_FOLDER._moId: self.vms,
            HOST_FOLDER._moId: lambda: [CLUSTER],
            CLUSTER._moId: lambda: [HOST, RESOURCE_POOL],
            DATASTORE_FOLDER._moId: lambda: [DATASTORE],
        }
        return children.get(container._moId, list)()

    def content(self) -> Any:
        """The vim.ServiceContent."""
        return vim.ServiceInstanceContent(
            rootFolder=ROOT_FOLDER,
            propertyCollector=PROPERTY_COLLECTOR,
            viewManager=VIEW_MANAGER,
            sessionManager=SESSION_MANAGER,
            searchIndex=SEARCH_INDEX,
            taskManager=TASK_MANAGER,
            about=vim.AboutInfo(
                name="VMware vCenter Server",
                fullName="VMware vCenter Server 8.0.3 build-0 (simulated)",
                vendor="VMware, Inc.",
                version="8.0.3",
                build="0",
                osType="linux-x64",
                productLineId="vpx",
                apiType="VirtualCenter",
                apiVersion="8.0.3.0",
                instanceUuid=self.site.record.instance_uuid,
            ),
        )

    def _folders(self) -> Iterator[tuple[Any, Properties]]:
        record = self.site.record
        yield ROOT_FOLDER, self._folder("Datacenters", None, ROOT_FOLDER)
        yield VM_FOLDER, self._folder("vm", DATACENTER, VM_FOLDER)
        yield HOST_FOLDER, self._folder("host", DATACENTER, HOST_FOLDER)
        yield DATASTORE_FOLDER, self._folder("datastore", DATACENTER, DATASTORE_FOLDER)
        yield NETWORK_FOLDER, self._folder("network", DATACENTER, NETWORK_FOLDER)
        yield (
            DATACENTER,
            _entity("DC1", ROOT_FOLDER)
            | {
                "vmFolder": lambda: VM_FOLDER,
                "hostFolder": lambda: HOST_FOLDER,
                "datastoreFolder": lambda: DATASTORE_FOLDER,
                "networkFolder": lambda: NETWORK_FOLDER,
                "datastore": lambda: [DATASTORE],
            },
        )
        yield (
            CLUSTER,
            _entity(record.host, HOST_FOLDER)
            | {"host": lambda: [HOST], "resourcePool": lambda: RESOURCE_POOL, "datastore": lambda: [DATASTORE]},
        )
        yield RESOURCE_POOL, _entity("Resources", CLUSTER) | {"owner": lambda: CLUSTER, "vm": self.vms}
        yield HOST, _entity(record.host, CLUSTER) | {"vm": self.vms, "datastore": lambda: [DATASTORE]}
        yield (
            DATASTORE,
            _entity(record.datastore, DATASTORE_FOLDER)
            | {"vm": self.vms, "summary": lambda: _datastore_summary(record.datastore)},
        )

    def _folder(self, name: str, parent: Any, folder: Any) -> Properties:
        return _entity(name, parent) | {"childEntity": lambda: self.children(folder)}

    def _vm_properties(self, vm: VirtualMachine) -> Properties:
        datastore = self.site.record.datastore
        return _entity(vm.name, VM_FOLDER) | {
            "config": lambda: hardware.config(vm, datastore),
            "runtime": lambda: hardware.runtime(vm),
            "summary": lambda: hardware.summary(vm, datastore),
            "guest": lambda: hardware.guest(vm),
            "capability": hardware.capability,
            "snapshot": lambda: hardware.snapshot_tree(vm),
            "rootSnapshot": lambda: [vim.vm.Snapshot(item.moref, None) for item in vm.snapshots()[:1]],
            "datastore": lambda: [DATASTORE],
            "resourcePool": lambda: RESOURCE_POOL,
            "guestHeartbeatStatus": lambda: GREEN,
        }

    def _snapshot_properties(self, vm: VirtualMachine, moref: str) -> Properties:
        morefs = [snapshot.moref for snapshot in vm.snapshots()]
        after = morefs[morefs.index(moref) + 1 :][:1]
        return {
            "config": lambda: self._config_at(vm, moref),
            "vm": lambda: hardware.reference(vm),
            "childSnapshot": lambda: [vim.vm.Snapshot(child, None) for child in after],
        }

    def _config_at(self, vm: VirtualMachine, moref: str) -> Any:
        try:
            return hardware.config(vm, self.site.record.datastore, vm.snapshot(moref))
        except KeyError as error:  # removed meanwhile
            raise not_found(vim.vm.Snapshot(moref, None)) from error


def _entity(name: str, parent: Any) -> dict[str, Callable[[], Any]]:
    """What every managed entity has."""
    return {
        "name": lambda: name,
        "parent": lambda: parent,
        "overallStatus": lambda: GREEN,
        "configStatus": lambda: GREEN,
    }


def _datastore_summary(name: str) -> Any:
    return vim.Datastore.Summary(
        datastore=DATASTORE,
        name=name,
        url=f"ds:///vmfs/volumes/{name}/",
        capacity=64 * TiB,
        freeSpace=64 * TiB - 512 * GiB,
        accessible=True,
        multipleHostAccess=True,
        type="VMFS",
    )


def _all_false(kind: Any) -> dict[str, bool]:
    return {item.name: False for item in kind._GetPropertyList() if item.type is bool}
