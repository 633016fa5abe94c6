"""The `sendense` command: the operator's way to the hub."""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, NoReturn

import typer

import sendense
from sendense.cli import agent, backup, output, repository, restore, task, vm
from sendense.cli.connection import DEFAULT_ADDRESS
from sendense.cli.errors import CommandFailed, ExitCode
from sendense.cli.files import write_errors

_EXIT_STATUS = """\b
Exit status:
    0  done
    1  it was tried and failed
    2  the command line, or a value in it, makes no sense
    3  not found
    4  refused in the present state
    5  the hub, or something it needs, does not answer
    6  not permitted
    7  data loss: bytes are missing or not what they should be
  130  interrupted"""

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # what is not expected is shown as Python shows it: whole
    epilog=_EXIT_STATUS,
)
app.add_typer(vm.app, name="vm")
app.add_typer(repository.app, name="repository")
app.add_typer(agent.app, name="agent")
app.add_typer(backup.app, name="backup")
app.add_typer(restore.app, name="restore")
app.add_typer(task.app, name="task")


def _print_version(wanted: bool) -> None:
    if wanted:
        output.line(f"sendense {sendense.__version__}")
        raise typer.Exit


@app.callback()
def common_options(
    context: typer.Context,
    hub: Annotated[
        str, typer.Option(envvar="SENDENSE_HUB", metavar="ADDRESS", help="Where the hub is.")
    ] = DEFAULT_ADDRESS,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Back up VMware virtual machines, and get them back.

    \b
    Examples:
      sendense vm list
      sendense backup start web-01 --wait
      sendense backup chain web-01
      sendense restore disk BACKUP --disk 0 --output web-01.raw
    """
    context.obj = hub


def run(arguments: Sequence[str]) -> int:
    """One command, as given on the command line; its exit status."""
    try:
        with write_errors("standard output"), _flushed_stdout():
            status = _typer_status(arguments)
    except CommandFailed as error:
        output.remark(f"sendense: {error.message}")
        return error.exit_code
    return status


@contextmanager
def _flushed_stdout() -> Iterator[None]:
    """Raises OSError when stdout did not take all that was printed: a full disk must not pass for success."""
    try:
        yield
        sys.stdout.flush()
    except OSError:
        # Python would try to write the rest once more when it ends, and fail again, in its own words.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _typer_status(arguments: Sequence[str]) -> int:
    try:
        app(arguments, prog_name="sendense")
    except SystemExit as end:
        return int(end.code or 0)
    return ExitCode.OK


def main() -> NoReturn:
    """The entry point."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup means it
            signal.signal(number, _interrupt)
    sys.exit(run(sys.argv[1:]))


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    # As Ctrl-C: what was begun is put away.
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
