"""RestoreService: disks out of restore points, and everything that can be missing."""

import asyncio
import os
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from hub import restores, server
from hub.config import HubSettings
from sendense.v1 import restore_pb2
from shared.units import MiB
from tests.hub import live_hub
from tests.hub.live_hub import LiveHub, until
from tests.hub.refusals import refused
from tests.hub.scripted_agent import INCREMENTAL, PATIENCE, ScriptedAgent, vm
from tests.hub.source_disk import SourceDisk

QCOW2 = restore_pb2.DISK_FORMAT_QCOW2


@pytest.fixture
async def chain(hub: LiveHub, agent: ScriptedAgent, disk: SourceDisk) -> list[str]:
    """A full backup and an incremental one, by ID."""
    made = []
    for kind in (1, INCREMENTAL):
        await hub.create(backup_type=kind)
        order = await agent.order()
        await agent.make(order, disk)
        made.append(order.backup_id)
        disk.scribble(2 * MiB)
    return made


def image(hub: LiveHub, backup_id: str) -> Path:
    (found,) = hub.repository.rglob(f"{backup_id}.qcow2")
    return found


def running(program: str) -> list[Path]:
    """Every such program that this process started and that still runs."""
    children = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    processes = [Path("/proc", pid) for file in children for pid in file.read_text().split()]
    return [process for process in processes if _comm(process) == program]


def none_running(program: str) -> Callable[[], Awaitable[bool]]:
    async def none() -> bool:
        return not running(program)

    return none


def _comm(process: Path) -> str:
    try:
        return (process / "comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


async def whole(call: Any) -> list[restore_pb2.ReadDiskResponse]:
    return [message async for message in call]


async def test_the_header_tells_size_and_capacity(hub: LiveHub, chain: list[str], disk: SourceDisk) -> None:
    header = (await whole(hub.read_disk(chain[0])))[0].header
    assert (header.size_bytes, header.capacity_bytes) == (disk.capacity, disk.capacity)


async def test_holes_are_told_and_not_sent(hub: LiveHub, chain: list[str], disk: SourceDisk) -> None:
    end = (await whole(hub.read_disk(chain[0])))[-1].end
    assert end.data_bytes < disk.capacity / 2
    assert end.data_bytes + end.zero_bytes == disk.capacity


async def test_a_qcow2_restore_stands_alone_and_holds_the_same(hub: LiveHub, chain: list[str], tmp_path: Path) -> None:
    restored, source = tmp_path / "restored.qcow2", tmp_path / "source.raw"
    restored.write_bytes(await hub.disk(chain[1], disk_format=QCOW2))
    source.write_bytes(await hub.disk(chain[1]))
    await qemu_img("check", "-f", "qcow2", restored)
    await qemu_img("compare", "-f", "qcow2", "-F", "raw", restored, source)


async def qemu_img(*arguments: str | Path) -> None:
    process = await asyncio.create_subprocess_exec("qemu-img", *arguments)
    assert await asyncio.wait_for(process.wait(), PATIENCE) == 0


async def test_the_staging_folder_is_empty_afterwards(hub: LiveHub, chain: list[str]) -> None:
    await hub.disk(chain[1], disk_format=QCOW2)
    assert list(hub.settings.staging_dir.iterdir()) == []


async def test_what_a_crash_left_in_the_staging_folder_is_deleted(tmp_path: Path) -> None:
    (tmp_path / "staging" / "tmp1").mkdir(parents=True)
    (tmp_path / "staging" / "tmp1" / "disk.qcow2").touch()
    restores.clear(tmp_path / "staging")
    assert not (tmp_path / "staging").exists()


async def test_an_empty_disk_is_one_hole(hub: LiveHub, agent: ScriptedAgent) -> None:
    empty = SourceDisk(3 * MiB)
    await agent.report(vm("vm-1", "web", empty))
    await hub.create()
    order = await agent.order()
    await agent.make(order, empty)
    end = (await whole(hub.read_disk(order.backup_id)))[-1].end
    assert (end.data_bytes, end.zero_bytes) == (0, 3 * MiB)


@pytest.mark.parametrize("index", [1, -1])
async def test_an_unknown_disk_is_not_found(hub: LiveHub, chain: list[str], index: int) -> None:
    refusal = await refused(whole(hub.read_disk(chain[0], index)))
    assert tuple(refusal) == ("NOT_FOUND", "NOT_FOUND", "")
    assert "it has 1, counted from 0" in refusal.message


async def test_an_unknown_format_is_refused(hub: LiveHub, chain: list[str]) -> None:
    refusal = await refused(whole(hub.read_disk(chain[0], disk_format=77)))
    assert tuple(refusal) == ("INVALID_ARGUMENT", "INVALID_REQUEST", "format")


async def test_what_is_no_backups_name_is_refused_by_its_field(hub: LiveHub) -> None:
    request = restore_pb2.ReadDiskRequest(backup="tasks/1")
    refusal = await refused(whole(hub.restores.ReadDisk(request)))
    assert tuple(refusal) == ("INVALID_ARGUMENT", "INVALID_REQUEST", "backup")


async def test_an_unknown_backup_is_not_found(hub: LiveHub) -> None:
    assert tuple(await refused(whole(hub.read_disk("unknown")))) == ("NOT_FOUND", "NOT_FOUND", "")


async def test_a_backup_that_is_not_complete_is_refused(hub: LiveHub, agent: ScriptedAgent, disk: SourceDisk) -> None:
    await hub.create()
    order = await agent.order()
    await agent.send(order, disk)
    refusal = await refused(whole(hub.read_disk(order.backup_id)))
    assert tuple(refusal) == ("FAILED_PRECONDITION", "NOT_POSSIBLE_NOW", "")


@pytest.mark.parametrize("disk_format", [1, QCOW2])
async def test_a_missing_image_is_named(hub: LiveHub, chain: list[str], disk_format: Any) -> None:
    image(hub, chain[1]).unlink()
    refusal = await refused(whole(hub.read_disk(chain[1], disk_format=disk_format)))
    assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "REPOSITORY_UNAVAILABLE")
    assert f"{chain[1]}.qcow2 is not in the repository" in refusal.message


