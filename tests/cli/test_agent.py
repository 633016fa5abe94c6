"""`sendense agent`."""

import json
import stat
from pathlib import Path

import grpc
import pytest

from sendense.v1.agent_pb2 import Agent, InviteAgentResponse, ListAgentsResponse
from tests.cli.conftest import Command, rows
from tests.cli.scripted_hub import Refusal, ScriptedHub

INVITATION = InviteAgentResponse(join_string="secret-join-string")


def test_invite_prints_the_join_string_alone_on_stdout(hub: ScriptedHub, sendense: Command) -> None:
    hub.on("InviteAgent", INVITATION)
    assert sendense("agent", "invite", "site-1").out == "secret-join-string\n"


def test_invite_into_a_file_makes_it_private_and_keeps_the_secret_off_the_terminal(
    hub: ScriptedHub, sendense: Command, tmp_path: Path
) -> None:
    hub.on("InviteAgent", INVITATION)
    file = tmp_path / "join"
    outcome = sendense("agent", "invite", "site-1", "--output", str(file))
    assert file.read_text() == "secret-join-string\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "secret" not in outcome.out + outcome.err


def test_invite_into_a_file_keeps_the_secret_out_of_the_json(
    hub: ScriptedHub, sendense: Command, tmp_path: Path
) -> None:
    hub.on("InviteAgent", INVITATION)
    outcome = sendense("agent", "invite", "site-1", "--output", str(tmp_path / "join"), "--json")
    assert json.loads(outcome.out)["join_string"] == ""


def test_invite_makes_no_invitation_when_the_file_is_there_already(
    hub: ScriptedHub, sendense: Command, tmp_path: Path
) -> None:
    file = tmp_path / "join"
    file.write_text("mine")
    outcome = sendense("agent", "invite", "site-1", "--output", str(file))
    assert (outcome.status, hub.requests, file.read_text()) == (4, {}, "mine")


def test_a_refused_invitation_leaves_no_file(hub: ScriptedHub, sendense: Command, tmp_path: Path) -> None:
    hub.on("InviteAgent", Refusal(grpc.StatusCode.ALREADY_EXISTS))
    outcome = sendense("agent", "invite", "site-1", "--output", str(tmp_path / "join"))
    assert (outcome.status, list(tmp_path.iterdir())) == (4, [])


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("1h", 3600), ("2d", 172800)])
def test_ttl_takes_seconds_minutes_hours_and_days(text: str, seconds: int, hub: ScriptedHub, sendense: Command) -> None:
    hub.on("InviteAgent", INVITATION)
    sendense("agent", "invite", "site-1", "--ttl", text)
    assert hub.requests["InviteAgent"][0].ttl.seconds == seconds


@pytest.mark.parametrize("text", ["", "1", "h", "1w", "-1h", "1h30m"])
def test_a_ttl_that_is_no_duration_is_a_usage_error(text: str, sendense: Command) -> None:
    assert sendense("agent", "invite", "site-1", "--ttl", text).status == 2


def test_list_shows_who_is_connected(hub: ScriptedHub, sendense: Command) -> None:
    agent = Agent(
        name="agents/a1", display_name="site-1", connected=True, software_version="0.1.0", hostname="appliance"
    )
    hub.on("ListAgents", ListAgentsResponse(agents=[agent]))
    assert rows(sendense("agent", "list").out) == [["site-1", "yes", "-", "appliance", "0.1.0", "-", "a1"]]


def test_list_prints_agents_as_json(hub: ScriptedHub, sendense: Command) -> None:
    hub.on("ListAgents", ListAgentsResponse(agents=[Agent(name="agents/a1")]))
    assert json.loads(sendense("agent", "list", "--json").out)["agents"][0]["name"] == "agents/a1"
