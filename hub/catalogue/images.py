"""Images: the data of one disk in one restore point, and the chains they form."""

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, literal, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from hub.catalogue.models import BackupRow, ImageRow
from hub.catalogue.rows import find, portions, value
from hub.catalogue.states import BackupState, BackupType
from shared.errors import InvalidRequest, NoUsableParent


@dataclass(frozen=True, slots=True)
class NewImage:
    """An image about to become part of a restore point; sizes in bytes, `path` relative to the repository."""

    disk_id: str
    ordinal: int
    """Which disk of the backup, from 0."""
    parent_id: str | None
    """The image it is laid over; None for a full one."""
    type_reason: str
    """Why it is full although an incremental was asked for, or ''."""
    capacity: int
    change_id: str | None
    """What the next incremental asks CBT about; None where the disk has no change tracking."""
    base_change_id: str | None
    """What this one asked CBT about; None for a full one."""
    path: str
    root_digest: str
    """Hexadecimal."""
    changed_bytes: int
    read_bytes: int
    sent_bytes: int
    stored_bytes: int
    skipped_bytes: int
    coverage: dict[str, Any]
    """The record that proves the pages of changed areas tiled the disk."""


@dataclass(frozen=True, slots=True)
class Image(NewImage):
    """An image of a restore point."""

    id: str
    backup_id: str
    repository_id: str
    created_at: datetime

    @property
    def type_run(self) -> BackupType:
        """What ran, whatever was asked: FULL or INCREMENTAL."""
        return BackupType.FULL if self.parent_id is None else BackupType.INCREMENTAL


async def get(session: AsyncSession, image_id: str) -> Image:
    """The image; raises NotFound."""
    return value(Image, await find(session, ImageRow, image_id, "image"))


async def get_many(session: AsyncSession, image_ids: Collection[str]) -> dict[str, Image]:
    """These images by ID; unknown ones are left out."""
    found: dict[str, Image] = {}
    for portion in portions(image_ids):
        rows = await session.scalars(select(ImageRow).where(ImageRow.id.in_(portion)))
        found |= {row.id: value(Image, row) for row in rows}
    return found


async def of_disks(session: AsyncSession, disk_ids: Collection[str]) -> list[Image]:
    """All images of these disks, oldest first."""
    rows = await session.scalars(select(ImageRow).where(ImageRow.disk_id.in_(disk_ids)).order_by(ImageRow.id))
    return [value(Image, row) for row in rows]


async def stored_bytes(session: AsyncSession, repository_id: str) -> int:
    """Bytes that the images of a repository take."""
    query = select(func.sum(ImageRow.stored_bytes)).where(ImageRow.repository_id == repository_id)
    return int(await session.scalar(query) or 0)


async def of_backups(session: AsyncSession, backup_ids: Collection[str]) -> dict[str, list[Image]]:
    """The images of each of these backups by ordinal; backups without images are left out."""
    found: dict[str, list[Image]] = defaultdict(list)
    query = select(ImageRow).where(ImageRow.backup_id.in_(backup_ids)).order_by(ImageRow.ordinal)
    for row in await session.scalars(query):
        found[row.backup_id].append(value(Image, row))
    return dict(found)


async def head(session: AsyncSession, disk_id: str, repository_id: str) -> Image | None:
    """The newest image of a disk in a repository: what the next incremental is laid over."""
    row = await session.scalar(
        select(ImageRow)
        .where(ImageRow.disk_id == disk_id, ImageRow.repository_id == repository_id)
        .order_by(ImageRow.id.desc())
        .limit(1)
    )
    return None if row is None else value(Image, row)


async def chain(session: AsyncSession, image_id: str) -> list[Image]:
    """The images that together hold a disk's bytes, from the full one to this one; raises NotFound.

    One query, which walks from child to parent, so it costs as much as the chain is long.
    """
    await find(session, ImageRow, image_id, "image")
    links = (
        select(ImageRow.id, ImageRow.parent_id, literal(0).label("depth"))
        .where(ImageRow.id == image_id)
        .cte("links", recursive=True)
    )
    parent = aliased(ImageRow)
    links = links.union_all(
        select(parent.id, parent.parent_id, links.c.depth + 1).join(links, parent.id == links.c.parent_id)
    )
    query = select(ImageRow).join(links, ImageRow.id == links.c.id).order_by(links.c.depth.desc())
    return [value(Image, row) for row in await session.scalars(query)]


async def children(session: AsyncSession, image_id: str) -> list[Image]:
    """The images laid directly over this one, oldest first: none of them can be read without it."""
    rows = await session.scalars(select(ImageRow).where(ImageRow.parent_id == image_id).order_by(ImageRow.id))
    return [value(Image, row) for row in rows]


async def check_parent(session: AsyncSession, image: NewImage, repository_id: str) -> None:
    """Raise NoUsableParent unless the image is laid over exactly the image whose change ID it asked CBT about.

    An overlay on any other parent passes every check of its format and restores other bytes.
    """
    if image.parent_id is None:
        if image.base_change_id is not None:
            raise InvalidRequest(f"the full image of disk {image.disk_id} names a base change ID", disk=image.disk_id)
        return
    parent = await session.scalar(
        select(ImageRow)
        .join(BackupRow, ImageRow.backup_id == BackupRow.id)
        .where(ImageRow.id == image.parent_id, BackupRow.state == BackupState.COMPLETE)
    )
    misfit = _misfit(image, repository_id, parent)
    if misfit:
        raise NoUsableParent(
            f"the image of disk {image.disk_id} cannot be laid over image {image.parent_id}: {misfit}",
            disk=image.disk_id,
            parent=image.parent_id,
        )


def _misfit(image: NewImage, repository_id: str, parent: ImageRow | None) -> str:
    if parent is None:
        return "that is no image of a restore point"
    if parent.disk_id != image.disk_id:
        return f"that is of disk {parent.disk_id}"
    if parent.repository_id != repository_id:
        return f"that lies in repository {parent.repository_id}, this one in {repository_id}"
    if image.base_change_id is None or parent.change_id != image.base_change_id:
        return f"that was taken at change ID {parent.change_id}, the changes are since {image.base_change_id}"
    return ""
