"""The connection to the hub: where it is, how long it is waited for, and how lists are read whole."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Protocol, TypeVar

import grpc
import typer

from sendense.cli.errors import CommandFailed, ExitCode, from_call

DEFAULT_ADDRESS = "unix:///run/sendense/hub.sock"

CONNECT_TIMEOUT = 10
"""Seconds until a hub that takes the connection and says nothing counts as absent."""

CALL_TIMEOUT = 60
"""Seconds for one answer. Streams have no limit: a restore may take days."""

_PAGE_SIZE = 100  # a page of backups with many disks stays well below gRPC's 4 MiB for a message


def _own_or_outer(context: typer.Context, value: str) -> str:
    return value or context.obj


HubOption = Annotated[
    str,
    typer.Option(
        "--hub",
        callback=_own_or_outer,
        show_default=False,
        metavar="ADDRESS",
        help="Where the hub is, as for `sendense --hub`.",
    ),
]
"""`--hub` of a command; when it is not given, that of `sendense` itself counts."""


@contextmanager
def connect(
    address: str, connect_timeout: float = CONNECT_TIMEOUT, call_timeout: float = CALL_TIMEOUT
) -> Iterator[grpc.Channel]:
    """A channel to the hub. Whatever call fails within the block ends it as CommandFailed.

    The connection is made by the first call: a hub that is not there fails that one.
    """
    with grpc.insecure_channel(_target(address), options=_options(connect_timeout, call_timeout)) as channel:
        try:
            yield channel
        except grpc.RpcError as error:
            raise from_call(error, address) from error


class _ListRequest(Protocol):
    page_size: int
    page_token: str


class _ListResponse(Protocol):
    @property
    def next_page_token(self) -> str: ...


Request = TypeVar("Request", bound=_ListRequest)
Response = TypeVar("Response", bound=_ListResponse)


def pages(method: Callable[[Request], Response], request: Request) -> Iterator[Response]:
    """Every page of a List method; `request` carries the filters, its page fields are set here."""
    request.page_size = _PAGE_SIZE
    seen = set()
    while request.page_token not in seen:
        seen.add(request.page_token)
        page = method(request)
        yield page
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token
    raise CommandFailed("the hub's list does not end: it asks for a page that was already read")


_STREAMS = [
    {"service": "sendense.v1.TaskService", "method": "WatchTask"},
    {"service": "sendense.v1.RestoreService", "method": "ReadDisk"},
]


def _options(connect_timeout: float, call_timeout: float) -> list[tuple[str, str | int]]:
    # gRPC's service config: the entry without a name stands for every method that no other entry names.
    calls = {"methodConfig": [{"name": [{}], "timeout": f"{call_timeout}s"}, {"name": _STREAMS}]}
    return [
        ("grpc.service_config", json.dumps(calls)),
        ("grpc.min_reconnect_backoff_ms", int(connect_timeout * 1000)),  # also the limit of one attempt
        ("grpc.initial_reconnect_backoff_ms", 500),
        ("grpc.max_reconnect_backoff_ms", 2000),  # a hub that was restarted is soon found again
        ("grpc.enable_http_proxy", 0),  # every address is on this machine
        ("grpc.max_receive_message_length", 16 * 1024 * 1024),  # GetChain is not paged
    ]


_LOOPBACK = ("localhost:", "127.0.0.1:", "[::1]:")


def _target(address: str) -> str:
    # The operator's door is the hub's unix socket; a loopback port is that socket forwarded by ssh -L.
    # Anything else would carry the operator's orders over a network in the clear.
    if address.startswith(("unix:", *_LOOPBACK)):
        return address
    raise CommandFailed(
        f"{address!r} is no hub's address: it must be unix:///PATH, or localhost:PORT when ssh -L forwards the socket",
        ExitCode.USAGE,
    )
