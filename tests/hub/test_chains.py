"""The rules of what an incremental may go on from."""

from dataclasses import replace

import pytest

from hub.chains import Head, usable, why_not

HEAD = Head("disk", 2000, "uuid", "1-2000", "Hard disk 1", "image", "52 de/1", 1024, True)


def test_a_head_with_change_id_and_file_is_usable() -> None:
    assert usable(HEAD)


@pytest.mark.parametrize("head", [replace(HEAD, change_id=""), replace(HEAD, file_exists=False)])
def test_a_head_without_change_id_or_file_is_not(head: Head) -> None:
    assert not usable(head)


def test_the_reason_names_every_disk() -> None:
    other = replace(HEAD, label="Hard disk 2", file_exists=False)
    assert why_not([replace(HEAD, change_id=""), other]) == (
        "Hard disk 1: it has no change ID; Hard disk 2: its newest image's file is missing"
    )


def test_without_any_head_that_is_the_reason() -> None:
    assert why_not([]) == "there is no restore point of it in this repository"
