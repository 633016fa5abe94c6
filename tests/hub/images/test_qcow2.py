"""The format's arithmetic, where a whole image would not show a mistake."""

from hypothesis import given
from hypothesis import strategies as st

from hub.images.qcow2 import (
    BLOCK_ENTRIES,
    COMPRESSED,
    L2_ENTRIES,
    compressed_entry,
    l1_size,
    l2_parts,
    refcount_tail,
    standard_entries,
)
from shared.units import CLUSTER, SECTOR, MiB, TiB


@given(st.integers(CLUSTER, 2**45), st.integers(1, 66 * 1024))
def test_a_compressed_entry_names_all_sectors_of_the_frame_and_no_more(host: int, length: int) -> None:
    entry = compressed_entry(host, length)
    assert entry & COMPRESSED
    assert entry & ((1 << 54) - 1) == host
    sectors = ((entry & (COMPRESSED - 1)) >> 54) + 1
    first = host // SECTOR
    assert (first + sectors - 1) * SECTOR < host + length <= (first + sectors) * SECTOR


def test_standard_entries_lie_a_cluster_apart() -> None:
    assert [entry & ~(1 << 63) for entry in standard_entries(5 * CLUSTER, 3)] == [5 * CLUSTER, 6 * CLUSTER, 7 * CLUSTER]


@given(st.integers(0, 3 * L2_ENTRIES), st.integers(0, 3 * L2_ENTRIES))
def test_parts_tile_the_clusters_and_none_crosses_a_table(first: int, count: int) -> None:
    reached = first
    for table, entry, part in l2_parts(first, count):
        assert table * L2_ENTRIES + entry == reached
        assert 0 < part <= L2_ENTRIES - entry
        reached += part
    assert reached == first + count


def test_an_l1_table_has_an_entry_for_each_begun_512_mib() -> None:
    sizes = [SECTOR, 512 * MiB, 512 * MiB + SECTOR, 62 * TiB]
    assert [l1_size(capacity) for capacity in sizes] == [1, 1, 2, 62 * 2048]


@given(st.integers(1, 40 * BLOCK_ENTRIES))
def test_the_tail_counts_itself_and_is_no_larger_than_needed(used: int) -> None:
    written = used // BLOCK_ENTRIES
    blocks, table = refcount_tail(used, written)
    end = used + blocks - written + table
    assert (blocks - 1) * BLOCK_ENTRIES < end <= blocks * BLOCK_ENTRIES
    assert (table - 1) * CLUSTER < blocks * 8 <= table * CLUSTER
