"""Manifests: they hold what was appended, the same bytes for the same clusters, and no damage goes unseen."""

from pathlib import Path

import pytest
from blake3 import blake3

from hub.images.manifest import (
    ManifestDamaged,
    ManifestRun,
    ManifestSummary,
    ManifestWriter,
    read_manifest,
    verify_manifest,
)
from shared.errors import NotFound
from shared.extents import Extent, Kind
from shared.runs import ClusterRun, Encoding, zero_run
from shared.units import CLUSTER, GiB, MiB, TiB
from tests.hub.images.conftest import MakeRun

TABLE = 512 * MiB


def write(path: Path, capacity: int, runs: list[ClusterRun]) -> ManifestSummary:
    writer = ManifestWriter.create(path, capacity)
    for run in runs:
        writer.add(run)
    summary = writer.finish()
    writer.close()
    return summary


@pytest.fixture
def runs(data_run: MakeRun) -> list[ClusterRun]:
    """Over two pages, of both kinds, with gaps."""
    return [
        data_run(0, 2),
        zero_run(Extent(2 * CLUSTER, CLUSTER)),
        data_run(4 * CLUSTER, 1, level=1),
        data_run(TABLE - CLUSTER, 2),
        zero_run(Extent(TABLE + 9 * CLUSTER, 3 * CLUSTER)),
    ]


def test_runs_come_back_cut_at_512_mib(tmp_path: Path, runs: list[ClusterRun]) -> None:
    write(tmp_path / "m", GiB, runs)
    assert list(read_manifest(tmp_path / "m")) == [
        ManifestRun(0, 2, Kind.DATA, runs[0].digests),
        ManifestRun(2 * CLUSTER, 1, Kind.ZERO, b""),
        ManifestRun(4 * CLUSTER, 1, Kind.DATA, runs[2].digests),
        ManifestRun(TABLE - CLUSTER, 1, Kind.DATA, runs[3].digests[:32]),
        ManifestRun(TABLE, 1, Kind.DATA, runs[3].digests[32:]),
        ManifestRun(TABLE + 9 * CLUSTER, 3, Kind.ZERO, b""),
    ]


def test_the_summary_counts_and_is_what_verify_reads(tmp_path: Path, runs: list[ClusterRun]) -> None:
    summary = write(tmp_path / "m", GiB, runs)
    assert (summary.capacity, summary.data_clusters, summary.zero_clusters) == (GiB, 5, 4)
    assert verify_manifest(tmp_path / "m") == summary


def test_the_root_digest_is_what_the_format_says(tmp_path: Path, data_run: MakeRun) -> None:
    """Computed here from the description alone."""
    run = data_run(CLUSTER)
    summary = write(tmp_path / "m", MiB, [run])
    header = b"SNDMANIF" + (1).to_bytes(4) + CLUSTER.to_bytes(4) + MiB.to_bytes(8)
    page = b"PAGE" + (0).to_bytes(4) + (1).to_bytes(2) + (1).to_bytes(2) + bytes([0, 1, 0, 1, 1]) + run.digests
    trailer = b"TAIL" + (1).to_bytes(8) + (0).to_bytes(8)
    page_seal = blake3(blake3(header).digest() + page).digest()
    root = blake3(page_seal + trailer).digest()
    assert summary.root == root
    assert (tmp_path / "m").read_bytes() == header + page + page_seal + trailer + root


def test_the_same_clusters_give_the_same_bytes_however_they_arrived(tmp_path: Path, data_run: MakeRun) -> None:
    whole = data_run(TABLE - 2 * CLUSTER, 4)
    parts = [
        ClusterRun(whole.offset + index * CLUSTER, 1, Encoding.RAW, b"", (), whole.digest(index)) for index in range(4)
    ]
    zeros = Extent(TABLE + 4 * CLUSTER, 10 * CLUSTER)
    halves = [Extent(zeros.offset, 3 * CLUSTER), Extent(zeros.offset + 3 * CLUSTER, 7 * CLUSTER)]
    write(tmp_path / "whole", GiB, [whole, zero_run(zeros)])
    write(tmp_path / "parts", GiB, [*parts, *map(zero_run, halves)])
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "parts").read_bytes()


def test_other_bytes_another_place_or_another_capacity_change_the_root(tmp_path: Path, data_run: MakeRun) -> None:
    roots = {
        write(tmp_path / "a", MiB, [data_run(0, seed=1)]).root,
        write(tmp_path / "b", MiB, [data_run(0, seed=2)]).root,
        write(tmp_path / "c", 2 * MiB, [data_run(0, seed=1)]).root,
        write(tmp_path / "d", MiB, [zero_run(Extent(0, CLUSTER))]).root,
        write(tmp_path / "e", MiB, [zero_run(Extent(CLUSTER, CLUSTER))]).root,
        write(tmp_path / "f", MiB, []).root,
    }
    assert len(roots) == 6


def test_an_empty_manifest_is_whole(tmp_path: Path) -> None:
    summary = write(tmp_path / "m", 62 * TiB, [])
    assert verify_manifest(tmp_path / "m") == summary
    assert list(read_manifest(tmp_path / "m")) == []


def test_no_cut_goes_unseen(tmp_path: Path, runs: list[ClusterRun]) -> None:
    write(tmp_path / "m", GiB, runs)
    whole = (tmp_path / "m").read_bytes()
    for length in range(len(whole)):
        (tmp_path / "m").write_bytes(whole[:length])
        with pytest.raises(ManifestDamaged):
            verify_manifest(tmp_path / "m")


def test_no_changed_byte_goes_unseen(tmp_path: Path, runs: list[ClusterRun]) -> None:
    write(tmp_path / "m", GiB, runs)
    whole = (tmp_path / "m").read_bytes()
    for at in range(len(whole)):
        (tmp_path / "m").write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        with pytest.raises(ManifestDamaged):
            verify_manifest(tmp_path / "m")


def test_bytes_after_the_end_do_not_go_unseen(tmp_path: Path, runs: list[ClusterRun]) -> None:
    write(tmp_path / "m", GiB, runs)
    with (tmp_path / "m").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ManifestDamaged):
        verify_manifest(tmp_path / "m")


def test_a_page_left_out_does_not_go_unseen(tmp_path: Path, data_run: MakeRun) -> None:
    write(tmp_path / "one", 2 * GiB, [data_run(0)])
    write(tmp_path / "two", 2 * GiB, [data_run(0), data_run(TABLE)])
    header_and_page = 24 + 12 + 5 + 32 + 32
    one, two = (tmp_path / "one").read_bytes(), (tmp_path / "two").read_bytes()
    assert one[:header_and_page] == two[:header_and_page]
    (tmp_path / "two").write_bytes(two[:24] + two[header_and_page:])
    with pytest.raises(ManifestDamaged):
        verify_manifest(tmp_path / "two")


def test_damage_is_seen_before_the_runs_of_its_page_are_used(tmp_path: Path, data_run: MakeRun) -> None:
    write(tmp_path / "m", 2 * GiB, [data_run(0), data_run(TABLE)])
    content = bytearray((tmp_path / "m").read_bytes())
    content[-100] ^= 1
    (tmp_path / "m").write_bytes(content)
    reading = read_manifest(tmp_path / "m")
    assert next(reading).offset == 0
    with pytest.raises(ManifestDamaged):
        next(reading)


def test_no_manifest_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        verify_manifest(tmp_path / "m")
