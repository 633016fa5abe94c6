"""BackupService: what is refused, how it is said, and that nothing has changed then."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from sendense.v1 import backup_pb2
from tests.hub.live_hub import LiveHub
from tests.hub.refusals import Refusal, refused
from tests.hub.scripted_agent import AUTO, FULL, INCREMENTAL, ScriptedAgent, vm
from tests.hub.source_disk import SourceDisk

Request = backup_pb2.CreateBackupRequest
Unchanged = Callable[[Awaitable[Any]], Awaitable[Refusal]]


@pytest.fixture
async def unchanged(hub: LiveHub, agent: ScriptedAgent) -> Unchanged:
    """Await a call that must be refused with all particulars and change nothing; returns the refusal."""

    async def check(call: Awaitable[Any]) -> Refusal:
        before = await hub.everything()
        refusal = await refused(call)
        assert refusal.domain == "sendense"
        assert refusal.message
        assert await hub.everything() == before
        return refusal

    return check


@asynccontextmanager
async def complete(hub: LiveHub, agent: ScriptedAgent, disk: SourceDisk) -> AsyncIterator[str]:
    await hub.create()
    order = await agent.order()
    await agent.make(order, disk)
    yield order.backup_id


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (Request(vm_id="vm-9", backup_type=FULL), ("NOT_FOUND", "NOT_FOUND", "")),
        (Request(vm_name="nobody", backup_type=FULL), ("NOT_FOUND", "NOT_FOUND", "")),
        (Request(vm_id="vm-1"), ("INVALID_ARGUMENT", "INVALID_REQUEST", "backup_type")),
        (Request(vm_id="vm-1", backup_type=77), ("INVALID_ARGUMENT", "INVALID_REQUEST", "backup_type")),  # type: ignore[arg-type]
        (Request(backup_type=FULL), ("INVALID_ARGUMENT", "INVALID_REQUEST", "vm_id")),
        (Request(vm_id="vm-1", vm_name="web", backup_type=FULL), ("INVALID_ARGUMENT", "INVALID_REQUEST", "vm_id")),
        (
            Request(vm_id="vm-1", backup_type=FULL, repository_id="elsewhere"),
            ("INVALID_ARGUMENT", "INVALID_REQUEST", "repository_id"),
        ),
        (Request(vm_id="vm-1", backup_type=INCREMENTAL), ("FAILED_PRECONDITION", "NO_USABLE_PARENT", "")),
    ],
    ids=["vm", "name", "no type", "unknown type", "no vm", "vm twice", "repository", "no parent"],
)
async def test_a_create_that_cannot_be_is_refused(
    hub: LiveHub, unchanged: Unchanged, request_: backup_pb2.CreateBackupRequest, expected: tuple[str, str, str]
) -> None:
    assert tuple(await unchanged(hub.backups.CreateBackup(request_))) == expected


async def test_with_two_repositories_one_must_be_named(hub: LiveHub, unchanged: Unchanged) -> None:
    await hub.add_repository("second", hub.repository.parent / "second")
    assert tuple(await unchanged(hub.create())) == ("INVALID_ARGUMENT", "INVALID_REQUEST", "repository_id")


async def test_a_name_that_two_vms_have_is_refused_with_their_ids(
    hub: LiveHub, agent: ScriptedAgent, disk: SourceDisk, unchanged: Unchanged
) -> None:
    await agent.report(vm("vm-1", "web", disk), vm("vm-2", "web"))
    refusal = await unchanged(hub.backups.CreateBackup(Request(vm_name="web", backup_type=FULL)))
    assert tuple(refusal) == ("INVALID_ARGUMENT", "INVALID_REQUEST", "vm_name")
    assert "vm-1, vm-2" in refusal.message


async def test_a_name_is_enough_where_the_other_vm_of_it_is_gone(
    hub: LiveHub, agent: ScriptedAgent, disk: SourceDisk
) -> None:
    await agent.report(vm("vm-0", "web"))
    await agent.report(vm("vm-1", "web", disk))
    created = await hub.backups.CreateBackup(Request(vm_name="web", backup_type=FULL))
    assert created.vm_id == "vm-1"


async def test_a_busy_vm_is_refused(hub: LiveHub, unchanged: Unchanged) -> None:
    await hub.create()
    assert tuple(await unchanged(hub.create())) == ("FAILED_PRECONDITION", "VM_BUSY", "")


async def test_a_template_is_refused(hub: LiveHub, agent: ScriptedAgent, unchanged: Unchanged) -> None:
    await agent.report(vm("vm-1", "web", template=True))
    assert tuple(await unchanged(hub.create())) == ("FAILED_PRECONDITION", "NOT_BACKUPABLE", "")


async def test_a_vm_that_vcenter_has_no_more_is_refused(
    hub: LiveHub, agent: ScriptedAgent, unchanged: Unchanged
) -> None:
    await agent.report()
    assert tuple(await unchanged(hub.create())) == ("FAILED_PRECONDITION", "NOT_POSSIBLE_NOW", "")


async def test_a_vm_of_an_agent_that_is_away_is_refused(
    hub: LiveHub, agent: ScriptedAgent, unchanged: Unchanged
) -> None:
    await agent.leave()
    assert tuple(await unchanged(hub.create())) == ("UNAVAILABLE", "AGENT_UNAVAILABLE", "")


async def test_a_repository_that_is_not_mounted_is_refused(
    hub: LiveHub, agent: ScriptedAgent, unchanged: Unchanged
) -> None:
    hub.repository.rename(hub.repository.with_name("elsewhere"))
    hub.repository.mkdir()
    assert tuple(await unchanged(hub.create())) == ("UNAVAILABLE", "REPOSITORY_UNAVAILABLE", "")


async def test_auto_becomes_a_full_where_nothing_can_be_the_parent(hub: LiveHub, agent: ScriptedAgent) -> None:
    await hub.create(backup_type=AUTO)
    order = await agent.order()
    assert (order.backup_type, list(order.bases)) == (AUTO, [])


async def test_an_incremental_without_a_change_id_in_its_parent_is_refused_by_the_disks_name(
    hub: LiveHub, agent: ScriptedAgent, disk: SourceDisk, unchanged: Unchanged
) -> None:
    await hub.create()
    order, runs = await agent.order(), disk.full()
    opened = await agent.open(order.backup_id, disk, change_id="")
    await agent.write(opened.transfer_id, runs)
    await agent.seal(opened.transfer_id, disk, runs)
    await agent.commit(order.backup_id, opened.transfer_id)
    await agent.finish(order.task_id)
    refusal = await unchanged(hub.create(backup_type=INCREMENTAL))
    assert refusal.reason == "NO_USABLE_PARENT"
    assert "Hard disk 1: it has no change ID" in refusal.message


async def test_an_incremental_whose_parents_file_is_gone_is_refused(
    hub: LiveHub, agent: ScriptedAgent, disk: SourceDisk, unchanged: Unchanged
) -> None:
    async with complete(hub, agent, disk):
        for image in hub.repository.rglob("*.qcow2"):
            image.unlink()
        refusal = await unchanged(hub.create(backup_type=INCREMENTAL))
    assert refusal.reason == "NO_USABLE_PARENT"
    assert "file is missing" in refusal.message


async def test_history_in_another_repository_is_no_parent(
    hub: LiveHub, agent: ScriptedAgent, disk: SourceDisk, unchanged: Unchanged
) -> None:
    async with complete(hub, agent, disk):
        second = await hub.add_repository("second", hub.repository.parent / "second")
        refusal = await unchanged(hub.create(backup_type=INCREMENTAL, repository_id=second))
    assert refusal.reason == "NO_USABLE_PARENT"


@pytest.mark.parametrize("name", ["", "backups", "backups/", "backups/a/b", "tasks/a", "/a", "x" * 100_000])
async def test_what_is_no_backups_name_is_refused(hub: LiveHub, unchanged: Unchanged, name: str) -> None:
    expected = ("INVALID_ARGUMENT", "INVALID_REQUEST", "name")
    assert tuple(await unchanged(hub.backups.GetBackup(backup_pb2.GetBackupRequest(name=name)))) == expected
    assert tuple(await unchanged(hub.backups.CancelBackup(backup_pb2.CancelBackupRequest(name=name)))) == expected


async def test_an_unknown_backup_is_not_found(hub: LiveHub, unchanged: Unchanged) -> None:
    name, expected = "backups/unknown", ("NOT_FOUND", "NOT_FOUND", "")
    assert tuple(await unchanged(hub.backups.GetBackup(backup_pb2.GetBackupRequest(name=name)))) == expected
    assert tuple(await unchanged(hub.backups.CancelBackup(backup_pb2.CancelBackupRequest(name=name)))) == expected


async def test_a_backup_that_has_ended_cannot_be_cancelled(
    hub: LiveHub, agent: ScriptedAgent, disk: SourceDisk, unchanged: Unchanged
) -> None:
    async with complete(hub, agent, disk) as backup_id:
        request = backup_pb2.CancelBackupRequest(name=f"backups/{backup_id}")
        refusal = await unchanged(hub.backups.CancelBackup(request))
    assert tuple(refusal) == ("FAILED_PRECONDITION", "NOT_POSSIBLE_NOW", "")


@pytest.mark.parametrize("field", [{"status": 77}, {"backup_type": 77}, {"page_size": -1}, {"page_token": "MQ=="}])
async def test_a_list_that_makes_no_sense_is_refused(hub: LiveHub, unchanged: Unchanged, field: dict[str, Any]) -> None:
    refusal = await unchanged(hub.backups.ListBackups(backup_pb2.ListBackupsRequest(**field)))
    assert tuple(refusal) == ("INVALID_ARGUMENT", "INVALID_REQUEST", *field)


async def test_filters_of_a_list_are_anded(hub: LiveHub, agent: ScriptedAgent, disk: SourceDisk) -> None:
    async def found(**fields: Any) -> int:
        return len((await hub.backups.ListBackups(backup_pb2.ListBackupsRequest(**fields))).backups)

    async with complete(hub, agent, disk):
        await hub.create(backup_type=AUTO)
        done, pending = backup_pb2.BACKUP_STATUS_COMPLETE, backup_pb2.BACKUP_STATUS_PENDING
        assert await found() == 2
        assert await found(vm_name="web", status=done) == 1
        assert await found(backup_type=AUTO, status=pending, vm_id="vm-1", repository_id=hub.repository_id) == 1
        assert await found(backup_type=AUTO, status=done) == 0
        assert await found(vm_id="vm-1", vm_name="other") == 0


async def test_pages_make_up_the_whole_list_newest_first(hub: LiveHub, agent: ScriptedAgent, disk: SourceDisk) -> None:
    for _ in range(3):
        async with complete(hub, agent, disk):
            pass
    whole = (await hub.backups.ListBackups(backup_pb2.ListBackupsRequest())).backups
    token, pages = "", list[backup_pb2.Backup]()
    for _ in range(3):
        page = await hub.backups.ListBackups(backup_pb2.ListBackupsRequest(page_size=1, page_token=token))
        token = page.next_page_token
        pages.extend(page.backups)
    assert token == ""
    assert pages == list(whole)
    assert [one.name for one in pages] == sorted((one.name for one in pages), reverse=True)


async def test_a_page_token_of_another_list_is_refused(
    hub: LiveHub, agent: ScriptedAgent, disk: SourceDisk, unchanged: Unchanged
) -> None:
    for _ in range(2):
        async with complete(hub, agent, disk):
            pass
    token = (await hub.backups.ListBackups(backup_pb2.ListBackupsRequest(page_size=1))).next_page_token
    other = backup_pb2.ListBackupsRequest(page_token=token, vm_id="vm-1")
    assert tuple(await unchanged(hub.backups.ListBackups(other))) == (
        "INVALID_ARGUMENT",
        "INVALID_REQUEST",
        "page_token",
    )


async def test_the_chain_of_a_disk_lists_its_images_oldest_first(
    hub: LiveHub, agent: ScriptedAgent, disk: SourceDisk
) -> None:
    made: list[str] = []
    for kind in (FULL, INCREMENTAL, INCREMENTAL):
        disk.scribble(65536 * (len(made) + 1))
        await hub.create(backup_type=kind)
        order = await agent.order()
        await agent.make(order, disk)
        made.append(f"backups/{order.backup_id}")
    (chain,) = (await hub.backups.GetChain(backup_pb2.GetChainRequest(vm_name="web"))).chains
    assert [image.backup for image in chain.images] == made
    assert [image.parent_backup for image in chain.images] == ["", *made[:-1]]
    assert [image.type_run for image in chain.images] == [FULL, INCREMENTAL, INCREMENTAL]


async def test_a_chain_of_no_vm_is_refused(hub: LiveHub, unchanged: Unchanged) -> None:
    assert (await unchanged(hub.backups.GetChain(backup_pb2.GetChainRequest()))).field == "vm_id"
    unknown = backup_pb2.GetChainRequest(vm_id="vm-9")
    assert (await unchanged(hub.backups.GetChain(unknown))).code == "NOT_FOUND"
