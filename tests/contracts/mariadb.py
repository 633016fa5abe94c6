"""A real MariaDB server in a temporary folder, on a unix socket of its own."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.process import run, serving

SERVER = Path("/usr/sbin/mariadbd")
SYSTEM_TABLES = Path("/usr/share/mysql/mysql_system_tables.sql")
"""What mariadb-install-db feeds the server; that script itself wants a program of the client package."""

CARELESS = ("--sql-mode=", "--transaction-isolation=READ-UNCOMMITTED", "--character-set-server=latin1")
"""As bad as an administrator may configure it: what the catalogue needs, it must ask for itself."""

START_LIMIT = 60.0
"""Seconds."""


@contextmanager
def mariadb(folder: Path) -> Iterator[Path]:
    """Keep a server running inside the `with`, on the data an earlier one left in the folder; yields its socket.

    Without the permission tables' contents nobody could log in, so it asks nobody who they are: the socket's folder
    is what keeps others out.
    """
    data, path = folder / "data", folder / "socket"
    command: list[str | Path] = [
        SERVER,
        "--no-defaults",
        f"--datadir={data}",
        f"--tmpdir={data}",  # a server that starts removes the temporary tables of all others it shares a folder with
        "--innodb-flush-log-at-trx-commit=0",
    ]
    if os.geteuid() == 0:
        command.append("--user=root")  # it refuses to run as root unless told to
    if not data.exists():
        (data / "mysql").mkdir(parents=True)
        run([*command, "--bootstrap"], timeout=START_LIMIT, stdin="use mysql;\n" + SYSTEM_TABLES.read_text())
    with serving([*command, "--skip-networking", "--skip-grant-tables", f"--socket={path}", *CARELESS]) as server:
        server.wait_until(lambda: answers(path), START_LIMIT)
        yield path


def answers(path: Path) -> bool:
    """Whether somebody listens; the socket's file is there a moment before."""
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0
