"""What can go wrong for the operator: one line on stderr, and an exit code that scripts can decide by."""

from enum import IntEnum
from typing import cast

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from sendense.v1.backup_pb2 import Failure


class ExitCode(IntEnum):
    """Exit codes of `sendense`; the table stands in `sendense --help` and in sendense/README.md too."""

    OK = 0
    FAILED = 1
    """What was asked for was tried and failed."""
    USAGE = 2
    """The command line, or a value in it, makes no sense."""
    NOT_FOUND = 3
    REFUSED = 4
    """The present state forbids it."""
    UNAVAILABLE = 5
    """The hub, or something it needs, does not answer."""
    NOT_PERMITTED = 6
    DATA_LOSS = 7
    """Bytes are missing or not what they should be."""
    INTERRUPTED = 130


class CommandFailed(Exception):
    """Ends the command with `exit_code`; `message` is one line for stderr."""

    def __init__(self, message: str, exit_code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code


def from_call(error: grpc.RpcError, address: str) -> CommandFailed:
    """What a failed call to the hub at `address` means for the operator."""
    call = cast(grpc.Call, error)  # grpc raises the call itself
    status = rpc_status.from_call(call)
    if status is None and call.code() in _NO_ANSWER:
        return _no_answer(call, address)
    message = call.details() or "the hub gave no reason"
    facts = [call.code().name] if status is None else _facts(status)
    return CommandFailed(f"{message} ({'; '.join(facts)})", _EXIT_CODES.get(call.code(), ExitCode.FAILED))


def failure_text(failure: Failure) -> str:
    """Why a backup or a task ended badly; '' when it did not."""
    return f"{failure.message} ({failure.reason})" if failure.reason else failure.message


# Without details it is not the hub that says so, but grpc that could not reach it.
_NO_ANSWER = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}

_EXIT_CODES = {
    grpc.StatusCode.INVALID_ARGUMENT: ExitCode.USAGE,
    grpc.StatusCode.NOT_FOUND: ExitCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION: ExitCode.REFUSED,
    grpc.StatusCode.ALREADY_EXISTS: ExitCode.REFUSED,
    grpc.StatusCode.ABORTED: ExitCode.REFUSED,
    grpc.StatusCode.UNAVAILABLE: ExitCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: ExitCode.UNAVAILABLE,
    grpc.StatusCode.UNAUTHENTICATED: ExitCode.NOT_PERMITTED,
    grpc.StatusCode.PERMISSION_DENIED: ExitCode.NOT_PERMITTED,
    grpc.StatusCode.DATA_LOSS: ExitCode.DATA_LOSS,
}


def _no_answer(error: grpc.Call, address: str) -> CommandFailed:
    cause = (error.details() or "").rsplit(": ", 1)[-1]
    return CommandFailed(
        f"no answer from the hub at {address} ({cause}). Is sendense-hub running there? "
        "--hub or SENDENSE_HUB says where it is",
        ExitCode.UNAVAILABLE,
    )


def _facts(status: status_pb2.Status) -> list[str]:
    """The stable reason, and each request field at fault with what is wrong with it."""
    facts = []
    info, request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        if detail.Unpack(info):
            facts.append(info.reason)
        elif detail.Unpack(request):
            facts += [_violation(violation, status.message) for violation in request.field_violations]
    return facts


def _violation(violation: error_details_pb2.BadRequest.FieldViolation, message: str) -> str:
    if violation.description in ("", message):
        return f"field {violation.field}"
    return f"field {violation.field}: {violation.description}"
