"""The agent at work: the control stream kept open, heartbeats as the hub wants them, a clean end."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import structlog
from pyVmomi import vim

from agent import service
from agent.config import AgentSettings
from agent.service import serve
from agent.simulator.machine import VirtualMachine
from agent.simulator.server import RunningSite
from agent.vsphere import snapshot
from agent.vsphere.inventory import Vm
from agent.vsphere.inventory import inventory as vms
from agent.vsphere.ledger import Ledger
from agent.vsphere.session import VSphereSession, connect
from agent.vsphere.snapshot import snapshot_name
from hub.authority import Authority
from sendense.v1 import backup_pb2, control_pb2
from shared.errors import NotAuthenticated, Unavailable, VersionMismatch
from tests.agent.appliance import PATIENCE, Appliance, ScriptedDisks
from tests.agent.appliance import until as until_async
from tests.agent.scripted_hub import ScriptedHub, identity_for, made, serving, until
from tests.agent.vsphere.sites import vcenter_settings, vddk_settings


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "FIRST_PAUSE", 0.05)
    monkeypatch.setattr(service, "LONGEST_PAUSE", 0.4)


@dataclass
class Bench:
    """An agent that can be set to work for a scripted hub."""

    hub: ScriptedHub
    authority: Authority
    settings: AgentSettings
    stop: threading.Event = field(default_factory=threading.Event)
    """Of the agent at work."""

    def set(self, section: str, **values: object) -> None:
        """Change options of a section."""
        changed = getattr(self.settings, section).model_copy(update=values)
        self.settings = self.settings.model_copy(update={section: changed})

    @contextmanager
    def at_work(self) -> Iterator[threading.Thread]:
        """The agent's thread; it runs inside the `with`, at most until `stop` is set."""
        stop = self.stop = threading.Event()
        identity = identity_for(self.authority, self.hub.address)
        thread = threading.Thread(target=serve, args=(self.settings, identity, stop))
        thread.start()
        try:
            yield thread
        finally:
            stop.set()
            thread.join(PATIENCE)
            assert not thread.is_alive()


@pytest.fixture
def bench(tmp_path: Path, machines: RunningSite) -> Iterator[Bench]:
    (tmp_path / "agent").mkdir()
    settings = AgentSettings(
        state_dir=tmp_path / "agent", vcenter=vcenter_settings(machines), vddk=vddk_settings(machines)
    )
    hub, authority = ScriptedHub(), made(tmp_path)
    with serving(hub, authority):
        yield Bench(hub, authority, settings)


def gaps(moments: list[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(moments)]


def leave(bench: Bench, vm: VirtualMachine) -> None:
    """A snapshot of an earlier run."""
    name = snapshot_name("agent-1", "task-1")
    vm.create_snapshot("snapshot-1", name, "", quiesced=False)
    Ledger(bench.settings.state_dir / "snapshots.json").intend(name, vm.record.instance_uuid, vm.record.moref)


def order_backup(bench: Bench, machines: RunningSite, time_limit: int = 0) -> None:
    """Let the hub want a backup of db01 as task-2; `time_limit` in milliseconds."""
    vm_id = machines.vm("db01").record.instance_uuid
    start = control_pb2.StartBackup(task_id="task-2", vm_id=vm_id, backup_type=backup_pb2.BACKUP_TYPE_FULL)
    start.time_limit.FromMilliseconds(time_limit)
    bench.hub.orders.put(control_pb2.ConnectResponse(start_backup=start))


# -- the control stream -----------------------------------------------------------------------------------------------


def test_the_hub_hears_of_all_vms_once_it_is_connected(bench: Bench) -> None:
    with bench.at_work():
        until(lambda: bench.hub.inventories)
    (pages,) = bench.hub.inventories
    assert sorted(vm.display_name for page in pages for vm in page.vms) == ["db01", "web01"]


@pytest.mark.parametrize(("interval", "least", "most"), [(0.05, 5, 40), (30, 1, 1)])
def test_heartbeats_come_as_often_as_the_hub_wants(bench: Bench, interval: float, least: int, most: int) -> None:
    bench.hub.heartbeat_interval = interval
    with bench.at_work():
        until(lambda: bench.hub.heartbeats)
        threading.Event().wait(1)
        assert least <= len(bench.hub.heartbeats) <= most


def test_a_hub_that_refuses_is_asked_again_after_growing_pauses(bench: Bench) -> None:
    bench.hub.refusals = [Unavailable("not now") for _ in range(6)]
    with bench.at_work():
        until(lambda: len(bench.hub.connected_at) == 7)
    pauses = [0.05, 0.1, 0.2, 0.4, 0.4, 0.4]
    assert all(gap >= pause for gap, pause in zip(gaps(bench.hub.connected_at), pauses, strict=True))


def test_after_a_welcome_the_first_new_attempt_comes_soon_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "LONGEST_PAUSE", 3600)
    bench.hub.refusals = [Unavailable("not now") for _ in range(6)]
    with bench.at_work():
        until(lambda: bench.hub.inventories)
        bench.hub.orders.put(Unavailable("the hub is stopping"))
        until(lambda: len(bench.hub.connected_at) == 8)
    assert gaps(bench.hub.connected_at)[-1] < 3.2 / 2, "the next one of the growing pauses"


