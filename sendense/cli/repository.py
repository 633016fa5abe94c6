"""`sendense repository`: the places for images."""

from typing import Annotated

import grpc
import typer

from sendense.cli import output
from sendense.cli.connection import HubOption, connect, pages
from sendense.cli.errors import CommandFailed, ExitCode
from sendense.cli.names import bare_id
from sendense.cli.output import NOTHING, JsonOption
from sendense.v1.repository_pb2 import CreateRepositoryRequest, ListRepositoriesRequest, Repository
from sendense.v1.repository_pb2_grpc import RepositoryServiceStub

app = typer.Typer(no_args_is_help=True, help="Add and list repositories.")

RepositoryOption = Annotated[str, typer.Option("--repository", metavar="NAME_OR_ID", show_default=False)]


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="What to call it.")],
    path: Annotated[str, typer.Argument(help="Absolute path of the folder, on the hub's machine.")],
    hub: HubOption = "",
    as_json: JsonOption = False,
) -> None:
    """Add a repository. An empty or missing folder is made one; one that already is a repository is taken as it is."""
    with connect(hub) as channel:
        request = CreateRepositoryRequest(display_name=name, path=path)
        added = RepositoryServiceStub(channel).CreateRepository(request)
    if as_json:
        output.document(added)
    else:
        output.line(f"repository {added.display_name} ({bare_id(added.name)}) is at {added.path}")


@app.command("list")
def list_repositories(hub: HubOption = "", as_json: JsonOption = False) -> None:
    """List repositories by name, with their space."""
    with connect(hub) as channel:
        repositories = _repositories(channel)
    if as_json:
        output.document({"repositories": repositories})
    else:
        columns = ("NAME", "PATH", "AVAILABLE", ">STORED", ">FREE", ">CAPACITY", "REPOSITORY")
        output.table(columns, map(_row, repositories), empty="no repositories: `sendense repository add` makes one")


def repository_id(channel: grpc.Channel, text: str) -> str:
    """The ID of the repository with this name or ID; '' stays ''. Raises CommandFailed when there is none."""
    wanted = text.removeprefix("repositories/")
    if not wanted:
        return ""
    repositories = _repositories(channel)
    by_name = [repository for repository in repositories if repository.display_name == text]
    by_id = [repository for repository in repositories if bare_id(repository.name) == wanted]
    for repository in by_name + by_id:
        return bare_id(repository.name)
    raise CommandFailed(f"no repository has the name or ID {text!r}", ExitCode.NOT_FOUND)


def repository_names(channel: grpc.Channel) -> dict[str, str]:
    """Repositories' names by their IDs, for tables."""
    return {bare_id(repository.name): repository.display_name for repository in _repositories(channel)}


def _repositories(channel: grpc.Channel) -> list[Repository]:
    method = RepositoryServiceStub(channel).ListRepositories
    return [found for page in pages(method, ListRepositoriesRequest()) for found in page.repositories]


def _row(repository: Repository) -> tuple[str, ...]:
    sizes = repository.stored_bytes, repository.free_bytes, repository.capacity_bytes
    return (
        repository.display_name,
        repository.path,
        "yes" if repository.available else "NO",
        *(output.size(value) if repository.available else NOTHING for value in sizes),
        bare_id(repository.name),
    )
