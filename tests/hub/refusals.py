"""Refusals: what a caller learns of a call that fails, taken apart."""

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from grpc_status import rpc_status


@dataclass(frozen=True)
class Refusal:
    """A status with its details."""

    code: str
    message: str
    reason: str = ""
    domain: str = ""
    field: str = ""

    def __iter__(self) -> Any:
        """Code, reason and field: what clients decide by."""
        return iter((self.code, self.reason, self.field))


async def refused(call: Awaitable[Any]) -> Refusal:
    """The refusal that a call ends in; it must end in one of ours, or in one of gRPC without details."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return refusal_of(caught.value)


def refusal_of(error: grpc.aio.AioRpcError) -> Refusal:
    info, bad = ErrorInfo(), BadRequest()
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # the stubs know the synchronous call only
    for detail in status.details if status is not None else []:
        _ = detail.Unpack(info) or detail.Unpack(bad)
    fields = [violation.field for violation in bad.field_violations]
    return Refusal(error.code().name, error.details() or "", info.reason, info.domain, ",".join(fields))
