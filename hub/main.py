"""`sendense-hub`: set a hub up, check its configuration, run it."""

import asyncio
import os
from pathlib import Path
from typing import Annotated, Optional

import typer

from hub import server
from hub.authority import Authority
from hub.catalogue import repositories, schema
from hub.catalogue.engine import Catalogue
from hub.catalogue.ids import new_id
from hub.config import HubSettings
from hub.files import storage_errors
from hub.repositories import Repositories
from sendense import __version__
from shared import logs
from shared.allocator import keep_blocks
from shared.config import load
from shared.errors import SendenseError

DEFAULT_CONFIG = Path("/etc/sendense/hub.toml")

FIRST_REPOSITORY = "default"

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # they show local variables, secrets among them
    help="The Sendense hub: keeps restore points.",
)
config_app = typer.Typer(no_args_is_help=True, help="The configuration.")
database_app = typer.Typer(no_args_is_help=True, help="The catalogue's database.")
app.add_typer(config_app, name="config")
app.add_typer(database_app, name="database")

Config = Annotated[
    Optional[Path],  # noqa: UP045 - typer reads the annotation at run time
    typer.Option("--config", "-c", help=f"Configuration file; default {DEFAULT_CONFIG} where it exists."),
]


@app.command()
def serve(config: Config = None) -> None:
    """Run the hub until SIGTERM."""
    settings = _settings(config)
    keep_blocks()
    logs.set_up(settings.log.level)
    asyncio.run(server.serve(settings))


@app.command()
def init(
    config: Config = None,
    repository: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder of a first repository, absolute; it is named `default`."),
    ] = None,
) -> None:
    """Make the hub's keys, certificate authority, database and, if wanted, a first repository."""
    settings = _settings(config)
    asyncio.run(_init(settings, repository))
    typer.echo(f"The hub's state is in {settings.state_dir}. Start it with `sendense-hub serve`.")


async def _init(settings: HubSettings, repository: Path | None) -> None:
    """What cannot be made twice comes last: an `init` that failed half-way is run again."""
    with storage_errors(settings.state_dir):
        Authority.refuse_second(settings.pki_dir)
        settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    await schema.upgrade(settings.database_url)
    if repository is not None:
        await _add_first(settings, repository)
    with storage_errors(settings.state_dir):
        (settings.state_dir / "hub-id").write_text(new_id() + "\n")
        Authority.create(settings.pki_dir)


async def _add_first(settings: HubSettings, path: Path) -> None:
    """Add the first repository, unless an earlier `init` has done so before it failed."""
    catalogue = await Catalogue.open(settings.database_url)
    try:
        async with catalogue.reading() as session:
            known = await repositories.list_repositories(session)
        real = await asyncio.to_thread(os.path.realpath, path)
        if not any((one.name, one.path) == (FIRST_REPOSITORY, real) for one in known):
            await Repositories(catalogue).add(FIRST_REPOSITORY, path)
    finally:
        await catalogue.close()


@config_app.command("check")
def config_check(config: Config = None) -> None:
    """Say whether the configuration is valid, and show what is in force."""
    settings = _settings(config)
    typer.echo(settings.model_dump_json(indent=2, exclude={"database": {"url"}}))
    typer.echo("The configuration is valid.", err=True)


@database_app.command("upgrade")
def database_upgrade(config: Config = None) -> None:
    """Bring the catalogue's tables to this version, after an upgrade of the software."""
    asyncio.run(schema.upgrade(_settings(config).database_url))


def _settings(config: Path | None) -> HubSettings:
    if config is None and DEFAULT_CONFIG.exists():
        config = DEFAULT_CONFIG
    return load(HubSettings, config)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sendense-hub {__version__}")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")]


@app.callback()
def _root(version: Version = False) -> None:
    pass


def main() -> None:
    """Entry point: our errors are one line and exit status 1."""
    try:
        app()
    except SendenseError as error:
        typer.echo(f"sendense-hub: {error.message}", err=True)
        raise SystemExit(1) from None
