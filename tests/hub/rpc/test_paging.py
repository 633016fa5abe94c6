"""Page tokens."""

import base64

import pytest

from hub.rpc import paging
from sendense.v1 import backup_pb2, task_pb2, vm_pb2
from shared.errors import InvalidRequest


@pytest.mark.parametrize(("asked", "given"), [(0, 50), (1, 1), (1000, 1000), (5000, 1000)])
def test_a_page_has_a_size(asked: int, given: int) -> None:
    assert paging.page_size(vm_pb2.ListVmsRequest(page_size=asked)) == given


def test_a_token_brings_its_key_back() -> None:
    request = backup_pb2.ListBackupsRequest(vm_id="vm-1")
    request.page_token = paging.token(request, ["name", "id"])
    assert paging.after(request) == ["name", "id"]


def test_a_token_stays_good_when_the_page_size_changes() -> None:
    token = paging.token(backup_pb2.ListBackupsRequest(page_size=1), "key")
    assert paging.after(backup_pb2.ListBackupsRequest(page_size=9, page_token=token)) == "key"


@pytest.mark.parametrize(
    "other", [backup_pb2.ListBackupsRequest(vm_id="vm-2"), task_pb2.ListTasksRequest(vm_id="vm-1")]
)
def test_a_token_is_good_for_its_own_list_only(
    other: backup_pb2.ListBackupsRequest | task_pb2.ListTasksRequest,
) -> None:
    other.page_token = paging.token(backup_pb2.ListBackupsRequest(vm_id="vm-1"), "key")
    with pytest.raises(InvalidRequest) as caught:
        paging.after(other)
    assert caught.value.field == "page_token"


@pytest.mark.parametrize("content", [b"", b"1", b"[]", b"[1]", b"{}", b"null", b'"ab"', b"\xff", b"[[],[]]"])
def test_what_is_no_token_is_refused(content: bytes) -> None:
    request = vm_pb2.ListVmsRequest(page_token=base64.urlsafe_b64encode(content).decode() or "?")
    with pytest.raises(InvalidRequest):
        paging.after(request)
