"""`sendense restore`: a disk of a restore point, as a file or on standard output."""

import os
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

import typer

from sendense.cli import output
from sendense.cli.connection import HubOption, connect
from sendense.cli.disk_stream import read_extents, read_header
from sendense.cli.errors import CommandFailed, ExitCode
from sendense.cli.files import new_file, rename, write_errors
from sendense.cli.names import BackupArgument, backup_name, bare_id
from sendense.cli.output import JsonOption
from sendense.cli.progress import Progress, progress
from sendense.v1.restore_pb2 import DataExtent, DiskFormat, ReadDiskRequest, ReadDiskResponse, ZeroExtent
from sendense.v1.restore_pb2_grpc import RestoreServiceStub

app = typer.Typer(no_args_is_help=True, help="Get bytes back out of restore points.")

Format = Literal["raw", "qcow2"]
Extent = DataExtent | ZeroExtent

STDOUT = Path("-")


@app.callback()
def restore() -> None:
    """Get bytes back out of restore points."""
    # Typer would drop the word `disk` while it is the only command here; a callback keeps it.


@app.command()
def disk(
    backup: BackupArgument,
    *,
    disk_index: Annotated[int, typer.Option("--disk", min=0, metavar="N", help="As in `sendense backup show`.")],
    target: Annotated[Path, typer.Option("--output", metavar="FILE", help="Where to; - is standard output, raw only.")],
    disk_format: Annotated[Format, typer.Option("--format", help="The disk's bytes, or a stand-alone image.")] = "raw",
    force: Annotated[bool, typer.Option("--force", help="Replace FILE once the restore is whole.")] = False,
    hub: HubOption = "",
    as_json: JsonOption = False,
) -> None:
    """Restore one disk.

    FILE appears only when all of it is on stable storage; until then it is FILE.partial. Zeros are left as holes.

    \b
    Examples:
      sendense restore disk BACKUP --disk 0 --output web-01.raw
      sendense restore disk BACKUP --disk 0 --output - | zstd > web-01.zst
    """
    if target == STDOUT:
        _check_stdout(disk_format, as_json)
    else:
        _check_file(target, force)
    request = ReadDiskRequest(
        backup=backup_name(backup),
        disk_index=disk_index,
        format=DiskFormat.Value(f"DISK_FORMAT_{disk_format.upper()}"),
    )
    with connect(hub) as channel, progress() as view:
        responses = RestoreServiceStub(channel).ReadDisk(request)
        size = _to_stdout(responses, view) if target == STDOUT else _to_file(responses, target, force, view)
    if as_json:
        output.document({"output": str(target), "format": disk_format, "size_bytes": str(size)})
    else:
        output.remark(f"disk {disk_index} of backup {bare_id(backup)} is in {target}: {output.size(size)}")


def _check_file(target: Path, force: bool) -> None:
    try:
        mode = target.lstat().st_mode
    except OSError:
        return  # nothing is there; what else may be wrong with the path, creating the file will tell
    if not stat.S_ISREG(mode):
        raise CommandFailed(f"{target} exists and is not a plain file", ExitCode.REFUSED)
    if not force:
        raise CommandFailed(f"{target} exists; --force replaces it", ExitCode.REFUSED)


def _check_stdout(disk_format: Format, as_json: bool) -> None:
    if disk_format != "raw":
        raise CommandFailed("--output - writes a raw stream: qcow2 needs a file", ExitCode.USAGE)
    if as_json:
        raise CommandFailed("--output - writes the disk to stdout: --json has no place there", ExitCode.USAGE)
    if sys.stdout.isatty():
        raise CommandFailed("--output - writes a disk's bytes: stdout must not be a terminal", ExitCode.USAGE)


def _to_file(responses: Iterator[ReadDiskResponse], target: Path, force: bool, view: Progress) -> int:
    unfinished = target.with_name(f"{target.name}.partial")
    if os.path.lexists(unfinished):
        raise CommandFailed(
            f"{unfinished} exists: another restore is writing it, or was killed; remove it if none is", ExitCode.REFUSED
        )
    with new_file(unfinished) as file:
        size = read_header(responses).size_bytes
        for extent in _shown(read_extents(responses, size), size, view):
            if isinstance(extent, DataExtent):
                file.seek(extent.offset)
                file.write(extent.data)
        file.truncate(size)
        _check_file(target, force)  # it was long ago
    rename(unfinished, target)
    return size


def _to_stdout(responses: Iterator[ReadDiskResponse], view: Progress) -> int:
    size = read_header(responses).size_bytes
    with write_errors("standard output"), open(sys.stdout.fileno(), "wb", closefd=False) as file:
        for extent in _shown(read_extents(responses, size), size, view):
            if isinstance(extent, DataExtent):
                file.write(extent.data)
            else:
                _write_zeros(file, extent.length)
    return size


def _shown(extents: Iterable[Extent], size: int, view: Progress) -> Iterator[Extent]:
    """The extents, each shown as progress when it is dealt with."""
    for extent in extents:
        yield extent
        length = len(extent.data) if isinstance(extent, DataExtent) else extent.length
        view.show("restoring", extent.offset + length, size)


def _write_zeros(file: BinaryIO, length: int) -> None:
    for start in range(0, length, len(_ZEROS)):
        file.write(_ZEROS[: length - start])


_ZEROS = memoryview(bytes(1024 * 1024))
