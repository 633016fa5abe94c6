"""`make demo`: the main job on real input, judged byte by byte.

A lab is started; each of its VMs gets a full backup, an incremental after the guest has written, and another one while
the guest is writing. Then every disk of every restore point is restored and compared, by qemu-img, with the disk as the
simulated vSphere froze it at that point. Exit status 0 only when all are equal.
"""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from deploy.dev.lab import BIN, Lab, images_equal
from shared.units import KiB, MiB, human_size

VMS = ("web01", "db01")
POINTS = 3
"""Backups made of each VM."""

PIECE = 4 * MiB
console = Console(width=None if sys.stdout.isatty() else 120)


@dataclass(frozen=True)
class Restored:
    """One disk of one point, and whether it equals its source."""

    backup: dict[str, Any]
    disk: dict[str, Any]
    point: int
    seconds: float
    equal: bool


def main() -> int:
    """Run the demo in the folder given (default .demo), which is made anew."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".demo").absolute()
    shutil.rmtree(folder, ignore_errors=True)
    with _starting(Lab(folder)) as lab:
        for vm in VMS:
            _three_backups(lab, vm)
        points = [lab.sendense_json("backup", "list", "--vm", vm)["backups"][::-1] for vm in VMS]
        restored = list(_restore_all(lab, points))
        console.print(_table(restored))
        for vm in VMS:
            console.print(lab.sendense("backup", "chain", vm).stdout, highlight=False, soft_wrap=True)
        expected = sum(POINTS * len(lab.capacities(vm)) for vm in VMS)
    line, status = verdict(restored, expected)
    console.print(line, highlight=False)
    return status


def verdict(restored: Sequence[Restored], expected: int) -> tuple[str, int]:
    """The last line, and the exit status: 0 only when as many disks as expected were restored and all are equal."""
    equal = sum(result.equal for result in restored)
    status = 0 if equal == len(restored) == expected else 1
    return f"sendense demo: {equal} of {expected} restored disks equal their source", status


@contextmanager
def _starting(lab: Lab) -> Iterator[Lab]:
    with console.status("starting the simulated vSphere site (making its file systems), the hub and the agent"):
        lab.__enter__()
    try:
        console.print(lab.sendense("vm", "list").stdout, highlight=False, soft_wrap=True)
        yield lab
    finally:
        lab.__exit__()


def _three_backups(lab: Lab, vm: str) -> None:
    """A full, an incremental after writes, and one during writes."""
    console.rule(f"{vm}: full")
    _backup(lab, vm, "full")
    console.rule(f"{vm}: incremental, after the guest has written")
    _guest_works(lab, vm)
    _backup(lab, vm, "incremental")
    console.rule(f"{vm}: incremental, while the guest is writing")
    _guest_works(lab, vm)
    with _guest_writing(lab, vm) as writes:
        _backup(lab, vm, "incremental")
    console.print(f"the guest wrote {writes.during} times while its snapshot was being read", highlight=False)
    if not writes.during:
        raise SystemExit("the backup was over before the guest wrote: nothing is shown by that")


def _backup(lab: Lab, vm: str, backup_type: str) -> None:
    """One backup, with the command line's own progress bar."""
    command = [str(BIN / "sendense"), "--hub", lab.hub_address, "backup", "start", vm, "--type", backup_type, "--wait"]
    subprocess.run(command, check=True)


def _guest_works(lab: Lab, vm: str) -> None:
    """Data over data, zeros over data, new data, and deletions with trim, on each disk."""
    with lab.guest() as guest:
        for disk, capacity in enumerate(lab.capacities(vm)):
            where: dict[str, Any] = {"vm": vm, "disk": disk}
            for piece in range(0, 48 * MiB, PIECE):
                guest.call("write", os.urandom(PIECE), offset=64 * MiB + 512 + piece, **where)
            guest.call("zero", offset=160 * MiB + 4 * KiB, length=3 * MiB, **where)
            for piece in range(0, 16 * MiB, PIECE):
                guest.call("write", os.urandom(PIECE), offset=capacity - 32 * MiB + piece, **where)
            guest.call("trim", offset=192 * MiB, length=8 * MiB, **where)


@dataclass
class _Writes:
    during: int = 0
    """Writes that the guest made while the VM had a snapshot."""


@contextmanager
def _guest_writing(lab: Lab, vm: str) -> Iterator[_Writes]:
    """A guest that keeps writing to all its disks inside the `with`."""
    writes, stop, disks = _Writes(), threading.Event(), len(lab.capacities(vm))

    def keep_writing() -> None:
        with lab.guest() as guest:
            number = 0
            while not stop.wait(0.02):
                number += 1
                for disk in range(disks):
                    offset = number * 7 % 200 * MiB + 1024
                    guest.call("write", os.urandom(200 * KiB), vm=vm, disk=disk, offset=offset)
                writes.during += disks * bool(guest.call("snapshots", vm=vm)["snapshots"])

    thread = threading.Thread(target=keep_writing)
    thread.start()
    try:
        yield writes
    finally:
        stop.set()
        thread.join()


def _restore_all(lab: Lab, points: list[list[dict[str, Any]]]) -> Iterator[Restored]:
    """Restore every disk of every point, compare it with what was frozen, and delete it again."""
    work = [
        (backup, disk, number)
        for backups in points
        for number, backup in enumerate(backups, start=1)
        for disk in backup["disks"]
    ]
    output = lab.folder / "restored.raw"
    columns = (TextColumn("restoring and comparing"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        for backup, disk, number in bar.track(work):
            began = time.monotonic()
            lab.restore(backup, disk["disk_index"], output)
            seconds = time.monotonic() - began
            equal = images_equal(output, lab.frozen_disk(backup, disk["disk_index"]))
            output.unlink()
            yield Restored(backup, disk, number, seconds, equal)


def _table(restored: list[Restored]) -> Table:
    table = Table(title="every disk of every restore point")
    for column in (
        "VM",
        "disk",
        "point",
        "type",
        "changed",
        "sent",
        "stored",
        "backup time",
        "restore time",
        "restored",
    ):
        table.add_column(column, justify="left" if column in ("VM", "type", "restored") else "right", no_wrap=True)
    for result in restored:
        backup, disk = result.backup, result.disk
        took = datetime.fromisoformat(backup["complete_time"]) - datetime.fromisoformat(backup["create_time"])
        table.add_row(
            backup["vm_name"],
            str(disk["disk_index"]),
            str(result.point),
            disk["type_run"].removeprefix("BACKUP_TYPE_").lower(),
            *(human_size(int(disk[name])) for name in ("changed_bytes", "sent_bytes", "stored_bytes")),
            f"{took.total_seconds():.1f} s",
            f"{result.seconds:.1f} s",
            "equal" if result.equal else "DIFFERENT",
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
