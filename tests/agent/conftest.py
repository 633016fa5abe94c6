"""A hub, a simulated vCenter, and an agent enrolled between them."""

import asyncio
import random
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from agent import identity
from agent.config import AgentSettings, BackupSection
from agent.hub_client import enroll
from agent.identity import Identity
from agent.simulator.server import RunningSite
from agent.simulator.server import running as simulated
from shared.join import parse
from shared.units import SECTOR, MiB
from tests.agent.appliance import Appliance, ScriptedDisks
from tests.agent.vsphere.sites import described, vcenter_settings, vddk_settings, vm_with
from tests.hub.live_hub import LiveHub, copied, initialise, running, settings_in


@pytest.fixture(scope="session")
def initialised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state folder of a hub that was just set up."""
    folder = tmp_path_factory.mktemp("hub")
    asyncio.run(initialise(settings_in(folder)))
    return folder / "state"


@pytest.fixture
async def hub(initialised: Path) -> AsyncIterator[LiveHub]:
    """A running hub with one repository; its folder's path is short enough for a unix socket."""
    with tempfile.TemporaryDirectory(prefix="hub-") as name:
        folder = Path(name)
        copied(initialised, folder / "state")
        settings = settings_in(folder, agents={"heartbeat_interval": 0.1})
        async with running(settings, folder / "repository") as live:
            live.repository_id = await live.add_repository("default", live.repository)
            yield live


@pytest.fixture
async def enrolled(hub: LiveHub) -> Identity:
    return await asyncio.to_thread(enroll, parse(await hub.invite("appliance")))


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[RunningSite]:
    """Tracked VMs with noise on their disks: web01 (three) and db01 (one)."""
    vms = (
        vm_with("web01", 3 * MiB, 2 * MiB + SECTOR, MiB, change_tracking=True),
        vm_with("db01", 2 * MiB, change_tracking=True),
    )
    noise = random.Random(1)
    with simulated(tmp_path / "site", described(*vms)) as site:
        for vm in site.site.vms:
            for disk in vm.disks:
                disk.write(MiB // 2, noise.randbytes(disk.record.capacity - MiB // 2))
        yield site


@pytest.fixture
def section() -> BackupSection:
    """[backup] of the agent; a test may say otherwise."""
    return BackupSection(request_size=MiB // 4)


@pytest.fixture
def appliance(
    hub: LiveHub, enrolled: Identity, machines: RunningSite, section: BackupSection, tmp_path: Path
) -> Appliance:
    """An agent that has joined the hub."""
    identity.store(tmp_path / "agent", enrolled)
    settings = AgentSettings(
        state_dir=tmp_path / "agent",
        vcenter=vcenter_settings(machines),
        vddk=vddk_settings(machines),
        backup=section,
    )
    return Appliance(hub, machines, settings, enrolled)


@pytest.fixture
def disks(machines: RunningSite, monkeypatch: pytest.MonkeyPatch) -> ScriptedDisks:
    """Disks that are read as the test wants."""
    scripted = ScriptedDisks(machines)
    monkeypatch.setattr("agent.backup.opened", scripted)
    return scripted
