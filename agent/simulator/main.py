"""The program `sendense-simulator`: runs a site in the foreground, or acts as the guest of one that runs."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, TextColumn
from rich.progress import Progress as Bars
from rich.table import Table

from agent.simulator.content import Progress
from agent.simulator.control import connected
from agent.simulator.description import SiteDescription
from agent.simulator.server import RunningSite, running
from agent.simulator.site import write_private
from shared import logs
from shared.config import load
from shared.errors import SendenseError
from shared.units import MiB, human_size

DEMO = Path(__file__).with_name("demo.toml")
CONNECTION = "connection.json"
CHUNK = 1 * MiB
PLAIN_WIDTH = 160
"""Columns of a table that goes to a file or a pipe."""

app = typer.Typer(help="A vSphere site to try Sendense against.", no_args_is_help=True)
guest = typer.Typer(help="Act as the guest: use a VM's disk as a program inside it would.", no_args_is_help=True)
vm_app = typer.Typer(help="Look at the VMs.", no_args_is_help=True)
snapshot_app = typer.Typer(help="Look at the snapshots.", no_args_is_help=True)
app.add_typer(guest, name="guest")
app.add_typer(vm_app, name="vm")
app.add_typer(snapshot_app, name="snapshot")

SiteOption = Annotated[Path, typer.Option("--site", help="The site's folder.")]
VmOption = Annotated[str, typer.Option("--vm", help="Name of the VM.")]
DiskOption = Annotated[int, typer.Option("--disk", help="Which of its disks, counted from 0.")]
OffsetOption = Annotated[int, typer.Option("--offset", help="First byte.", min=0)]
LengthOption = Annotated[int, typer.Option("--length", help="How many bytes.", min=0)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def run(
    site: SiteOption,
    description: Annotated[Path | None, typer.Option(help="TOML of the site to make; the demo's if none.")] = None,
    port: Annotated[int, typer.Option(help="TCP port on 127.0.0.1; 0 takes a free one.", min=0, max=65535)] = 0,
    keep_frozen: Annotated[Path | None, typer.Option(help="Copy each snapshot's disks into this folder.")] = None,
) -> None:
    """Run a site in the foreground until SIGTERM or Ctrl-C; it is made first if the folder holds none."""
    logs.set_up("WARNING")
    signal.signal(signal.SIGTERM, _leave)
    described = load(SiteDescription, description or DEMO)
    with ExitStack() as stack:
        with _progress() as progress:
            served = stack.enter_context(running(site.absolute(), described, port=port, progress=progress))
        served.site.keep_frozen = keep_frozen.absolute() if keep_frozen else None
        stack.enter_context(_announced(served))
        names = ", ".join(vm.name for vm in served.site.vms)
        typer.echo(f"vCenter {served.host}:{served.port} is ready; user {served.username}; VMs: {names}")
        typer.echo(f"connection: {site.absolute() / CONNECTION}")
        signal.pause()


@guest.command("write")
def guest_write(
    site: SiteOption,
    vm: VmOption,
    disk: DiskOption,
    offset: OffsetOption,
    source: Annotated[str, typer.Option("--input", help="File with the bytes; - is stdin.")],
) -> None:
    """Write a file's bytes to a disk."""
    with _opened(source, "rb", sys.stdin.buffer) as file, connected(site) as client:
        while chunk := file.read(CHUNK):
            client.call("write", chunk, vm=vm, disk=disk, offset=offset)
            offset += len(chunk)


@guest.command("zero")
def guest_zero(site: SiteOption, vm: VmOption, disk: DiskOption, offset: OffsetOption, length: LengthOption) -> None:
    """Write zeros to a disk."""
    with connected(site) as client:
        client.call("zero", vm=vm, disk=disk, offset=offset, length=length)


@guest.command("trim")
def guest_trim(site: SiteOption, vm: VmOption, disk: DiskOption, offset: OffsetOption, length: LengthOption) -> None:
    """Tell a disk that a range is no longer used."""
    with connected(site) as client:
        client.call("trim", vm=vm, disk=disk, offset=offset, length=length)


