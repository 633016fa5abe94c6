"""VmService."""

from typing import Any

from hub.catalogue import disks, vms
from hub.catalogue.engine import Catalogue
from hub.catalogue.vms import VmFilter
from hub.rpc import messages, paging
from hub.rpc.names import id_in
from sendense.v1 import vm_pb2, vm_pb2_grpc


class VmService(vm_pb2_grpc.VmServiceServicer):
    """Unpack, call, pack."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    async def GetVm(self, request: vm_pb2.GetVmRequest, context: Any) -> vm_pb2.Vm:
        vm_id = id_in(request.name, "vms")
        async with self._catalogue.reading() as session:
            found = await vms.get(session, vm_id)
            its_disks = await disks.list_disks(session, [vm_id])
        return messages.vm(found, its_disks.get(vm_id, []))

    async def ListVms(self, request: vm_pb2.ListVmsRequest, context: Any) -> vm_pb2.ListVmsResponse:
        size = paging.page_size(request)
        name, vm_id = paging.after(request) or ("", "")
        async with self._catalogue.reading() as session:
            which = VmFilter(name=request.display_name or None)
            found = await vms.list_vms(session, which, limit=size + 1, after=(name, vm_id))
            page = found[:size]
            by_vm = await disks.list_disks(session, [vm.id for vm in page])
        following = paging.token(request, [page[-1].name, page[-1].id]) if len(found) > size else ""
        return vm_pb2.ListVmsResponse(
            vms=[messages.vm(vm, by_vm.get(vm.id, [])) for vm in page], next_page_token=following
        )
