"""Agents in the catalogue."""

import pytest

from hub.catalogue import agents
from hub.catalogue.engine import Catalogue
from hub.catalogue.states import AgentState
from shared.errors import NotFound
from tests.contracts.catalogue.site import LATER, NOW


async def test_an_enrolled_agent_is_read_back_as_it_was_written(catalogue: Catalogue) -> None:
    async with catalogue.writing() as session:
        written = await agents.enrol(session, "site-a", NOW)
    async with catalogue.reading() as session:
        read = await agents.get(session, written.id)
    assert read == written
    assert (read.name, read.state, read.created_at, read.version) == ("site-a", AgentState.ACTIVE, NOW, 1)


async def test_an_agent_enrolled_again_keeps_its_id_and_is_active(catalogue: Catalogue) -> None:
    async with catalogue.writing() as session:
        first = await agents.enrol(session, "site-a", NOW)
        await agents.revoke(session, first.id)
    async with catalogue.writing() as session:
        again = await agents.enrol(session, "site-a", LATER)
    assert (again.id, again.state, again.created_at) == (first.id, AgentState.ACTIVE, NOW)


async def test_a_new_certificate_replaces_the_old_one(catalogue: Catalogue) -> None:
    async with catalogue.writing() as session:
        agent = await agents.enrol(session, "site-a", NOW)
        await agents.certify(session, agent.id, "01", NOW)
        renewed = await agents.certify(session, agent.id, "02", LATER)
    assert (renewed.certificate_serial, renewed.certificate_expires_at) == ("02", LATER)


async def test_a_call_of_an_agent_is_noted_without_a_new_version(catalogue: Catalogue) -> None:
    async with catalogue.writing() as session:
        agent = await agents.enrol(session, "site-a", NOW)
        await agents.note_seen(session, agent.id, software_version="0.1.0", hostname="appliance", now=LATER)
    async with catalogue.reading() as session:
        read = await agents.get(session, agent.id)
    assert (read.software_version, read.hostname, read.last_seen_at) == ("0.1.0", "appliance", LATER)
    assert read.version == agent.version


async def test_a_revoked_agent_stays_in_the_list(catalogue: Catalogue) -> None:
    async with catalogue.writing() as session:
        await agents.enrol(session, "b", NOW)
        revoked = await agents.revoke(session, (await agents.enrol(session, "a", NOW)).id)
    async with catalogue.reading() as session:
        listed = await agents.list_agents(session)
    assert [agent.name for agent in listed] == ["a", "b"]
    assert listed[0] == revoked


async def test_an_unknown_agent_is_not_found(catalogue: Catalogue) -> None:
    with pytest.raises(NotFound, match="agent"):
        async with catalogue.writing() as session:
            await agents.note_seen(session, "nobody", software_version="", hostname="", now=NOW)
