"""Background work: beside everything else, one piece of a name, again until it is done."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from hub import background
from hub.background import Background
from shared.errors import Unavailable


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "RETRY", 0.01)


class Work:
    """Fails so many times, and tells how often it was begun and done."""

    def __init__(self, failures: int = 0) -> None:
        self.failures, self.begun, self.done = failures, 0, 0

    async def __call__(self) -> None:
        self.begun += 1
        await asyncio.sleep(0.01)
        if self.begun <= self.failures:
            raise Unavailable("injected")
        self.done += 1


def hangs() -> Callable[[], Awaitable[None]]:
    async def hang() -> None:
        await asyncio.Event().wait()

    return hang


async def test_work_that_hangs_keeps_no_other_from_being_done() -> None:
    work, beside = Work(), Background()
    beside.begin("a", hangs())
    beside.begin("b", work)
    await beside.settle(0.2)
    assert work.done == 1


async def test_one_of_a_name_is_at_work_at_a_time() -> None:
    work, beside = Work(), Background()
    for _ in range(3):
        beside.begin("a", work)
    await beside.settle(5)
    assert work.begun == 1


async def test_work_that_was_done_can_be_begun_again() -> None:
    work, beside = Work(), Background()
    for _ in range(2):
        beside.begin("a", work)
        await beside.settle(5)
    assert work.done == 2


async def test_work_that_fails_is_tried_again() -> None:
    work, beside = Work(failures=2), Background()
    beside.begin("a", work)
    await beside.settle(5)
    assert (work.begun, work.done) == (3, 1)


async def test_what_is_not_done_in_time_is_stopped() -> None:
    work, beside = Work(failures=10_000), Background()
    beside.begin("a", work)
    await beside.settle(0.1)
    begun = work.begun
    await asyncio.sleep(0.1)
    assert work.begun == begun
