"""Faults of vSphere and of the way to it, translated once into the errors of this software.

The fault stays the error's `__cause__`, for the few places that must know which one it was.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from ssl import SSLCertVerificationError
from typing import Any
from xml.parsers.expat import ExpatError

from pyVmomi import vim, vmodl

from shared.errors import (
    Conflict,
    InvalidRequest,
    LimitReached,
    NotAuthenticated,
    NotFound,
    NotPermitted,
    NotPossibleNow,
    SendenseError,
    SourceUnavailable,
)

BROKEN_CALL = (OSError, HTTPException, ExpatError)
"""What pyVmomi raises when there is no answer, or none that can be read."""


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Raise what pyVmomi raises inside as an error of ours that begins with what was being done."""
    try:
        yield
    except vmodl.MethodFault as fault:
        raise _error_of(doing, fault) from fault
    except SSLCertVerificationError as error:
        raise NotAuthenticated(
            f"{doing}: the server's certificate is not, or no longer, the pinned one ({_words(error)}); "
            "if it was replaced on purpose, set [vcenter] thumbprint to the new one"
        ) from error
    except BROKEN_CALL as error:
        raise SourceUnavailable(f"{doing}: vCenter does not answer as it should ({_words(error)})") from error


def fault_kind(fault: BaseException) -> str:
    """A fault's name as VMware's documents spell it: 'FileFault'."""
    return type(fault).__name__.rpartition(".")[2]


def _error_of(doing: str, fault: Any) -> SendenseError:
    kind = next(error for cause, error in _TABLE if isinstance(fault, cause))
    told = f"{fault_kind(fault)}: {fault.msg}" if fault.msg else fault_kind(fault)
    return kind(f"{doing}: {told}{_missing_privilege(fault)}", fault=fault_kind(fault))


def _missing_privilege(fault: Any) -> str:
    missing = getattr(fault, "privilegeId", None)
    return f" (the account lacks the privilege {missing})" if missing else ""


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__


# First match wins: NotAuthenticated is a kind of NoPermission, and everything is a MethodFault.
_TABLE: tuple[tuple[Any, type[SendenseError]], ...] = (
    (vim.fault.InvalidLogin, NotAuthenticated),
    (vim.fault.NotAuthenticated, NotAuthenticated),
    (vim.fault.NoPermission, NotPermitted),
    (vmodl.fault.ManagedObjectNotFound, NotFound),
    (vim.fault.NotFound, NotFound),
    (vim.fault.TaskInProgress, Conflict),
    (vim.fault.ConcurrentAccess, Conflict),
    (vim.fault.InvalidState, NotPossibleNow),
    (vmodl.fault.NotSupported, NotPossibleNow),
    (vmodl.fault.InvalidArgument, InvalidRequest),
    (vim.fault.NoDiskSpace, LimitReached),
    (vmodl.MethodFault, SourceUnavailable),
)
