"""qemu's programs over our images: information, damage, copies, and a disk on a socket."""

import subprocess
from pathlib import Path

import pytest

from hub.images import qemu_img
from hub.images.partial import PartialImage
from hub.images.qcow2 import ParentImage
from hub.images.qemu_img import ImageDamaged
from hub.images.qemu_nbd import served
from shared.errors import AlreadyExists
from shared.extents import Extent, Kind
from shared.nbd import NbdDisk
from shared.process import ProgramFailed
from shared.runs import encode, zero_run
from shared.units import CLUSTER, SECTOR, MiB
from tests.hub.images.conftest import MakeRun
from tests.hub.images.sparse_disk import assert_same

CAPACITY = 10 * MiB + SECTOR

AWKWARD = ["nbd:host:10809.qcow2", "-n.qcow2", "a,b=c.qcow2", "json:{}.qcow2", "line\nbreak.qcow2"]


@pytest.fixture
def chain(tmp_path: Path, data_run: MakeRun) -> Path:
    """The newer of two images: its parent has data in clusters 0 to 2, and it zeros in cluster 1."""
    parent = None
    for name, run in (("full.qcow2", data_run(0, 3)), ("newer.qcow2", zero_run(Extent(CLUSTER, CLUSTER)))):
        with PartialImage.create(tmp_path / name, CAPACITY, parent) as image:
            image.append(run)
            image.seal()
            image.commit()
        parent = ParentImage(name)
    return tmp_path / "newer.qcow2"


@pytest.fixture
def expected(data_run: MakeRun) -> bytes:
    data = data_run(0, 3).payload
    return (bytes(data[:CLUSTER]) + bytes(CLUSTER) + bytes(data[2 * CLUSTER :])).ljust(CAPACITY, b"\0")


def damage(image: Path) -> None:
    """Make the L1 entry point beyond the file."""
    with image.open("r+b") as file:
        file.seek(40)
        l1_offset = int.from_bytes(file.read(8))
        file.seek(l1_offset)
        file.write((1 << 63 | 1 << 40).to_bytes(8))


def test_info_tells_capacity_and_parent(chain: Path) -> None:
    told = qemu_img.info(chain)
    assert (told.capacity, told.parent) == (CAPACITY, "full.qcow2")
    assert 0 < told.allocated <= chain.stat().st_size


def test_info_of_what_is_no_image_is_damage(tmp_path: Path) -> None:
    (tmp_path / "a.qcow2").write_bytes(bytes(MiB))
    with pytest.raises(ImageDamaged, match=r"a\.qcow2"):
        qemu_img.info(tmp_path / "a.qcow2")


def test_check_finds_a_wrong_table(chain: Path) -> None:
    qemu_img.check(chain)
    damage(chain)
    with pytest.raises(ImageDamaged, match=r"newer\.qcow2"):
        qemu_img.check(chain)


def test_check_finds_a_leak(chain: Path) -> None:
    with chain.open("r+b") as file:
        file.seek(40)
        l1_offset = int.from_bytes(file.read(8))
        file.seek(l1_offset)
        file.write(bytes(8))
    with pytest.raises(ImageDamaged):
        qemu_img.check(chain)


def test_convert_to_raw_is_the_disk(chain: Path, expected: bytes, tmp_path: Path) -> None:
    qemu_img.convert(chain, tmp_path / "copy.raw", "raw")
    assert (tmp_path / "copy.raw").read_bytes() == expected


def test_convert_to_qcow2_needs_no_parent(chain: Path, expected: bytes, tmp_path: Path) -> None:
    qemu_img.convert(chain, tmp_path / "copy.qcow2", "qcow2")
    assert qemu_img.info(tmp_path / "copy.qcow2").parent is None
    (tmp_path / "model.raw").write_bytes(expected)
    assert_same(tmp_path / "model.raw", tmp_path / "copy.qcow2")


def test_convert_never_overwrites(chain: Path, tmp_path: Path) -> None:
    (tmp_path / "copy.raw").write_text("somebody's")
    with pytest.raises(AlreadyExists):
        qemu_img.convert(chain, tmp_path / "copy.raw", "raw")
    assert (tmp_path / "copy.raw").read_text() == "somebody's"


@pytest.mark.parametrize("name", AWKWARD)
def test_a_name_is_never_taken_for_an_option_or_a_protocol(
    chain: Path, expected: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    image = chain.rename(tmp_path / name).relative_to(tmp_path)
    assert qemu_img.info(image).capacity == CAPACITY
    qemu_img.check(image)
    target = Path(name + ".raw")
    qemu_img.convert(image, target, "raw")
    assert target.read_bytes() == expected
    with served(image) as socket, NbdDisk(socket) as disk:
        assert disk.size == CAPACITY


def test_a_disk_that_looks_like_an_image_is_not_followed(tmp_path: Path, data_run: MakeRun) -> None:
    """A guest wrote a QCOW2 header with somebody's file as parent to its first sector: those are only its bytes."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret".ljust(MiB, b"\0"))
    trap = tmp_path / "trap"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", trap], check=True, capture_output=True
    )
    header = trap.read_bytes()[:CLUSTER]
    with PartialImage.create(tmp_path / "a.qcow2", CAPACITY, None) as image:
        for run in encode(0, memoryview(header), None):
            image.append(run)
        image.seal()
        image.commit()
    qemu_img.convert(tmp_path / "a.qcow2", tmp_path / "copy.raw", "raw")
    assert (tmp_path / "copy.raw").read_bytes() == header.ljust(CAPACITY, b"\0")


def test_a_served_image_reads_through_its_chain(chain: Path, expected: bytes) -> None:
    with served(chain) as socket, NbdDisk(socket) as disk:
        assert disk.size == CAPACITY
        [(_, data)] = disk.read([Extent(0, CAPACITY)])
        assert bytes(data) == expected
        assert list(disk.extents(0, 3 * CLUSTER)) == [
            Extent(0, CLUSTER),
            Extent(CLUSTER, CLUSTER, Kind.ZERO),
            Extent(2 * CLUSTER, CLUSTER),
        ]


def test_a_served_image_takes_several_readers_and_several_servers(chain: Path) -> None:
    with served(chain) as first, served(chain) as second:
        with NbdDisk(first) as one, NbdDisk(first) as two, NbdDisk(second) as three:
            assert one.size == two.size == three.size == CAPACITY


def test_a_served_image_cannot_be_written(chain: Path) -> None:
    before = chain.read_bytes()
    with served(chain) as socket:
        done = subprocess.run(
            ["qemu-io", "-f", "raw", "-c", "write 0 512", f"nbd+unix:///?socket={socket}"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert "Permission denied" in done.stderr
    assert chain.read_bytes() == before


def test_the_socket_lies_where_only_this_user_can_go_and_is_gone_afterwards(chain: Path) -> None:
    with served(chain) as socket:
        assert socket.parent.stat().st_mode & 0o777 == 0o700
    assert not socket.parent.exists()


def test_an_image_without_its_parent_is_not_served(chain: Path) -> None:
    (chain.parent / "full.qcow2").unlink()
    with pytest.raises(ProgramFailed, match=r"full\.qcow2"), served(chain):
        pass
