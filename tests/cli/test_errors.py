"""Errors: one line on stderr, and the exit code of their kind."""

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import pytest

import sendense as package
from sendense.cli.connection import connect
from sendense.cli.errors import CommandFailed
from sendense.v1.vm_pb2 import ListVmsRequest, ListVmsResponse
from sendense.v1.vm_pb2_grpc import VmServiceStub
from tests.cli.conftest import Command
from tests.cli.scripted_hub import PlainAbort, Refusal, ScriptedHub

Code = grpc.StatusCode

EXIT_CODES = {
    Code.INVALID_ARGUMENT: 2,
    Code.NOT_FOUND: 3,
    Code.FAILED_PRECONDITION: 4,
    Code.ALREADY_EXISTS: 4,
    Code.ABORTED: 4,
    Code.UNAVAILABLE: 5,
    Code.DEADLINE_EXCEEDED: 5,
    Code.UNAUTHENTICATED: 6,
    Code.PERMISSION_DENIED: 6,
    Code.DATA_LOSS: 7,
    Code.INTERNAL: 1,
    Code.RESOURCE_EXHAUSTED: 1,
}


@pytest.mark.parametrize(("code", "status"), EXIT_CODES.items(), ids=lambda value: getattr(value, "name", value))
def test_each_kind_of_refusal_has_its_exit_code(
    code: grpc.StatusCode, status: int, hub: ScriptedHub, sendense: Command
) -> None:
    hub.on("ListVms", Refusal(code, "it is so", "THE_REASON"))
    outcome = sendense("vm", "list")
    assert (outcome.status, outcome.out, outcome.err) == (status, "", "sendense: it is so (THE_REASON)\n")


def test_a_field_at_fault_is_named_with_what_is_wrong(hub: ScriptedHub, sendense: Command) -> None:
    fields = {"vm_name": "two VMs have it", "repository_id": ""}
    hub.on("ListVms", Refusal(Code.INVALID_ARGUMENT, "no", "INVALID_REQUEST", fields))
    expected = "sendense: no (INVALID_REQUEST; field vm_name: two VMs have it; field repository_id)\n"
    assert sendense("vm", "list").err == expected


def test_a_message_of_several_lines_becomes_one(hub: ScriptedHub, sendense: Command) -> None:
    hub.on("ListVms", Refusal(Code.INTERNAL, "one\ntwo", "INTERNAL"))
    assert sendense("vm", "list").err == "sendense: one two (INTERNAL)\n"


def test_an_error_without_details_shows_its_code(hub: ScriptedHub, sendense: Command) -> None:
    hub.on("ListVms", PlainAbort(Code.UNIMPLEMENTED))
    assert sendense("vm", "list").err == "sendense: the hub gave no reason (UNIMPLEMENTED)\n"


def test_a_hub_that_is_not_there_is_named_and_not_waited_for(sendense: Command, tmp_path: Path) -> None:
    begun = time.monotonic()
    outcome = sendense.plain("--hub", f"unix://{tmp_path}/none.sock", "vm", "list")
    assert outcome.status == 5
    assert outcome.err.startswith(f"sendense: no answer from the hub at unix://{tmp_path}/none.sock (No such file")
    assert time.monotonic() - begun < 5


def test_a_hub_that_takes_the_connection_and_is_silent_is_given_up(socket_folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(f"{socket_folder}/hub.sock")
        silent.listen()
        with pytest.raises(CommandFailed, match="no answer from the hub at unix:"):
            with connect(f"unix://{socket_folder}/hub.sock", connect_timeout=0.5) as channel:
                VmServiceStub(channel).ListVms(ListVmsRequest())


def test_a_call_that_is_not_answered_is_given_up(hub: ScriptedHub) -> None:
    over = threading.Event()

    def hang(request: object) -> ListVmsResponse:
        over.wait(30)
        return ListVmsResponse()

    hub.on("ListVms", hang)
    try:
        with pytest.raises(CommandFailed, match="Deadline Exceeded"):
            with connect(hub.address, call_timeout=0.5) as channel:
                VmServiceStub(channel).ListVms(ListVmsRequest())
    finally:
        over.set()


@pytest.mark.parametrize("address", ["hub.example:8443", "10.0.0.1:1", "https://hub", ""])
def test_an_address_that_would_go_over_the_network_in_the_clear_is_a_usage_error(
    address: str, sendense: Command
) -> None:
    outcome = sendense.plain("--hub", address, "vm", "list")
    assert outcome.status == 2
    assert "is no hub's address" in outcome.err


def test_a_loopback_port_is_an_address(sendense: Command) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        outcome = sendense.plain("--hub", f"127.0.0.1:{port}", "vm", "list")
    assert outcome.status == 5
    assert "Connection refused" in outcome.err


def test_the_hubs_address_comes_from_the_environment(
    hub: ScriptedHub, sendense: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SENDENSE_HUB", hub.address)
    hub.on("ListVms", ListVmsResponse())
    assert sendense.plain("vm", "list").status == 0


def test_hub_may_stand_after_the_command_and_counts_there(hub: ScriptedHub, sendense: Command) -> None:
    hub.on("ListVms", ListVmsResponse())
    assert sendense.plain("--hub", "unix:///nowhere", "vm", "list", "--hub", hub.address).status == 0


def test_an_unknown_option_is_a_usage_error(sendense: Command) -> None:
    outcome = sendense("vm", "list", "--nonsense")
    assert (outcome.status, outcome.out) == (2, "")


def test_version_is_the_packages(sendense: Command) -> None:
    assert sendense.plain("--version").out == f"sendense {package.__version__}\n"


def test_help_has_the_exit_codes(sendense: Command) -> None:
    text = sendense.plain("--help").out
    assert all(f" {code}  " in text for code in (0, 1, 2, 3, 4, 5, 6, 7, 130))


def test_a_full_disk_under_stdout_is_a_failure(hub: ScriptedHub) -> None:
    hub.on("ListVms", ListVmsResponse())
    command = [sys.executable, "-m", "sendense.cli.main", "--hub", hub.address, "vm", "list", "--json"]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60, env=buffered
        )
    assert ended.returncode == 1
    assert ended.stderr == "sendense: cannot write standard output: No space left on device\n"


def test_the_command_needs_nothing_of_the_hub_or_the_agent() -> None:
    program = "import sys, sendense.cli.main; print(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    imported = {name.partition(".")[0] for name in ended.stdout.split()}
    assert imported.isdisjoint({"shared", "hub", "agent", "sqlalchemy", "pyVmomi", "nbd"})
