"""A simulated site with a VM whose disks hold data, and a snapshot of it."""

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.config import VCenterSection, VddkSection
from agent.disks.vddk import VddkReader, opened
from agent.simulator.server import RunningSite, running
from shared.units import CLUSTER, MiB
from tests.agent.vsphere.sites import vcenter_settings, vddk_settings

MOREF = "snapshot-900"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[RunningSite]:
    """web01 with a snapshot: its first disk half full of noise, in pieces that no boundary favours."""
    with running(tmp_path / "site") as site:
        noise = random.Random(1)
        vm = site.vm("web01")
        for offset in range(100, 8 * MiB - 5 * CLUSTER, 7 * CLUSTER + 512):
            vm.disks[0].write(offset, noise.randbytes(3 * CLUSTER + 77))
        vm.create_snapshot(MOREF, "backup", "", quiesced=False)
        yield site


@dataclass(frozen=True)
class Opener:
    """Opens the first disk of web01 in the snapshot, but for what a test changes."""

    site: RunningSite

    def __call__(
        self,
        *,
        vddk: VddkSection | None = None,
        vcenter: VCenterSection | None = None,
        thumbprint: str = "",
        snapshot: str = MOREF,
        file: str = "",
    ) -> AbstractContextManager[VddkReader]:
        vm = self.site.vm("web01")
        return opened(
            vddk or vddk_settings(self.site),
            vcenter or vcenter_settings(self.site),
            thumbprint or self.site.thumbprint_sha1,
            vm.record.moref,
            snapshot,
            file or vm.disks[0].frozen_file_name(MOREF),
        )


@pytest.fixture
def open_disk(site: RunningSite) -> Opener:
    return Opener(site)


@pytest.fixture
def frozen(site: RunningSite, tmp_path: Path) -> Callable[[], Path]:
    """Exports the frozen first disk to a raw file."""

    def export() -> Path:
        target = tmp_path / "frozen.raw"
        with site.vm("web01").disks[0].frozen(MOREF) as view:
            view.export(target)
        return target

    return export
