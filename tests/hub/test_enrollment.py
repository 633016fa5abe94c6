"""Enrolment over mTLS: who gets in, once, and who does not."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509 import CertificateSigningRequestBuilder, Name, load_pem_x509_certificate

from agent.identity import key_pem, new_key, signing_request
from hub.authority import Authority
from hub.catalogue import agents
from sendense.v1 import agent_pb2, control_pb2, control_pb2_grpc, enrollment_pb2, enrollment_pb2_grpc
from shared import join
from shared.errors import InvalidRequest
from tests.hub.live_hub import LiveHub
from tests.hub.refusals import refused
from tests.hub.scripted_agent import PATIENCE, ScriptedAgent, channel, enroll

NO_TASK = control_pb2.FinishTaskRequest(task_id="none")


async def test_an_enrolled_agent_is_listed_under_the_name_of_its_invitation(hub: LiveHub) -> None:
    agent = await hub.new_agent("appliance-7")
    (listed,) = (await hub.operators_agents.ListAgents(agent_pb2.ListAgentsRequest())).agents
    assert (listed.name, listed.display_name, listed.connected) == (f"agents/{agent.id}", "appliance-7", True)


async def test_the_certificate_names_the_agent_and_ends_in_thirty_days(hub: LiveHub) -> None:
    agent = await hub.new_agent()
    certificate = load_pem_x509_certificate(agent.certificate)
    lifetime = certificate.not_valid_after_utc - datetime.now(UTC)
    assert abs(lifetime - timedelta(days=30)) < timedelta(minutes=1)
    assert f"spiffe://sendense/agent/{agent.id}" in str(certificate.extensions)


async def test_a_join_string_works_once(hub: LiveHub) -> None:
    text = await hub.invite("appliance")
    hub.agents.append(await enroll(text))
    refusal = await refused(enroll(text))
    assert tuple(refusal) == ("UNAUTHENTICATED", "NOT_AUTHENTICATED", "")
    assert "used before" in refusal.message


async def test_of_two_who_use_a_join_string_at_once_one_gets_in(hub: LiveHub) -> None:
    text = await hub.invite("appliance")
    outcomes = await asyncio.gather(enroll(text), enroll(text), return_exceptions=True)
    entered = [outcome for outcome in outcomes if isinstance(outcome, ScriptedAgent)]
    hub.agents.extend(entered)
    assert len(entered) == 1


async def test_an_expired_join_string_is_refused_and_says_so(hub: LiveHub) -> None:
    text = await hub.invite("appliance", ttl=0.01)
    await asyncio.sleep(0.02)
    refusal = await refused(enroll(text))
    assert (refusal.code, refusal.domain) == ("UNAUTHENTICATED", "sendense")
    assert "expired" in refusal.message


async def test_of_two_join_strings_for_one_name_the_second_is_refused(hub: LiveHub) -> None:
    first, second = await hub.invite("appliance"), await hub.invite("appliance")
    hub.agents.append(await enroll(first))
    assert tuple(await refused(enroll(second))) == ("ALREADY_EXISTS", "ALREADY_EXISTS", "display_name")


@pytest.mark.parametrize("request_bytes", [b"", b"not a request", signing_request(new_key())[:-5]])
async def test_a_bad_signing_request_does_not_use_the_invitation_up(hub: LiveHub, request_bytes: bytes) -> None:
    text = await hub.invite("appliance")
    expected = ("INVALID_ARGUMENT", "INVALID_REQUEST", "certificate_signing_request")
    assert tuple(await refused(enroll(text, request_bytes))) == expected
    hub.agents.append(await enroll(text))


async def test_a_key_of_another_kind_is_refused(hub: LiveHub) -> None:
    key = rsa.generate_private_key(65537, 2048)
    request = CertificateSigningRequestBuilder().subject_name(Name([])).sign(key, hashes.SHA256())
    text = await hub.invite("appliance")
    refusal = await refused(enroll(text, request.public_bytes(serialization.Encoding.DER)))
    assert (refusal.code, refusal.field) == ("INVALID_ARGUMENT", "certificate_signing_request")


async def test_an_invitation_is_no_pass_for_anything_but_enrolling(hub: LiveHub) -> None:
    invitation = join.parse(await hub.invite("appliance"))
    certificate, key = invitation.client_pem()
    async with channel(invitation.address, invitation.ca_pem(), key, certificate) as connection:
        refusal = await refused(control_pb2_grpc.ControlServiceStub(connection).FinishTask(NO_TASK))
    assert tuple(refusal) == ("UNAUTHENTICATED", "NOT_AUTHENTICATED", "")


async def test_an_agents_certificate_is_no_invitation(hub: LiveHub) -> None:
    agent = await hub.new_agent()
    request = enrollment_pb2.EnrollRequest(certificate_signing_request=signing_request(new_key()))
    refusal = await refused(enrollment_pb2_grpc.EnrollmentServiceStub(agent.channel).Enroll(request))
    assert refusal.code == "UNAUTHENTICATED"


async def test_a_certificate_of_another_ca_is_refused(hub: LiveHub, tmp_path: Path) -> None:
    agent, key = await hub.new_agent(), new_key()
    stranger = Authority.create(tmp_path / "pki").agent(agent.id, signing_request(key))
    ca = hub.hub.authority.ca.pem
    async with channel(hub.settings.agents.address, ca, key_pem(key), stranger.pem) as connection:
        refusal = await refused(control_pb2_grpc.ControlServiceStub(connection).FinishTask(NO_TASK, timeout=PATIENCE))
    assert refusal.code == "UNAVAILABLE"


async def test_a_caller_without_a_certificate_is_refused(hub: LiveHub) -> None:
    async with channel(hub.settings.agents.address, hub.hub.authority.ca.pem, None, None) as connection:
        refusal = await refused(control_pb2_grpc.ControlServiceStub(connection).FinishTask(NO_TASK, timeout=PATIENCE))
    assert refusal.code == "UNAVAILABLE"


async def test_a_caller_without_tls_is_refused(hub: LiveHub) -> None:
    async with grpc.aio.insecure_channel(hub.settings.agents.address) as connection:
        refusal = await refused(control_pb2_grpc.ControlServiceStub(connection).FinishTask(NO_TASK, timeout=PATIENCE))
    assert refusal.code == "UNAVAILABLE"


async def test_a_revoked_agent_is_refused_and_its_name_is_free(hub: LiveHub) -> None:
    agent = await hub.new_agent("appliance")
    async with hub.hub.catalogue.writing() as session:
        await agents.revoke(session, agent.id)
    assert (await refused(agent.control.FinishTask(NO_TASK))).code == "UNAUTHENTICATED"
    successor = await hub.new_agent("appliance")
    assert successor.id == agent.id


async def test_the_name_of_an_agent_whose_certificate_has_expired_is_free(hub: LiveHub) -> None:
    agent = await hub.new_agent("appliance")
    async with hub.hub.catalogue.writing() as session:
        await agents.certify(session, agent.id, "1", datetime.now(UTC) - timedelta(seconds=1))
    assert (await hub.new_agent("appliance")).id == agent.id


async def test_a_revoked_certificate_stays_worthless_when_its_agent_is_enrolled_anew(hub: LiveHub) -> None:
    agent = await hub.new_agent("appliance")
    async with hub.hub.catalogue.writing() as session:
        await agents.revoke(session, agent.id)
    await hub.new_agent("appliance")
    refusal = await refused(agent.control.FinishTask(NO_TASK))
    assert refusal.code == "UNAUTHENTICATED"
    assert "replaced" in refusal.message


async def test_a_join_string_survives_being_copied_with_blanks_around_it(hub: LiveHub) -> None:
    text = await hub.invite("appliance")
    assert join.parse(f"  {text}\n").text() == text


@pytest.mark.parametrize("damage", ["", "hello", "sendense1.a.b", "sendense2.QQ.QQ.QQ.QQ", "sendense1.Q.Q.Q.Q"])
def test_what_is_no_join_string_is_refused(damage: str) -> None:
    with pytest.raises(InvalidRequest, match="join string"):
        join.parse(damage)


async def test_a_join_string_keeps_its_secrets_out_of_sight(hub: LiveHub) -> None:
    invitation = join.parse(await hub.invite("appliance"))
    assert repr(invitation) == f"JoinString(address='{hub.settings.agents.address}')"
