"""vCenter's certificate: fetched, compared with the pinned SHA-256, and from then on the only one that is trusted.

pyVmomi's own `thumbprint` is not used: on loopback, and with verification disabled, it lets any certificate pass.
"""

import hashlib
import ssl
from dataclasses import dataclass

from shared.errors import NotAuthenticated, SourceUnavailable


@dataclass(frozen=True, slots=True)
class Pinned:
    """What proves the server, for pyVmomi and for VDDK."""

    context: ssl.SSLContext
    """Accepts the pinned certificate and no other."""
    sha1: str
    """SHA-1 of the same certificate, 'AB:CD:…': the form that VDDK compares."""


def pin(server: str, port: int, sha256: str, timeout: float) -> Pinned:
    """Fetch the certificate of `server` and trust it if it is the one with this SHA-256.

    Raises SourceUnavailable when nothing answers within `timeout` seconds, NotAuthenticated on another certificate.
    """
    certificate = _fetch(server, port, timeout)
    presented = hashlib.sha256(certificate).hexdigest()
    if presented != _plain(sha256):
        raise NotAuthenticated(
            f"{server}:{port} presents another certificate than the pinned one: its SHA-256 is {_colons(presented)}; "
            "if it was replaced on purpose, set [vcenter] thumbprint to that, else somebody stands in between",
            server=server,
        )
    return Pinned(_trusting_only(certificate), _colons(hashlib.sha1(certificate, usedforsecurity=False).hexdigest()))


def _fetch(server: str, port: int, timeout: float) -> bytes:
    try:
        return ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate((server, port), timeout=timeout))
    except OSError as error:
        raise SourceUnavailable(
            f"cannot reach vCenter at {server}:{port} ({error}): check [vcenter] server and port, and that the "
            "network lets this machine through",
            server=server,
        ) from error


def _trusting_only(certificate: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # The certificate itself is compared, so it may bear another name and may have been signed by anybody.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cadata=certificate)
    return context


def _plain(thumbprint: str) -> str:
    return thumbprint.replace(":", "").lower()


def _colons(digest: str) -> str:
    return ":".join(digest[at : at + 2] for at in range(0, len(digest), 2)).upper()