@pytest.mark.parametrize("end", [None, Unavailable("the hub is stopping")])
def test_a_stream_that_ends_is_opened_again(bench: Bench, end: Unavailable | None) -> None:
    with bench.at_work():
        until(lambda: bench.hub.connected_at)
        bench.hub.orders.put(end)
        until(lambda: len(bench.hub.connected_at) == 2)


def test_another_version_of_the_hub_is_said_in_the_log(bench: Bench) -> None:
    bench.hub.refusals = [VersionMismatch("bring both to one version")]
    with structlog.testing.capture_logs() as lines, bench.at_work():
        until(lambda: len(bench.hub.connected_at) == 2)
    told = [line for line in lines if line.get("reason") == "VERSION_MISMATCH"]
    assert [line["error"] for line in told] == ["bring both to one version"]


def test_a_vm_that_another_vcenter_has_is_said_in_the_log(bench: Bench) -> None:
    with structlog.testing.capture_logs() as lines, bench.at_work():
        until(lambda: any(line.get("vm") == "vm-7" for line in lines))


def test_an_inventory_that_is_refused_does_not_end_the_stream(bench: Bench) -> None:
    bench.hub.error = Unavailable("not now")
    bench.hub.heartbeat_interval = 0.05
    with bench.at_work():
        until(lambda: bench.hub.inventories)
        heard = len(bench.hub.heartbeats)
        until(lambda: len(bench.hub.heartbeats) > heard + 2)
    assert len(bench.hub.connected_at) == 1


def test_one_odd_vm_does_not_silence_the_inventory(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "FAILURE_PAUSE", 0.05)
    odd = [KeyError("config.name"), KeyError("config.name")]

    def inventory(vsphere: VSphereSession) -> Iterator[Vm]:
        if odd:
            raise odd.pop()
        return vms(vsphere)

    monkeypatch.setattr(service, "inventory", inventory)
    with structlog.testing.capture_logs() as lines, bench.at_work():
        until(lambda: bench.hub.inventories)
    assert len([line for line in lines if "unexpectedly" in line["event"]]) == 2


def test_an_inventory_that_was_refused_is_reported_again_before_its_turn(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "FAILURE_PAUSE", 0.05)
    bench.hub.error = Unavailable("not now")
    with bench.at_work():
        until(lambda: len(bench.hub.inventories) == 2)


