"""Backups in the catalogue: one per VM at a time, states that only go forward, commits that happen once."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest
from sqlalchemy import insert

from hub.catalogue import backups, images
from hub.catalogue.backups import Backup, BackupFilter, SkippedDisk
from hub.catalogue.engine import Catalogue
from hub.catalogue.ids import new_id
from hub.catalogue.models import BackupRow
from hub.catalogue.states import BackupState, BackupType, Consistency
from shared.errors import AlreadyExists, Conflict, InvalidRequest, NotFound, VmBusy
from tests.contracts.catalogue.site import (
    LATER,
    NOW,
    Site,
    make_site,
    new_backup,
    new_image,
    new_task,
    restore_point,
)


@pytest.fixture
async def site(catalogue: Catalogue) -> Site:
    return await make_site(catalogue)


@pytest.fixture
async def backup(catalogue: Catalogue, site: Site) -> Backup:
    """A PENDING backup."""
    async with catalogue.writing() as session:
        return await new_backup(session, site)


async def start(catalogue: Catalogue, backup: Backup) -> Backup:
    async with catalogue.writing() as session:
        return await backups.start(session, backup.id)


async def fail(catalogue: Catalogue, backup: Backup) -> Backup:
    async with catalogue.writing() as session:
        return await backups.fail(session, backup.id, "READ_FAILED", "bad sector")


async def cancel(catalogue: Catalogue, backup: Backup) -> Backup:
    async with catalogue.writing() as session:
        return await backups.cancel(session, backup.id, "by the operator")


async def commit(catalogue: Catalogue, backup: Backup, *new: images.NewImage) -> Backup:
    async with catalogue.writing() as session:
        return await backups.commit(session, backup.id, new, LATER)


async def read(catalogue: Catalogue, backup: Backup) -> Backup:
    async with catalogue.reading() as session:
        return await backups.get(session, backup.id)


async def test_a_new_backup_is_read_back_as_it_was_written(catalogue: Catalogue, site: Site, backup: Backup) -> None:
    assert await read(catalogue, backup) == backup
    assert backup == Backup(
        id=backup.id,
        vm_id=site.vm,
        repository_id=site.repository,
        task_id=backup.task_id,
        agent_id=site.agent,
        type_asked=BackupType.AUTO,
        state=BackupState.PENDING,
        consistency=Consistency.UNKNOWN,
        snapshot_at=None,
        created_at=NOW,
        completed_at=None,
        failure_reason="",
        failure_message="",
        skipped_disks=(),
        version=1,
    )


async def test_the_backup_of_a_task_is_found(catalogue: Catalogue, backup: Backup) -> None:
    async with catalogue.reading() as session:
        assert await backups.of_task(session, backup.task_id) == backup
        assert await backups.of_task(session, new_id()) is None


async def test_a_second_backup_of_a_vm_is_refused_while_one_is_unfinished(
    catalogue: Catalogue, site: Site, backup: Backup
) -> None:
    for _ in ("PENDING", "RUNNING"):
        with pytest.raises(VmBusy) as caught:
            async with catalogue.writing() as session:
                await new_backup(session, site, repository=site.second_repository)
        assert caught.value.facts["backup"] == backup.id
        if (await read(catalogue, backup)).state is BackupState.PENDING:
            await start(catalogue, backup)


@pytest.mark.parametrize("end", [fail, cancel])
async def test_a_vm_is_free_again_after_a_backup_that_gave_no_restore_point(
    catalogue: Catalogue, site: Site, backup: Backup, end: Callable[[Catalogue, Backup], Awaitable[Backup]]
) -> None:
    await end(catalogue, backup)
    async with catalogue.writing() as session:
        assert (await new_backup(session, site)).state is BackupState.PENDING


async def test_two_vms_are_backed_up_at_once(catalogue: Catalogue, site: Site, backup: Backup) -> None:
    async with catalogue.writing() as session:
        other = await new_backup(session, site, vm=site.other_vm)
    async with catalogue.reading() as session:
        assert await backups.unfinished(session) == [backup, other]


async def test_of_many_hubs_that_start_a_backup_of_one_vm_one_does(catalogue: Catalogue, url: str, site: Site) -> None:
    other = await Catalogue.open(url)

    async def begin(hub: Catalogue) -> bool:
        try:
            async with hub.writing() as session:
                await new_backup(session, site)
        except VmBusy:
            return False
        return True

    try:
        outcomes = await asyncio.gather(*(begin(hub) for hub in (catalogue, other) * 5))
    finally:
        await other.close()
    assert sorted(outcomes) == [False] * 9 + [True]


async def test_the_database_itself_refuses_a_second_unfinished_backup(
    catalogue: Catalogue, site: Site, backup: Backup
) -> None:
    """Whoever writes past `backups.add` meets the unique index."""
    with pytest.raises(AlreadyExists, match="active_vm_id"):
        async with catalogue.writing() as session:
            row = {
                "id": new_id(),
                "vm_id": site.vm,
                "repository_id": site.repository,
                "task_id": (await new_task(session, site)).id,
                "agent_id": site.agent,
                "type_asked": BackupType.FULL,
                "state": BackupState.RUNNING,
                "consistency": Consistency.UNKNOWN,
                "created_at": NOW,
                "skipped_disks": [],
            }
            await session.execute(insert(BackupRow), [row])


async def test_what_the_snapshot_caught_and_missed_is_kept(catalogue: Catalogue, backup: Backup) -> None:
    skipped = (SkippedDisk(2002, "Hard disk 3 🛑", "INDEPENDENT"), SkippedDisk(2003, "Hard disk 4", "PHYSICAL_RDM"))
    await start(catalogue, backup)
    async with catalogue.writing() as session:
        await backups.note_snapshot(
            session, backup.id, snapshot_at=LATER, consistency=Consistency.QUIESCED, skipped_disks=skipped
        )
    noted = await read(catalogue, backup)
    assert (noted.snapshot_at, noted.consistency, noted.skipped_disks) == (LATER, Consistency.QUIESCED, skipped)


async def test_a_snapshot_of_a_backup_that_is_not_running_is_refused(catalogue: Catalogue, backup: Backup) -> None:
    with pytest.raises(Conflict):
        async with catalogue.writing() as session:
            await backups.note_snapshot(session, backup.id, snapshot_at=NOW, consistency=Consistency.CRASH)


async def test_a_commit_completes_the_backup_and_keeps_every_image(
    catalogue: Catalogue, site: Site, backup: Backup
) -> None:
    new = [new_image(site.disk, "u/1"), new_image(site.second_disk, "v/7", ordinal=1)]
    await start(catalogue, backup)
    committed = await commit(catalogue, backup, *new)
    assert (committed.state, committed.completed_at) == (BackupState.COMPLETE, LATER)
    async with catalogue.reading() as session:
        kept = (await images.of_backups(session, [backup.id]))[backup.id]
    assert [
        images.NewImage(**{name: getattr(image, name) for name in images.NewImage.__slots__}) for image in kept
    ] == new
    assert {(image.backup_id, image.repository_id, image.created_at) for image in kept} == {
        (backup.id, site.repository, LATER)
    }


async def test_a_vm_is_free_again_after_the_commit(catalogue: Catalogue, site: Site) -> None:
    await restore_point(catalogue, site, new_image(site.disk, "u/1"))
    async with catalogue.writing() as session:
        await new_backup(session, site)


async def test_a_backup_is_not_committed_twice(catalogue: Catalogue, site: Site) -> None:
    point = await restore_point(catalogue, site, new_image(site.disk, "u/1"))
    with pytest.raises(Conflict):
        await commit(catalogue, point, new_image(site.second_disk, "v/1"))
    async with catalogue.reading() as session:
        assert len((await images.of_backups(session, [point.id]))[point.id]) == 1


async def test_a_backup_that_was_never_started_is_not_committed(
    catalogue: Catalogue, site: Site, backup: Backup
) -> None:
    with pytest.raises(Conflict):
        await commit(catalogue, backup, new_image(site.disk, "u/1"))


async def test_a_failed_backup_is_not_committed_and_leaves_no_image(
    catalogue: Catalogue, site: Site, backup: Backup
) -> None:
    await start(catalogue, backup)
    failed = await fail(catalogue, backup)
    assert (failed.failure_reason, failed.failure_message) == ("READ_FAILED", "bad sector")
    with pytest.raises(Conflict):
        await commit(catalogue, backup, new_image(site.disk, "u/1"))
    async with catalogue.reading() as session:
        assert await images.head(session, site.disk, site.repository) is None


@pytest.mark.parametrize("fault", ["no image", "a disk twice", "an ordinal twice", "another VM's disk"])
async def test_a_commit_of_wrong_images_changes_nothing(
    catalogue: Catalogue, site: Site, backup: Backup, fault: str
) -> None:
    new = {
        "no image": [],
        "a disk twice": [new_image(site.disk, "u/1"), new_image(site.disk, "u/1", ordinal=1)],
        "an ordinal twice": [new_image(site.disk, "u/1"), new_image(site.second_disk, "v/1")],
        "another VM's disk": [new_image(site.disk, "u/1"), new_image(site.foreign_disk, "w/1", ordinal=1)],
    }[fault]
    running = await start(catalogue, backup)
    with pytest.raises(InvalidRequest):
        await commit(catalogue, backup, *new)
    assert await read(catalogue, backup) == running
    async with catalogue.reading() as session:
        assert await images.of_backups(session, [backup.id]) == {}


async def test_backups_are_listed_newest_first_in_pages(catalogue: Catalogue, site: Site) -> None:
    made = [await restore_point(catalogue, site, new_image(site.disk, f"u/{number}")) for number in range(5)]
    seen: list[Backup] = []
    async with catalogue.reading() as session:
        while page := await backups.list_backups(
            session, BackupFilter(), limit=2, before=seen[-1].id if seen else None
        ):
            seen += page
    assert seen == made[::-1]


async def test_conditions_of_a_backup_listing_all_hold(catalogue: Catalogue, site: Site) -> None:
    async with catalogue.writing() as session:
        full = await new_backup(session, site, type_asked=BackupType.FULL)
        other = await new_backup(session, site, vm=site.other_vm, repository=site.second_repository)
    failed = await fail(catalogue, full)
    async with catalogue.reading() as session:

        async def listed(**conditions: object) -> list[Backup]:
            return await backups.list_backups(session, BackupFilter(**conditions), limit=10)  # type: ignore[arg-type]

        assert await listed() == [other, failed]
        assert await listed(vm_id=site.vm) == [failed]
        assert await listed(vm_name="vm2") == [other]
        assert await listed(repository_id=site.second_repository, state=BackupState.PENDING) == [other]
        assert await listed(type_asked=BackupType.FULL, state=BackupState.FAILED, vm_name="vm1") == [failed]
        assert await listed(type_asked=BackupType.FULL, vm_id=site.other_vm) == []
        assert await listed(state=BackupState.COMPLETE) == []


async def test_every_change_of_a_backup_raises_its_version(catalogue: Catalogue, backup: Backup) -> None:
    started = await start(catalogue, backup)
    failed = await fail(catalogue, backup)
    assert [backup.version, started.version, failed.version] == [1, 2, 3]


async def test_an_unknown_backup_is_not_found(catalogue: Catalogue, site: Site) -> None:
    with pytest.raises(NotFound, match="backup"):
        async with catalogue.writing() as session:
            await backups.commit(session, new_id(), [new_image(site.disk, "u/1")], NOW + timedelta(days=1))


async def test_of_more_than_one_statement_can_list_all_are_found(
    catalogue: Catalogue, site: Site, backup: Backup
) -> None:
    unknown = [f"unknown-{number}" for number in range(40_000)]
    async with catalogue.reading() as session:
        assert await backups.get_many(session, [*unknown, backup.id]) == {backup.id: backup}