@guest.command("read")
def guest_read(
    site: SiteOption,
    vm: VmOption,
    disk: DiskOption,
    output: Annotated[str, typer.Option(help="File for the bytes; - is stdout.")],
    offset: OffsetOption = 0,
    length: Annotated[int | None, typer.Option(help="How many bytes; default: to the disk's end.", min=0)] = None,
) -> None:
    """Read a disk as the guest sees it now."""
    with connected(site) as client, _opened(output, "wb", sys.stdout.buffer) as file:
        end = offset + length if length is not None else client.call("capacity", vm=vm, disk=disk)["capacity"]
        while offset < end:
            chunk = client.read(vm, disk, offset, min(CHUNK, end - offset))
            file.write(chunk)
            offset += len(chunk)


@vm_app.command("list")
def vm_list(site: SiteOption, as_json: JsonOption = False) -> None:
    """List the VMs and their disks."""
    with connected(site) as client:
        vms = client.call("vms")["vms"]
    rows = [
        [vm["name"], vm["moref"], str(disk["disk"]), str(disk["key"]), human_size(disk["capacity"]), disk["file"]]
        for vm in vms
        for disk in vm["disks"]
    ]
    _show(vms, ["VM", "reference", "disk", "key", "capacity", "file"], rows, as_json)


@snapshot_app.command("list")
def snapshot_list(
    site: SiteOption,
    vm: Annotated[str | None, typer.Option(help="Of this VM only.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List snapshots, oldest first."""
    with connected(site) as client:
        snapshots = client.call("snapshots", vm=vm)["snapshots"]
    rows = [[item["vm"], item["moref"], item["name"], item["created"]] for item in snapshots]
    _show(snapshots, ["VM", "reference", "name", "created"], rows, as_json)


@snapshot_app.command("export")
def snapshot_export(
    site: SiteOption,
    vm: VmOption,
    disk: DiskOption,
    snapshot: Annotated[str, typer.Option(help="Its reference, as `snapshot list` shows it.")],
    output: Annotated[Path, typer.Option(help="Raw file to write, sparse.")],
) -> None:
    """Write a disk as a snapshot froze it: what a restore of that point must equal."""
    with connected(site) as client:
        client.call("export", vm=vm, disk=disk, snapshot=snapshot, output=str(output.absolute()))


def main() -> None:
    """Entry point: errors end with one line on stderr and exit status 1, wrong usage with 2."""
    try:
        app()
    except SendenseError as error:
        typer.echo(f"sendense-simulator: {error.message}", err=True)
        sys.exit(1)
    except OSError as error:
        typer.echo(f"sendense-simulator: {error.filename or ''}: {error.strerror}", err=True)
        sys.exit(1)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(0)


@contextmanager
def _announced(served: RunningSite) -> Iterator[None]:
    """Say in `connection.json` how to reach the site, as long as it can be."""
    path = served.site.folder / CONNECTION
    facts = {
        "host": served.host,
        "port": served.port,
        "username": served.username,
        "password_file": str(served.password_file),
        "certificate": str(served.certificate),
        "thumbprint_sha1": served.thumbprint_sha1,
        "thumbprint_sha256": served.thumbprint_sha256,
        "libdir": str(served.libdir),
        "pid": os.getpid(),
    }
    write_private(path, json.dumps(facts, indent=2) + "\n")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def _progress() -> Iterator[Progress]:
    """Bars on a terminal, a line per step elsewhere."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True))
    with Bars(*columns, console=console, disable=not console.is_terminal) as bars:
        known: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in known:
                known[what] = bars.add_task(what, total=total or None)
                if not console.is_terminal:
                    console.print(what, highlight=False)
            bars.update(known[what], completed=done)

        yield show


@contextmanager
def _opened(name: str, mode: str, standard: IO[bytes]) -> Iterator[IO[bytes]]:
    if name == "-":
        yield standard
        standard.flush()
    else:
        with Path(name).open(mode) as file:
            yield file


def _show(data: Any, columns: list[str], rows: list[list[str]], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(data, indent=2))
        return
    table = Table(*columns)
    for row in rows:
        table.add_row(*map(escape, row))
    Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH).print(table)


if __name__ == "__main__":
    main()
