"""Configuration from commented TOML and the environment: typed, unknown keys refused, secrets from files.

Order, last wins: defaults, the TOML file, environment variables (`SENDENSE_HUB_<SECTION>__<KEY>` for the hub,
`SENDENSE_AGENT_…` for the agent).
"""

import os
import stat
import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from shared.errors import InvalidRequest


class ConfigError(InvalidRequest):
    """The configuration is wrong; the message names file, key and what is expected."""

    reason = "CONFIG_INVALID"


class Section(BaseModel):
    """A table of a configuration file. Strict by itself: `extra` of the whole does not reach nested models."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Settings(BaseSettings):
    """A whole configuration; a subclass sets `env_prefix`."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, env_nested_delimiter="__")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment over what the file says (which arrives as arguments)."""
        return env_settings, init_settings


Model = TypeVar("Model", bound=Settings)


def load(model: type[Model], path: Path | None) -> Model:
    """Read `path` (None: defaults and environment only) into `model`; raises ConfigError."""
    values = _read_toml(path) if path is not None else {}
    where = str(path) if path is not None else "the configuration"
    try:
        return model(**values)
    except SettingsError as error:  # a variable that names a whole table and is not JSON
        raise ConfigError(f"an environment variable is not valid: {error}") from error
    except ValidationError as error:
        lines = [f"  {'.'.join(str(step) for step in item['loc'])}: {item['msg']}" for item in error.errors()]
        raise ConfigError(f"{where} is not valid:\n" + "\n".join(lines)) from error


def read_secret(path: Path) -> str:
    """The secret a file holds, less the final newline; raises ConfigError naming the file.

    A file that everybody on the machine can get at is refused: what is in it is no secret.
    """
    try:
        with path.open() as file:
            if os.fstat(file.fileno()).st_mode & stat.S_IRWXO:
                raise ConfigError(f"the secret file {path} is open to everybody on this machine: `chmod o= {path}`")
            return file.read().rstrip("\n")
    except OSError as error:
        raise ConfigError(f"cannot read the secret file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"the secret file {path} is not text") from error


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
