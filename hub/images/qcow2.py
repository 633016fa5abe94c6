"""QCOW2 as we write it: header, table entries and refcount arithmetic of a version 3 image. No files are touched.

    guest offset ── L1 entry ── L2 table ── L2 entry ── host cluster
                    1 per 512 MiB            1 per 64 KiB

Source: qemu's docs/interop/qcow2.txt. Clusters are 64 KiB, refcounts 16 bit, compressed clusters zstd frames.
"""

import struct
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from shared.errors import InvalidRequest
from shared.units import CLUSTER, SECTOR, align_up

MAGIC = b"QFI\xfb"

L2_ENTRIES = CLUSTER // 8
"""Entries of an L2 table: clusters it maps."""

L2_SPAN = L2_ENTRIES * CLUSTER
"""Bytes of the disk one L2 table maps: 512 MiB."""

BLOCK_ENTRIES = CLUSTER // 2
"""Refcounts in a refcount block: one block counts 2 GiB of the image file."""

MAX_REFCOUNT = 0xFFFF

COPIED = 1 << 63
"""In an L1 entry and in an L2 entry of a standard cluster: what it points to has a refcount of exactly one."""

COMPRESSED = 1 << 62
ZERO_ENTRY = 1
UNALLOCATED = 0

MAX_BACKING_NAME = 1023

_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQIIB7x")
_EXTENSION = struct.Struct(">II")
_COMPRESSION_TYPE_BIT = 1 << 3
_ZSTD = 1
_REFCOUNT_ORDER = 4
_BACKING_FORMAT = 0xE2792ACA
_COMPRESSED_SIZE_SHIFT = 62 - (16 - 8)


@dataclass(frozen=True, slots=True)
class ParentImage:
    """The QCOW2 image another is laid over, named relative to that one's folder, so a repository can be moved."""

    name: str

    def __post_init__(self) -> None:
        # qemu reads "word:" at the front of a backing name as a protocol.
        first = PurePosixPath(self.name).parts[:1]
        if not first or first[0] == "/" or ":" in first[0] or "\0" in self.name:
            raise InvalidRequest(f"{self.name!r} cannot be a relative backing file name")
        if len(self.name.encode()) > MAX_BACKING_NAME:
            raise InvalidRequest(f"a backing file name has at most {MAX_BACKING_NAME} bytes, not {self.name!r}")


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the tables of a finished image lie; offsets in bytes of the file."""

    l1_offset: int
    l1_entries: int
    refcount_table_offset: int
    refcount_table_clusters: int


def header(capacity: int, placement: Placement, parent: ParentImage | None) -> bytes:
    """The bytes an image of `capacity` bytes begins with; they fit into its first cluster."""
    extensions = _EXTENSION.pack(0, 0)
    name = b""
    if parent is not None:
        extensions = _EXTENSION.pack(_BACKING_FORMAT, len(b"qcow2")) + b"qcow2".ljust(8, b"\0") + extensions
        name = parent.name.encode()
    fixed = _HEADER.pack(
        MAGIC,
        3,  # version
        _HEADER.size + len(extensions) if name else 0,
        len(name),
        CLUSTER.bit_length() - 1,
        capacity,
        0,  # not encrypted
        placement.l1_entries,
        placement.l1_offset,
        placement.refcount_table_offset,
        placement.refcount_table_clusters,
        0,  # no internal snapshots
        0,
        _COMPRESSION_TYPE_BIT,
        0,  # compatible features
        0,  # autoclear features
        _REFCOUNT_ORDER,
        _HEADER.size,
        _ZSTD,
    )
    return fixed + extensions + name


def standard_entries(host: int, count: int) -> "array[int]":
    """L2 entries of `count` plain clusters that lie back to back from cluster-aligned `host` on."""
    return array("Q", range(host | COPIED, (host + count * CLUSTER) | COPIED, CLUSTER))


def compressed_entry(host: int, length: int) -> int:
    """L2 entry of a frame of `length` bytes at any byte `host`."""
    more_sectors = (host + length - 1) // SECTOR - host // SECTOR
    return COMPRESSED | more_sectors << _COMPRESSED_SIZE_SHIFT | host


def l1_size(capacity: int) -> int:
    """Entries of the L1 table: L2 tables a disk of `capacity` bytes can have."""
    return -(-capacity // L2_SPAN)


def l2_parts(first: int, count: int) -> Iterator[tuple[int, int, int]]:
    """Cut `count` clusters from cluster `first` on by L2 tables: (table, entry in the table, clusters) of each part."""
    while count:
        table, entry = divmod(first, L2_ENTRIES)
        part = min(count, L2_ENTRIES - entry)
        yield table, entry, part
        first += part
        count -= part


def refcount_tail(used: int, written: int) -> tuple[int, int]:
    """How an image ends whose refcount blocks and table come last and count themselves.

    `used` host clusters are taken, `written` refcount blocks among them. Returns (refcount blocks in all, clusters of
    the refcount table).
    """
    blocks = written
    while True:
        table = align_up(blocks * 8, CLUSTER) // CLUSTER
        needed = -(-(used + blocks - written + table) // BLOCK_ENTRIES)
        if needed <= blocks:
            return blocks, table
        blocks = needed


def big_endian(values: "array[Any]") -> bytes:
    """The array as it stands in the file."""
    if sys.byteorder == "little":
        values = values[:]
        values.byteswap()
    return values.tobytes()


def from_big_endian(typecode: str, data: bytes) -> "array[Any]":
    """The array that `big_endian` wrote."""
    values = array(typecode, data)
    if sys.byteorder == "little":
        values.byteswap()
    return values
