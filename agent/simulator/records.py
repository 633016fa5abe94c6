"""What a site remembers over a restart, besides the disks' own files: one JSON document, replaced as a whole."""

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, Field


class TrackingRecord(BaseModel):
    """Change tracking that is on: the disk's current identifier and stun interval."""

    uuid: str
    sequence: int


class LayerRecord(BaseModel):
    """One layer, by its number: 0 is `<name>.vmdk`, N is `<name>-00000N.vmdk`."""

    number: int
    snapshot: str | None = None
    """The snapshot that this layer's end is the view of; None for the newest layer, and for one to be folded away."""


class DiskRecord(BaseModel):
    """A virtual disk: `layers` from the base to the one the guest writes to."""

    key: int
    controller_key: int
    unit: int
    uuid: str
    object_id: str
    capacity: int
    file_stem: str
    """`[datastore] folder/name`, without layer number and `.vmdk`."""
    layers: list[LayerRecord]
    tracking: TrackingRecord | None = None


class SnapshotRecord(BaseModel):
    """A snapshot: an instant of all disks; `change_ids` by device key, absent for a disk that is not tracked."""

    moref: str
    number: int
    name: str
    description: str
    created: datetime
    powered_on: bool
    quiesced: bool
    change_ids: dict[int, str]


class VmRecord(BaseModel):
    """A virtual machine with its snapshots, oldest first: each is the parent of the next."""

    moref: str
    name: str
    uuid: str
    instance_uuid: str
    guest_id: str
    hardware_version: str
    cpus: int
    memory_mib: int
    powered_on: bool
    change_tracking: bool
    disks: list[DiskRecord]
    snapshots: list[SnapshotRecord] = []
    snapshots_made: int = 0


class SiteRecord(BaseModel):
    """The whole site."""

    name: str
    instance_uuid: str
    username: str
    datastore: str
    host: str
    changed_areas_per_page: Annotated[int, Field(gt=0)]
    vms: list[VmRecord]
    numbers_used: int
    """Counts managed objects, so that no reference is ever used twice."""
