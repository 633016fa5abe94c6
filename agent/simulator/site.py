"""A site: the VMs with their disks in one folder, kept over restarts; made from a description.

site.json       what it consists of (records.py)        password, certificate.pem, ca.pem, key.pem
vms/<moref>/<device key>/     the disks' layers (layers.py) and tracking data (changes.py)
"""

import fcntl
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from secrets import token_urlsafe
from uuid import uuid4

from agent.simulator.content import Progress, make_image, no_progress
from agent.simulator.description import DiskDescription, SiteDescription, VmDescription
from agent.simulator.disk import layer_name
from agent.simulator.layers import Layer
from agent.simulator.machine import VirtualMachine
from agent.simulator.records import DiskRecord, LayerRecord, SiteRecord, VmRecord
from agent.simulator.script import CallLog, DiskFaults, Faults
from shared.errors import NotFound, NotPossibleNow

FIRST_VM_NUMBER = 101
FIRST_CONTROLLER_KEY = 1000
FIRST_DISK_KEY = 2000
UNITS_PER_BUS = 15
CONTROLLER_UNIT = 7
"""The controller's own address among the 16 of its SCSI bus: no disk can have it."""


class Site:
    """A site that is open; `faults`, `disk_faults` and `calls` are for tests."""

    def __init__(self, folder: Path) -> None:
        """Open the site in a folder; raises NotFound when there is none, NotPossibleNow while another has it open."""
        self.folder = folder
        if not (folder / "site.json").exists():
            raise NotFound(f"{folder} holds no site")
        self._lock = _locked(folder)
        self.record = SiteRecord.model_validate_json((folder / "site.json").read_bytes())
        self.password = (folder / "password").read_text().strip()
        self.faults, self.disk_faults, self.calls = Faults(), DiskFaults(), CallLog()
        self.keep_frozen: Path | None = None
        """Where each snapshot's disks are copied to as they are created; None: nowhere."""
        self.changed = threading.Condition()
        """Notified whenever something a client can see has changed, or `closing` becomes true."""
        self.closing = False
        self._saving = threading.Lock()
        self.vms = [VirtualMachine(vm, folder / "vms" / vm.moref, self.save) for vm in self.record.vms]

    def vm(self, name: str) -> VirtualMachine:
        """The VM of this name; raises NotFound."""
        for vm in self.vms:
            if vm.name == name:
                return vm
        known = ", ".join(vm.name for vm in self.vms)
        raise NotFound(f"there is no VM {name!r}; this site has: {known}")

    def vm_by_moref(self, moref: str) -> VirtualMachine:
        """The VM of this reference; raises KeyError."""
        for vm in self.vms:
            if vm.record.moref == moref:
                return vm
        raise KeyError(moref)

    def next_number(self) -> int:
        """A number never given before, for a new managed object's reference."""
        with self._saving:
            self.record.numbers_used += 1
            return self.record.numbers_used

    def save(self) -> None:
        """Make the record durable, and wake whoever waits for changes."""
        with self._saving:
            write_private(self.folder / "site.json", self.record.model_dump_json(indent=1))
        with self.changed:
            self.changed.notify_all()

    def close(self) -> None:
        """Wake those who wait, and close the disks' files."""
        with self.changed:
            self.closing = True
            self.changed.notify_all()
        for vm in self.vms:
            vm.close()
        os.close(self._lock)


def open_or_create(folder: Path, description: SiteDescription, progress: Progress = no_progress) -> Site:
    """The site in a folder, made from the description if there is none yet."""
    if not (folder / "site.json").exists():
        create(folder, description, progress)
    return Site(folder)


def create(folder: Path, description: SiteDescription, progress: Progress = no_progress) -> None:
    """Make a site; it exists from the moment `site.json` does. Raises NotPossibleNow if there is one already."""
    if (folder / "site.json").exists():
        raise NotPossibleNow(f"{folder} already holds a site")
    shutil.rmtree(folder / "vms", ignore_errors=True)  # what an interrupted creation left
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    record = _site_record(description)
    # Copying files and the programs that make file systems wait more than they compute: two disks at a time.
    with ThreadPoolExecutor(2) as makers:
        made = [
            makers.submit(
                _fill, folder / "vms" / vm.moref / str(disk.key), wanted, f"{vm.name} disk {disk.key}", progress
            )
            for vm, described in zip(record.vms, description.vms, strict=True)
            for disk, wanted in zip(vm.disks, described.disks, strict=True)
            if wanted.file_system != "none"
        ]
    for disk_made in made:
        disk_made.result()
    write_private(folder / "password", token_urlsafe(18) + "\n")
    write_private(folder / "site.json", record.model_dump_json(indent=1))


def _fill(folder: Path, disk: DiskDescription, title: str, progress: Progress) -> None:
    folder.mkdir(parents=True)
    image = folder / "image"
    make_image(disk, image, lambda what, done, total: progress(f"{title}: {what}", done, total))
    base = Layer(folder / layer_name(0), disk.capacity)
    base.adopt(image)
    base.close()


def _site_record(description: SiteDescription) -> SiteRecord:
    vms = [
        _vm_record(f"vm-{FIRST_VM_NUMBER + index}", vm, description.datastore)
        for index, vm in enumerate(description.vms)
    ]
    return SiteRecord(
        name=description.name,
        instance_uuid=str(uuid4()),
        username=description.username,
        datastore=description.datastore,
        host=description.host,
        changed_areas_per_page=description.changed_areas_per_page,
        vms=vms,
        numbers_used=FIRST_VM_NUMBER + len(vms),
    )


def _vm_record(moref: str, vm: VmDescription, datastore: str) -> VmRecord:
    return VmRecord(
        moref=moref,
        name=vm.name,
        uuid=str(uuid4()),
        instance_uuid=str(uuid4()),
        guest_id=vm.guest_id,
        hardware_version=vm.hardware_version,
        cpus=vm.cpus,
        memory_mib=vm.memory_mib,
        powered_on=vm.powered_on,
        change_tracking=vm.change_tracking,
        disks=[_disk_record(index, disk, f"[{datastore}] {vm.name}/{vm.name}") for index, disk in enumerate(vm.disks)],
    )


def _disk_record(index: int, disk: DiskDescription, stem: str) -> DiskRecord:
    bus, unit = divmod(index, UNITS_PER_BUS)
    unit += unit >= CONTROLLER_UNIT
    return DiskRecord(
        key=FIRST_DISK_KEY + 16 * bus + unit,
        controller_key=FIRST_CONTROLLER_KEY + bus,
        unit=unit,
        uuid=str(uuid4()),
        object_id=f"1-{FIRST_DISK_KEY + 16 * bus + unit}",
        capacity=disk.capacity,
        file_stem=f"{stem}_{index}" if index else stem,
        layers=[LayerRecord(number=0)],
    )


def _locked(folder: Path) -> int:
    """A descriptor that holds the folder until it is closed."""
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise NotPossibleNow(f"another simulator runs in {folder}") from error
    return descriptor


def write_private(path: Path, text: str) -> None:
    """Replace a file as a whole, readable by its owner only."""
    partial = path.with_name(f"{path.name}.partial")
    with open(partial, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
