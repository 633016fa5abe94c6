"""The join string: all that a new agent needs to enrol, in one line of text.

    sendense1.<address>.<CA certificate>.<client certificate>.<client key>.<check>

Each part is base64url without padding; certificates and key are DER, the check is the beginning of the BLAKE3 of all
that stands before it: a string that was cut off or mistyped is known at once. The client certificate is good for one
Enroll call.

It carries a certificate and not a bare token because the agents' port asks every caller for one: so an agent never
needs a second port, and the secret (the key) never crosses the wire.
"""

from base64 import b64encode, urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from ssl import DER_cert_to_PEM_cert

from shared.digests import digest
from shared.errors import InvalidRequest

PREFIX = "sendense1"

CHECK_SIZE = 6
"""Bytes."""

AGENT_URI = "spiffe://sendense/agent/"
"""An agent's identity: this and its ID, as URI in the certificate's SAN."""

INVITATION_URI = "spiffe://sendense/invitation/"
"""An invitation's identity, likewise."""


@dataclass(frozen=True, slots=True)
class JoinString:
    """The parts of a join string. A secret: `repr` shows the address alone."""

    address: str
    """`host:port` of the hub's agents' port."""
    ca_certificate: bytes
    certificate: bytes
    key: bytes

    def __repr__(self) -> str:
        return f"JoinString(address={self.address!r})"

    def ca_pem(self) -> bytes:
        """The hub's CA certificate as PEM."""
        return DER_cert_to_PEM_cert(self.ca_certificate).encode()

    def client_pem(self) -> tuple[bytes, bytes]:
        """The invitation's certificate and key as PEM."""
        key = b64encode(self.key).decode()
        return (
            DER_cert_to_PEM_cert(self.certificate).encode(),
            f"-----BEGIN PRIVATE KEY-----\n{key}\n-----END PRIVATE KEY-----\n".encode(),
        )

    def text(self) -> str:
        """The one line."""
        parts = (self.address.encode(), self.ca_certificate, self.certificate, self.key)
        text = ".".join([PREFIX, *map(_encoded, parts)])
        return f"{text}.{_check(text)}"


def parse(text: str) -> JoinString:
    """Take a join string apart; raises InvalidRequest without repeating any of it."""
    checked, _, check = text.strip().rpartition(".")
    prefix, *parts = checked.split(".")
    if prefix != PREFIX:
        raise InvalidRequest("this is not a join string: make one with `sendense agent invite NAME`")
    if len(parts) != 4 or check != _check(checked):
        raise InvalidRequest("the join string is damaged: copy it whole, or make a new one")
    address, *certificates = [urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in parts]
    return JoinString(address.decode(), *certificates)


def _encoded(part: bytes) -> str:
    return urlsafe_b64encode(part).decode().rstrip("=")


def _check(text: str) -> str:
    return _encoded(digest(text.encode())[:CHECK_SIZE])
