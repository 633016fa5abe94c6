"""The program: run, end, be killed, and act as the guest of a site."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.simulator.server import RunningSite, running
from tests.agent.simulator.conftest import log_in

PROGRAM = [sys.executable, "-m", "agent.simulator.main"]

DESCRIPTION = """
[[vms]]
name = "small"
change_tracking = true
  [[vms.disks]]
  capacity = "1 MiB"
"""


def call(*words: object, stdin: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run([*PROGRAM, *map(str, words)], input=stdin, capture_output=True, check=False, timeout=60)


@contextmanager
def program(site: Path, *words: str) -> Iterator["subprocess.Popen[bytes]"]:
    """The simulator as a process of its own, ready."""
    description = site.parent / "site.toml"
    description.write_text(DESCRIPTION)
    process = subprocess.Popen([*PROGRAM, "run", "--site", str(site), "--description", str(description), *words])
    try:
        deadline = time.monotonic() + 60
        while described(site).get("pid") != process.pid:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.wait()


def described(site: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads((site / "connection.json").read_text())
    except FileNotFoundError:
        return {}
    return facts


def test_the_guest_writes_reads_zeros_and_trims(vcenter: RunningSite, tmp_path: Path) -> None:
    site, source, target = vcenter.site.folder, tmp_path / "in", tmp_path / "out"
    source.write_bytes(os.urandom(3_000_000))
    where = ["--site", site, "--vm", "web01", "--disk", 0]
    assert call("guest", "write", *where, "--offset", 1000, "--input", source).returncode == 0
    assert call("guest", "zero", *where, "--offset", 2000, "--length", 10).returncode == 0
    assert call("guest", "trim", *where, "--offset", 65536, "--length", 65536).returncode == 0
    assert call("guest", "read", *where, "--output", target).returncode == 0
    expected = bytearray(8 << 20)
    expected[1000:3_001_000] = source.read_bytes()
    expected[2000:2010] = bytes(10)
    expected[65536 : 2 * 65536] = bytes(65536)
    assert target.read_bytes() == expected


def test_standard_input_and_output_do_too(vcenter: RunningSite) -> None:
    where = ["--site", vcenter.site.folder, "--vm", "db01", "--disk", 0, "--offset", 7]
    call("guest", "write", *where, "--input", "-", stdin=b"hello")
    assert call("guest", "read", *where, "--length", 5, "--output", "-").stdout == b"hello"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--vm", "nobody", "--disk", "0"], "there is no VM 'nobody'"),
        (["--vm", "web01", "--disk", "7"], "there is no disk 7"),
        (["--vm", "web01", "--disk", "0", "--offset", "99999999999"], "is not inside the disk"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(vcenter: RunningSite, words: list[str], said: str) -> None:
    done = call("guest", "zero", "--site", vcenter.site.folder, "--offset", 0, "--length", 512, *words)
    assert done.returncode == 1
    assert said in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1


def test_without_a_running_site_that_is_said(tmp_path: Path) -> None:
    done = call("vm", "list", "--site", tmp_path)
    assert done.returncode == 1
    assert b"no simulator runs in" in done.stderr


def test_listings_are_json_when_asked(vcenter: RunningSite) -> None:
    vcenter.vm("db01").create_snapshot("snapshot-1", "mine", "", quiesced=False)
    vms = json.loads(call("vm", "list", "--site", vcenter.site.folder, "--json").stdout)
    assert [(vm["name"], len(vm["disks"]), vm["snapshots"]) for vm in vms] == [("web01", 2, 0), ("db01", 1, 1)]
    snapshots = json.loads(call("snapshot", "list", "--site", vcenter.site.folder, "--json").stdout)
    assert [(item["vm"], item["moref"], item["name"]) for item in snapshots] == [("db01", "snapshot-1", "mine")]
    assert b"[datastore1] db01/db01" in call("vm", "list", "--site", vcenter.site.folder).stdout


def test_an_exported_snapshot_is_the_disk_as_it_was(vcenter: RunningSite, tmp_path: Path) -> None:
    vm = vcenter.vm("web01")
    vm.disks[1].write(100_000, b"then")
    (tmp_path / "truth").write_bytes(vm.disks[1].read(0, vm.disks[1].record.capacity))
    vm.create_snapshot("snapshot-1", "x", "", quiesced=False)
    vm.disks[1].write(100_000, b"now!")
    where = ["--site", vcenter.site.folder, "--vm", "web01", "--disk", 1, "--snapshot", "snapshot-1"]
    assert call("snapshot", "export", *where, "--output", tmp_path / "raw").returncode == 0
    compare = ["qemu-img", "compare", "-f", "raw", "-F", "raw", str(tmp_path / "truth"), str(tmp_path / "raw")]
    assert subprocess.run(compare, check=False, capture_output=True).returncode == 0


def test_folders_with_long_names_work(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 40)
    with running(folder):
        assert call("vm", "list", "--site", folder).returncode == 0


def test_it_says_how_to_be_reached_until_it_is_asked_to_end(tmp_path: Path) -> None:
    site = tmp_path / "site"
    with program(site) as process:
        facts = described(site)
        assert Path(facts["password_file"]).stat().st_mode & 0o777 == 0o600
        assert (Path(facts["libdir"]) / "lib64" / "libvixDiskLib.so.8").exists()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert not (site / "connection.json").exists()
    assert not (site / "control.sock").exists()


def test_two_simulators_do_not_share_a_site(vcenter: RunningSite) -> None:
    done = call("run", "--site", vcenter.site.folder)
    assert done.returncode == 1
    assert b"another simulator runs" in done.stderr


def test_a_killed_simulator_comes_back_with_its_disks_and_snapshots(tmp_path: Path) -> None:
    site = tmp_path / "site"
    where = ["--site", site, "--vm", "small", "--disk", 0, "--offset", 65530]
    with program(site) as process:
        call("guest", "write", *where, "--input", "-", stdin=b"before the snapshot")
        port = described(site)["port"]
        with running_client(site, port) as vm:
            first = take_snapshot(vm)
        call("guest", "write", *where, "--input", "-", stdin=b"afterwards")
        process.kill()
    with running(site) as served:
        machine = served.vm("small")
        assert machine.disks[0].read(65530, 10) == b"afterwards"
        with machine.disks[0].frozen(first) as view:
            assert view.read(65530, 10) == b"before the"
        since = machine.snapshot(first).change_ids[2000]
        machine.create_snapshot("snapshot-x", "x", "", quiesced=False)
        page = machine.changed_page("snapshot-x", 2000, 0, since, 10)
        assert [(area.offset, area.end) for area in page.areas] == [(0, 131072)]


@contextmanager
def running_client(site: Path, port: int) -> Iterator[Any]:
    from types import SimpleNamespace

    facts = described(site)
    served: Any = SimpleNamespace(
        host=facts["host"],
        port=port,
        username=facts["username"],
        password=Path(facts["password_file"]).read_text().strip(),
        certificate=Path(facts["certificate"]),
    )
    client = log_in(served)
    content = client.RetrieveContent()
    yield content.rootFolder.childEntity[0].vmFolder.childEntity[0]


def take_snapshot(vm: Any) -> str:
    from pyVim.task import WaitForTask

    task = vm.CreateSnapshot_Task("x", "", False, False)
    WaitForTask(task)
    moref: str = task.info.result._moId
    return moref
