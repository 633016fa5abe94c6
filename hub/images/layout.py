"""The layout of an image in flight: which host cluster holds what, decided in the order the runs arrive.

    file   header │ run run run │ L2 │ run run │ refcounts │ run … │ L2 │ L1 │ refcounts │ refcount table
                                  ▲ the stream has left these 512 MiB of the disk

Nothing placed is ever moved, so memory holds one L2 table, a refcount block or two, and 8 bytes for each 512 MiB of the
disk and each 2 GiB of the file. The same runs always give the same layout: that is how a journal rebuilds it.
"""

import struct
from array import array
from collections.abc import Callable

from hub.images.qcow2 import (
    COPIED,
    L2_ENTRIES,
    UNALLOCATED,
    ZERO_ENTRY,
    ParentImage,
    Placement,
    big_endian,
    compressed_entry,
    from_big_endian,
    header,
    l1_size,
    l2_parts,
    refcount_tail,
    standard_entries,
)
from hub.images.refcounts import Refcounts
from shared.runs import ClusterRun, Encoding
from shared.units import CLUSTER, align_up

Write = Callable[[int, bytes], None]
"""Puts bytes at an offset of the image file."""

ZERO_TABLE = big_endian(array("Q", [ZERO_ENTRY]) * L2_ENTRIES)

_NOWHERE = 0
"""No table lies here: host offset 0 is the header's."""

_SCALARS = struct.Struct(">QQ?QQ")


class Layout:
    """Places runs and writes the tables that become final; the caller writes the runs' payloads."""

    def __init__(self, capacity: int, parent: ParentImage | None, write: Write) -> None:
        self.end = CLUSTER
        """First free byte of the image file."""
        self.capacity = capacity
        self.parent = parent
        self.write = write
        self._l1 = array("Q", [UNALLOCATED]) * l1_size(capacity)
        self._table_index = 0
        self._table = _empty_table()
        self._table_used = False
        self._zero_table = _NOWHERE
        self._zero_table_owner = 0
        self._refcounts = Refcounts()
        self._refcounts.add(0)

    def place(self, run: ClusterRun) -> int:
        """Map a run that lies after all earlier ones; returns the host offset its payload belongs at."""
        first = run.offset // CLUSTER
        if run.encoding is Encoding.ZERO:
            self._place_zeros(first, run.count)
            return self.end
        host, entries = self._place_plain(run) if run.encoding is Encoding.RAW else self._place_frames(run)
        self._map(first, entries)
        self._write_full_refcounts()
        return host

    def finish(self) -> bytes:
        """Write the remaining tables; returns the header, to be written once everything else is durable."""
        self._leave_table()
        l1_offset = self._add_clusters(big_endian(self._l1))
        table_offset, table_clusters = self._finish_refcounts()
        return header(self.capacity, Placement(l1_offset, len(self._l1), table_offset, table_clusters), self.parent)

    def save(self) -> list[bytes]:
        """The state between two runs, for `load`."""
        scalars = _SCALARS.pack(self.end, self._table_index, self._table_used, self._zero_table, self._zero_table_owner)
        return [scalars, big_endian(self._l1), big_endian(self._table), *self._refcounts.save()]

    def load(self, scalars: bytes, l1: bytes, table: bytes, *refcounts: bytes) -> None:
        """Take on the state `save` described; capacity and parent are the constructor's."""
        self.end, self._table_index, self._table_used, self._zero_table, self._zero_table_owner = _SCALARS.unpack(
            scalars
        )
        self._l1 = from_big_endian("Q", l1)
        self._table = from_big_endian("Q", table)
        self._refcounts = Refcounts.load(*refcounts)

    def _place_plain(self, run: ClusterRun) -> "tuple[int, array[int]]":
        host = align_up(self.end, CLUSTER)
        self._refcounts.add(host // CLUSTER, run.count)
        self.end = host + run.count * CLUSTER
        return host, standard_entries(host, run.count)

    def _place_frames(self, run: ClusterRun) -> "tuple[int, array[int]]":
        start = host = self.end
        entries = array("Q")
        for length in run.lengths:
            first, last = host // CLUSTER, (host + length - 1) // CLUSTER
            self._refcounts.add(first, last - first + 1)
            entries.append(compressed_entry(host, length))
            host += length
        self.end = host
        return start, entries

    def _place_zeros(self, first: int, count: int) -> None:
        if self.parent is None:
            return  # what an image without a parent does not map reads as zeros
        for table, entry, part in l2_parts(first, count):
            if part == L2_ENTRIES:
                self._map_zero_table(table)
            else:
                self._enter_table(table)
                self._table[entry : entry + part] = array("Q", [ZERO_ENTRY]) * part
                self._table_used = True
            self._write_full_refcounts()

    def _map(self, first: int, entries: "array[int]") -> None:
        done = 0
        for table, entry, part in l2_parts(first, len(entries)):
            self._enter_table(table)
            self._table[entry : entry + part] = entries[done : done + part]
            self._table_used = True
            done += part

    def _map_zero_table(self, index: int) -> None:
        """Let all L1 entries of 512 MiB of zeros share one L2 table, or TiBs of zeros would cost GiBs of tables."""
        if self._zero_table != _NOWHERE and self._refcounts.can_share(self._zero_table // CLUSTER):
            self._refcounts.add(self._zero_table // CLUSTER)
            self._l1[self._zero_table_owner] = self._l1[index] = self._zero_table
            return
        self._zero_table, self._zero_table_owner = self._add_clusters(ZERO_TABLE), index
        self._l1[index] = self._zero_table | COPIED

    def _enter_table(self, index: int) -> None:
        if index != self._table_index:
            self._leave_table()
            self._table_index = index

    def _leave_table(self) -> None:
        if self._table_used:
            self._l1[self._table_index] = self._add_clusters(big_endian(self._table)) | COPIED
            self._table = _empty_table()
            self._table_used = False

    def _write_full_refcounts(self) -> None:
        while (block := self._refcounts.take_full(self.end // CLUSTER)) is not None:
            self._refcounts.wrote(self._add_clusters(block))

    def _finish_refcounts(self) -> tuple[int, int]:
        first = align_up(self.end, CLUSTER) // CLUSTER
        blocks, table_clusters = refcount_tail(first, len(self._refcounts.written))
        self._refcounts.add(first, blocks - len(self._refcounts.written) + table_clusters)
        host = first * CLUSTER
        for block in self._refcounts.take_all():
            self.write(host, block)
            self._refcounts.wrote(host)
            host += CLUSTER
        table = big_endian(self._refcounts.written)
        self.write(host, table.ljust(table_clusters * CLUSTER, b"\0"))
        self.end = host + table_clusters * CLUSTER
        return host, table_clusters

    def _add_clusters(self, data: bytes) -> int:
        host = align_up(self.end, CLUSTER)
        size = align_up(len(data), CLUSTER)
        self._refcounts.add(host // CLUSTER, size // CLUSTER)
        self.write(host, data.ljust(size, b"\0"))
        self.end = host + size
        return host


def _empty_table() -> "array[int]":
    return array("Q", [UNALLOCATED]) * L2_ENTRIES
