"""Disks read through the real nbdkit and vddk plugin: the frozen bytes, or the real cause why not."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import pytest

from agent.disks.vddk import VddkReader
from agent.simulator.server import RunningSite
from shared.errors import ReadFailed, SourceUnavailable, TimedOut
from shared.extents import Extent, Kind, split
from shared.nbd import NbdDisk
from shared.units import CLUSTER, MiB
from tests.agent.disks.conftest import MOREF, Opener
from tests.agent.vsphere.sites import vcenter_settings, vddk_settings

WHOLE = [Extent(0, 8 * MiB)]


def copied(reader: VddkReader, pieces: Iterable[Extent], target: Path) -> Path:
    """The pieces in a raw file."""
    with target.open("wb") as file:
        file.truncate(reader.capacity)
        for piece, data in reader.read(pieces):
            file.seek(piece.offset)
            file.write(data)
    return target


def differences(left: Path, right: Path) -> str:
    """What qemu-img finds different; '' when nothing is."""
    done = subprocess.run(
        ["qemu-img", "compare", "-f", "raw", "-F", "raw", left, right],
        capture_output=True,
        text=True,
        check=False,
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


def pid_of(reader: VddkReader) -> int:
    return reader._nbdkit.pid


def arguments(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


def socket_inodes(pid: int) -> set[str]:
    links: list[str] = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            links.append(str(descriptor.readlink()))
    return {link.removeprefix("socket:[").rstrip("]") for link in links if link.startswith("socket:")}


# -- what is read -----------------------------------------------------------------------------------------------------


def test_the_whole_disk_equals_the_frozen_one(open_disk: Opener, frozen: Callable[[], Path], tmp_path: Path) -> None:
    with open_disk() as reader:
        copy = copied(reader, split(WHOLE, MiB), tmp_path / "copy.raw")
    assert differences(copy, frozen()) == ""


def test_the_allocated_parts_alone_equal_the_frozen_disk(
    open_disk: Opener, frozen: Callable[[], Path], tmp_path: Path
) -> None:
    with open_disk() as reader:
        data = [extent for extent in reader.allocated() if extent.kind is Kind.DATA]
        copy = copied(reader, data, tmp_path / "copy.raw")
    assert sum(extent.length for extent in data) < 8 * MiB
    assert differences(copy, frozen()) == ""


def test_what_the_guest_writes_meanwhile_is_not_seen(
    site: RunningSite, open_disk: Opener, frozen: Callable[[], Path], tmp_path: Path
) -> None:
    before = frozen().rename(tmp_path / "before.raw")
    with open_disk() as reader:
        site.vm("web01").disks[0].write(0, b"\xff" * 8 * MiB)
        copy = copied(reader, split(WHOLE, MiB), tmp_path / "copy.raw")
    assert differences(copy, before) == ""


# -- how it runs ------------------------------------------------------------------------------------------------------


def test_nbdkit_listens_on_no_tcp_port(open_disk: Opener) -> None:
    with open_disk() as reader:
        tcp = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
        assert not socket_inodes(pid_of(reader)) & {columns[9] for columns in tcp}
        assert socket_inodes(pid_of(reader))


def test_the_password_is_neither_in_argv_nor_in_the_environment(site: RunningSite, open_disk: Opener) -> None:
    with open_disk() as reader:
        for name in ("cmdline", "environ"):
            assert site.password not in Path(f"/proc/{pid_of(reader)}/{name}").read_text()


def test_the_plugin_does_not_start_nbdkit_a_second_time(open_disk: Opener) -> None:
    with open_disk() as reader:
        assert not [argument for argument in arguments(pid_of(reader)) if argument.startswith("reexeced_=")]


def test_only_the_owner_gets_at_the_socket(open_disk: Opener) -> None:
    with open_disk() as reader:
        command = arguments(pid_of(reader))
        socket = Path(command[command.index("-U") + 1])
        assert socket.parent.stat().st_mode & 0o777 == 0o700


def test_snapshot_and_transports_are_always_named_and_nothing_can_be_written(open_disk: Opener) -> None:
    with open_disk() as reader:
        command = arguments(pid_of(reader))
    assert {f"snapshot={MOREF}", "transports=nbdssl:nbd", "--readonly", "--exit-with-parent"} <= set(command)


@pytest.mark.parametrize("error", [None, ValueError("broken"), KeyboardInterrupt()])
def test_nbdkit_and_its_folder_are_gone_afterwards(open_disk: Opener, error: BaseException | None) -> None:
    with suppress(ValueError, KeyboardInterrupt), open_disk() as reader:
        pid, command = pid_of(reader), arguments(pid_of(reader))
        if error is not None:
            raise error
    assert not Path(f"/proc/{pid}").exists()
    assert not Path(command[command.index("-U") + 1]).parent.exists()


# -- when it fails ----------------------------------------------------------------------------------------------------


def test_nbdkit_killed_in_mid_read_is_said_at_once(site: RunningSite, open_disk: Opener) -> None:
    site.site.disk_faults.latency = 0.2
    with open_disk() as reader:
        pieces = reader.read(split(WHOLE, MiB))
        next(pieces)
        os.kill(pid_of(reader), signal.SIGKILL)
        killed = time.monotonic()
        with pytest.raises(SourceUnavailable, match=r"nbdkit ended while it was reading \[datastore1\].* \(exit -9\)"):
            list(pieces)
    assert time.monotonic() - killed < 3


def test_nbdkit_killed_before_the_map_is_asked_is_no_disk_without_a_map(open_disk: Opener) -> None:
    with open_disk() as reader:
        os.kill(pid_of(reader), signal.SIGKILL)
        with pytest.raises(SourceUnavailable, match="nbdkit ended"):
            list(reader.allocated())


def test_where_the_map_fails_the_rest_is_read(open_disk: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: NbdDisk) -> Iterable[Extent]:
        yield Extent(0, CLUSTER, Kind.ZERO)
        raise ReadFailed("block status at offset 65536 failed: Input/output error")

    with open_disk() as reader:
        monkeypatch.setattr(NbdDisk, "extents", broken)
        assert list(reader.allocated()) == [Extent(0, CLUSTER, Kind.ZERO), Extent(CLUSTER, 8 * MiB - CLUSTER)]


def test_a_read_error_names_disk_and_offset_within_seconds(site: RunningSite, open_disk: Opener) -> None:
    site.site.disk_faults.fail_after = 0
    started = time.monotonic()
    with open_disk() as reader, pytest.raises(ReadFailed, match=r"\[datastore1\] web01/web01.vmdk: read of .* 65536"):
        list(reader.read([Extent(CLUSTER, CLUSTER)]))
    assert time.monotonic() - started < 10


def test_a_read_error_that_passes_is_not_noticed(site: RunningSite, open_disk: Opener) -> None:
    site.site.disk_faults.fail_after = 0
    with open_disk() as reader:
        site.site.disk_faults.fail_after = None  # holds from the next opening on: the retry filter's
        assert [piece for piece, _ in reader.read([Extent(0, CLUSTER)])] == [Extent(0, CLUSTER)]


def test_a_wrong_password_is_said_as_the_cause_and_not_shown(
    site: RunningSite, open_disk: Opener, tmp_path: Path
) -> None:
    (tmp_path / "wrong").touch(0o600)
    (tmp_path / "wrong").write_text("hunter2\n")
    started = time.monotonic()
    with (
        pytest.raises(SourceUnavailable) as caught,
        open_disk(vcenter=vcenter_settings(site, password_file=tmp_path / "wrong")),
    ):
        pass
    assert "[datastore1] web01/web01.vmdk" in caught.value.message
    assert "VixDiskLib_ConnectEx" in caught.value.message
    assert "hunter2" not in caught.value.message
    assert time.monotonic() - started < 15


def test_a_wrong_thumbprint_is_refused(open_disk: Opener) -> None:
    with pytest.raises(SourceUnavailable, match="VixDiskLib_ConnectEx"), open_disk(thumbprint="AA:" * 19 + "AA"):
        pass


def test_a_snapshot_that_is_not_there_is_refused(open_disk: Opener) -> None:
    with pytest.raises(SourceUnavailable, match="VixDiskLib"), open_disk(snapshot="snapshot-1"):
        pass


def test_a_file_that_is_not_in_the_snapshot_is_refused(open_disk: Opener) -> None:
    with pytest.raises(SourceUnavailable, match="VixDiskLib_Open"), open_disk(file="[datastore1] web01/other.vmdk"):
        pass


def test_a_missing_library_is_named(site: RunningSite, open_disk: Opener, tmp_path: Path) -> None:
    with pytest.raises(SourceUnavailable, match="libvixDiskLib"):
        with open_disk(vddk=vddk_settings(site, libdir=tmp_path)):
            pass


def test_a_missing_plugin_is_named(site: RunningSite, open_disk: Opener, tmp_path: Path) -> None:
    with pytest.raises(SourceUnavailable, match=str(tmp_path / "none.so")):
        with open_disk(vddk=vddk_settings(site, plugin=str(tmp_path / "none.so"))):
            pass


def test_a_host_that_does_not_answer_is_given_up(site: RunningSite, open_disk: Opener) -> None:
    started = time.monotonic()
    with site.vm("web01").disks[0].lock:  # the stand-in waits for it when it opens the disk
        with pytest.raises(TimedOut, match="has not opened"), open_disk(vddk=vddk_settings(site, start_timeout=1)):
            pass
    assert time.monotonic() - started < 10
