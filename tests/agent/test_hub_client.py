"""The hub as the agent sees it: errors as they were meant, streams that end as they should."""

import logging
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from agent import hub_client
from agent.assignment import Assignment, Counts, OnCbtLoss
from agent.hub_client import VMS_PER_PAGE, Cancellation, ControlStream, HubClient, OpenedTransfer
from agent.stop import Stop
from agent.vsphere.changes import Asked, Base
from agent.vsphere.inventory import Vm
from hub.authority import Authority
from sendense.v1 import backup_pb2, control_pb2
from shared.errors import (
    Cancelled,
    DigestMismatch,
    NotFound,
    ReadFailed,
    RepositoryFull,
    SendenseError,
    Unavailable,
    VersionMismatch,
)
from shared.extents import Extent
from shared.runs import ClusterRun, encode, zero_run
from shared.units import CLUSTER, MiB, TiB
from tests.agent.scripted_hub import ScriptedHub, identity_for, made, serving, until

TRANSFER = OpenedTransfer("transfer-1", 0)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return made(tmp_path)


@pytest.fixture
def hub(authority: Authority) -> Iterator[ScriptedHub]:
    hub = ScriptedHub()
    with serving(hub, authority):
        yield hub


@pytest.fixture
def client(hub: ScriptedHub, authority: Authority) -> Iterator[HubClient]:
    with HubClient(identity_for(authority, hub.address)) as client:
        yield client


def opened(client: HubClient) -> ControlStream:
    return client.control("0.1", "appliance", ["task-1", "task-2"])


# -- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        NotFound("no such task"),
        RepositoryFull("no room left"),
        DigestMismatch("damaged"),
        Unavailable("later"),
        Cancelled("somebody asked"),
    ],
)
def test_an_error_of_the_hub_comes_as_the_class_it_was_with_its_words(
    hub: ScriptedHub, client: HubClient, error: SendenseError
) -> None:
    hub.error = error
    with pytest.raises(SendenseError) as raised:
        client.finish("task-1", None, Counts())
    assert type(raised.value) is type(error)
    assert raised.value.message == error.message


def test_a_hub_that_is_not_there_is_unavailable(hub: ScriptedHub, authority: Authority) -> None:
    with HubClient(identity_for(authority, "127.0.0.1:1")) as client, pytest.raises(Unavailable):
        client.finish("task-1", None, Counts())


def test_a_hub_of_another_authority_is_not_spoken_to(hub: ScriptedHub, tmp_path: Path) -> None:
    other = made(tmp_path / "other")
    with HubClient(identity_for(other, hub.address)) as client, pytest.raises(Unavailable):
        client.finish("task-1", None, Counts())


def test_a_hub_that_ends_in_the_middle_is_unavailable(authority: Authority) -> None:
    hub = ScriptedHub()
    with serving(hub, authority):
        client = HubClient(identity_for(authority, hub.address))
        stream = opened(client)
    with client, pytest.raises(SendenseError) as raised:
        list(stream)
    assert raised.value.reason == "UNAVAILABLE"


# -- the control stream -----------------------------------------------------------------------------------------------


def test_the_welcome_says_how_often_the_hub_wants_to_hear(hub: ScriptedHub, client: HubClient) -> None:
    hub.heartbeat_interval = 2.5
    stream = opened(client)
    assert (stream.welcome.heartbeat_interval, stream.welcome.display_name) == (2.5, "appliance")
    stream.close()


def test_the_hello_says_who_and_with_which_tasks(hub: ScriptedHub, client: HubClient) -> None:
    opened(client).close()
    (hello,) = hub.hellos
    assert (hello.protocol_version, hello.software_version, hello.hostname) == (1, "0.1", "appliance")
    assert list(hello.task_ids) == ["task-1", "task-2"]


def test_another_version_is_refused_with_the_hubs_words(hub: ScriptedHub, client: HubClient) -> None:
    hub.refusals = [VersionMismatch("bring both to one version")]
    with pytest.raises(VersionMismatch, match="bring both to one version"):
        opened(client)