@pytest.mark.parametrize("disk_format", [1, QCOW2])
async def test_a_missing_parent_is_named(hub: LiveHub, chain: list[str], disk_format: Any) -> None:
    image(hub, chain[0]).unlink()
    refusal = await refused(whole(hub.read_disk(chain[1], disk_format=disk_format)))
    assert (refusal.code, refusal.reason, refusal.domain) == ("DATA_LOSS", "DATA_LOSS", "sendense")
    assert f"{chain[0]}.qcow2" in refusal.message


async def test_a_missing_repository_is_unavailable(hub: LiveHub, chain: list[str]) -> None:
    hub.repository.rename(hub.repository.with_name("elsewhere"))
    assert (await refused(whole(hub.read_disk(chain[1])))).code == "UNAVAILABLE"


@pytest.mark.parametrize("disk_format", [1, QCOW2])
async def test_a_damaged_image_ends_without_an_end(hub: LiveHub, chain: list[str], disk_format: Any) -> None:
    damaged = image(hub, chain[0])
    with damaged.open("r+b") as file:
        file.seek(65536)  # the first frame begins behind the header
        file.write(b"no frame")
    assert (await refused(whole(hub.read_disk(chain[0], disk_format=disk_format)))).code == "DATA_LOSS"


@pytest.fixture
async def large(hub: LiveHub, agent: ScriptedAgent) -> str:
    """A backup of a disk with more bytes than gRPC takes in ahead of its reader."""
    disk = SourceDisk(32 * MiB)
    disk.write(0, random.Random(1).randbytes(disk.capacity))
    await agent.report(vm("vm-1", "web", disk))
    await hub.create()
    order = await agent.order()
    await agent.make(order, disk)
    return order.backup_id


async def test_a_caller_who_leaves_takes_qemu_nbd_along(hub: LiveHub, large: str) -> None:
    for _ in range(5):
        call = hub.read_disk(large)
        await call.read()
        assert running("qemu-nbd")
        call.cancel()
        await until(none_running("qemu-nbd"))


async def test_a_refusal_leaves_no_qemu_nbd(hub: LiveHub, chain: list[str]) -> None:
    image(hub, chain[0]).unlink()
    await refused(whole(hub.read_disk(chain[1])))
    assert not running("qemu-nbd")


@pytest.fixture
def qemu_img_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a shell script in the place of `qemu-img`."""

    def does(script: str) -> None:
        program = tmp_path / "programs" / "qemu-img"
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o700)
        monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)

    return does


@pytest.fixture
def slow_qemu_img(qemu_img_does: Callable[[str], None]) -> None:
    """A `qemu-img` that takes a minute, and has written a part by then."""
    qemu_img_does('for target; do :; done; echo part > "$target"; exec sleep 60')


async def converting(hub: LiveHub, backup_id: str) -> Any:
    """A QCOW2 restore in the middle of its conversion."""

    async def begun() -> bool:
        return bool(running("sleep")) and staged(hub)

    call = hub.read_disk(backup_id, disk_format=QCOW2)
    await asyncio.sleep(0)
    await until(begun)
    return call


def staged(hub: LiveHub) -> bool:
    return any(hub.settings.staging_dir.glob("*/*"))


@pytest.mark.usefixtures("slow_qemu_img")
async def test_a_caller_who_leaves_ends_the_conversion(hub: LiveHub, chain: list[str]) -> None:
    async def nothing_left() -> bool:
        return not running("sleep") and not list(hub.settings.staging_dir.iterdir())

    call = await converting(hub, chain[1])
    call.cancel()
    await until(nothing_left)


@pytest.mark.usefixtures("slow_qemu_img")
async def test_a_hub_that_stops_ends_the_conversion(
    settings: HubSettings, folder: Path, disk: SourceDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "DRAIN", 0.5)
    async with live_hub.running(settings, folder / "repository") as hub:
        await hub.add_repository("default", hub.repository)
        agent = await hub.new_agent()
        await agent.report(vm("vm-1", "web", disk))
        await hub.create()
        order = await agent.order()
        await agent.make(order, disk)
        call = await converting(hub, order.backup_id)
        stopping = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - stopping < PATIENCE / 2
    await until(none_running("sleep"))
    call.cancel()


async def test_a_full_staging_disk_is_no_damage(
    hub: LiveHub, chain: list[str], qemu_img_does: Callable[[str], None]
) -> None:
    qemu_img_does("echo 'qemu-img: error while writing: No space left on device' >&2; exit 1")
    refusal = await refused(whole(hub.read_disk(chain[1], disk_format=QCOW2)))
    assert tuple(refusal) == ("RESOURCE_EXHAUSTED", "LIMIT_REACHED", "")


async def test_several_restores_of_one_image_run_at_once(hub: LiveHub, chain: list[str], disk: SourceDisk) -> None:
    contents = await asyncio.gather(*(hub.disk(chain[1]) for _ in range(4)))
    assert len(set(contents)) == 1
