"""The control socket of a running site: how the command line acts as its guest, and looks at it.

One JSON line asks, one answers. `write` is followed by `length` bytes, as is the answer to `read`; an answer that has
`error` says why nothing was done.
"""

import json
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import Any, cast

from agent.simulator import sockets
from agent.simulator.disk import VirtualDisk
from agent.simulator.machine import VirtualMachine
from agent.simulator.site import Site
from shared.errors import InvalidRequest, NotFound, SendenseError, Unavailable, error_for
from shared.units import MiB

SOCKET = "control.sock"
PAYLOAD_LIMIT = 8 * MiB
"""Most bytes one `read` or `write` moves."""

Json = dict[str, Any]


class Control:
    """Serves `<site>/control.sock` in threads until closed."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._table: dict[str, Callable[..., Json | bytes]] = {
            "vms": self._vms,
            "snapshots": self._snapshots,
            "export": self._export,
            "capacity": lambda vm, disk: {"capacity": self._disk(vm, disk).record.capacity},
            "read": lambda vm, disk, offset, length: self._disk(vm, disk).read(offset, _limited(length)),
            "write": self._write,
            "zero": self._zero,
            "trim": self._trim,
        }
        self._server = _Server(self, sockets.listen(site.folder / SOCKET))
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="control", daemon=True).start()

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()
        (self._site.folder / SOCKET).unlink(missing_ok=True)

    def answer(self, request: Json, stream: BufferedIOBase) -> Json | bytes:
        """Do what is asked; raises SendenseError."""
        command = request.pop("command", None)
        if command not in self._table:
            raise InvalidRequest(f"there is no command {command!r}")
        if command == "write":
            request["data"] = stream.read(_limited(request.pop("length")))
        try:
            return self._table[command](**request)
        except (ValueError, TypeError) as error:
            raise InvalidRequest(str(error)) from error
        except OSError as error:
            raise Unavailable(f"{error.filename or self._site.folder}: {error.strerror}") from error

    def _disk(self, vm: str, disk: int) -> VirtualDisk:
        disks = self._site.vm(vm).disks
        if not 0 <= disk < len(disks):
            raise NotFound(f"{vm} has {len(disks)} disks, counted from 0; there is no disk {disk}")
        return disks[disk]

    def _write(self, vm: str, disk: int, offset: int, data: bytes) -> Json:
        self._disk(vm, disk).write(offset, data)
        return {}

    def _zero(self, vm: str, disk: int, offset: int, length: int) -> Json:
        self._disk(vm, disk).zero(offset, length)
        return {}

    def _trim(self, vm: str, disk: int, offset: int, length: int) -> Json:
        self._disk(vm, disk).trim(offset, length)
        return {}

    def _export(self, vm: str, disk: int, snapshot: str, output: str) -> Json:
        try:
            with self._disk(vm, disk).frozen(snapshot) as view:
                view.export(Path(output))
        except KeyError as error:
            raise NotFound(f"{vm} has no snapshot {snapshot}") from error
        return {}

    def _vms(self) -> Json:
        return {"vms": [_describe(vm) for vm in self._site.vms]}

    def _snapshots(self, vm: str | None) -> Json:
        vms = self._site.vms if vm is None else [self._site.vm(vm)]
        return {
            "snapshots": [
                {"vm": machine.name, **snapshot.model_dump(mode="json")}
                for machine in vms
                for snapshot in machine.snapshots()
            ]
        }


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

    def __init__(self, control: Control, listener: socket.socket) -> None:
        super().__init__("", _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.control = control


class _Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            try:
                answer = cast(_Server, self.server).control.answer(json.loads(line), self.rfile)
            except SendenseError as error:
                answer = {"error": error.message, "reason": error.reason, "status": error.status}
            except json.JSONDecodeError as error:
                answer = {
                    "error": f"not JSON: {error}",
                    "reason": InvalidRequest.reason,
                    "status": InvalidRequest.status,
                }
            head = {"length": len(answer)} if isinstance(answer, bytes) else answer
            self.wfile.write(json.dumps(head).encode() + b"\n")
            if isinstance(answer, bytes):
                self.wfile.write(answer)


class ControlClient:
    """One connection to a running site; not for use by two threads at once."""

    def __init__(self, connection: socket.socket) -> None:
        self._stream = connection.makefile("rwb")

    def call(self, command: str, data: bytes = b"", **arguments: Any) -> Json:
        """Ask for something; raises the SendenseError the site answers with, or Unavailable when it went away."""
        if command == "write":
            arguments["length"] = len(data)
        self._stream.write(json.dumps({"command": command, **arguments}).encode() + b"\n" + data)
        self._stream.flush()
        line = self._stream.readline()
        if not line:
            raise Unavailable("the simulator ended")
        answer: Json = json.loads(line)
        if "error" in answer:
            raise error_for(answer["reason"], answer["status"], answer["error"])
        return answer

    def read(self, vm: str, disk: int, offset: int, length: int) -> bytes:
        """What the guest reads; at most PAYLOAD_LIMIT bytes."""
        answer = self.call("read", vm=vm, disk=disk, offset=offset, length=length)
        return self._stream.read(answer["length"])


@contextmanager
def connected(folder: Path) -> Iterator[ControlClient]:
    """A connection to the site that runs in a folder; raises Unavailable when none does."""
    try:
        connection = sockets.connect(folder / SOCKET)
    except OSError as error:
        raise Unavailable(f"no simulator runs in {folder}: {error.strerror}") from error
    with connection:
        yield ControlClient(connection)


def _describe(vm: VirtualMachine) -> Json:
    record = vm.record
    return {
        "name": record.name,
        "moref": record.moref,
        "instance_uuid": record.instance_uuid,
        "powered_on": record.powered_on,
        "change_tracking": record.change_tracking,
        "snapshots": len(record.snapshots),
        "consolidation_needed": vm.consolidation_needed,
        "disks": [
            {"disk": index, "key": disk.record.key, "capacity": disk.record.capacity, "file": disk.file_name}
            for index, disk in enumerate(vm.disks)
        ],
    }


def _limited(length: int) -> int:
    if not 0 <= length <= PAYLOAD_LIMIT:
        raise InvalidRequest(f"{length} bytes in one request; the limit is {PAYLOAD_LIMIT}")
    return length
