"""The simulator's side of the stand-in libvixDiskLib: checks who wants to read what, then names the frozen layers.

The protocol is described in vix_disk_lib.c. A connection that opened a disk keeps its frozen view from consolidation
until it closes, as the locks of a real host do.
"""

import socket
import socketserver
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from agent.simulator.disk import VirtualDisk
from agent.simulator.machine import VirtualMachine
from agent.simulator.site import Site
from agent.simulator.sockets import listen

VIX_E_FILE_NOT_FOUND = 4
VIX_E_NOT_SUPPORTED = 6
VIX_E_OBJECT_NOT_FOUND = 25
VIX_E_AUTHENTICATION_FAIL = 35
VIX_E_SSL_THUMBPRINT = 14011
VIX_E_CANNOT_CONNECT_TO_HOST = 18000

Fields = dict[str, str]


@dataclass(frozen=True)
class Endpoint:
    """What a client of VDDK must name rightly, besides login, VM, snapshot and file."""

    host: str
    port: int
    thumbprint: str
    """SHA-1 of the server's certificate, as `AA:BB:…`."""


class Refused(Exception):
    """The request is answered by a VixError."""

    def __init__(self, vix_error: int) -> None:
        super().__init__(vix_error)
        self.vix_error = vix_error


class Broker:
    """Serves `<libdir>/socket` in threads until closed."""

    def __init__(self, site: Site, endpoint: Endpoint, libdir: Path) -> None:
        self.site = site
        self.endpoint = endpoint
        self._server = _Server(self, listen(libdir / "socket"))
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="vddk-broker", daemon=True).start()

    def close(self) -> None:
        """Answer no more; disks that are open go on being read."""
        self._server.shutdown()
        self._server.server_close()

    def admit(self, fields: Fields) -> tuple[VirtualMachine, str]:
        """The VM and snapshot that ConnectEx asks for; raises Refused."""
        if (fields["server"], fields["port"]) != (self.endpoint.host, str(self.endpoint.port)):
            raise Refused(VIX_E_CANNOT_CONNECT_TO_HOST)
        if fields["thumbprint"].upper() != self.endpoint.thumbprint:
            raise Refused(VIX_E_SSL_THUMBPRINT)
        if (fields["user"], fields["password"]) != (self.site.record.username, self.site.password):
            raise Refused(VIX_E_AUTHENTICATION_FAIL)
        if not {"nbd", "nbdssl"} & set(fields["transports"].split(":")):
            raise Refused(VIX_E_NOT_SUPPORTED)
        try:
            vm = self.site.vm_by_moref(fields["vm"].removeprefix("moref="))
            vm.snapshot(fields["snapshot"])
        except KeyError as error:
            raise Refused(VIX_E_OBJECT_NOT_FOUND) from error
        return vm, fields["snapshot"]

    def describe(self, disk: VirtualDisk, snapshot: str, stack: ExitStack) -> list[str]:
        """The reply to Open; the view stays frozen until the stack closes."""
        view = stack.enter_context(disk.frozen(snapshot))
        script = self.site.disk_faults
        lines = [f"capacity={view.capacity}", f"latency_us={round(script.latency * 1e6)}"]
        if script.fail_after is not None:
            lines.append(f"fail_after={script.fail_after}")
        return ["ok", *lines, *(f"layer={layer.prefix}" for layer in view.layers)]


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

    def __init__(self, broker: Broker, listener: socket.socket) -> None:
        super().__init__("", _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.broker = broker


class _Handler(socketserver.StreamRequestHandler):
    """One connection: `connect`, then `open`, then held until the other side closes."""

    def handle(self) -> None:
        with ExitStack() as stack:
            try:
                self._serve(stack)
            except Refused as refused:
                self._reply([f"error={refused.vix_error}"])

    def _serve(self, stack: ExitStack) -> None:
        broker = cast(_Server, self.server).broker
        vm, snapshot = broker.admit(self._request())
        self._reply(["ok"])
        path = self._request().get("path")
        self._reply(broker.describe(_find_disk(vm, snapshot, path), snapshot, stack))
        self.rfile.read()  # until the other side closes

    def _request(self) -> Fields:
        lines = iter(lambda: self.rfile.readline().decode(errors="replace").rstrip("\n"), "")
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def _reply(self, lines: list[str]) -> None:
        self.wfile.write("".join(f"{line}\n" for line in [*lines, ""]).encode())


def _find_disk(vm: VirtualMachine, snapshot: str, path: str | None) -> VirtualDisk:
    try:
        return next(disk for disk in vm.disks if disk.frozen_file_name(snapshot) == path)
    except (KeyError, StopIteration) as error:
        raise Refused(VIX_E_FILE_NOT_FOUND) from error
