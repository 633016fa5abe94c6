"""The tables over time: one line of revisions brings both databases there and back."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import inspect, text

import migrations
from hub.catalogue import agents
from hub.catalogue.engine import Catalogue
from hub.catalogue.models import Base
from hub.catalogue.schema import downgrade, migrating, upgrade
from shared.errors import NotPossibleNow
from tests.contracts.catalogue.site import NOW


def alembic(url: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Alembic from a shell, as migrations/README.md tells."""
    return subprocess.run(
        [sys.executable, "-m", "alembic", "-c", str(Path(migrations.__path__[0]) / "alembic.ini"), *words],
        env={**os.environ, "SENDENSE_HUB_DATABASE__URL": url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


async def execute(url: str, statement: str) -> None:
    async with migrating(url) as connection:
        await connection.execute(text(statement))


async def tables(url: str) -> set[str]:
    async with migrating(url) as connection:
        return set(await connection.run_sync(lambda sync: inspect(sync).get_table_names())) - {"alembic_version"}


async def test_the_revisions_make_exactly_the_tables_of_the_models(url: str) -> None:
    assert await tables(url) == set(Base.metadata.tables)
    checked = alembic(url, "check")
    assert checked.returncode == 0, checked.stdout + checked.stderr


async def test_the_check_sees_a_difference(url: str) -> None:
    """Else the test above would prove nothing."""
    await execute(url, "ALTER TABLE images DROP COLUMN coverage")
    assert "coverage" in alembic(url, "check").stdout


async def test_down_to_nothing_and_up_again_gives_the_same_tables(url: str) -> None:
    await downgrade(url, "base")
    assert await tables(url) == set()
    await upgrade(url)
    checked = alembic(url, "check")
    assert checked.returncode == 0, checked.stdout + checked.stderr


async def test_alembic_from_a_shell_upgrades_too(empty_url: str) -> None:
    done = alembic(empty_url, "upgrade", "head")
    assert done.returncode == 0, done.stderr
    await (await Catalogue.open(empty_url)).close()


async def test_an_upgrade_of_a_catalogue_at_head_keeps_what_it_holds(url: str) -> None:
    catalogue = await Catalogue.open(url)
    try:
        async with catalogue.writing() as session:
            agent = await agents.enrol(session, "site-a", NOW)
        await upgrade(url)
        async with catalogue.reading() as session:
            assert await agents.get(session, agent.id) == agent
    finally:
        await catalogue.close()


async def test_an_upgrade_does_not_depend_on_the_current_folder(
    empty_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    await upgrade(empty_url)
    assert await tables(empty_url) == set(Base.metadata.tables)


async def test_a_database_without_tables_is_not_opened(empty_url: str) -> None:
    with pytest.raises(NotPossibleNow, match="sendense-hub init"):
        await Catalogue.open(empty_url)


async def test_a_catalogue_of_a_newer_version_is_not_opened(url: str) -> None:
    await execute(url, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(NotPossibleNow, match="newer"):
        await Catalogue.open(url)