def test_orders_come_as_they_were_given(hub: ScriptedHub, client: HubClient) -> None:
    start = control_pb2.StartBackup(
        task_id="task-3",
        backup_id="backup-3",
        vm_id="vm-3",
        backup_type=backup_pb2.BACKUP_TYPE_AUTO,
        on_cbt_loss=control_pb2.ON_CBT_LOSS_FAIL,
        bases=[
            control_pb2.DiskBase(
                disk=control_pb2.DiskIdentity(device_key=2000, backing_uuid="uuid", disk_object_id="1-2000"),
                image_id="image-1",
                change_id="uuid/7",
                capacity_bytes=62 * TiB,
            )
        ],
    )
    start.time_limit.FromSeconds(3600)
    hub.orders.put(control_pb2.ConnectResponse(start_backup=start))
    hub.orders.put(control_pb2.ConnectResponse(cancel_task=control_pb2.CancelTask(task_id="task-3", reason="enough")))
    hub.orders.put(None)
    assert list(opened(client)) == [
        Assignment(
            task_id="task-3",
            backup_id="backup-3",
            vm_id="vm-3",
            asked=Asked.AUTO,
            on_cbt_loss=OnCbtLoss.FAIL,
            bases={(2000, "uuid", "1-2000"): Base("image-1", "uuid/7", 62 * TiB)},
            time_limit=timedelta(hours=1),
        ),
        Cancellation("task-3", "enough"),
    ]


def test_a_broken_stream_raises_what_broke_it(hub: ScriptedHub, client: HubClient) -> None:
    stream = opened(client)
    hub.orders.put(Unavailable("the hub is stopping"))
    with pytest.raises(Unavailable, match="the hub is stopping"):
        list(stream)


def test_closing_the_connection_ends_the_stream(hub: ScriptedHub, client: HubClient) -> None:
    stream = opened(client)
    threading.Timer(0.05, client.close).start()
    with pytest.raises(Unavailable):
        list(stream)


def test_a_hub_that_accepts_and_is_silent_is_given_up(
    hub: ScriptedHub, client: HubClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_client, "WELCOME_TIMEOUT", 0.1)
    hub.silent = True
    begun = time.monotonic()
    with pytest.raises(Unavailable):
        opened(client)
    assert time.monotonic() - begun < 5


def test_a_stream_that_was_welcomed_in_time_stays_open(
    hub: ScriptedHub, client: HubClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_client, "WELCOME_TIMEOUT", 0.5)
    stream = opened(client)
    time.sleep(0.7)
    hub.orders.put(None)
    assert list(stream) == []


def test_refused_streams_leave_no_thread_behind(hub: ScriptedHub, client: HubClient) -> None:
    """An agent asks again and again for as long as its hub is away."""
    before = threading.active_count()
    hub.refusals = [Unavailable("not now") for _ in range(40)]
    while hub.refusals:
        with pytest.raises(Unavailable):
            opened(client)
    until(lambda: threading.active_count() < before + 20)  # the hub here has some of its own


# -- inventories ------------------------------------------------------------------------------------------------------


def vm(number: int) -> Vm:
    return Vm(f"uuid-{number}", f"vm-{number}", f"web{number}", "POWERED_ON", "", 19, True, True, False, "/", "", ())


def test_an_inventory_goes_in_pages_of_one_call(hub: ScriptedHub, client: HubClient) -> None:
    refused = client.report_inventory("vcenter-1", [vm(number) for number in range(2 * VMS_PER_PAGE + 1)])
    (pages,) = hub.inventories
    assert [len(page.vms) for page in pages] == [VMS_PER_PAGE, VMS_PER_PAGE, 1]
    assert {page.vcenter_id for page in pages} == {"vcenter-1"}
    assert refused == ["vm-7"]


