"""The journal beside an image in flight: what the image's tables would forget in a crash.

    magic │ record: checkpoint │ record: run │ record: run │ … │ torn tail
    record = length u32, CRC-32 of the body u32, body; big-endian

A journal begins with a checkpoint (the whole state at one moment) and goes on with one record for each run placed
since. When it has grown long it is replaced, in one rename, by a journal with a newer checkpoint, so its length and the
time to read it do not depend on the size of the disk.

A record is written only after the image data it speaks of is on stable storage. What a crash tears is the end of the
last write: reading stops at the first record that is not whole.
"""

import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Self

from hub.files import DurableFile, storage_errors, sync_folder
from shared.digests import DIGEST_SIZE
from shared.errors import DataLoss, NotFound
from shared.runs import ClusterRun, Encoding
from shared.units import MiB

MAGIC = b"SNDJRNL1"

LONGEST_RECORD = 64 * MiB
"""Bound on a record. A checkpoint of a 62 TiB disk has about 2 MiB; qemu takes no L1 table above 32 MiB."""

_FRAME = struct.Struct(">II")
_SECTION = struct.Struct(">I")
_RUN = struct.Struct(">QQBB")
_CODES = {Encoding.ZERO: 0, Encoding.RAW: 1, Encoding.ZSTD: 2}
_ENCODINGS = {code: encoding for encoding, code in _CODES.items()}


class JournalDamaged(DataLoss):
    """A journal is not one, or its checkpoint is not whole."""

    reason = "JOURNAL_DAMAGED"


class Journal:
    """A journal open for appending."""

    def __init__(self, file: DurableFile, size: int) -> None:
        self._file = file
        self.size = size
        """Bytes."""

    @classmethod
    def start(cls, path: Path, fresh: Path, checkpoint: bytes) -> Self:
        """Put a journal that begins with `checkpoint` at `path`, in place of one that may be there; durable on return.

        It is written at `fresh`, in the same folder, and renamed.
        """
        beginning = MAGIC + record(checkpoint)
        file = DurableFile.replace(fresh)
        try:
            file.write(0, beginning)
            file.sync()
            with storage_errors(path):
                file.path = fresh.rename(path)
            sync_folder(path.parent)
        except BaseException:
            file.close()
            raise
        return cls(file, len(beginning))

    def append(self, records: bytes | bytearray) -> None:
        """Append records made by `record`; on stable storage on return."""
        self._file.write(self.size, records)
        self._file.sync()
        self.size += len(records)

    def close(self) -> None:
        """Close the file; may be called twice."""
        self._file.close()


def record(body: bytes) -> bytes:
    """A record with this body, as it stands in the journal."""
    return _FRAME.pack(len(body), zlib.crc32(body)) + body


def read(path: Path) -> Iterator[bytes]:
    """The bodies of the whole records: first the checkpoint, then runs; raises JournalDamaged, NotFound."""
    with storage_errors(path, missing=NotFound), path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise JournalDamaged(f"{path} is not a journal of this version")
        body = _read_record(file)
        if body is None:
            raise JournalDamaged(f"{path} has no whole checkpoint")
        while body is not None:
            yield body
            body = _read_record(file)


def _read_record(file: BinaryIO) -> bytes | None:
    frame = file.read(_FRAME.size)
    if len(frame) < _FRAME.size:
        return None
    length, checksum = _FRAME.unpack(frame)
    # No record is empty: a tail of zeros would otherwise read as records, the CRC-32 of nothing being zero.
    if not 0 < length <= LONGEST_RECORD:
        return None
    body = file.read(length)
    return body if len(body) == length and zlib.crc32(body) == checksum else None


def run_body(run: ClusterRun) -> bytes:
    """The body that stands for a run: all of it but the payload."""
    lengths = struct.pack(f">{len(run.lengths)}I", *run.lengths)
    return _RUN.pack(run.offset, run.count, _CODES[run.encoding], len(run.lengths)) + lengths + run.digests


def run_of(body: bytes) -> ClusterRun:
    """The run, without its payload, that a body stands for."""
    offset, count, code, frames = _RUN.unpack_from(body)
    digests_at = _RUN.size + 4 * frames
    lengths = struct.unpack_from(f">{frames}I", body, _RUN.size)
    encoding = _ENCODINGS[code]
    expected = 0 if encoding is Encoding.ZERO else count * DIGEST_SIZE
    if len(body) - digests_at != expected:
        raise JournalDamaged(f"the journal's record of the run at offset {offset} does not add up")
    return ClusterRun(offset, count, encoding, b"", lengths, body[digests_at:])


def pack_sections(sections: Iterable[bytes]) -> bytes:
    """Byte strings as one, each after its length."""
    return b"".join(_SECTION.pack(len(section)) + section for section in sections)


def unpack_sections(data: bytes) -> list[bytes]:
    """The byte strings `pack_sections` joined."""
    sections, at = [], 0
    while at < len(data):
        (length,) = _SECTION.unpack_from(data, at)
        at += _SECTION.size
        sections.append(data[at : at + length])
        at += length
    return sections
