"""Inventory reports, and the VMs and disks they leave in the catalogue."""

import time
from dataclasses import replace
from typing import Any

import pytest

from hub.catalogue import agents, disks, inventory, vms
from hub.catalogue.disks import Disk
from hub.catalogue.engine import Catalogue
from hub.catalogue.inventory import Clash, Outcome, ReportedVm
from hub.catalogue.vms import Vm, VmFilter
from shared.errors import NotFound
from shared.units import TiB
from tests.contracts.catalogue.site import (
    LATER,
    NOW,
    OTHER_VCENTER,
    VCENTER,
    make_site,
    reported_disk,
    reported_vm,
    vm_id,
)

ALL = VmFilter()


@pytest.fixture
async def agent(catalogue: Catalogue) -> str:
    return await enrol(catalogue, "agent1")


async def enrol(catalogue: Catalogue, name: str) -> str:
    async with catalogue.writing() as session:
        return (await agents.enrol(session, name, NOW)).id


async def report(
    catalogue: Catalogue, agent: str, *reported: ReportedVm, vcenter: str = VCENTER, at_later: bool = False
) -> Outcome:
    async with catalogue.writing() as session:
        return await inventory.report(session, agent, vcenter, reported, LATER if at_later else NOW)


async def read_vm(catalogue: Catalogue, number: int) -> Vm:
    async with catalogue.reading() as session:
        return await vms.get(session, vm_id(number))


async def read_disks(catalogue: Catalogue, number: int) -> list[Disk]:
    async with catalogue.reading() as session:
        return (await disks.list_disks(session, [vm_id(number)]))[vm_id(number)]


async def listed(catalogue: Catalogue, which: VmFilter = ALL) -> list[str]:
    async with catalogue.reading() as session:
        return [vm.name for vm in await vms.list_vms(session, which, limit=100)]


async def test_a_reported_vm_is_read_back_as_it_was_reported(catalogue: Catalogue, agent: str) -> None:
    outcome = await report(catalogue, agent, reported_vm(1, is_template=True, cbt_enabled=False))
    assert outcome == Outcome(added=1, updated=0, missing=0, clashes=())
    assert await read_vm(catalogue, 1) == Vm(
        id=vm_id(1),
        agent_id=agent,
        vcenter=VCENTER,
        moref="vm-1",
        name="vm1",
        power_state="poweredOn",
        guest_os="debian12_64Guest",
        hardware_version=19,
        cbt_enabled=False,
        is_template=True,
        folder_path="/Datacenter/vm",
        host_name="esx1",
        seen_at=NOW,
        missing_since=None,
    )


async def test_a_renamed_vm_stays_the_same_vm(catalogue: Catalogue, agent: str) -> None:
    await report(catalogue, agent, reported_vm(1))
    outcome = await report(catalogue, agent, reported_vm(1, name="new name"), at_later=True)
    assert (outcome.added, outcome.updated) == (0, 1)
    vm = await read_vm(catalogue, 1)
    assert (vm.name, vm.seen_at) == ("new name", LATER)


async def test_an_absent_vm_is_marked_missing_and_kept(catalogue: Catalogue, agent: str) -> None:
    await report(catalogue, agent, reported_vm(1), reported_vm(2))
    assert (await report(catalogue, agent, reported_vm(2), at_later=True)).missing == 1
    vm = await read_vm(catalogue, 1)
    assert (vm.missing_since, vm.seen_at) == (LATER, NOW)


async def test_a_missing_vm_is_counted_missing_once(catalogue: Catalogue, agent: str) -> None:
    await report(catalogue, agent, reported_vm(1))
    await report(catalogue, agent)
    assert (await report(catalogue, agent, at_later=True)).missing == 0
    assert (await read_vm(catalogue, 1)).missing_since == NOW


async def test_a_vm_that_comes_back_is_not_missing_any_more(catalogue: Catalogue, agent: str) -> None:
    await report(catalogue, agent, reported_vm(1))
    await report(catalogue, agent)
    await report(catalogue, agent, reported_vm(1), at_later=True)
    assert (await read_vm(catalogue, 1)).missing_since is None


