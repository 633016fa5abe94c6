"""Runs: what was encoded comes back, what arrives damaged or does not add up is refused."""

import random
from dataclasses import replace
from itertools import pairwise

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.digests import DIGEST_SIZE, ZERO_DIGEST, digest
from shared.errors import DigestMismatch, InvalidRequest
from shared.extents import Extent
from shared.runs import MAX_CLUSTERS, MAX_PAYLOAD, ClusterRun, Encoding, check_digests, check_shape, encode, zero_run
from shared.units import CLUSTER, SECTOR, GiB, MiB

FILLS = st.sampled_from(["zero", "text", "random", "last byte"])
LEVELS = st.sampled_from([None, 1, 3])


def cluster(fill: str, seed: int) -> bytes:
    if fill == "random":
        return random.Random(seed).randbytes(CLUSTER)
    if fill == "text":
        return b"%8d" % seed * (CLUSTER // 8)
    return bytes(CLUSTER - 1) + (b"\1" if fill == "last byte" else b"\0")


@st.composite
def contents(draw: st.DrawFn) -> bytes:
    """Up to 40 clusters in stretches of a kind, the last cluster cut short now and then."""
    stretches = draw(st.lists(st.tuples(FILLS, st.integers(1, 20)), min_size=1, max_size=4))
    whole = b"".join(cluster(fill, seed) for fill, count in stretches for seed in range(count))[: 40 * CLUSTER]
    return whole[: len(whole) - draw(st.sampled_from([0, 0, SECTOR, CLUSTER - SECTOR]))]


def decoded(run: ClusterRun) -> bytes:
    if run.encoding is Encoding.ZERO:
        return bytes(run.count * CLUSTER)
    if run.encoding is Encoding.RAW:
        return bytes(run.payload)
    return b"".join(zstandard.decompress(frame) for frame in run.frames())


@settings(max_examples=60, deadline=None)
@given(contents(), LEVELS, st.integers(0, 2**40))
def test_encoded_bytes_come_back(data: bytes, level: int | None, first: int) -> None:
    offset = first * CLUSTER
    runs = encode(offset, memoryview(data), level)
    for run in runs:
        check_shape(run)
        check_digests(run)
    assert b"".join(map(decoded, runs)) == data + bytes(-len(data) % CLUSTER)
    assert runs[0].offset == offset
    assert all(one.end == two.offset for one, two in pairwise(runs))


@settings(max_examples=30, deadline=None)
@given(contents(), LEVELS)
def test_every_zero_cluster_and_no_other_is_in_a_zero_run(data: bytes, level: int | None) -> None:
    for run in encode(0, memoryview(data), level):
        told_zero = run.encoding is Encoding.ZERO
        plain = decoded(run)
        for index in range(run.count):
            part = plain[index * CLUSTER : (index + 1) * CLUSTER]
            assert (part.count(0) == CLUSTER) is told_zero
            assert run.digest(index) == digest(part)


@pytest.mark.parametrize("at", [0, 1, 4095, CLUSTER // 2, CLUSTER - 1])
def test_one_byte_that_is_not_zero_survives(at: int) -> None:
    data = bytearray(3 * CLUSTER)
    data[CLUSTER + at] = 1
    runs = encode(0, memoryview(data), 1)
    assert [run.encoding is Encoding.ZERO for run in runs] == [True, False, True]
    assert b"".join(map(decoded, runs)) == data


def test_level_none_stores_plain_and_text_compresses() -> None:
    text = memoryview(cluster("text", 1) * 4)
    assert [run.encoding for run in encode(0, text, None)] == [Encoding.RAW]
    [run] = encode(0, text, 1)
    assert run.encoding is Encoding.ZSTD
    assert len(run.payload) < CLUSTER


def test_what_does_not_shrink_is_stored_plain() -> None:
    assert [run.encoding for run in encode(0, memoryview(cluster("random", 1)), 1)] == [Encoding.RAW]


def test_long_data_is_cut_into_runs_that_fit_a_message() -> None:
    data = cluster("random", 1) * 100
    runs = encode(GiB, memoryview(data), None)
    assert [run.count for run in runs] == [16] * 6 + [4]
    assert all(len(run.payload) <= MAX_PAYLOAD for run in runs)


@pytest.mark.parametrize("length", [SECTOR, CLUSTER, CLUSTER + SECTOR, 4 * GiB, 62 * 1024 * GiB])
def test_a_zero_run_covers_its_extent(length: int) -> None:
    run = zero_run(Extent(2 * CLUSTER, length))
    check_shape(run)
    check_digests(run)
    assert 0 <= run.end - (2 * CLUSTER + length) < CLUSTER
    assert run.digest(0) == ZERO_DIGEST


def a_run(level: int | None) -> ClusterRun:
    [run] = encode(MiB, memoryview(cluster("text", 1) + cluster("text", 2)), level)
    return run


RAW, ZSTD, ZERO = a_run(None), a_run(1), zero_run(Extent(0, MiB))


@pytest.mark.parametrize(
    "run",
    [
        replace(RAW, offset=512),
        replace(RAW, offset=-CLUSTER),
        replace(RAW, count=0),
        replace(RAW, count=3),
        replace(RAW, payload=RAW.payload[:-1]),
        replace(RAW, digests=RAW.digests[:-1]),
        replace(RAW, lengths=(CLUSTER, CLUSTER)),
        replace(ZSTD, lengths=ZSTD.lengths[:1]),
        replace(ZSTD, lengths=()),
        replace(ZSTD, lengths=(0, sum(ZSTD.lengths))),
        replace(ZSTD, lengths=(-1, sum(ZSTD.lengths) + 1)),
        replace(ZSTD, payload=bytes(ZSTD.payload) + b"x"),
        replace(ZSTD, digests=b""),
        ClusterRun(0, 1, Encoding.ZSTD, bytes(2 * CLUSTER), (2 * CLUSTER,), bytes(DIGEST_SIZE)),
        ClusterRun(0, MAX_CLUSTERS + 1, Encoding.RAW, bytes(17 * CLUSTER), (), bytes(17 * DIGEST_SIZE)),
        replace(ZERO, payload=b"x"),
        replace(ZERO, digests=bytes(16 * DIGEST_SIZE)),
        replace(ZERO, lengths=(1,)),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(run: ClusterRun) -> None:
    with pytest.raises(InvalidRequest):
        check_shape(run)


@pytest.mark.parametrize("run", [RAW, ZSTD])
def test_any_changed_byte_is_seen_and_its_cluster_named(run: ClusterRun) -> None:
    boundary = len(next(run.frames()))
    for at in range(0, len(run.payload), max(1, len(run.payload) // 50)):
        payload = bytearray(run.payload)
        payload[at] ^= 0x20
        changed = replace(run, payload=bytes(payload))
        try:
            check_digests(changed)
        except DigestMismatch as error:
            assert error.facts["offset"] == str(run.offset + (CLUSTER if at >= boundary else 0))
        else:
            assert decoded(changed) == decoded(run)  # a bit of the frame that carries nothing


def test_digests_in_the_wrong_order_are_seen() -> None:
    with pytest.raises(DigestMismatch):
        check_digests(replace(RAW, digests=RAW.digests[DIGEST_SIZE:] + RAW.digests[:DIGEST_SIZE]))


@pytest.mark.parametrize("size", [0, 1, CLUSTER - 1, CLUSTER + 1, 64 * MiB])
def test_a_frame_of_another_size_is_refused_before_it_is_unpacked(size: int) -> None:
    frame = zstandard.ZstdCompressor(level=1).compress(bytes(size))
    with pytest.raises(DigestMismatch):
        check_digests(ClusterRun(0, 1, Encoding.ZSTD, frame, (len(frame),), digest(bytes(size))))


def test_a_frame_that_does_not_state_its_size_is_refused() -> None:
    frame = zstandard.ZstdCompressor(level=1, write_content_size=False).compress(cluster("text", 1))
    with pytest.raises(DigestMismatch):
        check_digests(ClusterRun(0, 1, Encoding.ZSTD, frame, (len(frame),), digest(cluster("text", 1))))


@pytest.mark.parametrize("garbage", [b"x", b"not a frame at all", b"\x28\xb5\x2f\xfd"])
def test_what_is_no_frame_is_refused(garbage: bytes) -> None:
    with pytest.raises(DigestMismatch):
        check_digests(ClusterRun(0, 1, Encoding.ZSTD, garbage, (len(garbage),), bytes(DIGEST_SIZE)))


def test_frames_are_views_not_copies() -> None:
    payload = bytearray(RAW.payload)
    first = next(replace(RAW, payload=memoryview(payload)).frames())
    payload[0] ^= 0xFF
    assert first[0] == payload[0]
