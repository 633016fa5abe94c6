"""IDs: UUIDv7, ascending."""

import time
from concurrent.futures import ThreadPoolExecutor
from uuid import RFC_4122, UUID

from hub.catalogue.ids import Ids, new_id


def test_an_id_is_a_uuid_of_version_7_in_its_usual_spelling() -> None:
    made = new_id()
    assert (UUID(made).version, UUID(made).variant) == (7, RFC_4122)
    assert str(UUID(made)) == made


def test_an_id_holds_the_moment_it_was_made() -> None:
    before = time.time_ns() // 1_000_000
    moment = UUID(new_id()).int >> 80
    assert before <= moment <= time.time_ns() // 1_000_000 + 1


def test_ids_of_one_millisecond_ascend() -> None:
    ids = Ids()
    made = [ids.next(1_000) for _ in range(10_000)]
    assert made == sorted(set(made))


def test_ids_ascend_even_when_the_clock_goes_back() -> None:
    ids = Ids()
    made = [ids.next(moment) for moment in (5_000, 6_000, 1_000, 6_000, 6_001)]
    assert made == sorted(set(made))


def test_two_sources_never_make_the_same_id() -> None:
    assert len({Ids().next(1_000) for _ in range(1_000)}) == 1_000


def test_threads_never_get_the_same_id() -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: new_id(), range(10_000)))
    assert len(set(made)) == 10_000
