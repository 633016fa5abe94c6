"""Digests of clusters."""

import hashlib

import pytest
from blake3 import blake3

from shared.digests import DIGEST_SIZE, ZERO_DIGEST, clusters, digest
from shared.units import CLUSTER


def test_a_digest_is_blake3_of_the_bytes() -> None:
    """The value is the algorithm's published one for no input."""
    assert digest(b"").hex() == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    assert len(digest(b"")) == DIGEST_SIZE
    assert digest(memoryview(b"abc")) == digest(b"abc") == blake3(b"abc").digest() != hashlib.sha256(b"abc").digest()


@pytest.mark.parametrize("at", [0, 1, CLUSTER // 2, CLUSTER - 1])
def test_one_byte_anywhere_makes_a_cluster_not_zero(at: int) -> None:
    cluster = bytearray(CLUSTER)
    assert digest(cluster) == ZERO_DIGEST
    cluster[at] = 1
    assert digest(cluster) != ZERO_DIGEST


def test_clusters_are_views_of_the_bytes_in_order() -> None:
    data = bytearray(b"a" * CLUSTER + b"b" * CLUSTER)
    first, second = clusters(memoryview(data))
    assert (bytes(first[:1]), bytes(second[:1]), len(second)) == (b"a", b"b", CLUSTER)
    data[CLUSTER] = ord("c")
    assert bytes(second[:1]) == b"c"


@pytest.mark.parametrize("length", [1, CLUSTER - 1, CLUSTER + 512])
def test_what_is_not_whole_clusters_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="not whole clusters"):
        clusters(memoryview(bytes(length)))
