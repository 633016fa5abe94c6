"""A hub that answers what a test tells it to: real gRPC on a unix socket, every service of the operator's contract."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from sendense.v1 import agent_pb2, backup_pb2, repository_pb2, restore_pb2, task_pb2, vm_pb2

FILES = (agent_pb2, backup_pb2, repository_pb2, restore_pb2, task_pb2, vm_pb2)


@dataclass
class Refusal:
    """An error as the hub sends it."""

    code: grpc.StatusCode
    message: str = "it is refused"
    reason: str = "SOME_REASON"
    fields: dict[str, str] = field(default_factory=dict)


@dataclass
class PlainAbort:
    """An error without details, as grpc itself raises it."""

    code: grpc.StatusCode


Answer = Message | Refusal | PlainAbort | Iterable[Any] | Callable[[Any], Any]


class ScriptedHub:
    """Answers calls by method name and keeps the requests; a method without an answer is a failure of the test."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.requests: dict[str, list[Any]] = {}
        self._answers: dict[str, list[Answer]] = {}

    def on(self, method: str, *answers: Answer) -> None:
        """Answer the calls of a method one after the other; the last answer is repeated.

        A stream's answer is the sequence of its messages, which a Refusal may end; a function makes the answer from
        the request.
        """
        self._answers[method] = list(answers)

    def answer(self, method: str, request: Any) -> Any:
        self.requests.setdefault(method, []).append(request)
        answers = self._answers[method]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        return answer(request) if callable(answer) else answer


@contextmanager
def serving(hub: ScriptedHub) -> Iterator[ScriptedHub]:
    """The hub listens while the block runs."""
    server = grpc.server(ThreadPoolExecutor(8))
    for file in FILES:
        for service in file.DESCRIPTOR.services_by_name.values():
            server.add_generic_rpc_handlers((_handler(hub, service),))
    server.add_insecure_port(hub.address)
    server.start()
    try:
        yield hub
    finally:
        server.stop(None).wait()


def _handler(hub: ScriptedHub, service: ServiceDescriptor) -> grpc.GenericRpcHandler:
    methods = {method.name: _method_handler(hub, method) for method in service.methods}
    return grpc.method_handlers_generic_handler(service.full_name, methods)


def _method_handler(hub: ScriptedHub, method: MethodDescriptor) -> Any:
    def unary(request: Any, context: grpc.ServicerContext) -> Any:
        return _sent(hub.answer(method.name, request), context)

    def stream(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        answer = hub.answer(method.name, request)
        for message in [answer] if isinstance(answer, Refusal | PlainAbort) else answer:
            yield _sent(message, context)

    decode = GetMessageClass(method.input_type).FromString
    encode = GetMessageClass(method.output_type).SerializeToString
    if method.server_streaming:
        return grpc.unary_stream_rpc_method_handler(stream, decode, encode)
    return grpc.unary_unary_rpc_method_handler(unary, decode, encode)


def _sent(answer: Any, context: grpc.ServicerContext) -> Any:
    if isinstance(answer, Refusal):
        _refuse(answer, context)
    if isinstance(answer, PlainAbort):
        context.abort(answer.code, "")
    return answer


def _refuse(refusal: Refusal, context: grpc.ServicerContext) -> NoReturn:
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=refusal.reason, domain="sendense")]
    if refusal.fields:
        violations = [{"field": name, "description": text} for name, text in refusal.fields.items()]
        details.append(error_details_pb2.BadRequest(field_violations=violations))
    status = status_pb2.Status(code=code_pb2.Code.Value(refusal.code.name), message=refusal.message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    context.abort_with_status(rpc_status.to_status(status))
    raise AssertionError("unreachable: abort raises")
