"""The join string: all that a new agent needs to enrol, in one line of text.

    sendense1.<address>.<CA certificate>.<client certificate>.<client key>

Each part is base64url without padding; certificates and key are DER. The client certificate is good for one Enroll
call.
It carries a certificate and not a bare token because the agents' port asks every caller for one: so an agent never
needs a second port, and the secret (the key) never crosses the wire.
"""

from base64 import b64encode, urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from ssl import DER_cert_to_PEM_cert

from shared.errors import InvalidRequest

PREFIX = "sendense1"

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
        return ".".join([PREFIX, *(urlsafe_b64encode(part).decode().rstrip("=") for part in parts)])


def parse(text: str) -> JoinString:
    """Take a join string apart; raises InvalidRequest without repeating any of it."""
    prefix, *parts = text.strip().split(".")
    if prefix != PREFIX or len(parts) != 4:
        raise InvalidRequest("this is not a join string: make one with `sendense agent invite NAME`")
    try:
        address, *certificates = [urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in parts]
        return JoinString(address.decode(), *certificates)
    except ValueError as error:
        raise InvalidRequest("the join string is damaged: copy it whole, or make a new one") from error
