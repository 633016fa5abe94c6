"""Errors on their way out: every status whole, and nothing said of what was not foreseen."""

from typing import Any

import grpc
import pytest
from google.rpc import code_pb2

from hub.backups import Backups
from hub.catalogue import vms
from hub.rpc.errors import DOMAIN, status_of
from sendense.v1 import backup_pb2, vm_pb2
from shared.errors import InvalidRequest, NotFound, SendenseError, error_classes
from tests.hub.live_hub import LiveHub
from tests.hub.refusals import refused
from tests.hub.scripted_agent import ScriptedAgent

SECRET = "hunter2"


async def exploding(*_: object, **__: object) -> Any:
    raise RuntimeError(f"password is {SECRET}")


@pytest.mark.parametrize("error", list(error_classes()), ids=lambda error: error.__name__)
def test_every_error_has_a_status_a_reason_and_the_domain(error: type[SendenseError]) -> None:
    status = status_of(error("what went wrong"))
    assert code_pb2.Code.Name(status.code) == error.status in {code.name for code in grpc.StatusCode}
    assert status.message == "what went wrong"
    assert error.reason.encode() in status.details[0].value
    assert DOMAIN.encode() in status.details[0].value


def test_a_field_becomes_a_violation() -> None:
    assert len(status_of(InvalidRequest("wrong", field="vm_id")).details) == 2


def test_facts_travel_with_the_error() -> None:
    assert b"vm-1" in status_of(NotFound("there is none", vm="vm-1")).details[0].value


async def test_an_unexpected_exception_is_internal_without_detail_and_logged(
    hub: LiveHub, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(vms, "list_vms", exploding)
    refusal = await refused(hub.vms.ListVms(vm_pb2.ListVmsRequest()))
    assert (*refusal, refusal.domain) == ("INTERNAL", "INTERNAL", "", "sendense")
    assert SECRET not in refusal.message
    assert SECRET in "".join(capfd.readouterr())


async def test_an_unexpected_exception_in_a_stream_is_internal_without_detail(
    hub: LiveHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hub.catalogue.backups.get", exploding)

    async def read() -> None:
        async for _ in hub.read_disk("some"):
            pass

    refusal = await refused(read())
    assert (refusal.code, SECRET in refusal.message) == ("INTERNAL", False)


async def test_an_unexpected_exception_on_the_agents_port_is_internal_without_detail(
    hub: LiveHub, agent: ScriptedAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Backups, "finish", exploding)
    refusal = await refused(agent.finish("some"))
    assert (refusal.code, refusal.reason, SECRET in refusal.message) == ("INTERNAL", "INTERNAL", False)
    assert (await refused(agent.commit("unknown", consistency=1))).code == "NOT_FOUND"


async def test_a_message_too_long_for_a_trailer_keeps_its_status(hub: LiveHub) -> None:
    request = backup_pb2.GetBackupRequest(name="backups/" + "é" * 100_000)
    assert tuple(await refused(hub.backups.GetBackup(request))) == ("NOT_FOUND", "NOT_FOUND", "")


def test_the_middle_of_a_long_message_is_left_out() -> None:
    status = status_of(SendenseError("begin" + "x" * 10_000 + "end"))
    assert (status.message[:5], status.message[-3:], len(status.message) < 1000) == ("begin", "end", True)
