"""What a command prints: JSON documents or tables on stdout, remarks on stderr."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC
from typing import Annotated

import typer
from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.table import Table
from rich.text import Text

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]

NOTHING = "-"
"""Stands in a table where there is no value."""


def document(value: Message | Mapping[str, object]) -> None:
    """Print one JSON document; a mapping may hold messages and lists of them."""
    print(json.dumps(_plain(value), indent=2, ensure_ascii=False))


def json_line(message: Message) -> None:
    """Print a message as JSON on one line, at once."""
    print(json.dumps(_plain(message), ensure_ascii=False), flush=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], empty: str = "") -> None:
    """Print a table; a column whose name begins with `>` is set to the right. No rows: say `empty` on stderr."""
    rows = list(rows)
    if not rows:
        remark(empty)
        return
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        grid.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(printable(cell)) for cell in row))
    _stdout().print(grid)


def facts(pairs: Iterable[tuple[str, str]]) -> None:
    """Print names and values, one pair per line; a pair without a value is left out."""
    known = [(name, printable(value)) for name, value in pairs if value]
    width = max(len(name) for name, _ in known)
    for name, value in known:
        print(f"{name:<{width}}  {value}")


def line(text: str) -> None:
    """Print one line on stdout."""
    print(printable(text))


def remark(text: str) -> None:
    """Say one line on stderr, whatever stdout is used for."""
    print(printable(text), file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """One line without control characters: names come from vCenter and messages from afar, and this is a terminal."""
    return "".join(character if character.isprintable() else " " for character in text)


def size(value: float) -> str:
    """Bytes for a person: 1536 → '1.5 KiB'."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def when(time: Timestamp) -> str:
    """Local time to the minute; NOTHING for a time that is not set."""
    return f"{time.ToDatetime(UTC).astimezone():%Y-%m-%d %H:%M}" if time.seconds else NOTHING


def word(enum: EnumDescriptor, value: int) -> str:
    """An enum value for a person: BACKUP_STATUS_COMPLETE → 'complete'; the number where only the hub knows the word."""
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    known = enum.values_by_number.get(value)
    return known.name.removeprefix(prefix).lower() if known else str(value)


def _plain(value: object) -> object:
    if isinstance(value, Message):
        return MessageToDict(value, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def _stdout() -> Console:
    # In a pipe or a file no width is known, and rich would fold at 80: a row stays one line there.
    return Console(width=None if sys.stdout.isatty() else 10_000, highlight=False)
