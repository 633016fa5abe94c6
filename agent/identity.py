"""The agent's identity: its key, its certificate and the hub's CA, kept in the state folder.

identity/agent.key   P-256, 0600; made here, never leaves this machine
identity/agent.crt   from the hub, 30 days
identity/ca.crt      the hub's CA: what this agent trusts
identity/hub         host:port of the hub's agents' port
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from shared.errors import AlreadyExists, NotAuthenticated
from shared.join import AGENT_URI


@dataclass(frozen=True, slots=True)
class Identity:
    """What this agent proves itself with; PEM throughout."""

    address: str
    ca_certificate: bytes
    certificate: bytes
    key: bytes

    def __repr__(self) -> str:
        return f"Identity(address={self.address!r})"

    @property
    def agent_id(self) -> str:
        """The ID that the hub gave, as the certificate says it."""
        certificate = x509.load_pem_x509_certificate(self.certificate)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
        return uri.removeprefix(AGENT_URI)


def new_key() -> ec.EllipticCurvePrivateKey:
    """A fresh P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The key as unencrypted PKCS#8."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def signing_request(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A PKCS#10 request (DER) for the key; the hub decides what the certificate says."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sendense-agent")])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.DER)


def load(state_dir: Path) -> Identity:
    """The identity of this agent; raises NotAuthenticated when it has not joined a hub yet."""
    folder = state_dir / "identity"
    try:
        return Identity(
            address=(folder / "hub").read_text().strip(),
            ca_certificate=(folder / "ca.crt").read_bytes(),
            certificate=(folder / "agent.crt").read_bytes(),
            key=(folder / "agent.key").read_bytes(),
        )
    except FileNotFoundError as error:
        raise NotAuthenticated(f"no identity in {folder}: run `sendense-agent join` with a join string") from error


def refuse_second(state_dir: Path) -> None:
    """Raise AlreadyExists when this agent has joined a hub."""
    if (state_dir / "identity").exists():
        raise AlreadyExists(
            f"{state_dir / 'identity'} exists: this agent has joined a hub already; remove it to join anew"
        )


def store(state_dir: Path, identity: Identity) -> None:
    """Keep a new identity: whole or not at all."""
    refuse_second(state_dir)
    staged = state_dir / "identity.partial"
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True, mode=0o700)
    for name, content in (
        ("hub", identity.address.encode()),
        ("ca.crt", identity.ca_certificate),
        ("agent.crt", identity.certificate),
        ("agent.key", identity.key),
    ):
        with os.fdopen(os.open(staged / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
    staged.rename(state_dir / "identity")
