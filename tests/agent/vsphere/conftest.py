"""A simulated site per test, and a session with it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.simulator.server import RunningSite, running
from agent.vsphere.ledger import Ledger
from agent.vsphere.session import VSphereSession, connect
from tests.agent.vsphere.sites import vcenter_settings


@pytest.fixture
def site(tmp_path: Path) -> Iterator[RunningSite]:
    """Two VMs with blank disks: web01 (two) and db01 (one)."""
    with running(tmp_path / "site") as site:
        yield site


@pytest.fixture
def session(site: RunningSite) -> Iterator[VSphereSession]:
    with connect(vcenter_settings(site)) as session:
        yield session


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger")
