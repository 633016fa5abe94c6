"""VmService: the inventory, as it is listed."""

import pytest

from sendense.v1 import vm_pb2
from tests.hub.live_hub import LiveHub
from tests.hub.refusals import refused
from tests.hub.scripted_agent import ScriptedAgent, vm
from tests.hub.source_disk import SourceDisk

List = vm_pb2.ListVmsRequest


async def test_a_vm_shows_its_disks(hub: LiveHub, agent: ScriptedAgent, disk: SourceDisk) -> None:
    shown = await hub.vms.GetVm(vm_pb2.GetVmRequest(name="vms/vm-1"))
    (its,) = shown.disks
    assert (its.device_key, its.backing_uuid, its.capacity_bytes) == (disk.key, disk.uuid, disk.capacity)


async def test_a_vm_that_vcenter_has_no_more_stays_listed(hub: LiveHub, agent: ScriptedAgent) -> None:
    await agent.report()
    (listed,) = (await hub.vms.ListVms(List())).vms
    assert listed.HasField("missing_since")


async def test_vms_come_by_name_in_pages_also_those_of_one_name(hub: LiveHub, agent: ScriptedAgent) -> None:
    await agent.report(vm("vm-3", "a"), vm("vm-2", "b"), vm("vm-1", "b"))
    token, seen = "", []
    for _ in range(3):
        page = await hub.vms.ListVms(List(page_size=1, page_token=token))
        token = page.next_page_token
        seen += [one.name for one in page.vms]
    assert (seen, token) == (["vms/vm-3", "vms/vm-1", "vms/vm-2"], "")


async def test_a_name_filters(hub: LiveHub, agent: ScriptedAgent) -> None:
    await agent.report(vm("vm-3", "a"), vm("vm-2", "b"))
    assert [one.display_name for one in (await hub.vms.ListVms(List(display_name="b"))).vms] == ["b"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("vm-1", ("INVALID_ARGUMENT", "INVALID_REQUEST", "name")), ("vms/vm-9", ("NOT_FOUND", "NOT_FOUND", ""))],
)
async def test_a_name_of_no_vm_is_refused(hub: LiveHub, name: str, expected: tuple[str, str, str]) -> None:
    assert tuple(await refused(hub.vms.GetVm(vm_pb2.GetVmRequest(name=name)))) == expected


@pytest.mark.parametrize(
    ("request_", "field"), [(List(page_size=-1), "page_size"), (List(page_token="?"), "page_token")]
)
async def test_a_page_that_makes_no_sense_is_refused(hub: LiveHub, request_: vm_pb2.ListVmsRequest, field: str) -> None:
    assert tuple(await refused(hub.vms.ListVms(request_))) == ("INVALID_ARGUMENT", "INVALID_REQUEST", field)
