"""Invitations in the catalogue."""

import asyncio
from datetime import timedelta

import pytest

from hub.catalogue import invitations
from hub.catalogue.engine import Catalogue
from hub.catalogue.ids import new_id
from hub.catalogue.invitations import Invitation
from shared.errors import AlreadyExists, NotAuthenticated
from tests.contracts.catalogue.site import LATER, NOW


async def invite(catalogue: Catalogue, serial: str = "0a") -> Invitation:
    invitation = Invitation(new_id(), "site-a", serial, created_at=NOW, expires_at=LATER)
    async with catalogue.writing() as session:
        await invitations.add(session, invitation)
    return invitation


async def test_invitations_are_listed_newest_first(catalogue: Catalogue) -> None:
    first, second = await invite(catalogue, "01"), await invite(catalogue, "02")
    async with catalogue.reading() as session:
        assert await invitations.list_invitations(session) == [second, first]


async def test_an_invitation_is_used_up_by_the_first_use(catalogue: Catalogue) -> None:
    invitation = await invite(catalogue)
    async with catalogue.writing() as session:
        used = await invitations.consume(session, invitation.id, NOW)
    assert (used.agent_name, used.used_at) == ("site-a", NOW)
    with pytest.raises(NotAuthenticated, match="used before"):
        async with catalogue.writing() as session:
            await invitations.consume(session, invitation.id, NOW)


async def test_an_invitation_works_until_it_expires_and_not_at_that_moment(catalogue: Catalogue) -> None:
    invitation = await invite(catalogue)
    with pytest.raises(NotAuthenticated, match="expired"):
        async with catalogue.writing() as session:
            await invitations.consume(session, invitation.id, LATER)
    async with catalogue.writing() as session:
        await invitations.consume(session, invitation.id, LATER - timedelta(microseconds=1))


async def test_an_unknown_invitation_lets_nobody_in(catalogue: Catalogue) -> None:
    with pytest.raises(NotAuthenticated, match="not known"):
        async with catalogue.writing() as session:
            await invitations.consume(session, new_id(), NOW)


async def test_two_invitations_never_share_a_certificate(catalogue: Catalogue) -> None:
    await invite(catalogue, "01")
    with pytest.raises(AlreadyExists):
        await invite(catalogue, "01")


async def test_an_invitation_two_hubs_are_shown_at_once_is_used_by_one(catalogue: Catalogue, url: str) -> None:
    invitation = await invite(catalogue)
    other = await Catalogue.open(url)

    async def use(hub: Catalogue) -> bool:
        try:
            async with hub.writing() as session:
                await invitations.consume(session, invitation.id, NOW)
        except NotAuthenticated:
            return False
        return True

    try:
        outcomes = await asyncio.gather(*(use(hub) for hub in (catalogue, other) * 5))
    finally:
        await other.close()
    assert sorted(outcomes) == [False] * 9 + [True]
