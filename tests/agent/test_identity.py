"""The agent's identity: kept whole or not at all, and for nobody else's eyes."""

from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from agent import identity
from agent.identity import Identity, key_pem, new_key, signing_request
from shared.errors import AlreadyExists, NotAuthenticated
from tests.agent.scripted_hub import identity_for, made


@pytest.fixture
def mine(tmp_path: Path) -> Identity:
    return identity_for(made(tmp_path), "hub.example.org:8443")


def test_what_is_stored_is_loaded(tmp_path: Path, mine: Identity) -> None:
    identity.store(tmp_path, mine)
    assert identity.load(tmp_path) == mine


def test_the_agents_id_is_what_its_certificate_says(mine: Identity) -> None:
    assert mine.agent_id == "agent-1"


def test_nobody_else_can_read_it(tmp_path: Path, mine: Identity) -> None:
    identity.store(tmp_path, mine)
    folder = tmp_path / "identity"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


def test_a_second_one_is_refused_and_the_first_stands(tmp_path: Path, mine: Identity) -> None:
    identity.store(tmp_path, mine)
    other = Identity("elsewhere:1", mine.ca_certificate, mine.certificate, mine.key)
    with pytest.raises(AlreadyExists, match="remove it to join anew"):
        identity.store(tmp_path, other)
    assert identity.load(tmp_path) == mine


def test_without_one_the_way_to_get_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotAuthenticated, match="sendense-agent join"):
        identity.load(tmp_path)


def test_a_crash_while_it_is_stored_leaves_none_and_does_not_stand_in_the_way(
    tmp_path: Path, mine: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(path: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "rename", crash)
        identity.store(tmp_path, mine)
    with pytest.raises(NotAuthenticated):
        identity.load(tmp_path)
    identity.store(tmp_path, mine)
    assert identity.load(tmp_path) == mine


def test_the_state_folder_is_made(tmp_path: Path, mine: Identity) -> None:
    identity.store(tmp_path / "var" / "agent", mine)
    assert identity.load(tmp_path / "var" / "agent") == mine


def test_printing_it_shows_the_address_alone(mine: Identity) -> None:
    assert f"{mine} {mine!r}" == "Identity(address='hub.example.org:8443') Identity(address='hub.example.org:8443')"


def test_a_signing_request_is_signed_with_its_own_key() -> None:
    key = new_key()
    request = x509.load_der_x509_csr(signing_request(key))
    assert request.is_signature_valid
    assert request.public_key() == key.public_key()


def test_a_key_survives_being_written() -> None:
    key = new_key()
    read = serialization.load_pem_private_key(key_pem(key), password=None)
    assert read.public_key() == key.public_key()
