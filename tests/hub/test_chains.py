"""The rules of what an incremental may go on from."""

from dataclasses import replace

import pytest

from hub.chains import Head, usable, why_not

HEAD = Head("disk", 2000, "uuid", "1-2000", "Hard disk 1", "image", "52 de/1", 1024, "")


def test_a_head_with_change_id_and_all_files_is_usable() -> None:
    assert usable(HEAD)


@pytest.mark.parametrize("head", [replace(HEAD, change_id=""), replace(HEAD, missing_file="vms/a.qcow2")])
def test_a_head_without_change_id_or_a_file_of_its_chain_is_not(head: Head) -> None:
    assert not usable(head)


def test_the_reason_names_every_disk() -> None:
    other = replace(HEAD, label="Hard disk 2", missing_file="vms/a.qcow2")
    assert why_not([replace(HEAD, change_id=""), other]) == (
        "Hard disk 1: it has no change ID; Hard disk 2: a file is missing from its chain: vms/a.qcow2"
    )


def test_without_any_head_that_is_the_reason() -> None:
    assert why_not([]) == "there is no restore point of it in this repository"
