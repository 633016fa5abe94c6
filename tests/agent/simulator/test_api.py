"""The API, by pyVmomi and, where pyVmomi would not look, by plain HTTPS."""

import http.client
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyVim.connect import Disconnect, SmartConnect
from pyVim.task import WaitForTask
from pyVmomi import vim, vmodl

from agent.simulator.server import RunningSite, running
from tests.agent.simulator.conftest import log_in, pinned

PC = vmodl.query.PropertyCollector


def vm_filter(client: Any, *paths: str) -> Any:
    """All VMs, by a container view."""
    content = client.RetrieveContent()
    view = content.viewManager.CreateContainerView(content.rootFolder, [vim.VirtualMachine], True)
    traversal = PC.TraversalSpec(type=vim.view.ContainerView, path="view", skip=False)
    return PC.FilterSpec(
        objectSet=[PC.ObjectSpec(obj=view, skip=True, selectSet=[traversal])],
        propSet=[PC.PropertySpec(type=vim.VirtualMachine, pathSet=list(paths))],
    )


def find_vm(client: Any, served: RunningSite, name: str = "web01") -> Any:
    uuid = served.vm(name).record.instance_uuid
    return client.RetrieveContent().searchIndex.FindByUuid(None, uuid, True, True)


def snapshot(vm: Any) -> Any:
    task = vm.CreateSnapshot_Task("test", "", False, False)
    WaitForTask(task)
    return task.info.result


def post(served: RunningSite, body: str, **headers: str) -> tuple[int, str]:
    """A request as written, sent in chunks."""
    connection = http.client.HTTPSConnection(served.host, served.port, context=pinned(served.certificate))
    envelope = (
        '<?xml version="1.0"?><soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/"'
        f' xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><soapenv:Body>{body}</soapenv:Body></soapenv:Envelope>'
    ).encode()
    parts = (envelope[start : start + 100] for start in range(0, len(envelope), 100))
    connection.request("POST", "/sdk", parts, {"SOAPAction": "urn:vim25/8.0.3.0", **headers}, encode_chunked=True)
    response = connection.getresponse()
    return response.status, response.read().decode()


def test_a_wrong_password_is_refused(vcenter: RunningSite) -> None:
    with pytest.raises(vim.fault.InvalidLogin):
        log_in(vcenter, "wrong")


def test_another_certificate_is_refused(vcenter: RunningSite) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        SmartConnect(host="127.0.0.1", port=vcenter.port, sslContext=ssl.create_default_context())


def test_nothing_is_told_before_login(vcenter: RunningSite, client: Any) -> None:
    vm = find_vm(client, vcenter)
    Disconnect(client)
    with pytest.raises(vim.fault.NotAuthenticated):
        _ = vm.name


def test_an_expired_session_is_not_authenticated(vcenter: RunningSite, client: Any) -> None:
    vm = find_vm(client, vcenter)
    vcenter.service.sessions.expire_all()
    with pytest.raises(vim.fault.NotAuthenticated):
        vm.CreateSnapshot_Task("x", "", False, False)


def test_the_service_says_who_it_is_and_who_is_logged_in(vcenter: RunningSite, client: Any) -> None:
    content = client.RetrieveContent()
    assert content.about.instanceUuid == vcenter.site.record.instance_uuid
    assert content.about.apiType == "VirtualCenter"
    assert content.sessionManager.currentSession.userName == vcenter.username


def test_inventory_comes_in_pages(client: Any) -> None:
    collector = client.RetrieveContent().propertyCollector
    page = collector.RetrievePropertiesEx([vm_filter(client, "name")], PC.RetrieveOptions(maxObjects=1))
    assert [item.propSet[0].val for item in page.objects] == ["web01"]
    page = collector.ContinueRetrievePropertiesEx(page.token)
    assert [item.propSet[0].val for item in page.objects] == ["db01"]
    assert page.token is None


def test_a_page_token_is_good_once(client: Any) -> None:
    collector = client.RetrieveContent().propertyCollector
    page = collector.RetrievePropertiesEx([vm_filter(client, "name")], PC.RetrieveOptions(maxObjects=1))
    collector.ContinueRetrievePropertiesEx(page.token)
    with pytest.raises(vmodl.fault.InvalidArgument):
        collector.ContinueRetrievePropertiesEx(page.token)


