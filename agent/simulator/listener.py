"""The HTTPS listener: requests in, envelopes out, one thread per connection."""

import socket
import ssl
import threading
from contextlib import suppress
from http.cookies import SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

from pyVmomi import VmomiSupport, vmodl

from agent.simulator import soap
from agent.simulator.service import Caller, Service
from shared.logs import get

COOKIE = "vmware_soap_session"
HANDSHAKE_LIMIT = 30.0
"""Seconds."""

log = get(__name__)


class Listener:
    """Serves the API on loopback until closed."""

    def __init__(self, service: Service, context: ssl.SSLContext, port: int) -> None:
        self._server = _Server(service, context, port)
        self.port: int = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="vcenter", daemon=True).start()

    def close(self) -> None:
        """Accept no more, and drop all connections."""
        self._server.shutdown()
        self._server.server_close()
        self._server.drop_connections()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, service: Service, context: ssl.SSLContext, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.service = service
        self._context = context
        self._connections: set[socket.socket] = set()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """In the connection's own thread: a slow handshake holds up nobody else."""
        request.settimeout(HANDSHAKE_LIMIT)
        with suppress(ssl.SSLError, OSError):  # the client went away, or does not trust us
            connection = self._context.wrap_socket(request, server_side=True)
            connection.settimeout(None)
            self._connections.add(connection)
            try:
                super().finish_request(connection, client_address)
            finally:
                self._connections.discard(connection)
                connection.close()

    def drop_connections(self) -> None:
        """Cut all connections."""
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        """What clients look at to learn which versions of the API there are."""
        if self.path == "/sdk/vimServiceVersions.xml":
            self._reply(200, _service_versions())
        else:
            self._reply(404, b"")

    def do_POST(self) -> None:
        """A method call."""
        body = self._body()
        caller = Caller(self.client_address[0], self.headers.get("User-Agent", ""), self._session_key())
        known = caller.session_key
        try:
            request = soap.parse(body, soap.requested_version(self.headers.get("SOAPAction", "")))
            status, answer = 200, soap.response(request, cast(_Server, self.server).service.answer(request, caller))
        except soap.Fault as error:
            status, answer = 500, soap.fault_response(error.fault)
        except Exception as error:  # a client must see an error, not a closed connection, whatever is wrong here
            log.exception("a request failed in the simulator")
            status, answer = 500, soap.fault_response(vmodl.fault.SystemError(reason=repr(error), msg=repr(error)))
        cookie = caller.session_key if caller.session_key != known else ""
        self._reply(status, answer, cookie)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts: list[bytes] = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers
        return b"".join(parts)

    def _session_key(self) -> str:
        morsel = SimpleCookie(self.headers.get("Cookie", "")).get(COOKIE)
        return morsel.value if morsel else ""

    def _reply(self, status: int, body: bytes, cookie: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/xml; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        if cookie:
            self.send_header("Set-Cookie", f'{COOKIE}="{cookie}"; Path=/; HttpOnly; Secure')
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Calls are in the site's call log instead."""


def _service_versions() -> bytes:
    versions = VmomiSupport.GetServiceVersions("vim25")
    ids = [VmomiSupport.versionIdMap[version] for version in versions]
    ours = VmomiSupport.versionIdMap[soap.VERSION]
    earlier = "".join(f"<version>{known}</version>" for known in ids[ids.index(ours) + 1 :] if known)
    return (
        '<?xml version="1.0" encoding="UTF-8"?><namespaces version="1.0"><namespace><name>urn:vim25</name>'
        f"<version>{ours}</version><priorVersions>{earlier}</priorVersions></namespace></namespaces>"
    ).encode()
