"""Resource names, `backups/{backup}` and the like, and the VM or repository that a request means."""

from typing import Any

from hub.catalogue import repositories, vms
from hub.catalogue.engine import Catalogue
from hub.catalogue.vms import Vm, VmFilter
from shared.errors import InvalidRequest, NotFound


def id_in(name: str, collection: str, field: str = "name") -> str:
    """The ID within a resource name of `collection`; raises InvalidRequest naming the field."""
    head, slash, resource_id = name.partition("/")
    if head != collection or not slash or not resource_id or "/" in resource_id:
        raise InvalidRequest(f"{field} must have the form {collection}/ID, not {name!r}", field=field)
    return resource_id


async def find_vm(catalogue: Catalogue, request: Any) -> Vm:
    """The VM that `vm_id` or `vm_name` of a request means; raises InvalidRequest or NotFound."""
    if bool(request.vm_id) == bool(request.vm_name):
        raise InvalidRequest("say which VM: by vm_id or by vm_name", field="vm_id")
    async with catalogue.reading() as session:
        if request.vm_id:
            return await vms.get(session, request.vm_id)
        found = await vms.list_vms(session, VmFilter(name=request.vm_name), limit=10)
    present = [vm for vm in found if vm.missing_since is None] or found
    if not present:
        raise NotFound(f"there is no VM named {request.vm_name}", vm_name=request.vm_name)
    if len(present) > 1:
        ids = ", ".join(vm.id for vm in present)
        raise InvalidRequest(f"several VMs are named {request.vm_name}: say which by vm_id ({ids})", field="vm_name")
    return present[0]


async def find_repository(catalogue: Catalogue, repository_id: str) -> str:
    """The repository's ID; '' means the only one there is. Raises InvalidRequest."""
    async with catalogue.reading() as session:
        known = [repository.id for repository in await repositories.list_repositories(session)]
    if not repository_id and len(known) == 1:
        return known[0]
    if not repository_id:
        raise InvalidRequest(f"say which repository: there are {len(known)}", field="repository_id")
    if repository_id not in known:
        raise InvalidRequest(f"there is no repository {repository_id}", field="repository_id")
    return repository_id
