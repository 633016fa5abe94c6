"""The certificate authority's files."""

import stat
from pathlib import Path

import pytest

from hub.authority import Authority
from shared.errors import AlreadyExists, Unavailable


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "pki")


def test_keys_are_for_the_hubs_own_user_only(authority: Authority, tmp_path: Path) -> None:
    authority.server("hub.example:8443")
    assert {mode(tmp_path / "pki" / name) for name in ("ca.key", "server.key")} == {0o600}
    assert mode(tmp_path / "pki") == 0o700


def test_a_second_ca_is_refused_and_the_first_one_stays(authority: Authority, tmp_path: Path) -> None:
    with pytest.raises(AlreadyExists):
        Authority.create(tmp_path / "pki")
    assert Authority(tmp_path / "pki").ca.pem == authority.ca.pem


def test_a_missing_ca_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="sendense-hub init"):
        Authority(tmp_path)


def test_the_servers_certificate_is_kept_while_it_fits(authority: Authority) -> None:
    assert authority.server("hub.example:8443") == authority.server("hub.example:9000")


def test_the_servers_certificate_is_made_anew_for_another_address(authority: Authority) -> None:
    assert authority.server("hub.example:8443") != authority.server("[::1]:8443")


def test_the_servers_certificate_is_made_anew_when_its_key_is_gone(authority: Authority, tmp_path: Path) -> None:
    before = authority.server("hub.example:8443")
    (tmp_path / "pki" / "server.key").unlink()
    assert authority.server("hub.example:8443") != before