async def test_an_instance_uuid_known_in_another_vcenter_is_a_clash_and_changes_nothing(
    catalogue: Catalogue, agent: str
) -> None:
    other = await enrol(catalogue, "agent2")
    await report(catalogue, agent, reported_vm(1, name="original"))
    before = (await read_vm(catalogue, 1), await read_disks(catalogue, 1))
    clone = reported_vm(1, name="clone", disks=(reported_disk(9, 0),))
    outcome = await report(catalogue, other, clone, reported_vm(2), vcenter=OTHER_VCENTER, at_later=True)
    assert outcome == Outcome(added=1, updated=0, missing=0, clashes=(Clash(vm_id(1), VCENTER, agent),))
    assert (await read_vm(catalogue, 1), await read_disks(catalogue, 1)) == before


async def test_a_vm_that_another_agent_has_stays_with_it(catalogue: Catalogue, agent: str) -> None:
    other = await enrol(catalogue, "agent2")
    await report(catalogue, agent, reported_vm(1))
    before = (await read_vm(catalogue, 1), await read_disks(catalogue, 1))
    theirs = reported_vm(1, name="mine now", disks=(reported_disk(9, 0),))
    outcome = await report(catalogue, other, theirs, at_later=True)
    assert outcome == Outcome(added=0, updated=0, missing=0, clashes=(Clash(vm_id(1), VCENTER, agent),))
    assert (await read_vm(catalogue, 1), await read_disks(catalogue, 1)) == before


async def test_a_revoked_agents_vm_moves_to_the_agent_that_reports_it(catalogue: Catalogue, agent: str) -> None:
    other = await enrol(catalogue, "agent2")
    await report(catalogue, agent, reported_vm(1))
    async with catalogue.writing() as session:
        await agents.revoke(session, agent)
    assert (await report(catalogue, other, reported_vm(1), at_later=True)).clashes == ()
    assert (await read_vm(catalogue, 1)).agent_id == other


async def test_a_missing_vm_moves_to_the_agent_that_reports_it(catalogue: Catalogue, agent: str) -> None:
    other = await enrol(catalogue, "agent2")
    await report(catalogue, agent, reported_vm(1))
    await report(catalogue, agent)
    assert (await report(catalogue, other, reported_vm(1), at_later=True)).clashes == ()
    vm = await read_vm(catalogue, 1)
    assert (vm.agent_id, vm.missing_since) == (other, None)


async def test_two_vcenters_may_have_vms_of_one_name(catalogue: Catalogue, agent: str) -> None:
    other = await enrol(catalogue, "agent2")
    await report(catalogue, agent, reported_vm(1, name="db"))
    await report(catalogue, other, reported_vm(2, name="db"), vcenter=OTHER_VCENTER)
    assert await listed(catalogue, VmFilter(name="db")) == ["db", "db"]


async def test_an_agent_that_sees_less_does_not_hide_another_agents_vms(catalogue: Catalogue, agent: str) -> None:
    other = await enrol(catalogue, "agent2")
    await report(catalogue, agent, reported_vm(1))
    await report(catalogue, other, reported_vm(2), at_later=True)
    assert (await read_vm(catalogue, 1)).missing_since is None


async def test_a_revoked_agents_vms_are_marked_missing_by_its_successor(catalogue: Catalogue, agent: str) -> None:
    other = await enrol(catalogue, "agent2")
    await report(catalogue, agent, reported_vm(1))
    async with catalogue.writing() as session:
        await agents.revoke(session, agent)
    await report(catalogue, other, reported_vm(2), at_later=True)
    assert (await read_vm(catalogue, 1)).missing_since == LATER


async def test_the_disks_of_a_vm_keep_their_ids_from_report_to_report(catalogue: Catalogue, agent: str) -> None:
    await report(catalogue, agent, reported_vm(1))
    before = await read_disks(catalogue, 1)
    await report(catalogue, agent, reported_vm(1), at_later=True)
    assert await read_disks(catalogue, 1) == before
    assert [disk.identity for disk in before] == [reported_disk(1, 0).identity, reported_disk(1, 1).identity]


async def test_a_removed_disk_is_kept_as_not_present(catalogue: Catalogue, agent: str) -> None:
    await report(catalogue, agent, reported_vm(1))
    await report(catalogue, agent, reported_vm(1, disk_count=1))
    assert [disk.present for disk in await read_disks(catalogue, 1)] == [True, False]


