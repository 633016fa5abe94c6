"""Column types that mean the same on SQLite and MariaDB."""

import json
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import DateTime, Dialect, String, Text, TypeDecorator
from sqlalchemy.dialects.mysql import DATETIME

ID = String(36)
"""A UUID as text."""

NAME = String(255)
"""Anything named or numbered elsewhere; short enough to be part of an index of InnoDB (3072 bytes)."""

WORD = String(32)
"""A state or kind; enums are stored as their names, so that a new one needs no change of the table."""


class Moment(TypeDecorator[datetime]):
    """A moment with microseconds. Neither database keeps a time zone: stored as UTC, read as UTC, never naive."""

    impl = DateTime().with_variant(DATETIME(fsp=6), "mysql", "mariadb")
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value} has no time zone")
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC)


class Json(TypeDecorator[Any]):
    """A small JSON document as text; nothing ever searches inside."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return None if value is None else json.dumps(value, ensure_ascii=False, separators=(",", ":"))

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        return None if value is None else json.loads(value)
