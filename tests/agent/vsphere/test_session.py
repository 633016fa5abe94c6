"""A session with vCenter: proven, kept, and made again when vCenter drops it."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from agent.simulator.certificate import ensure_identity, server_context, thumbprint
from agent.simulator.server import RunningSite, running
from agent.vsphere import session as session_module
from agent.vsphere.certificate import pin
from agent.vsphere.faults import translated
from agent.vsphere.session import VSphereSession, connect
from shared.config import ConfigError
from shared.errors import NotAuthenticated, SourceUnavailable
from tests.agent.vsphere.sites import vcenter_settings


def logins(site: RunningSite) -> int:
    return site.site.calls.methods().count("Login")


def name_of_root(session: VSphereSession) -> str:
    """A call that needs a login."""
    with translated("looking"):
        return str(session.content.rootFolder.name)


def test_it_knows_the_vcenter_and_what_vddk_must_compare(site: RunningSite, session: VSphereSession) -> None:
    assert session.vcenter_id == site.site.record.instance_uuid
    assert session.thumbprint_sha1 == site.thumbprint_sha1


def test_a_wrong_pin_is_refused_before_any_login(site: RunningSite) -> None:
    with pytest.raises(NotAuthenticated, match="another certificate"):
        connect(vcenter_settings(site, thumbprint="AB:" * 31 + "AB"))
    assert site.site.calls.methods() == []


def test_a_server_that_takes_the_place_of_the_pinned_one_gets_no_password(
    site: RunningSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tmp_path / "other") as other:
        # As if it did so after the certificate was compared.
        right = pin(site.host, site.port, site.thumbprint_sha256, 5)
        monkeypatch.setattr(session_module, "pin", lambda *arguments: right)
        with pytest.raises(NotAuthenticated, match="not, or no longer, the pinned one"):
            connect(vcenter_settings(other))
        assert other.site.calls.methods() == []


def test_a_wrong_password_is_said_with_server_and_user_but_without_the_password(
    site: RunningSite, tmp_path: Path
) -> None:
    (tmp_path / "wrong").touch(0o600)
    (tmp_path / "wrong").write_text("hunter2\n")
    with pytest.raises(NotAuthenticated) as caught:
        connect(vcenter_settings(site, password_file=tmp_path / "wrong"))
    error = caught.value
    assert error.message.startswith(f"vCenter {site.host} refuses the login of {site.username}: check ")
    assert "hunter2" not in f"{error.message} {error.facts} {error.__cause__!r}"


def test_a_wrong_password_is_tried_once_only_lest_the_account_be_locked(site: RunningSite, tmp_path: Path) -> None:
    (tmp_path / "wrong").touch(0o600)
    (tmp_path / "wrong").write_text("hunter2\n")
    with pytest.raises(NotAuthenticated):
        connect(vcenter_settings(site, password_file=tmp_path / "wrong"))
    assert logins(site) == 1


def test_a_missing_password_file_is_named(site: RunningSite, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=str(tmp_path / "none")):
        connect(vcenter_settings(site, password_file=tmp_path / "none"))


def test_what_is_no_vcenter_is_said_to_be_none(site: RunningSite, tmp_path: Path) -> None:
    with web_server(tmp_path) as (port, sha256), pytest.raises(SourceUnavailable, match="is not a vCenter"):
        connect(vcenter_settings(site, port=port, thumbprint=sha256))


def test_a_dropped_session_is_made_again_without_notice(site: RunningSite, session: VSphereSession) -> None:
    site.service.sessions.expire_all()
    assert name_of_root(session) == "Datacenters"
    assert logins(site) == 2


def test_threads_that_meet_a_dropped_session_make_one_login_together(
    site: RunningSite, session: VSphereSession
) -> None:
    names: list[str] = []
    site.service.sessions.expire_all()
    threads = [threading.Thread(target=lambda: names.append(name_of_root(session))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names == ["Datacenters"] * 8
    assert logins(site) == 2


def test_a_password_changed_meanwhile_is_read_at_the_next_login(site: RunningSite, tmp_path: Path) -> None:
    (tmp_path / "password").touch(0o600)
    (tmp_path / "password").write_text(site.password)
    with connect(vcenter_settings(site, password_file=tmp_path / "password")) as session:
        (tmp_path / "password").write_text("no longer right")
        site.service.sessions.expire_all()
        with pytest.raises(NotAuthenticated, match="refuses the login"):
            name_of_root(session)
        (tmp_path / "password").write_text(site.password)
        assert name_of_root(session) == "Datacenters"


def test_a_renewed_session_is_another_login_and_leaves_none_behind(site: RunningSite, session: VSphereSession) -> None:
    session.renew()
    name_of_root(session)
    assert logins(site) == 2
    assert len(site.service.sessions.all()) == 1


def test_a_question_whose_answer_is_lost_is_asked_again(
    site: RunningSite, session: VSphereSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_answer(session, "Fetch", monkeypatch)
    assert name_of_root(session) == "Datacenters"


def test_an_order_whose_answer_is_lost_is_not_sent_again(
    site: RunningSite, session: VSphereSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_answer(session, "CreateSnapshot_Task", monkeypatch)
    vm = session.object(vim.VirtualMachine, site.vm("web01").record.moref)
    with pytest.raises(SourceUnavailable), translated("taking a snapshot"):
        vm.CreateSnapshot_Task("name", "", False, False)
    assert site.site.calls.methods().count("CreateSnapshot_Task") == 1


def test_an_idle_session_gives_signs_of_life(site: RunningSite) -> None:
    with connect(vcenter_settings(site, keep_alive=0.05)):
        deadline = time.monotonic() + 10
        while site.site.calls.methods().count("CurrentTime") < 3:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_closing_logs_out_and_may_be_repeated(site: RunningSite) -> None:
    session = connect(vcenter_settings(site))
    session.close()
    session.close()
    assert site.service.sessions.all() == []


def test_closing_does_not_mind_a_vcenter_that_is_gone(tmp_path: Path) -> None:
    with running(tmp_path / "site") as site:
        session = connect(vcenter_settings(site))
    session.close()


def test_a_vcenter_that_goes_away_is_a_source_unavailable(tmp_path: Path) -> None:
    with running(tmp_path / "site") as site:
        session = connect(vcenter_settings(site))
    with session, pytest.raises(SourceUnavailable):
        name_of_root(session)


def lose_answer(session: VSphereSession, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the connection break once after a call of the method has reached vCenter."""
    soap = session._stub.soapStub
    send = soap.InvokeMethod
    losses = iter([ConnectionResetError("reset by peer")])

    def invoke(managed: Any, info: Any, *rest: Any) -> Any:
        answer = send(managed, info, *rest)
        if info.wsdlName == method and (loss := next(losses, None)):
            raise loss
        return answer

    monkeypatch.setattr(soap, "InvokeMethod", invoke)


class NotFoundHandler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, *args: object) -> None:
        """Nothing on the console."""


@contextmanager
def web_server(folder: Path) -> Iterator[tuple[int, str]]:
    """An HTTPS server that is no vCenter: port and SHA-256."""
    ensure_identity(folder)
    server = HTTPServer(("127.0.0.1", 0), NotFoundHandler)
    server.socket = server_context(folder).wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server.server_port, thumbprint(folder / "certificate.pem", "sha256")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
