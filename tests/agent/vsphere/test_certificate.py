"""The pinned certificate: that one and no other, wherever the server is."""

import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from agent.simulator.server import RunningSite, running
from agent.vsphere.certificate import pin
from shared.errors import NotAuthenticated, SourceUnavailable


@pytest.fixture
def other(tmp_path: Path) -> Iterator[RunningSite]:
    with running(tmp_path / "other") as other:
        yield other


def handshake(context: ssl.SSLContext, port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), 5) as plain, context.wrap_socket(plain):
        pass


def test_the_pinned_server_is_trusted(site: RunningSite) -> None:
    handshake(pin(site.host, site.port, site.thumbprint_sha256, 5).context, site.port)


@pytest.mark.parametrize("spelling", [str.lower, str.upper, lambda text: text.replace(":", "")])
def test_the_spelling_of_the_thumbprint_does_not_matter(site: RunningSite, spelling: Callable[[str], str]) -> None:
    assert pin(site.host, site.port, spelling(site.thumbprint_sha256), 5).sha1 == site.thumbprint_sha1


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_another_certificate_is_refused_on_loopback_too(site: RunningSite, other: RunningSite, host: str) -> None:
    with pytest.raises(NotAuthenticated, match=site.thumbprint_sha256):
        pin(host, site.port, other.thumbprint_sha256, 5)


def test_a_server_that_takes_the_pinned_ones_place_is_refused(site: RunningSite, other: RunningSite) -> None:
    context = pin(site.host, site.port, site.thumbprint_sha256, 5).context
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(context, other.port)


def test_a_closed_port_is_said_with_its_number(site: RunningSite) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(SourceUnavailable, match=f"127.0.0.1:{port}"):
        pin("127.0.0.1", port, site.thumbprint_sha256, 5)


def test_a_server_that_says_nothing_is_given_up(site: RunningSite) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        with pytest.raises(SourceUnavailable, match="timed out"):
            pin("127.0.0.1", silent.getsockname()[1], site.thumbprint_sha256, 0.2)
