"""A running site: its folder open, the API listening on loopback, its disks ready for `nbdkit vddk`."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from agent.simulator.certificate import ensure_identity, server_context, thumbprint
from agent.simulator.content import Progress, no_progress
from agent.simulator.control import Control
from agent.simulator.description import BLANK, SiteDescription
from agent.simulator.listener import Listener
from agent.simulator.machine import VirtualMachine
from agent.simulator.service import Service
from agent.simulator.site import Site, open_or_create
from agent.simulator.vddk.broker import Broker, Endpoint
from agent.simulator.vddk.library import build

HOST = "127.0.0.1"


@dataclass(frozen=True)
class RunningSite:
    """How to reach a site that runs, and the site itself."""

    site: Site
    host: str
    port: int
    username: str
    password: str
    password_file: Path
    certificate: Path
    """PEM of the server's certificate, which clients pin."""
    thumbprint_sha1: str
    """As `AA:BB:…`; what `nbdkit vddk thumbprint=` takes."""
    thumbprint_sha256: str
    libdir: Path
    """What `nbdkit vddk libdir=` takes."""
    service: Service

    def vm(self, name: str) -> VirtualMachine:
        """The VM of this name; raises NotFound."""
        return self.site.vm(name)


@contextmanager
def running(
    folder: Path, description: SiteDescription | None = None, *, port: int = 0, progress: Progress = no_progress
) -> Iterator[RunningSite]:
    """Run the site in `folder` inside the `with`; it is made first, from `description`, unless it is there already.

    `port` 0 takes a free one. Everything runs in threads of this process and ends with the `with`.
    """
    site = open_or_create(folder, description or BLANK, progress)
    try:
        with _served(site, port) as served:
            yield served
    finally:
        site.close()


@contextmanager
def _served(site: Site, port: int) -> Iterator[RunningSite]:
    folder = site.folder
    certificate, libdir = folder / "certificate.pem", folder / "vddk"
    ensure_identity(folder)
    build(libdir)
    service = Service(site)
    listener = Listener(service, server_context(folder), port)
    sha1 = thumbprint(certificate, "sha1")
    broker = Broker(site, Endpoint(HOST, listener.port, sha1), libdir)
    control = Control(site)
    try:
        yield RunningSite(
            site=site,
            host=HOST,
            port=listener.port,
            username=site.record.username,
            password=site.password,
            password_file=folder / "password",
            certificate=certificate,
            thumbprint_sha1=sha1,
            thumbprint_sha256=thumbprint(certificate, "sha256"),
            libdir=libdir,
            service=service,
        )
    finally:
        control.close()
        broker.close()
        listener.close()