def test_a_vcenter_without_vms_is_reported_too(hub: ScriptedHub, client: HubClient) -> None:
    client.report_inventory("vcenter-1", [])
    assert [len(page.vms) for page in hub.inventories[0]] == [0]


# -- the way of the data ----------------------------------------------------------------------------------------------


def test_runs_arrive_as_they_were_sent(hub: ScriptedHub, client: HubClient) -> None:
    runs = [
        *encode(0, memoryview(b"text" * CLUSTER), 1),
        zero_run(Extent(4 * MiB, 61 * TiB)),
        *encode(62 * TiB, memoryview(b"end"), None),
    ]
    offsets = list(client.write_extents(TRANSFER, runs, Stop()))
    assert offsets == [0, *(run.offset for run in runs)]
    assert [(run.offset, run.count, run.payload, tuple(run.lengths), run.digests) for run in hub.runs] == [
        (run.offset, run.count, bytes(run.payload), run.lengths, run.digests) for run in runs
    ]


def test_an_error_in_the_runs_is_raised_as_it_was_and_without_noise(
    hub: ScriptedHub, client: HubClient, caplog: pytest.LogCaptureFixture
) -> None:
    error = ReadFailed("bad sector")

    def runs() -> Iterator[ClusterRun]:
        yield zero_run(Extent(0, CLUSTER))
        raise error

    with caplog.at_level(logging.DEBUG), pytest.raises(ReadFailed) as raised:
        list(client.write_extents(TRANSFER, runs(), Stop()))
    assert raised.value is error
    assert not [record for record in caplog.records if record.name.startswith("grpc")]


def test_a_mistake_in_the_runs_is_raised_as_it_was(client: HubClient) -> None:
    def runs() -> Iterator[ClusterRun]:
        yield zero_run(Extent(0, CLUSTER))
        raise KeyError("a mistake")

    with pytest.raises(KeyError, match="a mistake"):
        list(client.write_extents(TRANSFER, runs(), Stop()))


def test_an_error_of_the_hub_ends_the_sending(hub: ScriptedHub, client: HubClient) -> None:
    hub.error = RepositoryFull("no room left")
    sent = 0

    def runs() -> Iterator[ClusterRun]:
        nonlocal sent
        for number in range(10_000):
            sent += 1
            yield from encode(number * CLUSTER, memoryview(bytes(range(256)) * 256), None)

    with pytest.raises(RepositoryFull, match="no room left"):
        list(client.write_extents(TRANSFER, runs(), Stop()))
    assert sent < 10_000


def test_a_stop_breaks_the_call_though_the_hub_takes_nothing(hub: ScriptedHub, client: HubClient) -> None:
    stop = Stop()
    hub.holding = True
    replies = client.write_extents(TRANSFER, [zero_run(Extent(0, CLUSTER))], stop)
    next(replies)
    threading.Timer(0.05, stop.ask, [Cancelled("enough")]).start()
    begun = time.monotonic()
    with pytest.raises(Unavailable):
        list(replies)
    assert time.monotonic() - begun < 2


def test_a_stop_before_the_call_breaks_it_too(hub: ScriptedHub, client: HubClient) -> None:
    stop = Stop()
    stop.ask(Cancelled("enough"))
    hub.holding = True
    with pytest.raises(Unavailable):
        list(client.write_extents(TRANSFER, [], stop))


def test_a_hub_that_takes_nothing_holds_the_sending_up(
    hub: ScriptedHub, client: HubClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(hub, "_answer", lambda: go_on.wait(20))
    sent = 0

    def runs() -> Iterator[ClusterRun]:
        nonlocal sent
        for number in range(100):
            sent += 1
            yield from encode(number * MiB, memoryview(b"\x01" * MiB), None)

    replies = client.write_extents(TRANSFER, runs(), Stop())
    next(replies)
    time.sleep(0.3)
    assert sent < 20
    go_on.set()
    list(replies)
    assert sent == 100
