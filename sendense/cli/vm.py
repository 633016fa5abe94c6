"""`sendense vm`: the virtual machines the hub knows."""

import grpc
import typer

from sendense.cli import output
from sendense.cli.connection import HubOption, connect, pages
from sendense.cli.errors import CommandFailed, ExitCode
from sendense.cli.names import VmArgument, bare_id, vm_fields
from sendense.cli.output import JsonOption
from sendense.v1.vm_pb2 import GetVmRequest, ListVmsRequest, Vm, VmDisk
from sendense.v1.vm_pb2_grpc import VmServiceStub

app = typer.Typer(no_args_is_help=True, help="Show the VMs that agents report.")


@app.command("list")
def list_vms(hub: HubOption = "", as_json: JsonOption = False) -> None:
    """List VMs by name. VMs that vCenter no longer has stay listed, as missing."""
    with connect(hub) as channel:
        vms = _vms(channel, ListVmsRequest())
    if as_json:
        output.document({"vms": vms})
    else:
        columns = ("NAME", "STATE", ">DISKS", ">SIZE", "CBT", "SEEN", "INSTANCE UUID")
        output.table(columns, map(_row, vms), empty="no VMs: has an agent joined? `sendense agent list` shows it")


@app.command()
def show(vm: VmArgument, hub: HubOption = "", as_json: JsonOption = False) -> None:
    """Show one VM and its disks."""
    with connect(hub) as channel:
        found = _find(channel, vm)
    if as_json:
        output.document(found)
        return
    output.facts(_facts(found))
    columns = ("DISK", "LABEL", ">DEVICE KEY", ">SIZE", "BACKING UUID")
    output.table(columns, map(_disk_row, found.disks), empty="it has no disks")


def _vms(channel: grpc.Channel, request: ListVmsRequest) -> list[Vm]:
    return [vm for page in pages(VmServiceStub(channel).ListVms, request) for vm in page.vms]


def _find(channel: grpc.Channel, text: str) -> Vm:
    fields = vm_fields(text)
    if "vm_id" in fields:
        return VmServiceStub(channel).GetVm(GetVmRequest(name=f"vms/{fields['vm_id']}"))
    named = _vms(channel, ListVmsRequest(display_name=text))
    if not named:
        raise CommandFailed(f"no VM is named {text!r}", ExitCode.NOT_FOUND)
    if len(named) > 1:
        ids = ", ".join(bare_id(vm.name) for vm in named)
        raise CommandFailed(
            f"{len(named)} VMs are named {text!r}; say which by its instance UUID: {ids}", ExitCode.USAGE
        )
    return named[0]


def _row(vm: Vm) -> tuple[str, ...]:
    return (
        vm.display_name,
        _state(vm),
        str(len(vm.disks)),
        output.size(sum(disk.capacity_bytes for disk in vm.disks)),
        "on" if vm.cbt_enabled else "off",
        output.when(vm.seen_time),
        bare_id(vm.name),
    )


def _state(vm: Vm) -> str:
    if vm.HasField("missing_since"):
        return "missing"
    return "template" if vm.template else vm.power_state.lower().replace("_", " ")


def _facts(vm: Vm) -> list[tuple[str, str]]:
    return [
        ("name", vm.display_name),
        ("instance UUID", bare_id(vm.name)),
        ("state", _state(vm)),
        ("missing since", output.when(vm.missing_since) if vm.HasField("missing_since") else ""),
        ("guest", vm.guest_os),
        ("hardware", f"version {vm.hardware_version}"),
        ("change tracking", "on" if vm.cbt_enabled else "off"),
        ("folder", vm.folder_path),
        ("host", vm.host_name),
        ("moref", vm.moref),
        ("vCenter", vm.vcenter_id),
        ("agent", vm.agent_id),
        ("seen", output.when(vm.seen_time)),
    ]


def _disk_row(disk: VmDisk) -> tuple[str, ...]:
    return disk.disk_id, disk.label, str(disk.device_key), output.size(disk.capacity_bytes), disk.backing_uuid
