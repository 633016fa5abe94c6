"""Images and chains in the catalogue; an incremental is laid over exactly the image it was asked from."""

from typing import Any

import pytest
from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncSession

from hub.catalogue import backups, images
from hub.catalogue.engine import Catalogue
from hub.catalogue.ids import new_id
from hub.catalogue.images import Image, NewImage
from hub.catalogue.models import BackupRow, DiskRow, ImageRow, RepositoryRow, TaskRow
from hub.catalogue.states import BackupType
from shared.errors import InvalidRequest, NotFound, NotPossibleNow, NoUsableParent
from tests.contracts.catalogue.site import LATER, Site, make_site, new_backup, new_image, restore_point


@pytest.fixture
async def site(catalogue: Catalogue) -> Site:
    return await make_site(catalogue)


async def image_of(catalogue: Catalogue, site: Site, new: NewImage, repository: str = "") -> Image:
    """The image of a restore point made for it."""
    point = await restore_point(catalogue, site, new, repository=repository)
    async with catalogue.reading() as session:
        (image,) = (await images.of_backups(session, [point.id]))[point.id]
        return image


def over(parent: Image, change_id: str, **changes: Any) -> NewImage:
    """A right incremental over `parent`, unless `changes` says otherwise."""
    return new_image(
        parent.disk_id, change_id, **{"parent_id": parent.id, "base_change_id": parent.change_id} | changes
    )


async def make_chain(catalogue: Catalogue, site: Site, length: int) -> list[Image]:
    made = [await image_of(catalogue, site, new_image(site.disk, "u/0"))]
    while len(made) < length:
        made.append(await image_of(catalogue, site, over(made[-1], f"u/{len(made)}")))
    return made


async def head(catalogue: Catalogue, disk: str, repository: str) -> Image | None:
    async with catalogue.reading() as session:
        return await images.head(session, disk, repository)


async def chain(catalogue: Catalogue, image: Image) -> list[Image]:
    async with catalogue.reading() as session:
        return await images.chain(session, image.id)


async def test_a_chain_goes_from_the_full_image_to_the_asked_one(catalogue: Catalogue, site: Site) -> None:
    made = await make_chain(catalogue, site, 4)
    for end in range(4):
        assert await chain(catalogue, made[end]) == made[: end + 1]


async def test_a_full_image_is_full_and_what_lies_over_it_incremental(catalogue: Catalogue, site: Site) -> None:
    first, second = await make_chain(catalogue, site, 2)
    assert (first.type_run, second.type_run) == (BackupType.FULL, BackupType.INCREMENTAL)


async def test_the_head_is_the_newest_image_of_the_disk(catalogue: Catalogue, site: Site) -> None:
    assert await head(catalogue, site.disk, site.repository) is None
    made = await make_chain(catalogue, site, 3)
    assert await head(catalogue, site.disk, site.repository) == made[-1]
    assert await head(catalogue, site.second_disk, site.repository) is None


async def test_repositories_interleaved_keep_their_own_chains(catalogue: Catalogue, site: Site) -> None:
    here = await image_of(catalogue, site, new_image(site.disk, "u/1"))
    there = await image_of(catalogue, site, new_image(site.disk, "u/2"), site.second_repository)
    here_again = await image_of(catalogue, site, over(here, "u/3"))
    there_again = await image_of(catalogue, site, over(there, "u/4"), site.second_repository)
    assert await head(catalogue, site.disk, site.repository) == here_again
    assert await head(catalogue, site.disk, site.second_repository) == there_again
    assert await chain(catalogue, there_again) == [there, there_again]


async def test_disks_of_one_backup_keep_their_own_chains(catalogue: Catalogue, site: Site) -> None:
    await restore_point(catalogue, site, new_image(site.disk, "u/1"), new_image(site.second_disk, "v/1", ordinal=1))
    first, second = [await head(catalogue, disk, site.repository) for disk in (site.disk, site.second_disk)]
    assert first is not None
    assert second is not None
    assert (first.change_id, second.change_id) == ("u/1", "v/1")


async def test_a_later_full_image_begins_a_chain_of_its_own(catalogue: Catalogue, site: Site) -> None:
    await make_chain(catalogue, site, 3)
    full = await image_of(catalogue, site, new_image(site.disk, "u/9"))
    assert await head(catalogue, site.disk, site.repository) == full
    assert await chain(catalogue, full) == [full]


async def test_the_children_of_an_image_are_those_laid_directly_over_it(catalogue: Catalogue, site: Site) -> None:
    made = await make_chain(catalogue, site, 3)
    beside = await image_of(catalogue, site, over(made[0], "u/8"))
    async with catalogue.reading() as session:
        assert await images.children(session, made[0].id) == [made[1], beside]
        assert await images.children(session, made[2].id) == []


async def test_a_failed_backup_leaves_the_head_where_it_was(catalogue: Catalogue, site: Site) -> None:
    made = await make_chain(catalogue, site, 2)
    async with catalogue.writing() as session:
        backup = await new_backup(session, site)
        await backups.start(session, backup.id)
        await backups.fail(session, backup.id, "READ_FAILED", "")
    assert await head(catalogue, site.disk, site.repository) == made[-1]