def test_folders_are_walked_by_specs_that_name_each_other(client: Any) -> None:
    content = client.RetrieveContent()
    again = PC.SelectionSpec(name="folders")
    into_datacenter = PC.TraversalSpec(name="vms", type=vim.Datacenter, path="vmFolder", selectSet=[again])
    folders = PC.TraversalSpec(
        name="folders", type=vim.Folder, path="childEntity", selectSet=[again, PC.SelectionSpec(name="vms")]
    )
    spec = PC.FilterSpec(
        objectSet=[PC.ObjectSpec(obj=content.rootFolder, skip=True, selectSet=[folders, into_datacenter])],
        propSet=[PC.PropertySpec(type=vim.VirtualMachine, pathSet=["name"])],
    )
    found = content.propertyCollector.RetrieveContents([spec])
    assert [item.propSet[0].val for item in found] == ["web01", "db01"]


def test_nested_properties_keep_their_types(vcenter: RunningSite, client: Any) -> None:
    paths = ("config.hardware.device", "config.uuid", "runtime.powerState", "snapshot", "summary.config.name")
    page = client.RetrieveContent().propertyCollector.RetrievePropertiesEx(
        [vm_filter(client, *paths)], PC.RetrieveOptions()
    )
    values = {item.name: item.val for item in page.objects[0].propSet}
    assert values["config.uuid"] == vcenter.vm("web01").record.uuid
    assert values["runtime.powerState"] == "poweredOn"
    assert "snapshot" not in values, "unset properties are left out"
    disks = [device for device in values["config.hardware.device"] if isinstance(device, vim.vm.device.VirtualDisk)]
    assert [disk.capacityInBytes for disk in disks] == [disk.record.capacity for disk in vcenter.vm("web01").disks]


def test_a_property_that_does_not_exist_is_a_fault(client: Any) -> None:
    with pytest.raises(vmodl.query.InvalidProperty):
        client.RetrieveContent().propertyCollector.RetrieveContents([vm_filter(client, "config.nonsense")])


def test_every_required_field_of_a_vm_is_there(vcenter: RunningSite, client: Any) -> None:
    vm = find_vm(client, vcenter)
    snapshot(vm)
    for value in (vm.config, vm.runtime, vm.summary, vm.capability, vm.guest, vm.snapshot):
        assert missing_fields(value) == []


def missing_fields(value: Any, where: str = "") -> list[str]:
    """Fields that VMware's types demand and the value lacks, at any depth."""
    missing = []
    for field in value._GetPropertyList():
        item, path = getattr(value, field.name), f"{where}.{field.name}"
        if item is None and not field.flags & 4:
            missing.append(path)
        for part in item if isinstance(item, list) else [item]:
            if isinstance(part, vmodl.DynamicData):
                missing += missing_fields(part, path)
    return missing


def test_a_view_and_a_collector_are_gone_when_destroyed(client: Any) -> None:
    content = client.RetrieveContent()
    view = content.viewManager.CreateContainerView(content.rootFolder, [vim.VirtualMachine], True)
    collector = content.propertyCollector.CreatePropertyCollector()
    view.Destroy()
    collector.Destroy()
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        _ = view.view


def test_search_is_by_instance_uuid_or_bios_uuid_as_asked(vcenter: RunningSite, client: Any) -> None:
    search, record = client.RetrieveContent().searchIndex, vcenter.vm("db01").record
    assert search.FindByUuid(None, record.instance_uuid, True, True)._moId == record.moref
    assert search.FindByUuid(None, record.uuid, True, False)._moId == record.moref
    assert search.FindByUuid(None, record.uuid, True, True) is None


def test_what_does_not_exist_is_said_so(client: Any) -> None:
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        _ = vim.VirtualMachine("vm-9999", client._stub).name


def test_a_method_that_is_not_simulated_is_not_supported(vcenter: RunningSite, client: Any) -> None:
    with pytest.raises(vmodl.fault.NotSupported):
        find_vm(client, vcenter).ResetVM_Task()


