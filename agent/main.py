"""`sendense-agent`: join a hub, check the configuration, run."""

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated, NoReturn, Optional

import typer

from agent import identity
from agent.config import AgentSettings
from agent.hub_client import enroll
from agent.service import serve
from sendense import __version__
from shared import logs
from shared.allocator import keep_blocks
from shared.config import load, read_secret
from shared.errors import SendenseError, TimedOut
from shared.join import parse

DEFAULT_CONFIG = Path("/etc/sendense/agent.toml")

# Typer's own picture of an error would show local variables.
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="The Sendense agent: reads VMs for a hub.",
)
config_app = typer.Typer(no_args_is_help=True, help="The configuration.")
app.add_typer(config_app, name="config")

Config = Annotated[
    Optional[Path],  # noqa: UP045 - typer reads the annotation at run time
    typer.Option("--config", "-c", help=f"Configuration file; default {DEFAULT_CONFIG}."),
]


@app.command()
def run(config: Config = None) -> None:
    """Serve the hub this agent has joined, until SIGTERM."""
    settings = _settings(config)
    keep_blocks()
    logs.set_up(settings.log.level)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    serve(settings, identity.load(settings.state_dir), stop)


@app.command()
def join(
    config: Config = None,
    file: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="File that holds the join string; default: standard input. It is a secret."),
    ] = None,
) -> None:
    """Join a hub with the join string that `sendense agent invite NAME` printed."""
    settings = _settings(config)
    identity.refuse_second(settings.state_dir)
    text = read_secret(file) if file is not None else sys.stdin.readline()
    joined = enroll(parse(text))
    identity.store(settings.state_dir, joined)
    typer.echo(f"Joined the hub at {joined.address} as agent {joined.agent_id}.")


@config_app.command("check")
def config_check(config: Config = None) -> None:
    """Say whether the configuration is valid, and show what is in force."""
    typer.echo(_settings(config).model_dump_json(indent=2))
    typer.echo("The configuration is valid.", err=True)


def _settings(config: Path | None) -> AgentSettings:
    return load(AgentSettings, config or DEFAULT_CONFIG)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sendense-agent {__version__}")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")]


@app.callback()
def _root(version: Version = False) -> None:
    pass


def main() -> None:
    """Entry point: an error is one line. Exit status 78 (EX_CONFIG): it stays until somebody mends it, such as a
    refused password, which must not be tried again; 1: trying again may help."""
    try:
        app()
    except SendenseError as error:
        temporary = error.retry_helps or isinstance(error, TimedOut)
        _end(error.message, 1 if temporary else os.EX_CONFIG)
    except OSError as error:
        _end(str(error), 1)


def _end(message: str, status: int) -> NoReturn:
    typer.echo(f"sendense-agent: {message}", err=True)
    raise SystemExit(status) from None
