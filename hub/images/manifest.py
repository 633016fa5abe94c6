"""The manifest: the digests of all clusters an image holds, in pages, each sealed by a digest of all before it.

    header    magic, version u32, cluster size u32, capacity u64
    page      "PAGE", index u32, runs u16, digests u16,
              runs × (first cluster in the page u16, clusters u16, kind u8), digests × 32 bytes, seal
    trailer   "TAIL", data clusters u64, zero clusters u64, seal
    seal      BLAKE3 of the seal before and of the part's own bytes; the header's is BLAKE3 of the header, not stored

A page covers 512 MiB of the disk; pages ascend, and what an image does not speak of has no run. Neighbouring runs of a
kind are one, so the same clusters give the same bytes however they arrived. The trailer's seal is the **root digest**.
Integers are big-endian.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from hub.files import DurableFile, storage_errors
from hub.images.qcow2 import L2_SPAN, l2_parts
from shared.digests import DIGEST_SIZE, digest
from shared.errors import DataLoss, NotFound
from shared.extents import Kind
from shared.runs import ClusterRun, Encoding
from shared.units import CLUSTER

MAGIC = b"SNDMANIF"
VERSION = 1

_HEADER = struct.Struct(">8sIIQ")
_PAGE = struct.Struct(">4sIHH")
_RUN = struct.Struct(">HHB")
_TRAILER = struct.Struct(">4sQQ")
_SCALARS = struct.Struct(">QIQQ")
_CODES = {Kind.ZERO: 0, Kind.DATA: 1}
_KINDS = {code: kind for kind, code in _CODES.items()}


class ManifestDamaged(DataLoss):
    """A manifest is cut short, or its bytes are not those that were written."""

    reason = "MANIFEST_DAMAGED"


@dataclass(frozen=True, slots=True)
class ManifestRun:
    """`count` clusters from byte `offset` on; DATA has `count` digests back to back, ZERO none."""

    offset: int
    count: int
    kind: Kind
    digests: bytes


@dataclass(frozen=True, slots=True)
class ManifestSummary:
    """What a whole manifest says of its image."""

    root: bytes
    capacity: int
    data_clusters: int
    zero_clusters: int


class ManifestWriter:
    """Writes a manifest as runs arrive; holds one page. Durable only after `sync`."""

    def __init__(self, file: DurableFile, capacity: int) -> None:
        self._file = file
        self._capacity = capacity
        self._data_clusters = 0
        self._zero_clusters = 0
        self._page = 0
        self._runs: list[tuple[int, int, Kind]] = []
        self._digests = bytearray()
        beginning = _header(capacity)
        self._seal = digest(beginning)
        self._size = len(beginning)

    @classmethod
    def create(cls, path: Path, capacity: int) -> Self:
        """Begin the manifest of a disk of `capacity` bytes in a new file."""
        file = DurableFile.create(path)
        try:
            file.write(0, _header(capacity))
        except BaseException:
            file.close()
            raise
        return cls(file, capacity)

    @classmethod
    def reopen(cls, path: Path, capacity: int, sections: list[bytes]) -> Self:
        """Go on from the state `save` described, which must have been synced; what came later is cut off."""
        scalars, seal, runs, digests = sections
        writer = cls(DurableFile.reopen(path), capacity)
        writer._size, writer._page, writer._data_clusters, writer._zero_clusters = _SCALARS.unpack(scalars)
        writer._seal = seal
        writer._runs = [(first, count, _KINDS[code]) for first, count, code in _RUN.iter_unpack(runs)]
        writer._digests += digests
        try:
            writer._cut()
        except BaseException:
            writer.close()
            raise
        return writer

    def save(self) -> list[bytes]:
        """The state between two runs, for `reopen`."""
        scalars = _SCALARS.pack(self._size, self._page, self._data_clusters, self._zero_clusters)
        return [scalars, self._seal, _packed(self._runs), bytes(self._digests)]

    def add(self, run: ClusterRun) -> None:
        """Note a run that lies after all earlier ones."""
        kind = Kind.ZERO if run.encoding is Encoding.ZERO else Kind.DATA
        digests_from = 0
        for page, first, count in l2_parts(run.offset // CLUSTER, run.count):
            if page != self._page:
                self._write_page()
                self._page = page
            self._note(first, count, kind)
            if kind is Kind.DATA:
                digests_to = digests_from + count * DIGEST_SIZE
                self._digests += run.digests[digests_from:digests_to]
                digests_from = digests_to

    def sync(self) -> None:
        """Return once the pages written so far are on stable storage; the page in memory is the journal's care."""
        self._file.sync()

    def finish(self) -> ManifestSummary:
        """Write the last page and the trailer; on stable storage on return."""
        self._write_page()
        self._write_sealed(_TRAILER.pack(b"TAIL", self._data_clusters, self._zero_clusters))
        self._file.sync()
        return ManifestSummary(self._seal, self._capacity, self._data_clusters, self._zero_clusters)

    def close(self) -> None:
        """Close the file; may be called twice."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _note(self, first: int, count: int, kind: Kind) -> None:
        if kind is Kind.DATA:
            self._data_clusters += count
        else:
            self._zero_clusters += count
        if self._runs:
            last_first, last_count, last_kind = self._runs[-1]
            if last_kind is kind and last_first + last_count == first:
                self._runs[-1] = (last_first, last_count + count, kind)
                return
        self._runs.append((first, count, kind))

    def _write_page(self) -> None:
        if not self._runs:
            return
        fixed = _PAGE.pack(b"PAGE", self._page, len(self._runs), len(self._digests) // DIGEST_SIZE)
        self._write_sealed(fixed + _packed(self._runs) + self._digests)
        self._runs.clear()
        self._digests.clear()

    def _write_sealed(self, part: bytes) -> None:
        self._seal = digest(self._seal + part)
        self._file.write(self._size, part + self._seal)
        self._size += len(part) + DIGEST_SIZE

    def _cut(self) -> None:
        if self._file.size < self._size:
            raise ManifestDamaged(f"{self._file.path} is shorter than what was known to be stored of it")
        self._file.truncate(self._size)


def read_manifest(path: Path) -> Iterator[ManifestRun]:
    """The runs in ascending order, each page checked before its runs are yielded.

    Raises ManifestDamaged at the first part that is not what was written, also when the end is missing; NotFound.
    """
    with storage_errors(path, missing=NotFound), path.open("rb") as file:
        reader = _Reader(path, file)
        while (runs := reader.next_page()) is not None:
            yield from runs


def verify_manifest(path: Path) -> ManifestSummary:
    """Read a manifest to its end; raises ManifestDamaged, NotFound."""
    with storage_errors(path, missing=NotFound), path.open("rb") as file:
        reader = _Reader(path, file)
        while reader.next_page() is not None:
            pass
        return reader.summary()


class _Reader:
    """Reads the parts of a manifest in order, checking each one's seal."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file = file
        beginning = self._read(_HEADER.size)
        magic, version, cluster, self._capacity = _HEADER.unpack(beginning)
        if (magic, version, cluster) != (MAGIC, VERSION, CLUSTER):
            raise ManifestDamaged(f"{path} is not a manifest of version {VERSION}")
        self._seal = digest(beginning)
        self._counted = {Kind.DATA: 0, Kind.ZERO: 0}

    def next_page(self) -> list[ManifestRun] | None:
        """The next page's runs, or None after the trailer."""
        tag = self._read(4)
        if tag == b"TAIL":
            self._check_trailer(tag)
            return None
        if tag != b"PAGE":
            raise self._damaged("neither a page nor the end where one should be")
        fixed = tag + self._read(_PAGE.size - len(tag))
        _, page, run_count, digest_count = _PAGE.unpack(fixed)
        runs = self._read(run_count * _RUN.size)
        digests = self._read(digest_count * DIGEST_SIZE)
        self._check_seal(fixed + runs + digests)
        return list(self._unpacked(page, runs, digests))

    def summary(self) -> ManifestSummary:
        """What the manifest says; after the trailer."""
        return ManifestSummary(self._seal, self._capacity, self._counted[Kind.DATA], self._counted[Kind.ZERO])

    def _unpacked(self, page: int, runs: bytes, digests: bytes) -> Iterator[ManifestRun]:
        at = 0
        for first, count, code in _RUN.iter_unpack(runs):
            kind = _KINDS[code]
            size = count * DIGEST_SIZE if kind is Kind.DATA else 0
            self._counted[kind] += count
            yield ManifestRun(page * L2_SPAN + first * CLUSTER, count, kind, digests[at : at + size])
            at += size

    def _check_trailer(self, tag: bytes) -> None:
        trailer = tag + self._read(_TRAILER.size - len(tag))
        self._check_seal(trailer)
        if self._file.read(1):
            raise self._damaged("bytes after the end")

    def _check_seal(self, part: bytes) -> None:
        self._seal = digest(self._seal + part)
        if self._read(DIGEST_SIZE) != self._seal:
            raise self._damaged("bytes that are not those written")

    def _read(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) < size:
            raise self._damaged("an end that is missing")
        return data

    def _damaged(self, what: str) -> ManifestDamaged:
        return ManifestDamaged(f"{self._path} has {what}, near byte {self._file.tell()}")


def _header(capacity: int) -> bytes:
    return _HEADER.pack(MAGIC, VERSION, CLUSTER, capacity)


def _packed(runs: list[tuple[int, int, Kind]]) -> bytes:
    return b"".join(_RUN.pack(first, count, _CODES[kind]) for first, count, kind in runs)
