"""Unix sockets at paths of any length: a socket's address holds 107 bytes, so folders are reached by descriptor."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def listen(path: Path) -> socket.socket:
    """A listening socket at `path`, for its owner only; replaces one that is left from before."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    with _short(path) as address:
        listener.bind(address)
    path.chmod(0o600)
    listener.listen()
    return listener


def connect(path: Path) -> socket.socket:
    """A connection to the socket at `path`; raises OSError."""
    connection = socket.socket(socket.AF_UNIX)
    with _short(path) as address:
        connection.connect(address)
    return connection


@contextmanager
def _short(path: Path) -> Iterator[str]:
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
