"""The hub's configuration: strict at every level, overridable, and silent about secrets."""

from pathlib import Path

import pytest

from hub.config import HubSettings
from shared.config import ConfigError, load


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "hub.toml"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('colour = "blue"', "colour"),
        ("[colour]\nx = 1", "colour"),
        ("[tasks]\ntime_limits = 5", "tasks.time_limits"),
        ("[database]\nuser = 'x'", "database.user"),
        ("[agents]\nport = 1", "agents.port"),
        ("[api]\ntls = true", "api.tls"),
        ("[log]\nfile = 'x'", "log.file"),
    ],
)
def test_an_unknown_key_is_refused_by_its_name(config: Path, text: str, named: str) -> None:
    config.write_text(text)
    with pytest.raises(ConfigError, match=rf"{config} is not valid:\n  {named}: Extra inputs"):
        load(HubSettings, config)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[tasks]\ntime_limit = 0", "tasks.time_limit"),
        ("[tasks]\nstall_limit = -1", "tasks.stall_limit"),
        ("[agents]\nmax_streams = 2", "agents.max_streams"),
        ("[agents]\nlease = 'long'", "agents.lease"),
        ("[agents]\nlisten = '8443'", "agents.listen"),
        ("[agents]\naddress = 'hub.example'", "agents.address"),
        ("[agents]\naddress = 'https://hub.example:8443'", "agents.address"),
        ("[log]\nlevel = 'LOUD'", "log.level"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_its_name(config: Path, text: str, named: str) -> None:
    config.write_text(text)
    with pytest.raises(ConfigError, match=rf"\n  {named}: "):
        load(HubSettings, config)


@pytest.mark.parametrize("address", ["hub.example:8443", "192.0.2.1:1", "[2001:db8::1]:8443"])
def test_an_address_is_host_and_port(config: Path, address: str) -> None:
    config.write_text(f"[agents]\naddress = '{address}'")
    assert load(HubSettings, config).agents.address == address


def test_the_environment_wins_over_the_file_and_leaves_its_neighbours(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.write_text("[tasks]\ntime_limit = 7\nstall_limit = 9")
    monkeypatch.setenv("SENDENSE_HUB_TASKS__TIME_LIMIT", "5")
    tasks = load(HubSettings, config).tasks
    assert (tasks.time_limit, tasks.stall_limit) == (5, 9)


def test_an_unknown_key_in_the_environment_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENDENSE_HUB_TASKS__TIME_LIMITS", "5")
    with pytest.raises(ConfigError, match=r"tasks\.time_limits"):
        load(HubSettings, None)


def test_without_a_database_it_is_sqlite_in_the_state_folder() -> None:
    settings = HubSettings(state_dir=Path("/somewhere"))
    assert settings.database_url == "sqlite+aiosqlite:////somewhere/catalogue.db"


def test_the_databases_url_may_come_from_a_file(config: Path, tmp_path: Path) -> None:
    (tmp_path / "url").touch(0o600)
    (tmp_path / "url").write_text("mariadb+asyncmy://hub:hunter2@db/sendense\n")
    config.write_text(f"[database]\nurl_file = '{tmp_path}/url'")
    assert load(HubSettings, config).database_url == "mariadb+asyncmy://hub:hunter2@db/sendense"


def test_a_missing_secret_file_is_named(config: Path, tmp_path: Path) -> None:
    settings = HubSettings(database={"url_file": tmp_path / "url"})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=str(tmp_path / "url")):
        _ = settings.database_url


def test_what_is_no_toml_is_said(config: Path) -> None:
    config.write_text("state_dir = ")
    with pytest.raises(ConfigError, match="is not TOML"):
        load(HubSettings, config)
