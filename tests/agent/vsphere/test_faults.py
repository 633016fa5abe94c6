"""Faults become errors of ours once, with their cause and in words."""

import ssl
from http.client import RemoteDisconnected
from typing import Any

import pytest
from pyVmomi import vim, vmodl

from agent.vsphere.faults import translated
from shared.errors import (
    Conflict,
    NotAuthenticated,
    NotFound,
    NotPermitted,
    NotPossibleNow,
    SendenseError,
    SourceUnavailable,
)


def raised_for(fault: BaseException) -> SendenseError:
    with pytest.raises(SendenseError) as caught, translated("looking"):
        raise fault
    return caught.value


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (vim.fault.NotAuthenticated(), NotAuthenticated),
        (vim.fault.InvalidLogin(), NotAuthenticated),
        (vim.fault.NoPermission(), NotPermitted),
        (vmodl.fault.ManagedObjectNotFound(), NotFound),
        (vim.fault.TaskInProgress(), Conflict),
        (vim.fault.InvalidPowerState(), NotPossibleNow),
        (vim.fault.FileFault(), SourceUnavailable),
        (vmodl.fault.SystemError(), SourceUnavailable),
        (ConnectionResetError("reset"), SourceUnavailable),
        (RemoteDisconnected("closed"), SourceUnavailable),
        (ssl.SSLCertVerificationError("self-signed"), NotAuthenticated),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_each_fault_has_its_error(fault: Any, expected: type[SendenseError]) -> None:
    error = raised_for(fault)
    assert type(error) is expected
    assert error.__cause__ is fault


def test_the_message_says_what_was_being_done_and_what_vcenter_said() -> None:
    assert raised_for(vim.fault.FileFault(msg="no such file")).message == "looking: FileFault: no such file"


def test_a_missing_privilege_is_named() -> None:
    fault = vim.fault.NoPermission(privilegeId="VirtualMachine.State.CreateSnapshot")
    assert "lacks the privilege VirtualMachine.State.CreateSnapshot" in raised_for(fault).message


def test_errors_of_ours_pass_as_they_are() -> None:
    error = NotFound("gone")
    assert raised_for(error) is error