@pytest.mark.parametrize(
    "fault",
    [
        "change ID of another image",
        "no base change ID",
        "another disk",
        "another repository",
        "unknown",
        "no change ID",
    ],
)
async def test_an_incremental_over_the_wrong_parent_is_refused_and_changes_nothing(
    catalogue: Catalogue, site: Site, fault: str
) -> None:
    first, second = await make_chain(catalogue, site, 2)
    elsewhere = await image_of(catalogue, site, new_image(site.disk, "u/1"), site.second_repository)
    untracked = await image_of(catalogue, site, new_image(site.second_disk, None))
    wrong = {
        # The trap: asked "since the newest", laid over the full one.
        "change ID of another image": over(first, "u/5", base_change_id=second.change_id),
        "no base change ID": over(second, "u/5", base_change_id=None),
        "another disk": over(second, "u/5", disk_id=site.second_disk),
        "another repository": over(elsewhere, "u/5"),
        "unknown": over(second, "u/5", parent_id=new_id()),
        "no change ID": over(untracked, "v/5"),
    }[fault]
    before = await head(catalogue, site.disk, site.repository)
    with pytest.raises(NoUsableParent):
        await restore_point(catalogue, site, wrong)
    assert await head(catalogue, site.disk, site.repository) == before


async def test_one_wrong_image_keeps_the_whole_backup_from_being_committed(catalogue: Catalogue, site: Site) -> None:
    first, second = await make_chain(catalogue, site, 2)
    right = new_image(site.second_disk, "v/1", ordinal=1)
    with pytest.raises(NoUsableParent):
        await restore_point(catalogue, site, right, over(first, "u/5", base_change_id=second.change_id))
    assert await head(catalogue, site.second_disk, site.repository) is None


async def test_a_full_image_with_a_base_change_id_is_refused(catalogue: Catalogue, site: Site) -> None:
    with pytest.raises(InvalidRequest):
        await restore_point(catalogue, site, new_image(site.disk, "u/1", base_change_id="u/0"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"base_change_id": "u/other"},
        {"base_change_id": None},
        {"disk_id": "second_disk"},
        {"repository_id": "second_repository"},
        {"parent_id": None},
    ],
)
async def test_the_database_itself_refuses_a_wrong_parent(
    catalogue: Catalogue, site: Site, wrong: dict[str, str | None]
) -> None:
    """Whoever writes past `backups.commit` meets the composite keys and the check."""
    parent = await image_of(catalogue, site, new_image(site.disk, "u/1"))
    async with catalogue.writing() as session:
        backup = await new_backup(session, site)
    row = row_over(parent, backup.id) | {
        name: getattr(site, word) if word in ("second_disk", "second_repository") else word
        for name, word in wrong.items()
    }
    with pytest.raises(NotPossibleNow):
        async with catalogue.writing() as session:
            await session.execute(insert(ImageRow), [row])
    async with catalogue.writing() as session:
        await session.execute(insert(ImageRow), [row_over(parent, backup.id)])


def row_over(parent: Image, backup_id: str) -> dict[str, Any]:
    new = over(parent, "u/2")
    columns = {name: getattr(new, name) for name in NewImage.__slots__}
    return columns | {
        "id": new_id(),
        "backup_id": backup_id,
        "repository_id": parent.repository_id,
        "created_at": LATER,
    }


@pytest.mark.parametrize("kind", [ImageRow, BackupRow, DiskRow, RepositoryRow])
async def test_nothing_an_image_depends_on_can_be_deleted(
    catalogue: Catalogue, site: Site, kind: type[ImageRow | BackupRow | DiskRow | RepositoryRow]
) -> None:
    first, _ = await make_chain(catalogue, site, 2)
    key = {ImageRow: first.id, BackupRow: first.backup_id, DiskRow: site.disk, RepositoryRow: site.repository}[kind]
    with pytest.raises(NotPossibleNow):
        async with catalogue.writing() as session:
            await session.execute(delete(kind).where(kind.id == key))


async def test_a_chain_longer_than_any_limit_of_recursion_is_read_whole(catalogue: Catalogue, site: Site) -> None:
    """MariaDB ends a recursion after 1000 rounds by default and says nothing: a chain would lose its full image."""
    length = 1010
    (full,) = await make_chain(catalogue, site, 1)
    point = await restore_point(catalogue, site, over(full, "u/1"))
    async with catalogue.writing() as session:
        (second,) = (await images.of_backups(session, [point.id]))[point.id]
        keys = [{name: new_id() for name in ("task_id", "backup_id", "id")} for _ in range(length - 2)]
        before = [second.id, *(key["id"] for key in keys)]
        await copy(session, TaskRow, point.task_id, [{"id": key["task_id"]} for key in keys])
        await copy(session, BackupRow, point.id, [{"id": key["backup_id"], "task_id": key["task_id"]} for key in keys])
        await copy(
            session,
            ImageRow,
            second.id,
            [
                {"id": key["id"], "backup_id": key["backup_id"], "parent_id": parent, "base_change_id": "u/1"}
                for key, parent in zip(keys, before, strict=False)
            ],
        )
        found = await images.chain(session, before[-1])
    assert [image.id for image in found] == [full.id, *before]


async def copy(
    session: AsyncSession, kind: type[TaskRow | BackupRow | ImageRow], key: str, changes: list[dict[str, str]]
) -> None:
    """Insert a copy of a row for each of the changes."""
    columns = [column for column in kind.__table__.columns if column.computed is None]
    row = (await session.execute(select(*columns).where(kind.id == key))).mappings().one()
    await session.execute(insert(kind), [{**row, **change} for change in changes])


async def test_an_unknown_image_has_no_chain(catalogue: Catalogue) -> None:
    with pytest.raises(NotFound, match="image"):
        async with catalogue.reading() as session:
            await images.chain(session, new_id())


async def test_of_more_than_one_statement_can_list_all_are_found(catalogue: Catalogue, site: Site) -> None:
    unknown = [f"unknown-{number}" for number in range(40_000)]
    image = await image_of(catalogue, site, new_image(site.disk, "u/0"))
    async with catalogue.reading() as session:
        assert await images.get_many(session, [*unknown, image.id]) == {image.id: image}
