"""`qemu-nbd`: an image with its chain, as one read-only disk on a unix socket; `shared.nbd` reads it."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.process import serving

START_LIMIT = 30.0
"""Seconds an image and its chain may take to open."""

CLIENTS = 16
"""Connections at once."""


@contextmanager
def served(image: Path) -> Iterator[Path]:
    """The socket on which the disk a QCOW2 image holds can be read, as long as the `with` lasts.

    Several may serve the same image. Raises ProgramFailed, with qemu's words, when the image or its chain cannot be
    opened, TimedOut, ProgramMissing.
    """
    with tempfile.TemporaryDirectory(prefix="sendense-nbd-") as folder:  # of mode 0700: only this user can connect
        socket, pid_file = Path(folder, "socket"), Path(folder, "pid")
        args: list[str | Path] = ["qemu-nbd", "--read-only", "--persistent", f"--shared={CLIENTS}"]
        args += ["--format=qcow2", f"--socket={socket}", f"--pid-file={pid_file}", image.absolute()]
        with serving(args) as server:
            # qemu-nbd writes its pid file when it has begun to listen.
            server.wait_until(pid_file.exists, START_LIMIT)
            yield socket
