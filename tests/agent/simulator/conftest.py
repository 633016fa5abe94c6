"""A running site and its clients."""

import os
import ssl
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from pyVim.connect import SmartConnect

from agent.simulator.server import RunningSite, running
from shared.nbd import NbdDisk
from shared.process import ServedProgram, serving

Nbdkit = Callable[..., AbstractContextManager[tuple[ServedProgram, Path]]]


@pytest.fixture
def vcenter(tmp_path: Path) -> Iterator[RunningSite]:
    with running(tmp_path / "site") as served:
        yield served


def pinned(certificate: Path) -> ssl.SSLContext:
    """What an agent does: this very certificate, whoever signed it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cadata=certificate.read_text())
    return context


def log_in(served: RunningSite, password: str | None = None) -> Any:
    """pyVmomi's service instance, logged in."""
    return SmartConnect(
        host=served.host,
        port=served.port,
        user=served.username,
        pwd=served.password if password is None else password,
        sslContext=pinned(served.certificate),
    )


@pytest.fixture
def client(vcenter: RunningSite) -> Any:
    return log_in(vcenter)


@pytest.fixture
def nbdkit(tmp_path: Path) -> Nbdkit:
    """Runs `nbdkit vddk`; gives the program and its socket. Keywords replace the plugin's parameters."""

    @contextmanager
    def start(served: RunningSite, **parameters: object) -> Iterator[tuple[ServedProgram, Path]]:
        folder = tmp_path / f"nbdkit-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        socket, pid = folder / "sock", folder / "pid"
        given = {
            "libdir": served.libdir,
            "server": served.host,
            "port": served.port,
            "user": served.username,
            "password": f"+{served.password_file}",
            "thumbprint": served.thumbprint_sha1,
            "transports": "nbdssl:nbd",
            **parameters,
        }
        command = ["nbdkit", "--foreground", "--readonly", "-U", str(socket), "-P", str(pid), "vddk"]
        words = [*command, *(f"{key}={value}" for key, value in given.items())]
        environment = {**os.environ, "LD_LIBRARY_PATH": str(served.libdir / "lib64")}
        with serving(words, env=environment, secrets=[served.password]) as program:
            program.wait_until(lambda: pid.exists() and pid.read_text().endswith("\n"), 30)
            yield program, socket

    return start


def read_all(disk: NbdDisk) -> bytes:
    """Every byte of an NBD disk, several requests in flight."""
    from shared.extents import Extent, split

    return b"".join(bytes(data) for _, data in disk.read(split([Extent(0, disk.size)], 256 * 1024)))
