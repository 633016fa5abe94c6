"""The hub's certificate authority: who an agent is, proven by certificates of our own CA.

    pki/ca.crt  ca.key          made by `sendense-hub init`, ten years
    pki/server.crt  server.key  the agents' port; made anew at start when old or for another address

All keys are P-256. An agent's certificate says `spiffe://sendense/agent/<id>` in its SAN, an invitation's
`spiffe://sendense/invitation/<id>`; nothing else in a certificate is looked at.
"""

import ipaddress
import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shared.errors import AlreadyExists, InvalidRequest, Unavailable
from shared.join import AGENT_URI, INVITATION_URI

CA_LIFETIME = timedelta(days=3650)
SERVER_LIFETIME = timedelta(days=365)
AGENT_LIFETIME = timedelta(days=30)
CLOCK_SKEW = timedelta(minutes=5)
"""Certificates begin this much before they are made: the two machines' clocks differ."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate, as the catalogue records it."""

    certificate: x509.Certificate

    @property
    def serial(self) -> str:
        return f"{self.certificate.serial_number:x}"

    @property
    def expires_at(self) -> datetime:
        return self.certificate.not_valid_after_utc

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)


class Authority:
    """Issues certificates; opened once by `main` and handed on."""

    def __init__(self, folder: Path) -> None:
        """Open the CA in `folder`; raises Unavailable when there is none."""
        self._folder = folder
        try:
            self.ca = Issued(x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes()))
            self._key = _load_key(folder / "ca.key")
        except FileNotFoundError as error:
            raise Unavailable(f"no certificate authority in {folder}: run `sendense-hub init`") from error

    @classmethod
    def create(cls, folder: Path) -> "Authority":
        """Make a CA; raises AlreadyExists rather than replace one that agents trust."""
        cls.refuse_second(folder)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Sendense hub CA")])
        certificate = (
            _builder(name, CA_LIFETIME, key.public_key())
            .issuer_name(name)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(key, hashes.SHA256())
        )
        _write_key(folder / "ca.key", key)
        (folder / "ca.crt").write_bytes(Issued(certificate).pem)
        return cls(folder)

    @staticmethod
    def refuse_second(folder: Path) -> None:
        """Raise AlreadyExists when there is a CA in `folder`."""
        if (folder / "ca.key").exists():
            raise AlreadyExists(f"there is a certificate authority in {folder} already")

    def server(self, address: str) -> tuple[bytes, bytes]:
        """Key and certificate (PEM) of the agents' port at `host:port`, made anew when they do not fit any more."""
        host = address.rpartition(":")[0].strip("[]")
        certificate_file, key_file = self._folder / "server.crt", self._folder / "server.key"
        if not (key_file.exists() and self._still_good(certificate_file, host)):
            key = ec.generate_private_key(ec.SECP256R1())
            names: list[x509.GeneralName] = [_general_name(host)]
            issued = self._issue("Sendense hub", key.public_key(), SERVER_LIFETIME, names)
            certificate_file.unlink(missing_ok=True)  # a crash in between leaves no key beside another's certificate
            _write_key(key_file, key)
            certificate_file.write_bytes(issued.pem)
        return key_file.read_bytes(), certificate_file.read_bytes()

    def invitation(self, invitation_id: str, lifetime: timedelta) -> tuple[Issued, bytes]:
        """A client certificate that is good for enrolling, and its key (DER)."""
        key = ec.generate_private_key(ec.SECP256R1())
        uri = x509.UniformResourceIdentifier(INVITATION_URI + invitation_id)
        issued = self._issue("Sendense invitation", key.public_key(), lifetime, [uri])
        return issued, key.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def agent(self, agent_id: str, signing_request: bytes) -> Issued:
        """An agent's certificate for the key of a PKCS#10 request (DER); raises InvalidRequest."""
        try:
            request = x509.load_der_x509_csr(signing_request)
            key = request.public_key()
            if not request.is_signature_valid:
                raise InvalidSignature
        except (ValueError, InvalidSignature) as error:
            raise InvalidRequest(
                "not a valid certificate signing request", field="certificate_signing_request"
            ) from error
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise InvalidRequest("the key must be of curve P-256", field="certificate_signing_request")
        uri = x509.UniformResourceIdentifier(AGENT_URI + agent_id)
        return self._issue("Sendense agent", key, AGENT_LIFETIME, [uri])

    def _issue(
        self, title: str, key: ec.EllipticCurvePublicKey, lifetime: timedelta, names: list[x509.GeneralName]
    ) -> Issued:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, title)])
        usage = ExtendedKeyUsageOID.SERVER_AUTH if title == "Sendense hub" else ExtendedKeyUsageOID.CLIENT_AUTH
        return Issued(
            _builder(subject, lifetime, key)
            .issuer_name(self.ca.certificate.subject)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .sign(self._key, hashes.SHA256())
        )

    def _still_good(self, certificate_file: Path, host: str) -> bool:
        if not certificate_file.exists():
            return False
        certificate = x509.load_pem_x509_certificate(certificate_file.read_bytes())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        renew_at = certificate.not_valid_after_utc - SERVER_LIFETIME / 3
        return _general_name(host) in names and datetime.now(UTC) < renew_at


def serial_of(pem: bytes) -> str:
    """A certificate's serial number, as the catalogue records it."""
    return Issued(x509.load_pem_x509_certificate(pem)).serial


def _builder(subject: x509.Name, lifetime: timedelta, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + lifetime)
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise Unavailable(f"{path} does not hold an elliptic-curve key")
    return key


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(pem)
