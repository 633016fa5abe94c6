"""States only go forward, whatever is asked for in whatever order."""

from collections.abc import Awaitable, Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hub.catalogue import backups, images, tasks
from hub.catalogue.backups import Backup
from hub.catalogue.engine import Catalogue
from hub.catalogue.states import BackupState, TaskState
from hub.catalogue.tasks import Task
from shared.errors import Conflict, VmBusy
from tests.contracts.catalogue.site import LATER, Site, make_site, new_backup, new_image, new_task

# Each example makes a task or backup of its own, so one catalogue serves them all.
EXAMPLES = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

TASK_RANK = {TaskState.QUEUED: 0, TaskState.RUNNING: 1}
BACKUP_RANK = {BackupState.PENDING: 0, BackupState.RUNNING: 1}
END = 2

Step = Callable[[Catalogue, Site, Backup], Awaitable[Backup]]


@pytest.fixture
async def site(catalogue: Catalogue) -> Site:
    return await make_site(catalogue)


async def start(catalogue: Catalogue, site: Site, backup: Backup) -> Backup:
    async with catalogue.writing() as session:
        return await backups.start(session, backup.id)


async def fail(catalogue: Catalogue, site: Site, backup: Backup) -> Backup:
    async with catalogue.writing() as session:
        return await backups.fail(session, backup.id, "READ_FAILED", "")


async def cancel(catalogue: Catalogue, site: Site, backup: Backup) -> Backup:
    async with catalogue.writing() as session:
        return await backups.cancel(session, backup.id, "")


async def commit(catalogue: Catalogue, site: Site, backup: Backup) -> Backup:
    async with catalogue.writing() as session:
        return await backups.commit(session, backup.id, [new_image(site.disk, "u/1")], LATER)


@EXAMPLES
@given(asked=st.lists(st.sampled_from(TaskState), max_size=8))
async def test_a_task_only_goes_forward(catalogue: Catalogue, site: Site, asked: list[TaskState]) -> None:
    async with catalogue.writing() as session:
        task = await new_task(session, site)
    for state in asked:
        before = task
        try:
            async with catalogue.writing() as session:
                task = await tasks.move(session, task.id, state, LATER)
        except Conflict:
            assert await read_task(catalogue, task) == before
        else:
            assert TASK_RANK.get(before.state, END) < TASK_RANK.get(task.state, END)
            assert task.state is state


async def read_task(catalogue: Catalogue, task: Task) -> Task:
    async with catalogue.reading() as session:
        return await tasks.get(session, task.id)


@EXAMPLES
@given(asked=st.lists(st.sampled_from([start, fail, cancel, commit]), max_size=8))
async def test_a_backup_only_goes_forward_and_has_images_only_when_complete(
    catalogue: Catalogue, site: Site, asked: list[Step]
) -> None:
    async with catalogue.writing() as session:
        backup = await new_backup(session, site)
    for step in [*asked, cancel]:
        before = backup
        try:
            backup = await step(catalogue, site, backup)
        except Conflict:
            pass
        else:
            assert BACKUP_RANK.get(before.state, END) < BACKUP_RANK.get(backup.state, END)
        await check_backup(catalogue, site, backup)


async def check_backup(catalogue: Catalogue, site: Site, expected: Backup) -> None:
    """What is stored is what was answered, images stand for a restore point, and the VM is busy as it should be."""
    async with catalogue.reading() as session:
        assert await backups.get(session, expected.id) == expected
        has_images = bool(await images.of_backups(session, [expected.id]))
    assert has_images == (expected.state is BackupState.COMPLETE)
    with pytest.raises(VmBusy if expected.state in BACKUP_RANK else ZeroDivisionError):
        async with catalogue.writing() as session:
            await new_backup(session, site)
            raise ZeroDivisionError  # leaves nothing behind
