"""From rows to the frozen dataclasses that leave the catalogue."""

from collections.abc import Collection, Iterator
from dataclasses import fields
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncSession

from hub.catalogue.models import Base
from shared.errors import NotFound

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

MOST_VALUES = 10_000
"""Values that one statement lists. SQLite takes 32 766 variables: https://www.sqlite.org/limits.html, 9."""

Row = TypeVar("Row", bound=Base)
Shape = TypeVar("Shape", bound="DataclassInstance")


async def find(session: AsyncSession, kind: type[Row], key: str, noun: str) -> Row:
    """The row with this ID; raises NotFound, which calls it by its noun."""
    row = await session.get(kind, key)
    if row is None:
        raise NotFound(f"there is no {noun} {key}", **{noun: key})
    return row


def value(shape: type[Shape], row: Base, **given: Any) -> Shape:
    """The frozen dataclass of a row: every field from `given`, else from the column of its name."""
    return shape(
        **{field.name: getattr(row, field.name) for field in fields(shape) if field.name not in given}, **given
    )


def portions(keys: Collection[str]) -> Iterator[list[str]]:
    """The keys in portions that a statement can list; none for no keys."""
    left = iter(keys)
    while portion := list(islice(left, MOST_VALUES)):
        yield portion
