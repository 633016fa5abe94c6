"""Runs: consecutive 64 KiB clusters of a disk in the form they travel and are stored in.

The agent encodes what it read; the hub checks and appends it, without encoding it again. A run is

    ZERO   nothing but zeros; no payload, no digests, any length
    RAW    plain clusters back to back
    ZSTD   each cluster one zstd frame that states its content size, frames back to back, their lengths given

A run begins on a cluster boundary. The last cluster of a disk whose capacity is no multiple of 64 KiB is padded with
zeros, so every cluster has exactly 64 KiB of plain bytes and one BLAKE3 digest of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import groupby

import zstandard

from shared.digests import DIGEST_SIZE, ZERO_DIGEST, clusters, digest
from shared.errors import DigestMismatch, InvalidRequest
from shared.extents import Extent
from shared.units import CLUSTER, MiB, align_up

MAX_PAYLOAD = 1 * MiB + CLUSTER
"""Most payload bytes of one run: 16 clusters of plain bytes, with room for frames that do not shrink."""

MAX_CLUSTERS = 16
"""Most clusters of one RAW or ZSTD run."""

WORTHWHILE = 0.9
"""A run is compressed only when that brings it below this part of its plain size: a cluster stored plain is cheaper
to read and keeps image data aligned."""


class Encoding(Enum):
    """How a run's payload holds its clusters."""

    ZERO = "zero"
    RAW = "raw"
    ZSTD = "zstd"


@dataclass(frozen=True, slots=True)
class ClusterRun:
    """`count` clusters from byte `offset` on."""

    offset: int
    count: int
    encoding: Encoding
    payload: bytes | memoryview = b""
    lengths: tuple[int, ...] = ()
    """ZSTD only: bytes of each frame, in order."""
    digests: bytes = b""
    """RAW and ZSTD: `count` digests back to back."""

    @property
    def end(self) -> int:
        """The first byte after the run; may lie up to a cluster beyond the disk's capacity."""
        return self.offset + self.count * CLUSTER

    def digest(self, index: int) -> bytes:
        """The digest of the run's cluster `index`."""
        if self.encoding is Encoding.ZERO:
            return ZERO_DIGEST
        return bytes(self.digests[index * DIGEST_SIZE : (index + 1) * DIGEST_SIZE])

    def frames(self) -> Iterator[memoryview]:
        """The stored form of each cluster, without copying; RAW and ZSTD only."""
        view, start = memoryview(self.payload), 0
        for length in self.lengths or (CLUSTER,) * self.count:
            yield view[start : start + length]
            start += length


def zero_run(extent: Extent) -> ClusterRun:
    """The run that says a cluster-aligned extent is zero (its end may be the capacity)."""
    return ClusterRun(extent.offset, align_up(extent.length, CLUSTER) // CLUSTER, Encoding.ZERO)


def encode(offset: int, data: memoryview, level: int | None) -> list[ClusterRun]:
    """Digest and compress bytes read at cluster-aligned `offset` into runs; `level` None stores plain.

    All-zero clusters become ZERO runs, whatever lies around them. Data whose last cluster is short is padded.
    """
    plain = _whole_clusters(data)
    digested = [(cluster, digest(cluster)) for cluster in clusters(plain)]
    runs: list[ClusterRun] = []
    at = offset
    for is_zero, group in groupby(digested, key=lambda pair: pair[1] == ZERO_DIGEST):
        members = list(group)
        if is_zero:
            runs.append(ClusterRun(at, len(members), Encoding.ZERO))
        else:
            runs.extend(
                _data_run(at + start * CLUSTER, members[start : start + MAX_CLUSTERS], level)
                for start in range(0, len(members), MAX_CLUSTERS)
            )
        at += len(members) * CLUSTER
    return runs


def _whole_clusters(data: memoryview) -> memoryview:
    missing = -len(data) % CLUSTER
    return memoryview(bytes(data) + bytes(missing)) if missing else data


def _data_run(offset: int, members: list[tuple[memoryview, bytes]], level: int | None) -> ClusterRun:
    digests = b"".join(pair[1] for pair in members)
    if level is not None:
        compressor = zstandard.ZstdCompressor(level=level)
        frames = [compressor.compress(cluster) for cluster, _ in members]
        if sum(map(len, frames)) < WORTHWHILE * CLUSTER * len(members):
            return ClusterRun(offset, len(members), Encoding.ZSTD, b"".join(frames), tuple(map(len, frames)), digests)
    return ClusterRun(offset, len(members), Encoding.RAW, b"".join(pair[0] for pair in members), (), digests)


def check_shape(run: ClusterRun) -> None:
    """Raise InvalidRequest when the parts of a run that came from outside do not fit together."""
    if run.offset < 0 or run.offset % CLUSTER or run.count <= 0:
        raise InvalidRequest(f"a run of {run.count} clusters at offset {run.offset} is not aligned to {CLUSTER} bytes")
    if run.encoding is Encoding.ZERO:
        sizes_fit = not (run.payload or run.lengths or run.digests)
    else:
        stored = sum(run.lengths) if run.encoding is Encoding.ZSTD else run.count * CLUSTER
        named = run.count if run.encoding is Encoding.ZSTD else 0
        sizes_fit = (
            run.count <= MAX_CLUSTERS
            and len(run.lengths) == named
            and len(run.digests) == run.count * DIGEST_SIZE
            and len(run.payload) == stored
            and all(0 < length <= CLUSTER + CLUSTER // 64 for length in run.lengths)
        )
    if not sizes_fit:
        raise InvalidRequest(f"the {run.encoding.value} run at offset {run.offset} has lengths that do not add up")


def check_digests(run: ClusterRun) -> None:
    """Raise DigestMismatch, naming the offset, when a cluster's plain bytes are not those its digest was made of."""
    if run.encoding is Encoding.ZERO:
        return
    for index, frame in enumerate(run.frames()):
        if digest(_plain(run, index, frame)) != run.digest(index):
            offset = run.offset + index * CLUSTER
            raise DigestMismatch(f"the cluster at offset {offset} arrived damaged", offset=offset)


def _plain(run: ClusterRun, index: int, frame: memoryview) -> bytes | memoryview:
    if run.encoding is Encoding.RAW:
        return frame
    try:
        # The frame's own word is checked before it is believed: a hostile one could claim any size.
        if zstandard.get_frame_parameters(frame).content_size != CLUSTER:
            raise zstandard.ZstdError("other content size")
        return zstandard.ZstdDecompressor().decompress(frame)
    except zstandard.ZstdError as error:
        offset = run.offset + index * CLUSTER
        message = f"the cluster at offset {offset} is not a zstd frame of {CLUSTER} bytes"
        raise DigestMismatch(message, offset=offset) from error