async def test_a_resized_disk_is_the_same_disk(catalogue: Catalogue, agent: str) -> None:
    await report(catalogue, agent, reported_vm(1, disk_count=1))
    grown = replace(reported_disk(1, 0), capacity=62 * TiB)
    (before,) = await read_disks(catalogue, 1)
    await report(catalogue, agent, reported_vm(1, disks=(grown,)))
    assert await read_disks(catalogue, 1) == [replace(before, capacity=62 * TiB)]


@pytest.mark.parametrize("change", [{"device_key": 4711}, {"backing_uuid": "4711"}, {"disk_object_id": "4711"}])
async def test_a_disk_that_differs_in_one_part_of_its_identity_is_another_disk(
    catalogue: Catalogue, agent: str, change: dict[str, Any]
) -> None:
    await report(catalogue, agent, reported_vm(1, disk_count=1))
    (old,) = await read_disks(catalogue, 1)
    changed = old.identity._replace(**change)
    async with catalogue.writing() as session:
        new = await disks.identify(session, vm_id(1), changed, "Hard disk 1", old.capacity)
        same = await disks.identify(session, vm_id(1), old.identity, "Hard disk 1", old.capacity)
    assert new.id != old.id
    assert same == old


async def test_vms_are_listed_in_pages_by_name(catalogue: Catalogue, agent: str) -> None:
    await report(catalogue, agent, *(reported_vm(number, name=f"vm {number // 3}") for number in range(10)))
    seen: list[Vm] = []
    async with catalogue.reading() as session:
        while page := await vms.list_vms(
            session, ALL, limit=4, after=(seen[-1].name, seen[-1].id) if seen else ("", "")
        ):
            seen += page
    assert [vm.id for vm in seen] == [vm_id(number) for number in range(10)]


async def test_conditions_of_a_vm_listing_all_hold(catalogue: Catalogue, agent: str) -> None:
    other = await enrol(catalogue, "agent2")
    await report(catalogue, agent, reported_vm(1, name="a"), reported_vm(2, name="b"), reported_vm(3, name="c"))
    await report(catalogue, agent, reported_vm(1, name="a"), reported_vm(2, name="b"))
    await report(catalogue, other, reported_vm(4, name="a"), vcenter=OTHER_VCENTER)
    assert await listed(catalogue, VmFilter(name="a", agent_id=agent)) == ["a"]
    assert await listed(catalogue, VmFilter(vcenter=VCENTER, present=True)) == ["a", "b"]
    assert await listed(catalogue, VmFilter(agent_id=agent, present=False)) == ["c"]
    assert await listed(catalogue, VmFilter(name="b", vcenter=OTHER_VCENTER)) == []


async def test_names_that_differ_in_case_accent_or_a_final_space_are_different(
    catalogue: Catalogue, agent: str
) -> None:
    given = ["vm", "VM", "vm ", "vḿ"]
    await report(catalogue, agent, *(reported_vm(number, name=name) for number, name in enumerate(given)))
    for name in given:
        assert await listed(catalogue, VmFilter(name=name)) == [name]


async def test_an_emoji_in_a_name_survives(catalogue: Catalogue, agent: str) -> None:
    await report(catalogue, agent, reported_vm(1, name="кухня 🍕 数据库"))
    assert (await read_vm(catalogue, 1)).name == "кухня 🍕 数据库"


async def test_an_unknown_vm_is_not_found(catalogue: Catalogue) -> None:
    with pytest.raises(NotFound, match="vm"):
        await read_vm(catalogue, 1)


async def test_the_names_of_several_vms_come_at_once(catalogue: Catalogue) -> None:
    await make_site(catalogue)
    async with catalogue.reading() as session:
        assert await vms.names(session, [vm_id(1), vm_id(2), vm_id(3)]) == {vm_id(1): "vm1", vm_id(2): "vm2"}


async def test_two_thousand_vms_are_reported_in_seconds(catalogue: Catalogue, agent: str) -> None:
    site = [reported_vm(number) for number in range(2000)]
    started = time.monotonic()
    first = await report(catalogue, agent, *site)
    again = await report(catalogue, agent, *site[1:], at_later=True)
    took = time.monotonic() - started
    assert (first.added, again.updated, again.missing) == (2000, 1999, 1)
    assert len(await read_disks(catalogue, 1999)) == 2
    assert took < 20, f"{took:.1f} s for two reports"
