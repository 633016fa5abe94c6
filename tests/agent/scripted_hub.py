"""A hub that says what a test wants, behind real gRPC and real mTLS."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from agent.identity import Identity, key_pem, new_key, signing_request
from hub.authority import Authority
from hub.rpc.errors import ThreadErrors
from sendense.v1 import control_pb2, control_pb2_grpc, transfer_pb2, transfer_pb2_grpc
from shared.errors import SendenseError

PATIENCE = 20.0
"""Seconds until a test that waits gives up."""


class ScriptedHub(control_pb2_grpc.ControlServiceServicer, transfer_pb2_grpc.TransferServiceServicer):
    """Notes what it hears, and answers as scripted: with nothing scripted, it welcomes and takes everything in."""

    def __init__(self) -> None:
        self.address = ""
        self.refusals: list[SendenseError] = []
        """The next control streams end with these instead of a welcome."""
        self.error: SendenseError | None = None
        """What every call but Connect ends with."""
        self.silent = False
        """Whether it accepts control streams and says nothing."""
        self.holding = False
        """Whether it opens uploads and then takes nothing."""
        self.heartbeat_interval = 30.0
        self.connected_at: list[float] = []
        """Monotonic seconds of each control stream, refused ones too."""
        self.hellos: list[control_pb2.Hello] = []
        self.heartbeats: list[control_pb2.Heartbeat] = []
        self.inventories: list[list[control_pb2.ReportInventoryRequest]] = []
        self.finished: list[control_pb2.FinishTaskRequest] = []
        self.events: list[control_pb2.AgentEvent] = []
        self.runs: list[transfer_pb2.ClusterRun] = []
        self.orders: queue.SimpleQueue[control_pb2.ConnectResponse | SendenseError | None] = queue.SimpleQueue()
        """What is sent on the open control stream; an error breaks it, None ends it."""

    def Connect(
        self, requests: Iterator[control_pb2.ConnectRequest], context: grpc.ServicerContext
    ) -> Iterator[control_pb2.ConnectResponse]:
        self.connected_at.append(time.monotonic())
        self.hellos.append(next(requests).hello)
        if self.refusals:
            raise self.refusals.pop(0)
        while self.silent and context.is_active():
            time.sleep(0.02)
        threading.Thread(target=self._listen, args=(requests,), daemon=True).start()
        welcome = control_pb2.Welcome(software_version="9.9", display_name="appliance")
        welcome.heartbeat_interval.FromMilliseconds(int(self.heartbeat_interval * 1000))
        yield control_pb2.ConnectResponse(welcome=welcome)
        while context.is_active():
            try:
                order = self.orders.get(timeout=0.02)
            except queue.Empty:
                continue
            if order is None:
                return
            if isinstance(order, SendenseError):
                raise order
            yield order

    def ReportInventory(
        self, requests: Iterator[control_pb2.ReportInventoryRequest], context: grpc.ServicerContext
    ) -> control_pb2.ReportInventoryResponse:
        self.inventories.append(list(requests))
        self._answer()
        return control_pb2.ReportInventoryResponse(conflicting_vm_ids=["vm-7"])

    def FinishTask(
        self, request: control_pb2.FinishTaskRequest, context: grpc.ServicerContext
    ) -> control_pb2.FinishTaskResponse:
        self._answer()
        self.finished.append(request)
        return control_pb2.FinishTaskResponse()

    def OpenTransfer(
        self, request: transfer_pb2.OpenTransferRequest, context: grpc.ServicerContext
    ) -> transfer_pb2.OpenTransferResponse:
        self._answer()
        return transfer_pb2.OpenTransferResponse(transfer_id="transfer-1")

    def SealTransfer(
        self, request: transfer_pb2.SealTransferRequest, context: grpc.ServicerContext
    ) -> transfer_pb2.SealTransferResponse:
        self._answer()
        return transfer_pb2.SealTransferResponse()

    def CommitBackup(
        self, request: transfer_pb2.CommitBackupRequest, context: grpc.ServicerContext
    ) -> transfer_pb2.CommitBackupResponse:
        self._answer()
        return transfer_pb2.CommitBackupResponse()

    def WriteExtents(
        self, requests: Iterator[transfer_pb2.WriteExtentsRequest], context: grpc.ServicerContext
    ) -> Iterator[transfer_pb2.WriteExtentsResponse]:
        start = next(requests).start
        yield transfer_pb2.WriteExtentsResponse(durable_offset=start.offset)
        self._answer()
        while self.holding and context.is_active():
            time.sleep(0.02)
        for request in requests:
            self.runs.append(request.run)
            yield transfer_pb2.WriteExtentsResponse(durable_offset=request.run.offset)

    def _listen(self, requests: Iterator[control_pb2.ConnectRequest]) -> None:
        try:
            for request in requests:
                if request.HasField("heartbeat"):
                    self.heartbeats.append(request.heartbeat)
                elif request.HasField("event"):
                    self.events.append(request.event)
        except grpc.RpcError:
            return  # the agent has gone

    def _answer(self) -> None:
        if self.error is not None:
            raise self.error


@contextmanager
def serving(hub: ScriptedHub, authority: Authority) -> Iterator[None]:
    """The hub listens inside the `with`."""
    server = grpc.server(ThreadPoolExecutor(8), interceptors=[ThreadErrors()], options=[("grpc.so_reuseport", 0)])
    control_pb2_grpc.add_ControlServiceServicer_to_server(hub, server)
    transfer_pb2_grpc.add_TransferServiceServicer_to_server(hub, server)
    credentials = grpc.ssl_server_credentials(
        [authority.server("127.0.0.1:0")], authority.ca.pem, require_client_auth=True
    )
    hub.address = f"127.0.0.1:{server.add_secure_port(hub.address or '127.0.0.1:0', credentials)}"
    server.start()
    try:
        yield
    finally:
        server.stop(0).wait()


def identity_for(authority: Authority, address: str) -> Identity:
    """An enrolled agent's."""
    key = new_key()
    certificate = authority.agent("agent-1", signing_request(key)).pem
    return Identity(address, authority.ca.pem, certificate, key_pem(key))


def until(true: Callable[[], Any]) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, "it did not become true"
        time.sleep(0.005)


def made(folder: Path) -> Authority:
    """A new certificate authority."""
    return Authority.create(folder / "pki")
