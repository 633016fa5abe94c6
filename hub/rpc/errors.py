"""Errors as callers see them: the only place that turns an exception into a gRPC status.

Every status carries google.rpc.ErrorInfo (reason, domain `sendense`, facts as metadata), and BadRequest where a field
is at fault. An exception that is none of ours becomes INTERNAL without detail, and is logged with all of it.
"""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from shared import logs
from shared.errors import SendenseError

DOMAIN = "sendense"

LONGEST_MESSAGE = 700
"""Characters. A client takes about 8 KiB of trailers, where a message stands up to three times, once as base64; what is
longer, a name that a caller made up or a program's last words, would turn the status into RESOURCE_EXHAUSTED."""

LONGEST_FACT = 100
"""Characters of one fact."""

log = logs.get(__name__)


def status_of(error: SendenseError) -> status_pb2.Status:
    """The whole status of one of our errors."""
    message = _shorten(error.message, LONGEST_MESSAGE)
    facts = {name: _shorten(fact, LONGEST_FACT) for name, fact in error.facts.items()}
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=facts)
    details = [_packed(info)]
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=message)
        details.append(_packed(error_details_pb2.BadRequest(field_violations=[violation])))
    return status_pb2.Status(code=code_pb2.Code.Value(error.status), message=message, details=details)


def _shorten(text: str, limit: int) -> str:
    """The text, its middle left out where it is longer than `limit` characters."""
    return text if len(text) <= limit else f"{text[: limit // 2]} … {text[-limit // 2 :]}"


def _packed(detail: Any) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed


def _known(error: Exception, method: str) -> SendenseError:
    if isinstance(error, SendenseError):
        return error
    log.exception("unexpected error", method=method, exc_info=error)
    return SendenseError("internal error; the hub's log tells more")


class AsyncErrors(grpc.aio.ServerInterceptor):
    """For listeners on the event loop."""

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        """Wrap the method; None for an unknown one passes as it is, or reflection's fall-backs break."""
        handler = await continuation(details)
        if handler is None:
            return handler
        if handler.unary_unary is not None:
            return _replaced(handler, unary_unary=_async_unary(handler.unary_unary, details.method))
        if handler.unary_stream is not None:
            # Either a generator, or a coroutine that writes its answers to the context, as the health service does.
            wrap = _async_stream if inspect.isasyncgenfunction(handler.unary_stream) else _async_unary
            return _replaced(handler, unary_stream=wrap(handler.unary_stream, details.method))
        return handler


class ThreadErrors(grpc.ServerInterceptor):
    """For listeners whose methods run in threads."""

    def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Any], details: grpc.HandlerCallDetails
    ) -> Any:
        """Wrap the method; None for an unknown one passes as it is."""
        handler = continuation(details)
        if handler is None:
            return handler
        if handler.unary_unary is not None:
            return _replaced(handler, unary_unary=_thread_unary(handler.unary_unary, details.method))
        if handler.stream_unary is not None:
            return _replaced(handler, stream_unary=_thread_unary(handler.stream_unary, details.method))
        if handler.stream_stream is not None:
            return _replaced(handler, stream_stream=_thread_stream(handler.stream_stream, details.method))
        return handler


def _replaced(handler: Any, **behaviour: Any) -> Any:
    return handler._replace(**behaviour)


def _async_unary(behaviour: Any, method: str) -> Any:
    async def answer(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            return await behaviour(request, context)
        except Exception as error:
            if isinstance(error, grpc.aio.AbortError):
                raise
            return await context.abort_with_status(rpc_status.to_status(status_of(_known(error, method))))

    return answer


def _async_stream(behaviour: Any, method: str) -> Any:
    async def answer(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        try:
            async for message in behaviour(request, context):
                yield message
        except Exception as error:
            if isinstance(error, grpc.aio.AbortError):
                raise
            await context.abort_with_status(rpc_status.to_status(status_of(_known(error, method))))

    return answer


def _thread_unary(behaviour: Any, method: str) -> Any:
    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        with _aborting(context, method):
            return behaviour(request, context)

    return answer


def _thread_stream(behaviour: Any, method: str) -> Any:
    def answer(requests: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        with _aborting(context, method):
            yield from behaviour(requests, context)

    return answer


@contextmanager
def _aborting(context: grpc.ServicerContext, method: str) -> Iterator[None]:
    """End the call with the status of what is raised inside."""
    try:
        yield
    except grpc.RpcError:
        raise  # the caller has gone: nobody is left to tell
    except Exception as error:
        known = _known(error, method)
    else:
        return
    context.abort_with_status(rpc_status.to_status(status_of(known)))
