"""What a site consists of, as its TOML file says."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import ByteSize, Field, model_validator
from pydantic_settings import SettingsConfigDict

from agent.simulator.layers import SEGMENT
from shared.config import Section, Settings
from shared.units import SECTOR, MiB


class DiskDescription(Section):
    """One `[[vms.disks]]`; sizes in bytes or as `2 GiB`."""

    capacity: Annotated[ByteSize, Field(gt=0, multiple_of=SECTOR)]
    file_system: Literal["none", "ext4", "btrfs"] = "none"
    folders: tuple[Path, ...] = ()
    """Where real files come from, in this order."""
    content: ByteSize = ByteSize(0)
    """How much of them; taken again from the start if the folders hold less."""

    @model_validator(mode="after")
    def _fits(self) -> "DiskDescription":
        if self.content and (self.file_system == "none" or not self.folders):
            raise ValueError("content needs a file_system and folders to take it from")
        if self.file_system != "none" and self.capacity > SEGMENT:
            raise ValueError("a disk with a file system can be at most 1 TiB")
        return self


class VmDescription(Section):
    """One `[[vms]]`."""

    name: Annotated[str, Field(pattern=r"^\w[\w .-]*$")]
    disks: tuple[DiskDescription, ...] = ()
    guest_id: str = "debian12_64Guest"
    hardware_version: str = "vmx-19"
    cpus: int = 2
    memory_mib: int = 2048
    powered_on: bool = True
    change_tracking: bool = False
    """Whether change tracking is on from the start."""


class SiteDescription(Settings):
    """The whole file."""

    model_config = SettingsConfigDict(env_prefix="SENDENSE_SITE_")

    name: str = "vcenter.example"
    username: str = "administrator@vsphere.local"
    datastore: str = "datastore1"
    host: str = "esxi1.example"
    changed_areas_per_page: Annotated[int, Field(gt=0)] = 2000
    """Most areas one QueryChangedDiskAreas answers; about 2 000 on a real host."""
    vms: tuple[VmDescription, ...] = ()


def _blank(capacity: int) -> DiskDescription:
    return DiskDescription(capacity=ByteSize(capacity))


BLANK = SiteDescription(
    vms=(
        VmDescription(name="web01", disks=(_blank(8 * MiB), _blank(4 * MiB + SECTOR))),
        VmDescription(name="db01", disks=(_blank(2 * MiB),)),
    )
)
"""Two small VMs with empty disks, for tests."""
