"""`sendense restore disk`: what arrives is the disk, or nothing is there."""

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from sendense.v1.restore_pb2 import DataExtent, DiskEnd, DiskFormat, DiskHeader, ReadDiskResponse, ZeroExtent
from tests.cli.conftest import Command
from tests.cli.scripted_hub import Refusal, ScriptedHub

MiB = 2**20
BYTES = b"\xa5" * 65536


def header(size: int) -> ReadDiskResponse:
    return ReadDiskResponse(header=DiskHeader(size_bytes=size, capacity_bytes=size))


def data(offset: int, content: bytes = BYTES) -> ReadDiskResponse:
    return ReadDiskResponse(data=DataExtent(offset=offset, data=content))


def zero(offset: int, length: int) -> ReadDiskResponse:
    return ReadDiskResponse(zero=ZeroExtent(offset=offset, length=length))


def end(data_bytes: int, zero_bytes: int) -> ReadDiskResponse:
    return ReadDiskResponse(end=DiskEnd(data_bytes=data_bytes, zero_bytes=zero_bytes))


SIZE = 64 * MiB + 512
WHOLE = [header(SIZE), data(0), zero(65536, SIZE - 65536 - 512), data(SIZE - 512, b"z" * 512), end(66048, SIZE - 66048)]
CONTENT = BYTES + bytes(SIZE - 66048) + b"z" * 512


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Where to restore to."""
    return tmp_path / "disk.raw"


def restore(sendense: Command, target: Path, *more: str) -> Any:
    return sendense("restore", "disk", "b1", "--disk", "1", "--output", str(target), *more)


def in_process(hub: ScriptedHub, *arguments: str) -> list[str]:
    """The command line of a process of its own."""
    return [sys.executable, "-m", "sendense.cli.main", "--hub", hub.address, "restore", "disk", "b1", *arguments]


def test_the_file_has_the_disks_bytes(hub: ScriptedHub, sendense: Command, target: Path) -> None:
    hub.on("ReadDisk", WHOLE)
    assert restore(sendense, target).status == 0
    assert target.read_bytes() == CONTENT


def test_zeros_stay_holes(hub: ScriptedHub, sendense: Command, target: Path) -> None:
    hub.on("ReadDisk", WHOLE)
    restore(sendense, target)
    assert target.stat().st_blocks * 512 < MiB


def test_a_disk_that_ends_with_zeros_has_its_size(hub: ScriptedHub, sendense: Command, target: Path) -> None:
    hub.on("ReadDisk", [header(MiB), zero(0, MiB), end(0, MiB)])
    restore(sendense, target)
    assert target.stat().st_size == MiB


def test_the_file_is_private_and_alone(hub: ScriptedHub, sendense: Command, target: Path) -> None:
    hub.on("ReadDisk", WHOLE)
    restore(sendense, target)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert list(target.parent.iterdir()) == [target]


def test_the_request_names_backup_disk_and_format(hub: ScriptedHub, sendense: Command, target: Path) -> None:
    hub.on("ReadDisk", WHOLE)
    restore(sendense, target, "--format", "qcow2")
    request = hub.requests["ReadDisk"][0]
    assert (request.backup, request.disk_index, request.format) == ("backups/b1", 1, DiskFormat.DISK_FORMAT_QCOW2)


def test_json_tells_what_was_written(hub: ScriptedHub, sendense: Command, target: Path) -> None:
    hub.on("ReadDisk", WHOLE)
    expected = {"output": str(target), "format": "raw", "size_bytes": str(SIZE)}
    assert json.loads(restore(sendense, target, "--json").out) == expected


DAMAGED = {
    "nothing at all": [],
    "no header": [data(0), end(65536, 0)],
    "no end": [header(65536), data(0)],
    "a gap": [header(3 * 65536), data(0), data(2 * 65536), end(2 * 65536, 0)],
    "a gap that the counts hide": [header(2 * 65536), data(0), data(2 * 65536), end(2 * 65536, 0)],
    "an overlap": [header(2 * 65536), data(0), data(512), data(512 + 65536), end(3 * 65536, 0)],
    "descending extents": [header(2 * 65536), data(65536), data(0), end(2 * 65536, 0)],
    "the tail missing": [header(2 * 65536), data(0), end(65536, 0)],
    "more than the disk": [header(65536), data(0), data(65536), end(2 * 65536, 0)],
    "wrong counts": [header(2 * 65536), data(0), zero(65536, 65536), end(2 * 65536, 0)],
    "an empty extent": [header(65536), zero(0, 0), data(0), end(65536, 0)],
    "a negative extent": [header(65536), zero(0, -512), data(0), end(65536, 0)],
    "a second header": [header(65536), header(65536), data(0), end(65536, 0)],
    "something after its end": [header(65536), data(0), end(65536, 0), data(0)],
    "a message without content": [header(65536), ReadDiskResponse(), data(0), end(65536, 0)],
}


@pytest.mark.parametrize("stream", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_stream_is_data_loss_and_leaves_nothing(
    stream: list[ReadDiskResponse], hub: ScriptedHub, sendense: Command, target: Path
) -> None:
    hub.on("ReadDisk", stream)
    outcome = restore(sendense, target)
    assert (outcome.status, list(target.parent.iterdir())) == (7, [])
    assert "the hub's stream of the disk is damaged: " in outcome.err


@pytest.mark.parametrize("at", range(len(WHOLE) + 1))
def test_an_error_anywhere_in_the_stream_leaves_nothing(
    at: int, hub: ScriptedHub, sendense: Command, target: Path
) -> None:
    hub.on("ReadDisk", [*WHOLE[:at], Refusal(grpc.StatusCode.DATA_LOSS, "an image cannot be read", "READ_FAILED")])
    outcome = restore(sendense, target)
    assert (outcome.status, list(target.parent.iterdir())) == (7, [])
    assert outcome.err.endswith("sendense: an image cannot be read (READ_FAILED)\n")


def test_an_existing_file_is_refused_and_untouched(hub: ScriptedHub, sendense: Command, target: Path) -> None:
    target.write_text("mine")
    outcome = restore(sendense, target)
    assert (outcome.status, hub.requests, target.read_text()) == (4, {}, "mine")


def test_force_replaces_an_existing_file(hub: ScriptedHub, sendense: Command, target: Path) -> None:
    target.write_text("mine")
    hub.on("ReadDisk", WHOLE)
    assert restore(sendense, target, "--force").status == 0
    assert target.read_bytes() == CONTENT


def test_force_keeps_the_existing_file_when_the_restore_fails(
    hub: ScriptedHub, sendense: Command, target: Path
) -> None:
    target.write_text("mine")
    hub.on("ReadDisk", WHOLE[:-1])
    restore(sendense, target, "--force")
    assert target.read_text() == "mine"


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_force_replaces_nothing_but_a_plain_file(make: Any, sendense: Command, target: Path) -> None:
    make(target)
    assert restore(sendense, target, "--force").status == 4


def test_a_file_that_appears_meanwhile_is_not_replaced(hub: ScriptedHub, sendense: Command, target: Path) -> None:
    def stream(request: object) -> Iterator[ReadDiskResponse]:
        yield from WHOLE[:-1]
        target.write_text("mine")
        yield WHOLE[-1]

    hub.on("ReadDisk", stream)
    assert restore(sendense, target).status == 4
    assert (target.read_text(), len(list(target.parent.iterdir()))) == ("mine", 1)


def test_another_restores_unfinished_file_is_refused_and_untouched(
    hub: ScriptedHub, sendense: Command, target: Path
) -> None:
    unfinished = target.with_name("disk.raw.partial")
    unfinished.write_text("theirs")
    hub.on("ReadDisk", WHOLE)
    assert restore(sendense, target).status == 4
    assert unfinished.read_text() == "theirs"


def test_a_folder_that_is_not_there_is_a_clear_error(hub: ScriptedHub, sendense: Command, tmp_path: Path) -> None:
    hub.on("ReadDisk", WHOLE)
    outcome = restore(sendense, tmp_path / "no" / "disk.raw")
    assert (outcome.status, os.strerror(errno.ENOENT) in outcome.err) == (1, True)


def test_a_disk_that_runs_full_is_a_clear_error_and_leaves_nothing(hub: ScriptedHub, target: Path) -> None:
    hub.on("ReadDisk", WHOLE)
    # The system's limit on a file's size, 1024 KiB, stands for the disk's end: the write fails in the same way.
    limited = ["bash", "-c", 'ulimit -f 1024 && exec "$@"', "bash"]
    command = [*limited, *in_process(hub, "--disk", "0", "--output", str(target))]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, list(target.parent.iterdir())) == (1, [])
    assert ended.stderr.endswith(f"sendense: cannot write {target}.partial: {os.strerror(errno.EFBIG)}\n")


def test_stdout_gets_the_whole_raw_disk_with_its_zeros(hub: ScriptedHub) -> None:
    hub.on("ReadDisk", WHOLE)
    command = in_process(hub, "--disk", "0", "--output", "-")
    ended = subprocess.run(command, capture_output=True, check=True, timeout=60)
    assert ended.stdout == CONTENT


def test_a_reader_that_goes_away_is_an_error(hub: ScriptedHub) -> None:
    hub.on("ReadDisk", WHOLE)
    command = in_process(hub, "--disk", "0", "--output", "-")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read().endswith("sendense: cannot write standard output: Broken pipe\n")
    assert process.returncode == 1


@pytest.mark.parametrize("option", [("--format", "qcow2"), ("--json",)], ids=["qcow2", "json"])
def test_what_has_no_place_on_stdout_is_a_usage_error(
    option: tuple[str, ...], hub: ScriptedHub, sendense: Command
) -> None:
    assert restore(sendense, Path("-"), *option).status == 2
    assert hub.requests == {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_an_interrupted_restore_leaves_nothing(number: signal.Signals, hub: ScriptedHub, target: Path) -> None:
    over = threading.Event()

    def stream(request: object) -> Iterator[ReadDiskResponse]:
        yield from WHOLE[:2]
        over.wait(60)

    hub.on("ReadDisk", stream)
    with subprocess.Popen(in_process(hub, "--disk", "0", "--output", str(target)), stderr=subprocess.PIPE) as process:
        try:
            _wait_until(target.with_name("disk.raw.partial").exists)
            process.send_signal(number)
            assert process.wait(30) == 130
        finally:
            process.kill()
            over.set()
    assert list(target.parent.iterdir()) == []


def test_under_nohup_a_restore_outlives_its_terminal(hub: ScriptedHub, target: Path) -> None:
    hung_up = threading.Event()

    def stream(request: object) -> Iterator[ReadDiskResponse]:
        yield from WHOLE[:2]
        hung_up.wait(60)
        yield from WHOLE[2:]

    hub.on("ReadDisk", stream)
    command = ["nohup", *in_process(hub, "--disk", "0", "--output", str(target))]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        _wait_until(target.with_name("disk.raw.partial").exists)
        process.send_signal(signal.SIGHUP)
        hung_up.set()
        assert process.wait(30) == 0
    assert target.read_bytes() == CONTENT


def _wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
