"""A scripted hub, and the command run against it."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from sendense.cli.main import run
from tests.cli.scripted_hub import ScriptedHub, serving


@dataclass(frozen=True)
class Outcome:
    """What a command left: exit status, stdout, stderr."""

    status: int
    out: str
    err: str


class Command:
    """Runs `sendense` in this process against one hub."""

    def __init__(self, address: str, capture: pytest.CaptureFixture[str]) -> None:
        self.address = address
        self._capture = capture

    def __call__(self, *arguments: str) -> Outcome:
        return self.plain("--hub", self.address, *arguments)

    def plain(self, *arguments: str) -> Outcome:
        """Without --hub."""
        status = run(arguments)
        captured = self._capture.readouterr()
        return Outcome(status, captured.out, captured.err)


@pytest.fixture
def socket_folder() -> Iterator[Path]:
    """A folder with a short path: a unix socket's must stay under 108 bytes."""
    with tempfile.TemporaryDirectory(prefix="sendense-") as folder:
        yield Path(folder)


@pytest.fixture
def hub(socket_folder: Path) -> Iterator[ScriptedHub]:
    """A listening hub that knows no answers yet."""
    with serving(ScriptedHub(f"unix://{socket_folder}/hub.sock")) as hub:
        yield hub


@pytest.fixture
def sendense(hub: ScriptedHub, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command, talking to `hub`."""
    return Command(hub.address, capsys)


def rows(out: str) -> Sequence[list[str]]:
    """A printed table's cells, without the header; cells are two spaces apart."""
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in out.splitlines()[1:]]
