"""`make bench`: how fast the way of the data is, against what an engineer would otherwise run. Not a test: no bar here.

Long-lived processes on both sides (hub, agent's upload, nbdkit; qemu-nbd), start-up not counted. TLS and BLAKE3 are on
for us, off for them.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.simulator.content import make_image, no_progress
from agent.simulator.description import DiskDescription
from shared.allocator import keep_blocks
from shared.process import serving
from shared.units import GiB, MiB
from tests.bench.driver import Driver
from tests.bench.pairs import Measure, Pair, measure, report

SIZE = 1 * GiB
NBDCOPY = "nbdcopy --flush nbd+unix:///?socket=SOURCE nbd+unix:///?socket=TARGET   (TARGET: qemu-nbd -f qcow2)"
CONVERT = "qemu-img convert -c -O qcow2 -o compression_type=zstd -f raw SOURCE TARGET"
RAW = "qemu-img convert -f qcow2 -O raw IMAGE TARGET"


def main() -> None:
    """Run all rows; the folder is argv[1] or a temporary one, the raw numbers go to .bench.json."""
    keep_blocks()
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as name:
        folder = Path(name)
        with Driver(folder) as driver:
            pairs = [_dense(driver, folder), _os_files(driver, folder), _restored(driver, folder)]
    report(pairs, Path(".bench.json"))


def _dense(driver: Driver, folder: Path) -> Pair:
    source = folder / "dense.raw"
    with source.open("wb") as file:
        for _ in range(SIZE // MiB):
            file.write(os.urandom(MiB))
    with _served(source) as socket:
        ours = _backing_up(driver, socket, "off")
        return measure("dense random, compression off", "nbdcopy to qemu-nbd", NBDCOPY, ours, _copying(socket, folder))


def _os_files(driver: Driver, folder: Path) -> Pair:
    source = folder / "files.raw"
    folders = (Path("/usr/lib"), Path("/usr/share"))
    described = DiskDescription(capacity=2 * SIZE, file_system="ext4", folders=folders, content=SIZE)  # type: ignore[arg-type]
    make_image(described, source, no_progress)

    def convert() -> tuple[float, int]:
        target = folder / "converted.qcow2"
        command = ["qemu-img", "convert", "-c", "-O", "qcow2", "-o", "compression_type=zstd", "-f", "raw"]
        return _timed([*command, str(source), str(target)], target)

    with _served(source) as socket:
        return measure("OS files, zstd", "qemu-img convert -c", CONVERT, _backing_up(driver, socket, "zstd"), convert)


def _restored(driver: Driver, folder: Path) -> Pair:
    with _served(folder / "files.raw") as socket:
        backup, _ = driver.back_up(socket, "zstd")
    target = folder / "restored.raw"

    def restore() -> tuple[float, int]:
        seconds = driver.restore(backup, target)
        target.unlink()
        return seconds, 0

    def convert() -> tuple[float, int]:
        seconds, _ = _timed(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", driver.image(backup), target], target)
        return seconds, 0

    return measure("restore of OS files, raw stream", "qemu-img convert", RAW, restore, convert)


def _backing_up(driver: Driver, socket: Path, compression: str) -> Measure:
    def back_up() -> tuple[float, int]:
        backup, seconds = driver.back_up(socket, compression)
        stored = driver.image(backup).stat().st_size
        driver.image(backup).unlink()
        return seconds, stored

    return back_up


def _copying(source: Path, folder: Path) -> Measure:
    def copy() -> tuple[float, int]:
        target, socket = folder / "copied.qcow2", folder / "copy.sock"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", target, str(SIZE)], check=True)
        with serving(["qemu-nbd", "-f", "qcow2", "-k", socket, "-t", "--shared=8", target]) as server:
            server.wait_until(socket.exists, 30)
            uris = [f"nbd+unix:///?socket={path}" for path in (source, socket)]
            seconds, _ = _timed(["nbdcopy", "--flush", *uris], None)
        stored = target.stat().st_size
        target.unlink()
        return seconds, stored

    return copy


def _timed(command: list[str | Path], made: Path | None) -> tuple[float, int]:
    """Run a command; returns its seconds and the size of the file it made, which is removed."""
    began = time.monotonic()
    subprocess.run(command, check=True)
    seconds = time.monotonic() - began
    if made is None:
        return seconds, 0
    stored = made.stat().st_size
    made.unlink()
    return seconds, stored


@contextmanager
def _served(disk: Path) -> Iterator[Path]:
    """The socket of an nbdkit that serves a raw file."""
    socket = disk.with_suffix(".sock")
    with serving(["nbdkit", "--foreground", "--readonly", "-U", socket, "file", disk]) as nbdkit:
        nbdkit.wait_until(socket.exists, 30)
        yield socket
    socket.unlink()


if __name__ == "__main__":
    main()
