"""A running hub for each test, an agent of it, and a VM of that agent."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from hub.config import HubSettings
from shared.units import MiB
from tests.hub.live_hub import LiveHub, copied, initialise, running, settings_in
from tests.hub.scripted_agent import ScriptedAgent, vm
from tests.hub.source_disk import SourceDisk


@pytest.fixture(scope="session")
def initialised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state folder of a hub that was just set up."""
    folder = tmp_path_factory.mktemp("hub")
    asyncio.run(initialise(settings_in(folder)))
    return folder / "state"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a path short enough for a unix socket."""
    with tempfile.TemporaryDirectory(prefix="hub-") as path:
        yield Path(path)


@pytest.fixture
def options() -> dict[str, Any]:
    """Sections of the hub's settings; a test module may say otherwise."""
    return {}


@pytest.fixture
def settings(folder: Path, initialised: Path, options: dict[str, Any]) -> HubSettings:
    """Settings of a hub that is set up and does not run."""
    copied(initialised, folder / "state")
    return settings_in(folder, **options)


@pytest.fixture
async def hub(settings: HubSettings, folder: Path) -> AsyncIterator[LiveHub]:
    """A running hub with one repository."""
    async with running(settings, folder / "repository") as live:
        live.repository_id = await live.add_repository("default", live.repository)
        yield live


@pytest.fixture
def disk() -> SourceDisk:
    """A disk with bytes here and there; its last cluster is a short one."""
    disk = SourceDisk(4 * MiB + 512)
    disk.scribble(0, MiB + 4096, 4 * MiB - 512, length=70_000)
    return disk


@pytest.fixture
async def agent(hub: LiveHub, disk: SourceDisk) -> ScriptedAgent:
    """A connected agent that has reported the VM `vm-1`, which has `disk`."""
    agent = await hub.new_agent()
    await agent.report(vm("vm-1", "web", disk))
    return agent
