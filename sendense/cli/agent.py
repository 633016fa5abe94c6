"""`sendense agent`: who may connect, and who is connected."""

import re
from pathlib import Path
from typing import Annotated

import typer
from google.protobuf.duration_pb2 import Duration

from sendense.cli import output
from sendense.cli.connection import HubOption, connect, pages
from sendense.cli.errors import CommandFailed, ExitCode
from sendense.cli.files import new_file
from sendense.cli.names import bare_id
from sendense.cli.output import JsonOption
from sendense.v1.agent_pb2 import Agent, InviteAgentRequest, InviteAgentResponse, ListAgentsRequest
from sendense.v1.agent_pb2_grpc import AgentServiceStub

app = typer.Typer(no_args_is_help=True, help="Invite and list agents.")


@app.command()
def invite(
    name: Annotated[str, typer.Argument(help="The new agent's name.")],
    ttl: Annotated[str, typer.Option(metavar="DURATION", help="How long it works: 30m, 1h, 2d.")] = "1h",
    output_file: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Write the join string there instead, mode 0600.")
    ] = None,
    hub: HubOption = "",
    as_json: JsonOption = False,
) -> None:
    """Make a join string for one new agent: it works once, and is shown only now.

    It is a secret. On stdout it stands alone, so that a pipe can take it straight to the agent.

    \b
    Examples:
      sendense agent invite site-1 --output site-1.join
      sendense agent invite site-1 --ttl 30m | ssh appliance sendense-agent join
    """
    request = InviteAgentRequest(display_name=name, ttl=_duration(ttl))
    with connect(hub) as channel:
        stub = AgentServiceStub(channel)
        invitation = _invite_into(output_file, stub, request) if output_file else stub.InviteAgent(request)
    _print_invitation(invitation, output_file, as_json)


@app.command("list")
def list_agents(hub: HubOption = "", as_json: JsonOption = False) -> None:
    """List agents by name."""
    with connect(hub) as channel:
        method = AgentServiceStub(channel).ListAgents
        agents = [agent for page in pages(method, ListAgentsRequest()) for agent in page.agents]
    if as_json:
        output.document({"agents": agents})
    else:
        columns = ("NAME", "CONNECTED", "SEEN", "HOST", "VERSION", "CERTIFICATE UNTIL", "AGENT")
        output.table(columns, map(_row, agents), empty="no agents: `sendense agent invite` makes a join string")


def _invite_into(path: Path, stub: AgentServiceStub, request: InviteAgentRequest) -> InviteAgentResponse:
    # The file comes first: an invitation that cannot be kept is not made.
    with new_file(path) as file:
        invitation = stub.InviteAgent(request)
        file.write(f"{invitation.join_string}\n".encode())
    return invitation


def _duration(text: str) -> Duration:
    parts = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if parts is None:
        raise CommandFailed(f"--ttl {text!r} is no duration; write 30m, 1h or 2d", ExitCode.USAGE)
    return Duration(seconds=int(parts[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[parts[2]])


def _print_invitation(invitation: InviteAgentResponse, output_file: Path | None, as_json: bool) -> None:
    if as_json:
        if output_file is not None:
            invitation.ClearField("join_string")
        output.document(invitation)
        return
    if output_file is None:
        print(invitation.join_string)
    where = "" if output_file is None else f" is in {output_file}; it"
    output.remark(f"the join string{where} works once, until {output.when(invitation.expire_time)}")


def _row(agent: Agent) -> tuple[str, ...]:
    return (
        agent.display_name,
        "yes" if agent.connected else "no",
        output.when(agent.seen_time),
        agent.hostname,
        agent.software_version,
        output.when(agent.certificate_expire_time),
        bare_id(agent.name),
    )
