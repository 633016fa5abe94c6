"""The agent's configuration: one class per table of agent.toml, with a default and a why for every option."""

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from shared.config import Section, Settings
from shared.units import CLUSTER, MiB


class VCenterSection(Section):
    """[vcenter]: the one endpoint that snapshots, queries and reads go through."""

    server: str
    """Host name or address; morefs differ between vCenter and ESXi, so this is used for everything."""
    port: int = Field(default=443, ge=1, le=65535)
    username: str
    password_file: Path
    """A file (0600) that holds the password: it never stands in this configuration, in argv or in a log."""
    thumbprint: str = Field(pattern=r"^([0-9A-Fa-f]{2}:?){32}$")
    """SHA-256 of the server's certificate. Anything else it presents is refused."""
    keep_alive: float = Field(default=300, gt=0)
    """Seconds between signs of life on an idle session; vCenter drops it after about 30 minutes."""
    request_timeout: float = Field(default=120, gt=0)
    """Seconds without a byte after which a call to vCenter is given up; a page of changed areas can take a while."""
    snapshot_timeout: float = Field(default=1800, gt=0)
    """Seconds to wait for vCenter to take or remove a snapshot before saying that it hangs."""
    reap_interval: float = Field(default=300, gt=0)
    """Seconds between two tries to remove snapshots left behind: they grow, but what held one lasts minutes."""


class VddkSection(Section):
    """[vddk]: how nbdkit reads disks."""

    libdir: Path
    """Folder of VMware's VDDK, the one that holds lib64/libvixDiskLib.so.8 (or .7, .6)."""
    plugin: str = "vddk"
    """nbdkit's name for the plugin, or the path of its .so."""
    transports: str = "nbdssl:nbd"
    compression: Literal["none", "zlib", "fastlz", "skipz"] = "none"
    """Compression between host and agent, where the transport has it."""
    start_timeout: float = Field(default=60, gt=0)
    """Seconds for nbdkit to start and the disk to open."""


class BackupSection(Section):
    """[backup]: how much at once, and how it travels."""

    max_vms: int = Field(default=2, ge=1)
    """VMs backed up at once; others wait."""
    max_disks: int = Field(default=4, ge=1)
    """Disks read at once, over all VMs; a host's NFC buffers are 48 MiB."""
    request_size: int = Field(default=1 * MiB, gt=0, le=32 * MiB, multiple_of=CLUSTER)
    """Bytes per read, whole clusters; many servers refuse more than 32 MiB."""
    requests_in_flight: int = Field(default=4, ge=1)
    """Reads in flight per disk, on one connection."""
    compression: Literal["zstd", "off"] = "zstd"
    compression_level: int = Field(default=1, ge=1, le=19)
    quiesce: bool = False
    """Ask VMware Tools to quiesce the guest; on failure the backup goes on crash-consistent and says so."""


class InventorySection(Section):
    """[inventory]: what the hub is told of the VMs."""

    interval: float = Field(default=300, gt=0)
    """Seconds between two reports; the first one follows right after connecting."""


class LogSection(Section):
    """[log]: what is said on stderr."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"


class AgentSettings(Settings):
    """agent.toml."""

    model_config = SettingsConfigDict(env_prefix="SENDENSE_AGENT_")

    state_dir: Path = Path("/var/lib/sendense-agent")
    """Identity (key, certificate, the hub's CA) and the ledger of snapshots; survives restarts."""
    vcenter: VCenterSection
    vddk: VddkSection
    backup: BackupSection = BackupSection()
    inventory: InventorySection = InventorySection()
    log: LogSection = LogSection()