def test_chunked_requests_are_understood(vcenter: RunningSite) -> None:
    target = '<_this type="ServiceInstance">ServiceInstance</_this>'
    status, text = post(vcenter, f'<RetrieveServiceContent xmlns="urn:vim25">{target}</RetrieveServiceContent>')
    assert status == 200
    assert "<searchIndex" in text


def test_a_fault_has_its_message_beside_the_detail_only(vcenter: RunningSite) -> None:
    target = '<_this type="SessionManager">SessionManager</_this>'
    login = f'<Login xmlns="urn:vim25">{target}<userName>x</userName><password>y</password></Login>'
    status, text = post(vcenter, login)
    assert status == 500
    assert "<faultstring>Cannot complete login" in text
    assert "<msg>" not in text
    assert 'xsi:type="InvalidLogin"' in text


def test_a_reference_inside_any_is_typed_as_one(vcenter: RunningSite, client: Any) -> None:
    spec = (
        "<specSet><propSet><type>VirtualMachine</type><pathSet>parent</pathSet></propSet>"
        '<objectSet><obj type="VirtualMachine">vm-101</obj></objectSet></specSet><options/>'
    )
    target = '<_this type="PropertyCollector">propertyCollector</_this>'
    body = f'<RetrievePropertiesEx xmlns="urn:vim25">{target}{spec}</RetrievePropertiesEx>'
    _, text = post(vcenter, body, Cookie=client._stub.cookie)
    assert '<val xsi:type="ManagedObjectReference" type="Folder">group-v3</val>' in text
    assert "versionId" not in text


def test_what_is_not_xml_gets_a_fault(vcenter: RunningSite) -> None:
    status, text = post(vcenter, "<open")
    assert status == 500
    assert "InvalidRequest" in text


def test_waiting_for_updates_tells_what_changed(vcenter: RunningSite, client: Any) -> None:
    collector = client.RetrieveContent().propertyCollector.CreatePropertyCollector()
    collector.CreateFilter(vm_filter(client, "runtime.powerState"), True)
    first = collector.WaitForUpdatesEx(None, PC.WaitOptions(maxWaitSeconds=5))
    assert [update.kind for update in first.filterSet[0].objectSet] == ["enter", "enter"]
    threading.Timer(0.2, vcenter.vm("db01").set_power, [False]).start()
    second = collector.WaitForUpdatesEx(first.version, PC.WaitOptions(maxWaitSeconds=30))
    (update,) = second.filterSet[0].objectSet
    assert (update.obj._moId, update.kind) == ("vm-102", "modify")
    assert [(change.name, change.val) for change in update.changeSet] == [("runtime.powerState", "poweredOff")]
    assert collector.WaitForUpdatesEx(second.version, PC.WaitOptions(maxWaitSeconds=0)) is None


def test_an_old_version_of_a_collector_is_refused(client: Any) -> None:
    collector = client.RetrieveContent().propertyCollector
    collector.CreateFilter(vm_filter(client, "name"), True)
    version = collector.WaitForUpdatesEx(None, None).version
    with pytest.raises(vmodl.query.InvalidCollectorVersion):
        collector.WaitForUpdatesEx(f"{version}0", None)


def test_who_waits_is_let_go_when_the_site_closes(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    with running(tmp_path) as served:
        client = log_in(served)
        collector = client.RetrieveContent().propertyCollector
        collector.CreateFilter(vm_filter(client, "name"), True)
        version = collector.WaitForUpdatesEx(None, None).version
        waiter = threading.Thread(target=lambda: raises_something(lambda: collector.WaitForUpdatesEx(version, None)))
        waiter.start()
    waiter.join(20)
    for thread in set(threading.enumerate()) - before:
        thread.join(20)
    assert set(threading.enumerate()) <= before


def raises_something(action: Callable[[], object]) -> None:
    with pytest.raises((OSError, http.client.HTTPException, vmodl.fault.RequestCanceled)):
        action()


def test_the_call_log_shows_what_was_asked(vcenter: RunningSite, client: Any) -> None:
    find_vm(client, vcenter)
    assert vcenter.site.calls.methods()[-2:] == ["RetrieveServiceContent", "FindByUuid"]
