"""The inventory: every VM and disk as vCenter shows it, known by instance UUID."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from agent.simulator.server import RunningSite, running
from agent.vsphere import properties
from agent.vsphere.inventory import Disk, disk_of, find_vm, inventory, skipped, virtual_disks
from agent.vsphere.session import VSphereSession, connect
from shared.errors import NotFound
from shared.units import GiB, MiB
from tests.agent.vsphere.sites import described, found, vcenter_settings, vm_with

DISK = Disk(2000, "uuid", "1-2000", "Hard disk 1", GiB, "[ds] vm/vm.vmdk", "persistent", "sharingNone", "")


@pytest.fixture
def twins(tmp_path: Path) -> Iterator[RunningSite]:
    """Two VMs of one name, with disks of 1 and 2 MiB."""
    with running(tmp_path / "twins", described(vm_with("twin", MiB), vm_with("twin", 2 * MiB))) as site:
        yield site


def test_every_vm_is_listed_with_its_disks(site: RunningSite, session: VSphereSession) -> None:
    listed = {
        vm.name: [(disk.device_key, disk.backing_uuid, disk.capacity) for disk in vm.disks] for vm in inventory(session)
    }
    assert listed == {
        vm.name: [(disk.record.key, disk.record.uuid, disk.record.capacity) for disk in vm.disks]
        for vm in site.site.vms
    }


def test_a_vm_shows_what_a_backup_must_know_of_it(site: RunningSite, session: VSphereSession) -> None:
    record = site.vm("db01").record
    vm = found(session, site, "db01")
    assert (vm.instance_uuid, vm.moref) == (record.instance_uuid, record.moref)
    assert (vm.power_state, vm.hardware_version, vm.guest_os) == ("POWERED_ON", 19, record.guest_id)
    assert (vm.cbt_supported, vm.cbt_enabled, vm.is_template) == (True, False, False)


def test_a_vm_shows_where_it_is(site: RunningSite, session: VSphereSession) -> None:
    vm = found(session, site, "db01")
    assert (vm.folder_path, vm.host_name) == ("/DC1/vm", site.site.record.host)


@pytest.mark.parametrize("page_size", [1, 2, 3, 100])
def test_the_page_size_does_not_change_what_is_listed(
    site: RunningSite, session: VSphereSession, page_size: int
) -> None:
    assert [vm.name for vm in inventory(session, page_size)] == ["web01", "db01"]


def test_pages_are_continued(site: RunningSite, session: VSphereSession) -> None:
    list(inventory(session, 1))
    assert site.site.calls.methods().count("ContinueRetrievePropertiesEx") == 1


def test_the_number_of_calls_does_not_grow_with_the_number_of_vms(tmp_path: Path) -> None:
    many = described(*(vm_with(f"vm{number}", MiB) for number in range(100)))
    with running(tmp_path / "site", many) as site, connect(vcenter_settings(site)) as session:
        before = len(site.site.calls.calls())
        assert len(list(inventory(session))) == 100
        assert len(site.site.calls.calls()) - before <= 6


def test_a_listing_that_is_given_up_leaves_nothing_on_the_server(site: RunningSite, session: VSphereSession) -> None:
    listing = inventory(session, 1)
    next(listing)
    listing.close()  # type: ignore[attr-defined]  # a generator, which its type does not promise
    assert site.site.calls.methods()[-2:] == ["CancelRetrievePropertiesEx", "DestroyView"]


def test_a_vm_is_found_by_instance_uuid_among_others_of_its_name(twins: RunningSite) -> None:
    second = twins.site.vms[1].record
    with connect(vcenter_settings(twins)) as session:
        vm = find_vm(session, second.instance_uuid)
    assert (vm.moref, vm.disks[0].capacity) == (second.moref, 2 * MiB)


def test_a_found_vm_is_the_listed_one(site: RunningSite, session: VSphereSession) -> None:
    assert [found(session, site, vm.name) for vm in inventory(session)] == list(inventory(session))


def test_an_unknown_vm_is_not_found(session: VSphereSession) -> None:
    with pytest.raises(NotFound, match="no VM with instance UUID 5003"):
        find_vm(session, "5003")


def test_a_bios_uuid_finds_nothing(site: RunningSite, session: VSphereSession) -> None:
    with pytest.raises(NotFound):
        find_vm(session, site.vm("web01").record.uuid)


def test_a_vm_that_vcenter_cannot_describe_is_left_out(
    session: VSphereSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = properties.of_all

    def without_config(*arguments: Any) -> Iterator[tuple[Any, properties.Properties]]:
        for managed, values in listed(*arguments):
            inaccessible = values["name"] == "web01"
            shown = {path: value for path, value in values.items() if not (inaccessible and path.startswith("config."))}
            yield managed, shown

    monkeypatch.setattr(properties, "of_all", without_config)
    assert [vm.name for vm in inventory(session)] == ["db01"]


def test_names_are_shown_as_people_typed_them(session: VSphereSession, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = properties.of_all
    monkeypatch.setattr(
        properties,
        "of_all",
        lambda *rest: ((managed, {**values, "name": "a%2fb%5cc%25d"}) for managed, values in listed(*rest)),
    )
    assert {vm.name for vm in inventory(session)} == {"a/b\\c%d"}


@pytest.mark.parametrize(
    ("disk", "reason"),
    [
        (DISK, None),
        (replace(DISK, mode="independent_persistent"), "INDEPENDENT"),
        (replace(DISK, mode="independent_nonpersistent"), "INDEPENDENT"),
        (replace(DISK, rdm="physicalMode"), "PHYSICAL_RDM"),
        (replace(DISK, rdm="virtualMode"), None),
        (replace(DISK, sharing="sharingMultiWriter"), "MULTI_WRITER"),
    ],
)
def test_disks_that_a_snapshot_cannot_capture_are_known(disk: Disk, reason: str | None) -> None:
    assert skipped(disk) == reason


def test_a_raw_device_mapping_is_recognised() -> None:
    backing = vim.vm.device.VirtualDisk.RawDiskMappingVer1BackingInfo(
        fileName="[ds] vm/rdm.vmdk", uuid="u", compatibilityMode="physicalMode", diskMode="independent_persistent"
    )
    device = vim.vm.device.VirtualDisk(key=2001, backing=backing, capacityInKB=1024, diskObjectId="1-2001")
    assert disk_of(device) == Disk(
        2001, "u", "1-2001", "", MiB, "[ds] vm/rdm.vmdk", "independent_persistent", "", "physicalMode"
    )


def test_a_disk_without_sharing_or_label_is_described_all_the_same() -> None:
    backing = vim.vm.device.VirtualDisk.SeSparseBackingInfo(fileName="[ds] a.vmdk", uuid="u", diskMode="persistent")
    device = vim.vm.device.VirtualDisk(key=2000, backing=backing, capacityInKB=1, capacityInBytes=512)
    assert disk_of(device) == Disk(2000, "u", "", "", 512, "[ds] a.vmdk", "persistent", "", "")


def test_disks_of_all_controllers_come_by_device_key() -> None:
    devices = [
        vim.vm.device.VirtualDisk(key=32000),  # NVMe
        vim.vm.device.VirtualLsiLogicController(key=1000),
        vim.vm.device.VirtualDisk(key=16000),  # SATA
        vim.vm.device.VirtualCdrom(key=3000),
        vim.vm.device.VirtualDisk(key=2005),  # SCSI, with a gap before it
    ]
    assert [device.key for device in virtual_disks(devices)] == [2005, 16000, 32000]
