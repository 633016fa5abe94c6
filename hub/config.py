"""The hub's configuration: one class per table of hub.toml, with a default and a why for every option."""

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from shared.config import Section, Settings, read_secret

HOST_PORT = r"^(\[[0-9A-Fa-f:.]+\]|[^\[\]:\s]+):[0-9]{1,5}$"


class DatabaseSection(Section):
    """[database]: the catalogue."""

    url: str = ""
    """`sqlite+aiosqlite:///FILE` or `mariadb+asyncmy://USER@HOST/NAME`; empty: SQLite in the state folder."""
    url_file: Path | None = None
    """A file (0600) that holds the URL instead, for one with a password in it."""


class ApiSection(Section):
    """[api]: where operators and the command line come in."""

    socket: Path = Path("/run/sendense/hub.sock")
    """Unix socket, mode 0600: whoever can open it is the operator."""


class AgentsSection(Section):
    """[agents]: the one port that agents dial."""

    listen: str = Field(default="0.0.0.0:8443", pattern=HOST_PORT)
    """`address:port` to listen on."""
    address: str = Field(default="localhost:8443", pattern=HOST_PORT)
    """`host:port` as agents reach it: goes into join strings and into the server's certificate."""
    max_streams: int = Field(default=128, ge=8)
    """Streams served at once over all agents: one per agent, one per disk on its way in. More are refused."""
    heartbeat_interval: float = Field(default=5, gt=0)
    """Seconds between an agent's signs of life."""
    lease: float = Field(default=60, gt=0)
    """Seconds a task outlives its agent's silence; then it has failed."""


class TasksSection(Section):
    """[tasks]: what no task may exceed."""

    time_limit: float = Field(default=4 * 3600, ge=1)
    """Seconds a task may run."""
    stall_limit: float = Field(default=300, gt=0)
    """Seconds a running task may go without a byte or a heartbeat."""


class LogSection(Section):
    """[log]: what is said on stderr."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"


class HubSettings(Settings):
    """hub.toml."""

    model_config = SettingsConfigDict(env_prefix="SENDENSE_HUB_")

    state_dir: Path = Path("/var/lib/sendense-hub")
    """Keys, the embedded database, files being staged for a restore."""
    database: DatabaseSection = DatabaseSection()
    api: ApiSection = ApiSection()
    agents: AgentsSection = AgentsSection()
    tasks: TasksSection = TasksSection()
    log: LogSection = LogSection()

    @property
    def database_url(self) -> str:
        """The catalogue's URL; a secret when it holds a password."""
        if self.database.url_file is not None:
            return read_secret(self.database.url_file)
        return self.database.url or f"sqlite+aiosqlite:///{self.state_dir}/catalogue.db"

    @property
    def pki_dir(self) -> Path:
        """The certificate authority's folder."""
        return self.state_dir / "pki"

    @property
    def staging_dir(self) -> Path:
        """Where restores convert images before they are sent."""
        return self.state_dir / "staging"
