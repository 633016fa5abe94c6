"""Tasks and their log in the catalogue."""

from dataclasses import astuple, replace
from datetime import timedelta

import pytest

from hub.catalogue import tasks
from hub.catalogue.engine import Catalogue
from hub.catalogue.ids import new_id
from hub.catalogue.states import TASK_MOVES, Level, TaskKind, TaskState
from hub.catalogue.tasks import Progress, Task, TaskFilter
from shared.errors import Conflict, NotFound
from shared.units import TiB
from tests.contracts.catalogue.site import LATER, NOW, Site, make_site, new_task

ENDED = [state for state, moves in TASK_MOVES.items() if not moves]


@pytest.fixture
async def site(catalogue: Catalogue) -> Site:
    return await make_site(catalogue)


@pytest.fixture
async def task(catalogue: Catalogue, site: Site) -> Task:
    async with catalogue.writing() as session:
        return await new_task(session, site)


async def move(catalogue: Catalogue, task: Task, *states: TaskState) -> Task:
    async with catalogue.writing() as session:
        for state in states:
            task = await tasks.move(session, task.id, state, LATER)
        return task


async def read(catalogue: Catalogue, task: Task) -> Task:
    async with catalogue.reading() as session:
        return await tasks.get(session, task.id)


async def test_a_new_task_is_read_back_as_it_was_written(catalogue: Catalogue, site: Site, task: Task) -> None:
    assert await read(catalogue, task) == task
    assert task == Task(
        id=task.id,
        kind=TaskKind.BACKUP,
        state=TaskState.QUEUED,
        vm_id=site.vm,
        agent_id=site.agent,
        created_at=NOW,
        started_at=None,
        ended_at=None,
        cancel_requested_at=None,
        error_reason="",
        error_message="",
        progress=Progress(),
        time_limit_s=4 * 3600,
        lease_owner="hub1",
        lease_expires_at=LATER,
        version=1,
    )


async def test_a_task_runs_and_succeeds(catalogue: Catalogue, task: Task) -> None:
    running = await move(catalogue, task, TaskState.RUNNING)
    assert (running.started_at, running.ended_at) == (LATER, None)
    succeeded = await move(catalogue, task, TaskState.SUCCEEDED)
    assert (succeeded.state, succeeded.ended_at) == (TaskState.SUCCEEDED, LATER)


async def test_a_failed_task_says_why(catalogue: Catalogue, task: Task) -> None:
    async with catalogue.writing() as session:
        await tasks.move(
            session, task.id, TaskState.FAILED, LATER, error_reason="READ_FAILED", error_message="bad sector"
        )
    failed = await read(catalogue, task)
    assert (failed.error_reason, failed.error_message) == ("READ_FAILED", "bad sector")


async def test_a_queued_task_cannot_succeed(catalogue: Catalogue, task: Task) -> None:
    with pytest.raises(Conflict):
        await move(catalogue, task, TaskState.SUCCEEDED)
    assert await read(catalogue, task) == task


@pytest.mark.parametrize("state", ENDED)
async def test_an_ended_task_never_changes_again(catalogue: Catalogue, task: Task, state: TaskState) -> None:
    ended = await move(catalogue, task, TaskState.RUNNING, state)
    for other in TaskState:
        with pytest.raises(Conflict):
            await move(catalogue, task, other)
    with pytest.raises(Conflict):
        async with catalogue.writing() as session:
            await tasks.advance(session, task.id, Progress(read_bytes=1))
    with pytest.raises(Conflict):
        async with catalogue.writing() as session:
            await tasks.request_cancel(session, task.id, NOW)
    with pytest.raises(Conflict):
        async with catalogue.writing() as session:
            await tasks.extend_lease(session, task.id, "hub2", LATER)
    assert await read(catalogue, task) == ended


async def test_progress_never_goes_back(catalogue: Catalogue, task: Task) -> None:
    high = Progress(62 * TiB, 50 * TiB, 40 * TiB, 30 * TiB, 20 * TiB)
    async with catalogue.writing() as session:
        await tasks.advance(session, task.id, high)
        await tasks.advance(session, task.id, Progress(*(count - 1 for count in astuple(high))))
        await tasks.advance(session, task.id, replace(Progress(), read_bytes=51 * TiB))
    assert (await read(catalogue, task)).progress == replace(high, read_bytes=51 * TiB)


