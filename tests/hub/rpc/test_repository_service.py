"""RepositoryService: folders that become repositories, and those that cannot."""

import json
from pathlib import Path

import pytest

from sendense.v1 import repository_pb2
from tests.hub.live_hub import LiveHub
from tests.hub.refusals import Refusal, refused

Request = repository_pb2.CreateRepositoryRequest


async def unchanged(hub: LiveHub, name: str, path: Path | str) -> Refusal:
    """The refusal to add a repository; nothing in the catalogue or in the hub's folder may change by it."""
    root = hub.repository.parent
    before = await hub.everything(), sorted(root.rglob("*"))
    refusal = await refused(hub.repositories.CreateRepository(Request(display_name=name, path=str(path))))
    assert refusal.domain == "sendense"
    assert (await hub.everything(), sorted(root.rglob("*"))) == before
    return refusal


async def test_a_missing_folder_is_made(hub: LiveHub, folder: Path) -> None:
    repository_id = await hub.add_repository("deep", folder / "a" / "b")
    assert json.loads((folder / "a" / "b" / "sendense.json").read_text()) == {"id": repository_id, "version": 1}


async def test_a_folder_that_is_a_repository_already_is_taken_as_it_is(hub: LiveHub, folder: Path) -> None:
    (folder / "old").mkdir()
    (folder / "old" / "sendense.json").write_text('{"id": "0123", "version": 1}')
    assert await hub.add_repository("old", folder / "old") == "0123"


@pytest.mark.parametrize("path", ["", "relative", "./here", "/nul\0byte"])
async def test_what_is_no_absolute_path_is_refused(hub: LiveHub, path: str) -> None:
    assert tuple(await unchanged(hub, "second", path)) == ("INVALID_ARGUMENT", "INVALID_REQUEST", "path")


async def test_a_circle_of_links_is_refused(hub: LiveHub, folder: Path) -> None:
    (folder / "loop").symlink_to(folder / "loop")
    assert tuple(await unchanged(hub, "second", folder / "loop")) == ("INVALID_ARGUMENT", "INVALID_REQUEST", "path")


@pytest.mark.parametrize("name", ["", "x" * 101])
async def test_a_name_too_short_or_too_long_is_refused(hub: LiveHub, folder: Path, name: str) -> None:
    assert tuple(await unchanged(hub, name, folder / "second"))[2] == "display_name"


async def test_a_taken_name_is_refused(hub: LiveHub, folder: Path) -> None:
    refusal = await unchanged(hub, "default", folder / "second")
    assert tuple(refusal) == ("ALREADY_EXISTS", "ALREADY_EXISTS", "display_name")


async def test_a_taken_folder_is_refused_by_whatever_path(hub: LiveHub, folder: Path) -> None:
    (folder / "link").symlink_to(hub.repository)
    for path in (hub.repository, folder / "link", f"{folder}/x/../repository"):
        assert tuple(await unchanged(hub, "second", path)) == ("ALREADY_EXISTS", "ALREADY_EXISTS", "path")


async def test_a_copy_of_a_known_repository_is_refused(hub: LiveHub, folder: Path) -> None:
    (folder / "copy").mkdir()
    (folder / "copy" / "sendense.json").write_text((hub.repository / "sendense.json").read_text())
    assert (await unchanged(hub, "copy", folder / "copy")).code == "ALREADY_EXISTS"


async def test_a_folder_with_something_else_in_it_is_refused(hub: LiveHub, folder: Path) -> None:
    (folder / "photos").mkdir()
    (folder / "photos" / "cat.jpg").touch()
    assert tuple(await unchanged(hub, "photos", folder / "photos")) == (
        "FAILED_PRECONDITION",
        "NOT_POSSIBLE_NOW",
        "path",
    )


async def test_the_root_of_an_empty_file_system_is_taken(hub: LiveHub, folder: Path) -> None:
    (folder / "disk" / "lost+found").mkdir(parents=True)
    assert await hub.add_repository("disk", folder / "disk")


async def test_a_folder_that_cannot_be_written_is_refused(hub: LiveHub) -> None:
    refusal = await unchanged(hub, "kernel", "/proc/sendense")  # no permission helps there, not even root's
    assert tuple(refusal) == ("UNAVAILABLE", "REPOSITORY_UNAVAILABLE", "")


@pytest.mark.parametrize("marker", ["", "[]", "{}", '{"id": 7}', '{"id": "0123", "version": 2}'])
async def test_a_marker_that_makes_no_sense_is_refused(hub: LiveHub, folder: Path, marker: str) -> None:
    (folder / "odd").mkdir()
    (folder / "odd" / "sendense.json").write_text(marker)
    assert (await unchanged(hub, "odd", folder / "odd")).reason == "REPOSITORY_UNAVAILABLE"


async def test_a_repository_that_is_gone_is_still_listed(hub: LiveHub) -> None:
    hub.repository.rename(hub.repository.with_name("elsewhere"))
    (listed,) = (await hub.repositories.ListRepositories(repository_pb2.ListRepositoriesRequest())).repositories
    assert (listed.available, listed.capacity_bytes, listed.free_bytes) == (False, 0, 0)


async def test_a_repository_shows_its_space(hub: LiveHub) -> None:
    name = f"repositories/{hub.repository_id}"
    shown = await hub.repositories.GetRepository(repository_pb2.GetRepositoryRequest(name=name))
    assert shown.available
    assert shown.capacity_bytes >= shown.free_bytes > 0


async def test_an_unknown_repository_is_not_found(hub: LiveHub) -> None:
    request = repository_pb2.GetRepositoryRequest(name="repositories/unknown")
    assert (await refused(hub.repositories.GetRepository(request))).code == "NOT_FOUND"


async def test_repositories_come_by_name_in_pages(hub: LiveHub, folder: Path) -> None:
    for name in ("zeta", "alpha"):
        await hub.add_repository(name, folder / name)
    token, names = "", []
    for _ in range(3):
        page = await hub.repositories.ListRepositories(
            repository_pb2.ListRepositoriesRequest(page_size=1, page_token=token)
        )
        token = page.next_page_token
        names += [repository.display_name for repository in page.repositories]
    assert (names, token) == (["alpha", "default", "zeta"], "")
