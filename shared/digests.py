"""Digests: BLAKE3 of a cluster's plain bytes, and the root digest over all of a transfer's clusters.

A cluster is always digested at its full 64 KiB: the last one of a disk is padded with zeros, as the image holds it.
"""

from collections.abc import Iterator

from blake3 import blake3

from shared.units import CLUSTER

DIGEST_SIZE = 32
"""Bytes of a BLAKE3 digest."""


def digest(data: bytes | bytearray | memoryview) -> bytes:
    """BLAKE3 of the bytes."""
    return blake3(data).digest()


ZERO_CLUSTER = bytes(CLUSTER)
ZERO_DIGEST = digest(ZERO_CLUSTER)
"""A cluster is zero exactly when its digest is this one: nothing is decided from samples."""


def clusters(data: memoryview) -> Iterator[memoryview]:
    """Cut a run of whole clusters into its clusters, without copying."""
    if len(data) % CLUSTER:
        raise ValueError(f"{len(data)} bytes are not whole clusters of {CLUSTER}")
    return (data[start : start + CLUSTER] for start in range(0, len(data), CLUSTER))