def test_an_inventory_that_outlasts_its_stream_is_not_reported(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would follow the newer one of the next stream."""
    go_on = threading.Event()
    asked: list[VSphereSession] = []

    def inventory(vsphere: VSphereSession) -> Iterator[Vm]:
        asked.append(vsphere)
        if len(asked) == 1:
            assert go_on.wait(PATIENCE)
        return vms(vsphere)

    monkeypatch.setattr(service, "inventory", inventory)
    with bench.at_work():
        until(lambda: asked)
        bench.hub.orders.put(None)
        until(lambda: bench.hub.inventories)
        go_on.set()
        time.sleep(0.5)
        assert len(bench.hub.inventories) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_order_it_cannot_read_ends_the_agent_rather_than_leave_it_deaf(bench: Bench) -> None:
    nonsense = control_pb2.StartBackup(task_id="task-1", backup_type=backup_pb2.BACKUP_TYPE_UNSPECIFIED)
    bench.hub.orders.put(control_pb2.ConnectResponse(start_backup=nonsense))
    with bench.at_work() as thread:
        thread.join(PATIENCE)
        assert not thread.is_alive()


# -- tasks and the stream ---------------------------------------------------------------------------------------------


async def test_tasks_go_on_while_the_stream_is_broken(appliance: Appliance, disks: ScriptedDisks) -> None:
    disks.held = {"web01"}
    async with appliance.at_work():
        started = await appliance.start("web01")
        for _ in range(3):
            assert await asyncio.to_thread(disks.reading.acquire, timeout=PATIENCE)
        appliance.hub.hub.agents.close()
        await until_async(lambda: not appliance.hub.hub.agents.connected(appliance.identity.agent_id))
        await until_async(lambda: appliance.hub.hub.agents.connected(appliance.identity.agent_id))
        disks.held = set()
        backup = await appliance.end_of(started)
        assert backup.status == backup_pb2.BACKUP_STATUS_COMPLETE
        assert await appliance.restored(backup) == appliance.contents("web01")


def cancel(bench: Bench) -> None:
    message = control_pb2.CancelTask(task_id="task-2", reason="enough")
    bench.hub.orders.put(control_pb2.ConnectResponse(cancel_task=message))


def stop_agent(bench: Bench) -> None:
    bench.stop.set()


def wait_for_the_limit(bench: Bench) -> None:
    pass


@pytest.mark.parametrize(
    ("end", "time_limit", "reason"),
    [(cancel, 0, "CANCELLED"), (stop_agent, 0, "AGENT_UNAVAILABLE"), (wait_for_the_limit, 1500, "TIMED_OUT")],
)
def test_an_upload_to_a_hub_that_takes_nothing_can_be_ended(
    bench: Bench,
    machines: RunningSite,
    disks: ScriptedDisks,
    end: Callable[[Bench], None],
    time_limit: int,
    reason: str,
) -> None:
    bench.hub.holding = True
    with bench.at_work():
        order_backup(bench, machines, time_limit)
        until(lambda: disks.opened)
        assert len(machines.vm("db01").snapshots()) == 1
        time.sleep(0.3)
        begun = time.monotonic()
        end(bench)
        until(lambda: bench.hub.finished)
        assert time.monotonic() - begun < 4
    assert [finished.failure.reason for finished in bench.hub.finished] == [reason]
    assert machines.vm("db01").snapshots() == []


def test_what_a_task_tells_while_there_is_no_stream_reaches_its_log(
    bench: Bench, machines: RunningSite, disks: ScriptedDisks
) -> None:
    disks.held = {"db01"}
    with bench.at_work():
        order_backup(bench, machines)
        assert disks.reading.acquire(timeout=PATIENCE)
        bench.hub.refusals = [Unavailable("not now") for _ in range(4)]
        bench.hub.orders.put(None)
        until(lambda: len(bench.hub.refusals) < 4)
        disks.held = set()
        until(lambda: bench.hub.finished)
        until(lambda: "removed" in "".join(event.message for event in bench.hub.events))
    assert bench.hub.refusals == []


# -- vCenter ----------------------------------------------------------------------------------------------------------


def test_what_an_earlier_run_left_in_vcenter_is_removed_at_the_start(bench: Bench, machines: RunningSite) -> None:
    vm = machines.vm("db01")
    leave(bench, vm)
    with bench.at_work():
        until(lambda: vm.snapshots() == [])


def test_the_hub_is_served_while_an_earlier_runs_snapshot_is_still_being_removed(
    bench: Bench, machines: RunningSite
) -> None:
    vm = machines.vm("db01")
    leave(bench, vm)
    with bench.at_work():
        with vm.busy:
            until(lambda: "RemoveSnapshot_Task" in machines.site.calls.methods())
            until(lambda: bench.hub.inventories)
            assert len(vm.snapshots()) == 1
        until(lambda: vm.snapshots() == [])


def test_a_snapshot_that_could_not_be_removed_goes_at_the_next_round(
    bench: Bench, machines: RunningSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "REMOVAL_PAUSES", ())
    bench.set("vcenter", reap_interval=0.2)
    vm = machines.vm("db01")
    leave(bench, vm)
    machines.site.faults.add("RemoveSnapshot_Task", vim.fault.FileFault(file="x", msg="locked"), in_task=True)
    with structlog.testing.capture_logs() as lines, bench.at_work():
        until(lambda: vm.snapshots() == [])
    assert [line for line in lines if "could not be removed" in line["event"]]


def test_the_snapshot_of_a_running_task_outlives_the_reapers_rounds(
    bench: Bench, machines: RunningSite, disks: ScriptedDisks
) -> None:
    bench.set("vcenter", reap_interval=0.02)
    disks.held = {"db01"}
    vm = machines.vm("db01")
    with bench.at_work():
        order_backup(bench, machines)
        assert disks.reading.acquire(timeout=PATIENCE)
        looked = machines.site.calls.methods().count("FindByUuid")
        until(lambda: machines.site.calls.methods().count("FindByUuid") > looked + 3)
        assert len(vm.snapshots()) == 1
    assert vm.snapshots() == []


def test_a_vcenter_that_does_not_answer_is_waited_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    refusals = 3

    def connect_later(settings: Any) -> Any:
        nonlocal refusals
        if refusals:
            refusals -= 1
            raise Unavailable("vCenter restarts")
        return connect(settings)

    monkeypatch.setattr(service, "connect", connect_later)
    with bench.at_work():
        until(lambda: bench.hub.connected_at)


def test_waiting_for_vcenter_ends_with_the_agent(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = threading.Event()

    def fail(settings: Any) -> Any:
        asked.set()
        raise Unavailable("vCenter is away")

    monkeypatch.setattr(service, "connect", fail)
    monkeypatch.setattr(service, "FIRST_PAUSE", 3600)
    with bench.at_work():
        assert asked.wait(PATIENCE)
    assert bench.hub.connected_at == []


def test_a_refused_login_is_not_tried_again(bench: Bench, tmp_path: Path) -> None:
    """It would lock the account."""
    wrong = tmp_path / "wrong"
    wrong.touch(0o600)
    wrong.write_text("hunter2\n")
    vcenter = bench.settings.vcenter.model_copy(update={"password_file": wrong})
    settings = bench.settings.model_copy(update={"vcenter": vcenter})
    with pytest.raises(NotAuthenticated):
        serve(settings, identity_for(bench.authority, bench.hub.address), threading.Event())
