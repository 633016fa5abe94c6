"""The frozen disks, read by the real `nbdkit vddk` over the stand-in library."""

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.simulator.layers import BLOCK
from agent.simulator.server import RunningSite, running
from shared.errors import ReadFailed, Unavailable
from shared.extents import Kind
from shared.nbd import NbdDisk
from shared.units import GiB, MiB, TiB
from tests.agent.simulator.conftest import Nbdkit, read_all
from tests.agent.simulator.test_disk import make_site

MOREF = "vm-101"


@pytest.fixture
def written(vcenter: RunningSite) -> Iterator[RunningSite]:
    """A disk of several layers: writes, zeros and trims before two snapshots, and after."""
    vm = vcenter.vm("web01")
    disk, chance = vm.disks[1], random.Random(1)
    for moref in ("snapshot-1", "snapshot-2", None):
        for act in (disk.zero, disk.trim):
            act(chance.randrange(3 * MiB), chance.randrange(MiB))
        for _ in range(20):
            disk.write(chance.randrange(4 * MiB), chance.randbytes(512))
        if moref:
            vm.create_snapshot(moref, moref, "", quiesced=False)
    yield vcenter


def parameters(served: RunningSite, moref: str) -> dict[str, str]:
    file = served.vm("web01").disks[1].frozen_file_name(moref)
    return {"vm": f"moref={MOREF}", "snapshot": moref, "file": file}


@pytest.mark.parametrize("moref", ["snapshot-1", "snapshot-2"])
def test_it_reads_exactly_the_frozen_bytes(written: RunningSite, nbdkit: Nbdkit, moref: str) -> None:
    with written.vm("web01").disks[1].frozen(moref) as view:
        truth = view.read(0, view.capacity)
    with nbdkit(written, **parameters(written, moref)) as (_, socket), NbdDisk(socket) as disk:
        assert read_all(disk) == truth


@pytest.mark.parametrize("moref", ["snapshot-1", "snapshot-2"])
def test_its_extents_are_what_is_allocated(written: RunningSite, nbdkit: Nbdkit, moref: str) -> None:
    with written.vm("web01").disks[1].frozen(moref) as view:
        allocated = bytearray(-(-view.capacity // BLOCK))
        for extent in view.allocated():
            first, end = extent.offset // BLOCK, -(-extent.end // BLOCK)
            allocated[first:end] = b"\1" * (end - first)
    seen = bytearray(len(allocated))
    with nbdkit(written, **parameters(written, moref)) as (_, socket), NbdDisk(socket) as disk:
        for extent in disk.extents():
            first, end = extent.offset // BLOCK, -(-extent.end // BLOCK)
            seen[first:end] = bytes([extent.kind is Kind.DATA]) * (end - first)
    # VDDK answers for whole chunks only; the plugin calls what is left at the end data.
    assert seen[:-1] == allocated[:-1]
    assert 0 < sum(seen) < len(seen) - 1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"password": "wrong"}, "user name or password is incorrect"),
        ({"user": "nobody"}, "user name or password is incorrect"),
        ({"thumbprint": "AA:BB"}, "thumbprint does not match"),
        ({"port": 1}, "Cannot connect to host"),
        ({"vm": "moref=vm-999"}, "no longer exists"),
        ({"snapshot": "snapshot-999"}, "no longer exists"),
        ({"file": "[datastore1] web01/other.vmdk"}, "A file was not found"),
        ({"transports": "san"}, "not supported"),
    ],
)
def test_what_is_wrong_is_refused_and_said(
    written: RunningSite, nbdkit: Nbdkit, wrong: dict[str, object], said: str
) -> None:
    with nbdkit(written, **{**parameters(written, "snapshot-1"), **wrong}) as (program, socket):
        with pytest.raises(Unavailable):
            NbdDisk(socket)
        assert said in program.last_words()
        assert written.password not in program.last_words()


def test_a_disk_that_is_open_counts_as_read_until_nbdkit_ends(written: RunningSite, nbdkit: Nbdkit) -> None:
    disk = written.vm("web01").disks[1]
    with nbdkit(written, **parameters(written, "snapshot-1")) as (_, socket), NbdDisk(socket):
        assert disk.is_read("snapshot-1")
    deadline = time.monotonic() + 10
    while disk.is_read("snapshot-1") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not disk.is_read("snapshot-1")


def test_scripted_read_errors_reach_the_reader(written: RunningSite, nbdkit: Nbdkit) -> None:
    written.site.disk_faults.fail_after = 1 * MiB
    with nbdkit(written, **parameters(written, "snapshot-1")) as (program, socket), NbdDisk(socket) as disk:
        with pytest.raises(ReadFailed):
            read_all(disk)
        assert "file access error" in program.last_words()


def test_scripted_latency_is_felt_once_by_reads_in_flight_together(written: RunningSite, nbdkit: Nbdkit) -> None:
    written.site.disk_faults.latency = 0.2
    with nbdkit(written, **parameters(written, "snapshot-1")) as (_, socket), NbdDisk(socket) as disk:
        started = time.monotonic()
        read_all(disk)
        took = time.monotonic() - started
    requests = -(-disk.size // (256 * 1024))
    assert 0.2 < took < 0.2 * requests * 0.7, "reads in flight did not overlap"


def test_a_huge_sparse_disk_is_mapped_quickly(tmp_path: Path, nbdkit: Nbdkit) -> None:
    site = make_site(tmp_path / "site", 2 * TiB + 512)
    vm = site.vms[0]
    vm.disks[0].write(2 * TiB, b"the end")
    vm.create_snapshot("snapshot-1", "x", "", quiesced=False)
    file = vm.disks[0].frozen_file_name("snapshot-1")
    site.close()
    with running(tmp_path / "site") as served:
        chosen = {"vm": f"moref={MOREF}", "snapshot": "snapshot-1", "file": file}
        with nbdkit(served, **chosen) as (_, socket), NbdDisk(socket) as disk:
            data = [extent for extent in disk.extents() if extent.kind is Kind.DATA]
            assert [(extent.offset, extent.length) for extent in data] == [(2 * TiB, 512)]
            ((_, tail),) = disk.read(data)
            assert bytes(tail[:7]) == b"the end"
            assert disk.size > 2048 * GiB