async def test_asking_twice_for_a_cancel_keeps_the_first_moment(catalogue: Catalogue, task: Task) -> None:
    async with catalogue.writing() as session:
        await tasks.request_cancel(session, task.id, NOW)
        await tasks.request_cancel(session, task.id, LATER)
    assert (await read(catalogue, task)).cancel_requested_at == NOW


async def test_a_task_that_never_had_a_heartbeat_expires(catalogue: Catalogue, task: Task) -> None:
    async with catalogue.reading() as session:
        assert await tasks.expired(session, LATER - timedelta(microseconds=1)) == []
        assert await tasks.expired(session, LATER) == [task]


async def test_an_extended_lease_does_not_expire_and_has_its_owner(catalogue: Catalogue, task: Task) -> None:
    async with catalogue.writing() as session:
        await tasks.extend_lease(session, task.id, "hub2", LATER + timedelta(hours=1))
    async with catalogue.reading() as session:
        assert await tasks.expired(session, LATER) == []
        assert (await tasks.get(session, task.id)).lease_owner == "hub2"


async def test_an_ended_task_does_not_expire(catalogue: Catalogue, task: Task) -> None:
    await move(catalogue, task, TaskState.CANCELLED)
    async with catalogue.reading() as session:
        assert await tasks.expired(session, LATER + timedelta(days=1)) == []


async def test_the_unfinished_tasks_are_the_queued_and_the_running(
    catalogue: Catalogue, site: Site, task: Task
) -> None:
    async with catalogue.writing() as session:
        others = [await new_task(session, site) for _ in range(4)]
    running = await move(catalogue, others[0], TaskState.RUNNING)
    for other, state in zip(others[1:], ENDED, strict=True):
        await move(catalogue, other, TaskState.RUNNING, state)
    async with catalogue.reading() as session:
        assert await tasks.unfinished(session) == [task, running]


async def test_tasks_are_listed_newest_first_in_pages(catalogue: Catalogue, site: Site) -> None:
    async with catalogue.writing() as session:
        made = [await new_task(session, site) for _ in range(5)]
    seen: list[Task] = []
    async with catalogue.reading() as session:
        while page := await tasks.list_tasks(session, TaskFilter(), limit=2, before=seen[-1].id if seen else None):
            seen += page
    assert seen == made[::-1]


async def test_conditions_of_a_task_listing_all_hold(catalogue: Catalogue, site: Site, task: Task) -> None:
    async with catalogue.writing() as session:
        other = await new_task(session, site, site.other_vm)
    running = await move(catalogue, other, TaskState.RUNNING)
    async with catalogue.reading() as session:

        async def listed(which: TaskFilter) -> list[Task]:
            return await tasks.list_tasks(session, which, limit=10)

        assert await listed(TaskFilter(vm_id=site.other_vm)) == [running]
        assert await listed(TaskFilter(state=TaskState.QUEUED, agent_id=site.agent)) == [task]
        assert await listed(TaskFilter(state=TaskState.QUEUED, vm_id=site.other_vm)) == []
        assert await listed(TaskFilter(agent_id=new_id())) == []


async def test_a_log_is_numbered_per_task_and_read_from_a_number_on(
    catalogue: Catalogue, site: Site, task: Task
) -> None:
    async with catalogue.writing() as session:
        other = await new_task(session, site)
        for word in ("one", "two", "three", "four"):
            await tasks.append_event(session, task.id, Level.INFO, word, now=NOW)
        await tasks.append_event(session, other.id, Level.ERROR, "elsewhere", now=NOW)
    async with catalogue.reading() as session:
        part = await tasks.list_events(session, task.id, after_number=1, limit=2)
        elsewhere = await tasks.list_events(session, other.id, limit=10)
    assert [(event.number, event.message) for event in part] == [(2, "two"), (3, "three")]
    assert [(event.number, event.level) for event in elsewhere] == [(1, Level.ERROR)]


async def test_the_facts_of_a_log_line_survive(catalogue: Catalogue, task: Task) -> None:
    facts = {"disk": "диск 💽", "path": 'a"b\\c'}
    async with catalogue.writing() as session:
        written = await tasks.append_event(session, task.id, Level.WARNING, "skipped", now=NOW, facts=facts)
    async with catalogue.reading() as session:
        assert await tasks.list_events(session, task.id, limit=1) == [written]
    assert written.facts == facts


async def test_an_unknown_task_is_not_found(catalogue: Catalogue) -> None:
    with pytest.raises(NotFound, match="task"):
        async with catalogue.writing() as session:
            await tasks.append_event(session, new_id(), Level.INFO, "", now=NOW)
