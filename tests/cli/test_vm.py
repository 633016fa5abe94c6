"""`sendense vm`."""

import json

import grpc

from sendense.v1.vm_pb2 import ListVmsResponse, Vm, VmDisk
from tests.cli.conftest import Command, rows
from tests.cli.scripted_hub import Refusal, ScriptedHub

WEB_ID = "5021c8a4-0c4f-4f4e-9d2c-8e4b7f0c1d2e"
WEB = Vm(
    name=f"vms/{WEB_ID}",
    display_name="web-01",
    power_state="POWERED_ON",
    cbt_enabled=True,
    disks=[VmDisk(disk_id="d0", label="Hard disk 1", device_key=2000, capacity_bytes=3 * 2**30)],
)


def test_list_shows_a_vm_per_line_with_human_sizes(hub: ScriptedHub, sendense: Command) -> None:
    hub.on("ListVms", ListVmsResponse(vms=[WEB]))
    assert rows(sendense("vm", "list").out) == [["web-01", "powered on", "1", "3.0 GiB", "on", "-", WEB_ID]]


def test_list_reads_every_page(hub: ScriptedHub, sendense: Command) -> None:
    first = ListVmsResponse(vms=[Vm(name="vms/1")], next_page_token="more")
    hub.on("ListVms", first, ListVmsResponse(vms=[Vm(name="vms/2")]))
    listed = json.loads(sendense("vm", "list", "--json").out)
    assert [vm["name"] for vm in listed["vms"]] == ["vms/1", "vms/2"]
    assert [request.page_token for request in hub.requests["ListVms"]] == ["", "more"]


def test_a_list_that_never_ends_is_given_up(hub: ScriptedHub, sendense: Command) -> None:
    hub.on("ListVms", ListVmsResponse(next_page_token="again"))
    outcome = sendense("vm", "list")
    assert outcome.status == 1
    assert "does not end" in outcome.err


def test_an_empty_list_says_so_on_stderr_only(hub: ScriptedHub, sendense: Command) -> None:
    hub.on("ListVms", ListVmsResponse())
    outcome = sendense("vm", "list")
    assert (outcome.status, outcome.out) == (0, "")
    assert "no VMs" in outcome.err


def test_an_empty_list_is_an_empty_list_in_json(hub: ScriptedHub, sendense: Command) -> None:
    hub.on("ListVms", ListVmsResponse())
    outcome = sendense("vm", "list", "--json")
    assert (json.loads(outcome.out), outcome.err) == ({"vms": []}, "")


def test_json_has_proto_names_and_fields_at_their_default(hub: ScriptedHub, sendense: Command) -> None:
    hub.on("ListVms", ListVmsResponse(vms=[Vm(name="vms/1")]))
    vm = json.loads(sendense("vm", "list", "--json").out)["vms"][0]
    assert (vm["display_name"], vm["cbt_enabled"], vm["disks"]) == ("", False, [])


def test_a_missing_vm_is_shown_as_missing(hub: ScriptedHub, sendense: Command) -> None:
    gone = Vm(display_name="old", power_state="POWERED_ON")
    gone.missing_since.GetCurrentTime()
    hub.on("ListVms", ListVmsResponse(vms=[gone]))
    assert rows(sendense("vm", "list").out)[0][:2] == ["old", "missing"]


def test_control_characters_in_a_name_do_not_reach_the_terminal(hub: ScriptedHub, sendense: Command) -> None:
    hub.on("ListVms", ListVmsResponse(vms=[Vm(display_name="a\x1b[2Jb\nc [red]d")]))
    assert sendense("vm", "list").out.splitlines()[1].startswith("a [2Jb c [red]d")


def test_a_row_in_a_pipe_is_one_line_however_long(hub: ScriptedHub, sendense: Command) -> None:
    hub.on("ListVms", ListVmsResponse(vms=[Vm(display_name="n" * 300)]))
    assert len(sendense("vm", "list").out.splitlines()) == 2


def test_show_by_uuid_asks_for_that_vm(hub: ScriptedHub, sendense: Command) -> None:
    hub.on("GetVm", WEB)
    outcome = sendense("vm", "show", WEB_ID.upper())
    assert hub.requests["GetVm"][0].name == f"vms/{WEB_ID}"
    assert "Hard disk 1" in outcome.out


def test_show_by_name_asks_for_that_name_only(hub: ScriptedHub, sendense: Command) -> None:
    hub.on("ListVms", ListVmsResponse(vms=[WEB]))
    assert json.loads(sendense("vm", "show", "web-01", "--json").out)["name"] == f"vms/{WEB_ID}"
    assert hub.requests["ListVms"][0].display_name == "web-01"


def test_show_of_an_unknown_name_is_not_found(hub: ScriptedHub, sendense: Command) -> None:
    hub.on("ListVms", ListVmsResponse())
    assert sendense("vm", "show", "web-9").status == 3


def test_show_of_an_unknown_uuid_is_not_found(hub: ScriptedHub, sendense: Command) -> None:
    hub.on("GetVm", Refusal(grpc.StatusCode.NOT_FOUND, "no such VM", "NOT_FOUND"))
    outcome = sendense("vm", "show", WEB_ID)
    assert (outcome.status, outcome.err) == (3, "sendense: no such VM (NOT_FOUND)\n")


def test_show_of_a_name_that_several_vms_share_names_them(hub: ScriptedHub, sendense: Command) -> None:
    hub.on("ListVms", ListVmsResponse(vms=[Vm(name="vms/one"), Vm(name="vms/two")]))
    outcome = sendense("vm", "show", "web-01")
    assert outcome.status == 2
    assert "one, two" in outcome.err
