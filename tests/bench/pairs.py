"""Pairs: the same work done by Sendense and by what an engineer would otherwise run, alternating in one run.

The machine is noisy, so what counts is the ratio within a pair; medians of several are shown.
"""

import json
import platform
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROUNDS = 5


@dataclass(frozen=True)
class Pair:
    """One row: what was done, against what, how often, in seconds."""

    work: str
    peer: str
    command: str
    """The peer's command, as it was run."""
    ours: tuple[float, ...]
    theirs: tuple[float, ...]
    ours_stored: int
    """Bytes that our result took; 0 where nothing is stored."""
    theirs_stored: int

    @property
    def ratio(self) -> float:
        """Median of the rounds' ratios; below 1 we are faster."""
        return statistics.median(our / their for our, their in zip(self.ours, self.theirs, strict=True))


Measure = Callable[[], tuple[float, int]]
"""Does the work once; returns seconds and bytes stored."""


def measure(work: str, peer: str, command: str, ours: Measure, theirs: Measure) -> Pair:
    """Run both in turn: one round to warm up, then ROUNDS that count."""
    ours(), theirs()
    rounds = [(ours(), theirs()) for _ in range(ROUNDS)]
    return Pair(
        work,
        peer,
        command,
        tuple(our[0] for our, _ in rounds),
        tuple(their[0] for _, their in rounds),
        rounds[-1][0][1],
        rounds[-1][1][1],
    )


def report(pairs: list[Pair], output: Path) -> None:
    """Show the table and write the raw numbers."""
    table = Table(title=f"medians of {ROUNDS} alternating rounds on {platform.machine()}, below 1 we are faster")
    for column in ("work", "against", "ours", "theirs", "ours / theirs", "stored ours / theirs"):
        table.add_column(column)
    for pair in pairs:
        stored = f"{pair.ours_stored / pair.theirs_stored:.2f}" if pair.theirs_stored else "-"
        ours, theirs = statistics.median(pair.ours), statistics.median(pair.theirs)
        table.add_row(pair.work, pair.peer, f"{ours:.2f} s", f"{theirs:.2f} s", f"{pair.ratio:.2f}", stored)
    console = Console(width=130)
    console.print(table)
    for pair in pairs:
        console.print(f"{pair.work}: {pair.command}", highlight=False)
    output.write_text(json.dumps([asdict(pair) | {"ratio": pair.ratio} for pair in pairs], indent=2) + "\n")
    console.print(f"raw numbers: {output}")
