"""`sendense backup`."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import grpc
import pytest

from sendense.v1.backup_pb2 import (
    Backup,
    BackupDisk,
    BackupStatus,
    BackupType,
    ChainImage,
    DiskChain,
    Failure,
    GetChainResponse,
    ListBackupsResponse,
    SkippedDisk,
)
from sendense.v1.repository_pb2 import ListRepositoriesResponse, Repository
from sendense.v1.task_pb2 import Task, TaskState, WatchTaskResponse
from tests.cli.conftest import Command, rows
from tests.cli.scripted_hub import Refusal, ScriptedHub

WEB_ID = "5021c8a4-0c4f-4f4e-9d2c-8e4b7f0c1d2e"
DISK = BackupDisk(
    label="Hard disk 1",
    capacity_bytes=2**30,
    type_run=BackupType.BACKUP_TYPE_FULL,
    type_reason="CBT_LOST",
    stored_bytes=2**20,
)
PENDING = Backup(name="backups/b1", vm_name="web-01", status=BackupStatus.BACKUP_STATUS_PENDING, task="tasks/t1")
COMPLETE = Backup(
    name="backups/b1",
    vm_name="web-01",
    backup_type=BackupType.BACKUP_TYPE_AUTO,
    status=BackupStatus.BACKUP_STATUS_COMPLETE,
    repository_id="r1",
    disks=[DISK],
)
FAILED = Backup(
    name="backups/b1",
    vm_name="web-01",
    status=BackupStatus.BACKUP_STATUS_FAILED,
    failure=Failure(reason="CBT_LOST", message="no change ID"),
)


@pytest.fixture
def hub(hub: ScriptedHub) -> ScriptedHub:
    """A hub with one repository, `main`."""
    main = Repository(name="repositories/r1", display_name="main")
    hub.on("ListRepositories", ListRepositoriesResponse(repositories=[main]))
    return hub


def runs_to(hub: ScriptedHub, backup: Backup, state: TaskState.ValueType) -> None:
    """A backup is taken on, its task ends in `state`, and it is `backup` then."""
    hub.on("CreateBackup", PENDING)
    hub.on("WatchTask", [WatchTaskResponse(task=Task(name="tasks/t1", state=state))])
    hub.on("GetBackup", backup)


def test_start_by_name_sends_the_name_and_the_type(hub: ScriptedHub, sendense: Command) -> None:
    hub.on("CreateBackup", PENDING)
    outcome = sendense("backup", "start", "web-01", "--type", "full")
    request = hub.requests["CreateBackup"][0]
    assert (request.vm_id, request.vm_name) == ("", "web-01")
    assert request.backup_type == BackupType.BACKUP_TYPE_FULL
    assert outcome.out == "backup b1 of web-01 pending\n"


def test_start_by_uuid_sends_the_uuid(hub: ScriptedHub, sendense: Command) -> None:
    hub.on("CreateBackup", PENDING)
    sendense("backup", "start", WEB_ID)
    assert (hub.requests["CreateBackup"][0].vm_id, hub.requests["CreateBackup"][0].vm_name) == (WEB_ID, "")


@pytest.mark.parametrize("spelling", ["main", "r1", "repositories/r1"])
def test_a_repository_goes_by_its_name_or_its_id(spelling: str, hub: ScriptedHub, sendense: Command) -> None:
    hub.on("CreateBackup", PENDING)
    sendense("backup", "start", "web-01", "--repository", spelling)
    assert hub.requests["CreateBackup"][0].repository_id == "r1"


def test_an_unknown_repository_starts_nothing(hub: ScriptedHub, sendense: Command) -> None:
    outcome = sendense("backup", "start", "web-01", "--repository", "other")
    assert (outcome.status, "CreateBackup" in hub.requests) == (3, False)
    assert outcome.err == "sendense: no repository has the name or ID 'other'\n"


def test_a_name_that_several_vms_share_shows_the_hubs_error(hub: ScriptedHub, sendense: Command) -> None:
    refusal = Refusal(
        grpc.StatusCode.INVALID_ARGUMENT, "2 VMs are named web-01", "INVALID_REQUEST", {"vm_name": "give its vm_id"}
    )
    hub.on("CreateBackup", refusal)
    outcome = sendense("backup", "start", "web-01")
    assert outcome.status == 2
    assert outcome.err == "sendense: 2 VMs are named web-01 (INVALID_REQUEST; field vm_name: give its vm_id)\n"


def test_a_busy_vm_is_refused(hub: ScriptedHub, sendense: Command) -> None:
    hub.on("CreateBackup", Refusal(grpc.StatusCode.FAILED_PRECONDITION, "web-01 is being backed up", "VM_BUSY"))
    outcome = sendense("backup", "start", "web-01")
    assert (outcome.status, outcome.err) == (4, "sendense: web-01 is being backed up (VM_BUSY)\n")


def test_an_unknown_type_is_a_usage_error(hub: ScriptedHub, sendense: Command) -> None:
    assert sendense("backup", "start", "web-01", "--type", "differential").status == 2


def test_start_and_wait_ends_well_with_what_it_took(hub: ScriptedHub, sendense: Command) -> None:
    runs_to(hub, COMPLETE, TaskState.TASK_STATE_SUCCEEDED)
    outcome = sendense("backup", "start", "web-01", "--wait")
    assert outcome.status == 0
    assert outcome.out.startswith("backup b1 of web-01 complete\n")
    assert "CBT_LOST" in outcome.out


def test_start_and_wait_fails_when_the_backup_does(hub: ScriptedHub, sendense: Command) -> None:
    runs_to(hub, FAILED, TaskState.TASK_STATE_FAILED)
    outcome = sendense("backup", "start", "web-01", "--wait")
    assert outcome.status == 1
    assert outcome.err.endswith("sendense: backup b1 of web-01 failed: no change ID (CBT_LOST)\n")


def test_start_and_wait_in_json_prints_the_backup_as_it_ended(hub: ScriptedHub, sendense: Command) -> None:
    runs_to(hub, FAILED, TaskState.TASK_STATE_FAILED)
    outcome = sendense("backup", "start", "web-01", "--wait", "--json")
    assert outcome.status == 1
    assert json.loads(outcome.out)["status"] == "BACKUP_STATUS_FAILED"


def test_interrupting_the_wait_says_that_the_backup_goes_on(hub: ScriptedHub) -> None:
    watched, over = threading.Event(), threading.Event()

    def stream(request: object) -> Iterator[WatchTaskResponse]:
        yield WatchTaskResponse(task=Task(name="tasks/t1", state=TaskState.TASK_STATE_RUNNING))
        watched.set()
        over.wait(60)

    hub.on("CreateBackup", PENDING)
    hub.on("WatchTask", stream)
    command = [sys.executable, "-m", "sendense.cli.main", "--hub", hub.address, "backup", "start", "web-01", "--wait"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert watched.wait(30)
            time.sleep(0.5)  # what was sent is shown by now: it waits for more
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=30)
        finally:
            process.kill()
            over.set()
    assert process.returncode == 130
    assert err.endswith("the backup goes on; `sendense backup cancel b1` stops it\n")


def test_list_sends_every_filter(hub: ScriptedHub, sendense: Command) -> None:
    hub.on("ListBackups", ListBackupsResponse())
    filters = ("--vm", "web-01", "--status", "failed", "--type", "incremental", "--repository", "main")
    sendense("backup", "list", *filters)
    request = hub.requests["ListBackups"][0]
    assert (request.vm_name, request.repository_id) == ("web-01", "r1")
    assert request.status == BackupStatus.BACKUP_STATUS_FAILED
    assert request.backup_type == BackupType.BACKUP_TYPE_INCREMENTAL


def test_list_shows_repositories_by_name(hub: ScriptedHub, sendense: Command) -> None:
    hub.on("ListBackups", ListBackupsResponse(backups=[COMPLETE]))
    expected = [["b1", "web-01", "auto", "complete", "main", "-", "-", "1.0 MiB"]]
    assert rows(sendense("backup", "list").out) == expected


def test_list_in_json_is_complete_over_all_pages(hub: ScriptedHub, sendense: Command) -> None:
    hub.on(
        "ListBackups",
        ListBackupsResponse(backups=[COMPLETE], next_page_token="2"),
        ListBackupsResponse(backups=[FAILED]),
    )
    listed = json.loads(sendense("backup", "list", "--json").out)
    assert [backup["status"] for backup in listed["backups"]] == ["BACKUP_STATUS_COMPLETE", "BACKUP_STATUS_FAILED"]


def test_sizes_are_strings_in_json(hub: ScriptedHub, sendense: Command) -> None:
    hub.on("GetBackup", COMPLETE)
    assert json.loads(sendense("backup", "show", "b1", "--json").out)["disks"][0]["capacity_bytes"] == "1073741824"


@pytest.mark.parametrize("spelling", ["b1", "backups/b1"])
def test_a_backup_goes_by_its_id_with_or_without_the_prefix(spelling: str, hub: ScriptedHub, sendense: Command) -> None:
    hub.on("GetBackup", COMPLETE)
    sendense("backup", "show", spelling)
    assert hub.requests["GetBackup"][0].name == "backups/b1"


def test_show_names_the_disks_that_were_not_captured(hub: ScriptedHub, sendense: Command) -> None:
    skipped = SkippedDisk(device_key=2001, label="Hard disk 2", reason="INDEPENDENT")
    hub.on("GetBackup", Backup(name="backups/b1", skipped_disks=[skipped]))
    assert "Hard disk 2 (device key 2001), INDEPENDENT" in sendense("backup", "show", "b1").err


def test_chain_shows_each_restore_point_and_what_it_is_laid_over(hub: ScriptedHub, sendense: Command) -> None:
    full = ChainImage(backup="backups/b1", type_run=BackupType.BACKUP_TYPE_FULL, stored_bytes=2**20)
    increment = ChainImage(
        backup="backups/b2", type_run=BackupType.BACKUP_TYPE_INCREMENTAL, parent_backup="backups/b1", stored_bytes=2**10
    )
    chain = DiskChain(label="Hard disk 1", repository_id="r1", images=[full, increment])
    hub.on("GetChain", GetChainResponse(chains=[chain]))
    assert rows(sendense("backup", "chain", "web-01").out) == [
        ["Hard disk 1", "main", "-", "full", "1.0 MiB", "b1", "-"],
        ["Hard disk 1", "main", "-", "incremental", "1.0 KiB", "b2", "b1"],
    ]


def test_cancel_asks_the_hub(hub: ScriptedHub, sendense: Command) -> None:
    hub.on("CancelBackup", PENDING)
    assert sendense("backup", "cancel", "b1").out == "backup b1 of web-01 was asked to stop\n"


def test_cancelling_an_ended_backup_is_refused(hub: ScriptedHub, sendense: Command) -> None:
    hub.on("CancelBackup", Refusal(grpc.StatusCode.FAILED_PRECONDITION))
    assert sendense("backup", "cancel", "b1").status == 4
