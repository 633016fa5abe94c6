"""Reflection, health and unknown methods, as foreign programs see them: `buf curl` stands in for grpcurl."""

import asyncio
import base64
import json
import os
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from hub import server
from tests.hub.live_hub import LiveHub
from tests.hub.refusals import refused
from tests.hub.scripted_agent import PATIENCE

ENVIRONMENT = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
VERSIONS = ("v1", "v1alpha")
OURS = {
    "sendense.v1.AgentService",
    "sendense.v1.BackupService",
    "sendense.v1.RepositoryService",
    "sendense.v1.RestoreService",
    "sendense.v1.TaskService",
    "sendense.v1.VmService",
}


async def buf_curl(hub: LiveHub, *arguments: str, url: str = "http://localhost") -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `buf curl` on the hub's socket."""
    base = ["curl", "--unix-socket", str(hub.settings.api.socket), "--protocol", "grpc", "--http2-prior-knowledge"]
    process = await asyncio.create_subprocess_exec(
        "buf", *base, *arguments, url, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=ENVIRONMENT
    )
    out, errors = await asyncio.wait_for(process.communicate(), 3 * PATIENCE)
    assert process.returncode is not None
    return process.returncode, out.decode(), errors.decode()


async def ask(hub: LiveHub, version: str, **question: Any) -> Any:
    """One question to reflection, of one version."""
    method = hub.channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    call = method(iter([reflection_pb2.ServerReflectionRequest(**question)]))
    return await call.read()


@pytest.mark.parametrize("version", VERSIONS)
async def test_buf_lists_the_services(hub: LiveHub, version: str) -> None:
    code, listed, errors = await buf_curl(hub, "--reflect-protocol", f"grpc-{version}", "--list-services")
    assert (code, errors) == (0, "")
    reflection = {f"grpc.reflection.{each}.ServerReflection" for each in VERSIONS}
    assert set(listed.split()) == OURS | reflection | {"grpc.health.v1.Health"}


@pytest.mark.parametrize("version", VERSIONS)
async def test_buf_calls_by_reflection_alone(hub: LiveHub, version: str) -> None:
    url = "http://localhost/sendense.v1.RepositoryService/ListRepositories"
    options = ("--reflect-protocol", f"grpc-{version}", "-d", '{"pageSize": 10}')
    code, answer, errors = await buf_curl(hub, *options, url=url)
    assert (code, errors) == (0, "")
    assert json.loads(answer)["repositories"][0]["displayName"] == "default"


async def test_buf_shows_an_errors_details(hub: LiveHub) -> None:
    url = "http://localhost/sendense.v1.BackupService/CreateBackup"
    code, _, errors = await buf_curl(hub, "-d", '{"vmId": "vm-9"}', url=url)
    shown = json.loads(errors)
    assert (code != 0, shown["code"]) == (True, "invalid_argument")
    values = {detail["type"]: base64.b64decode(detail["value"] + "==") for detail in shown["details"]}
    info = ErrorInfo.FromString(values["google.rpc.ErrorInfo"])
    bad = BadRequest.FromString(values["google.rpc.BadRequest"])
    assert (info.reason, info.domain) == ("INVALID_REQUEST", "sendense")
    assert [violation.field for violation in bad.field_violations] == ["backup_type"]


@pytest.mark.parametrize("version", VERSIONS)
async def test_comments_and_json_names_are_there(hub: LiveHub, version: str) -> None:
    answer = await ask(hub, version, file_containing_symbol="sendense.v1.BackupService.CreateBackup")
    files = [FileDescriptorProto.FromString(raw) for raw in answer.file_descriptor_response.file_descriptor_proto]
    (ours,) = [file for file in files if file.name == "sendense/v1/backup.proto"]
    comments = [location.leading_comments for location in ours.source_code_info.location]
    assert any("Start a backup of one VM" in comment for comment in comments)
    assert ours.message_type[1].field[0].json_name


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "symbol",
    [
        "sendense.v1.Backup",
        "sendense.v1.Backup.vm_id",
        "sendense.v1.BackupType",
        "sendense.v1.TaskService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "google.protobuf.Timestamp",
        "google.rpc.ErrorInfo",
    ],
)
async def test_every_kind_of_symbol_is_found(hub: LiveHub, version: str, symbol: str) -> None:
    answer = await ask(hub, version, file_containing_symbol=symbol)
    assert answer.file_descriptor_response.file_descriptor_proto


@pytest.mark.parametrize("version", VERSIONS)
async def test_what_is_unknown_is_said_in_the_answer(hub: LiveHub, version: str) -> None:
    for question in ({"file_containing_symbol": "no.Such"}, {"file_by_filename": "no/such.proto"}):
        answer = await ask(hub, version, **question)
        assert answer.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
    other = await ask(hub, version, all_extension_numbers_of_type="sendense.v1.Backup")
    assert other.error_response.error_code == grpc.StatusCode.UNIMPLEMENTED.value[0]


async def test_every_service_is_reported_as_serving(hub: LiveHub) -> None:
    health: Any = health_pb2_grpc.HealthStub(hub.channel)
    for service in ("", *OURS):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_the_services_known_to_health_are_all_there_are() -> None:
    assert set(server.API_SERVICES) == OURS


async def test_the_health_of_an_unknown_service_is_not_found(hub: LiveHub) -> None:
    health: Any = health_pb2_grpc.HealthStub(hub.channel)
    assert (await refused(health.Check(health_pb2.HealthCheckRequest(service="no.Such")))).code == "NOT_FOUND"


@pytest.mark.parametrize("method", ["/sendense.v1.BackupService/Explode", "/no.Such/Method"])
async def test_an_unknown_method_is_unimplemented(hub: LiveHub, method: str) -> None:
    call: Any = hub.channel.unary_unary(method)
    assert (await refused(call(b""))).code == "UNIMPLEMENTED"


@pytest.mark.parametrize("method", ["/sendense.v1.TransferService/Explode", "/sendense.v1.BackupService/ListBackups"])
async def test_the_agents_port_serves_agents_alone(hub: LiveHub, method: str) -> None:
    call: Any = (await hub.new_agent()).channel.unary_unary(method)
    assert (await refused(call(b""))).code == "UNIMPLEMENTED"
