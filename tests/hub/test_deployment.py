"""What ships in deploy/: configurations that name every option with its true default, and units that fit them."""

import configparser
import re
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from agent.config import AgentSettings
from hub.config import HubSettings
from shared.config import Settings, load

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
SHIPPED: list[tuple[type[Settings], Path]] = [
    (HubSettings, DEPLOY / "hub" / "hub.toml"),
    (AgentSettings, DEPLOY / "agent" / "agent.toml"),
]
UNITS = [DEPLOY / "hub" / "sendense-hub.service", DEPLOY / "agent" / "sendense-agent.service"]

OPTION = re.compile(r"^#?([a-z_]+) = ")

with_settings = pytest.mark.parametrize(("model", "path"), SHIPPED, ids=["hub", "agent"])
with_unit = pytest.mark.parametrize("path", UNITS, ids=["hub", "agent"])


def uncommented(path: Path) -> dict[str, Any]:
    """The file with every option that is commented out in force."""
    lines = [line.removeprefix("#") if OPTION.match(line) else line for line in path.read_text().splitlines()]
    return tomllib.loads("\n".join(lines))


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any, bool]]:
    """Every option of a model: its dotted name, its default, whether it must be given."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from fields(kind, f"{prefix}{name}.")
        else:
            yield prefix + name, field.default, field.is_required()


def flat(tables: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tables.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


@with_settings
def test_the_shipped_configuration_is_valid(model: type[Settings], path: Path) -> None:
    load(model, path)


def test_the_hubs_as_shipped_is_the_default_throughout() -> None:
    assert load(HubSettings, SHIPPED[0][1]) == HubSettings()


@with_settings
def test_it_names_every_option_and_no_other(model: type[Settings], path: Path) -> None:
    assert {name for name, _ in flat(uncommented(path))} == {name for name, _, _ in fields(model)}


@with_settings
def test_it_states_the_true_defaults(model: type[Settings], path: Path) -> None:
    stated = dict(flat(uncommented(path)))
    defaults = {
        name: str(default) if isinstance(default, Path) else default
        for name, default, required in fields(model)
        if not required and default is not None
    }
    assert {name: stated[name] for name in defaults} == defaults


@with_settings
def test_only_what_has_no_default_is_in_force(model: type[Settings], path: Path) -> None:
    in_force = {name for name, _ in flat(tomllib.loads(path.read_text()))}
    assert in_force == {name for name, _, required in fields(model) if required}


@with_settings
def test_every_option_has_a_comment_above_it(model: type[Settings], path: Path) -> None:
    lines = path.read_text().splitlines()
    bare = [line for above, line in pairwise(lines) if OPTION.match(line) and above[:2] != "# "]
    assert bare == []


@with_unit
def test_a_unit_starts_an_installed_program_with_the_shipped_configuration(path: Path) -> None:
    unit = read_unit(path)
    program, _, config = unit["Service"]["ExecStart"].partition(" ")
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert Path(program).name in scripts
    assert (path.parent / Path(config.split()[-1]).name).exists()


@with_unit
def test_a_unit_runs_without_privileges_on_a_read_only_system(path: Path) -> None:
    service = read_unit(path)["Service"]
    assert service["User"].startswith("sendense")
    assert (service["NoNewPrivileges"], service["ProtectSystem"]) == ("yes", "strict")
    assert service["CapabilityBoundingSet"] == ""


@pytest.mark.parametrize(("model", "unit"), [(HubSettings, UNITS[0]), (AgentSettings, UNITS[1])], ids=["hub", "agent"])
def test_a_unit_gives_the_default_state_folder(model: type[Settings], unit: Path) -> None:
    default = model.model_fields["state_dir"].default
    assert default == Path("/var/lib") / read_unit(unit)["Service"]["StateDirectory"]


def test_the_hubs_unit_gives_the_folder_of_its_socket() -> None:
    assert HubSettings().api.socket.parent == Path("/run") / read_unit(UNITS[0])["Service"]["RuntimeDirectory"]


def read_unit(path: Path) -> configparser.ConfigParser:
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # systemd's keys have capitals
    unit.read(path)
    return unit
