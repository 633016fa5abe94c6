"""One virtual disk: what the guest reads and writes, and the frozen views its snapshots keep.

At a snapshot everything written so far freezes and the guest goes on in a new layer, as on ESXi. When a snapshot goes,
the layer it froze takes over what the next one says (consolidation), so the remaining views stay what they were.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from agent.simulator.changes import ChangeId, ChangeTracking, changed
from agent.simulator.layers import BLOCK, Layer, Run, State, resolve
from agent.simulator.records import DiskRecord, LayerRecord, TrackingRecord
from agent.simulator.sparse import open_sparse
from shared.extents import Extent
from shared.units import MiB, align_down, align_up

ZEROS = bytes(1 * MiB)


class LayerInUse(Exception):
    """A frozen view that would change is being read."""


@dataclass(frozen=True)
class FrozenView:
    """A disk as it was at one instant; good inside the `with` that gave it."""

    capacity: int
    layers: tuple[Layer, ...]
    """The base first."""

    def runs(self) -> Iterator[Run]:
        """Who holds what, over the whole disk."""
        return resolve(self.layers, 0, -(-self.capacity // BLOCK))

    def allocated(self) -> Iterator[Extent]:
        """The byte ranges that hold data."""
        for run in self.runs():
            if run.layer is not None:
                yield Extent(run.first * BLOCK, min(run.end * BLOCK, self.capacity) - run.first * BLOCK)

    def read(self, offset: int, length: int) -> bytes:
        """Its bytes."""
        return _read(self.layers, offset, length)

    def export(self, target: Path) -> None:
        """Write it to a raw file, sparse."""
        target.unlink(missing_ok=True)
        file = open_sparse(target, self.capacity)
        try:
            for run in self.runs():
                if run.layer is not None:
                    end = min(run.end * BLOCK, self.capacity)
                    run.layer.copy(file, run.first * BLOCK, end - run.first * BLOCK)
        finally:
            os.close(file)


class VirtualDisk:
    """A disk with its files in one folder. Guest operations may come from any thread, at any time."""

    def __init__(self, record: DiskRecord, folder: Path) -> None:
        self.record = record
        self.lock = threading.RLock()
        """Held for one guest operation; held over all disks of a VM while a snapshot freezes them together."""
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._layers = [self._layer(layer) for layer in record.layers]
        self._tracking = self._open_tracking() if record.tracking else None

    # -- what the guest does ----------------------------------------------------------------------------------------

    def read(self, offset: int, length: int) -> bytes:
        """What the guest reads now."""
        with self.lock:
            self._check(offset, length)
            return _read(self._layers, offset, length)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write at any offset; blocks written in part are completed from what lies below."""
        with self.lock:
            self._check(offset, len(data))
            if not data:
                return
            first, end = offset // BLOCK, -(-(offset + len(data)) // BLOCK)
            head = _read(self._layers, first * BLOCK, offset - first * BLOCK)
            behind = offset + len(data)
            tail = _read(self._layers, behind, min(end * BLOCK, self.record.capacity) - behind)
            # In this order: killed in between, a block counts as changed too much, never too little.
            self._record_change(first, end)
            self._layers[-1].write(first * BLOCK, b"".join((head, data, tail)))
            self._layers[-1].mark(first, end, State.DATA)

    def zero(self, offset: int, length: int) -> None:
        """Write zeros, which stay allocated."""
        with self.lock:
            self._check(offset, length)
            for start in range(offset, offset + length, len(ZEROS)):
                self.write(start, memoryview(ZEROS)[: min(len(ZEROS), offset + length - start)])

    def trim(self, offset: int, length: int) -> None:
        """Unmap: whole blocks become unallocated, the edges zero."""
        with self.lock:
            self._check(offset, length)
            start, stop = align_up(offset, BLOCK), align_down(offset + length, BLOCK)
            if offset + length == self.record.capacity:
                stop = self.record.capacity
            if start >= stop:
                self.zero(offset, length)
                return
            self.zero(offset, start - offset)
            self.zero(stop, offset + length - stop)
            first, end = start // BLOCK, -(-stop // BLOCK)
            self._record_change(first, end)
            self._layers[-1].mark(first, end, State.UNALLOCATED if len(self._layers) > 1 else State.ABSENT)

    # -- what the host does; the caller holds the lock and saves the record -------------------------------------------

    @property
    def change_id(self) -> str | None:
        """The change ID of the present interval, or None while nothing is tracked."""
        tracking = self.record.tracking
        return str(ChangeId(tracking.uuid, tracking.sequence)) if tracking else None

    @property
    def file_name(self) -> str:
        """The file the guest writes to, as the datastore names it."""
        return self._file_name(self.record.layers[-1])

    @property
    def consolidation_needed(self) -> bool:
        """Whether a layer is left over that no snapshot needs."""
        return any(layer.snapshot is None for layer in self.record.layers[:-1])

    def track(self, enabled: bool) -> None:
        """Begin or end change tracking; it is the host that decides when (at a stun)."""
        if enabled and self._tracking is None:
            self._ctk("live").unlink(missing_ok=True)
            self.record.tracking = TrackingRecord(uuid=_tracking_uuid(), sequence=1)
            self._tracking = self._open_tracking()
        elif not enabled and self._tracking is not None:
            self._tracking.close()
            self._tracking = self.record.tracking = None

    def freeze(self, snapshot: str) -> str | None:
        """Freeze the disk for a snapshot; gives the change ID of this instant, if tracked."""
        change_id = self.change_id
        if self._tracking is not None and self.record.tracking is not None:
            self._tracking.freeze(self._ctk(snapshot))
            self.record.tracking.sequence += 1
        self.record.layers[-1].snapshot = snapshot
        number = 1 + max(layer.number for layer in self.record.layers)
        self.record.layers.append(LayerRecord(number=number))
        # Numbers are used again; a kill before the last one's files were deleted must not bring them back.
        self._layer(self.record.layers[-1]).delete()
        self._layers.append(self._layer(self.record.layers[-1]))
        return change_id

    def release(self, snapshot: str) -> None:
        """The snapshot needs its frozen view no more."""
        self._ctk(snapshot).unlink(missing_ok=True)
        for layer in self.record.layers:
            if layer.snapshot == snapshot:
                layer.snapshot = None

    def consolidate(self) -> Iterator[None]:
        """Fold away layers no snapshot needs; after each yield the record is to be saved. Raises LayerInUse."""
        while self.consolidation_needed:
            index = next(i for i, layer in enumerate(self.record.layers) if layer.snapshot is None)
            lower, upper = self._layers[index : index + 2]
            if lower.readers:
                raise LayerInUse(self._file_name(self.record.layers[index]))
            lower.absorb(upper, is_bottom=index == 0)
            lower.readers |= upper.readers
            self.record.layers[index].snapshot = self.record.layers[index + 1].snapshot
            del self.record.layers[index + 1], self._layers[index + 1]
            yield
            upper.delete()

    # -- what a backup sees -------------------------------------------------------------------------------------------

    def frozen_file_name(self, snapshot: str) -> str:
        """The file a snapshot's view ends with, as the datastore names it; raises KeyError."""
        return self._file_name(self.record.layers[self._index(snapshot)])

    @contextmanager
    def frozen(self, snapshot: str) -> Iterator[FrozenView]:
        """The disk as the snapshot froze it; kept from consolidation inside the `with`. Raises KeyError."""
        reader = object()
        with ExitStack() as stack:
            with self.lock:
                stop = self._index(snapshot) + 1
                layers = tuple(self._layer(record) for record in self.record.layers[:stop])
                for layer in layers:
                    stack.callback(layer.close)
                self._layers[stop - 1].readers.add(reader)
            stack.callback(self._forget, reader)
            yield FrozenView(self.record.capacity, layers)

    def keep_only(self, snapshots: set[str]) -> None:
        """Release what belongs to other snapshots: they were being made or removed when the simulator was killed."""
        for layer in self.record.layers:
            if layer.snapshot is not None and layer.snapshot not in snapshots:
                self.release(layer.snapshot)

    def is_read(self, snapshot: str) -> bool:
        """Whether somebody reads the view that ends with the snapshot's layer."""
        with self.lock:
            return any(
                layer.readers
                for layer, record in zip(self._layers, self.record.layers, strict=True)
                if record.snapshot == snapshot
            )

    def changed_areas(self, snapshot: str, since: int, start: int) -> Iterator[Extent]:
        """What was written after interval `since` and before the snapshot, from byte `start` on; ascending."""
        return changed(self._ctk(snapshot), since, start, self.record.capacity)

    def close(self) -> None:
        """Close all files; what the guest does afterwards fails with OSError."""
        with self.lock:
            for layer in self._layers:
                layer.close()
            if self._tracking is not None:
                self._tracking.close()

    # -- inside -------------------------------------------------------------------------------------------------------

    def _forget(self, reader: object) -> None:
        with self.lock:
            for layer in self._layers:
                layer.readers.discard(reader)

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.record.capacity:
            raise ValueError(f"[{offset}, {offset + length}) is not inside the disk's {self.record.capacity} bytes")

    def _record_change(self, first: int, end: int) -> None:
        if self._tracking is not None and self.record.tracking is not None:
            self._tracking.record(first, end, self.record.tracking.sequence)

    def _index(self, snapshot: str) -> int:
        for index, layer in enumerate(self.record.layers):
            if layer.snapshot == snapshot:
                return index
        raise KeyError(snapshot)

    def _layer(self, record: LayerRecord) -> Layer:
        return Layer(self._folder / layer_name(record.number), self.record.capacity)

    def _ctk(self, name: str) -> Path:
        return self._folder / f"{name}.ctk"

    def _open_tracking(self) -> ChangeTracking:
        return ChangeTracking(self._ctk("live"), self.record.capacity)

    def _file_name(self, layer: LayerRecord) -> str:
        suffix = f"-{layer.number:06}" if layer.number else ""
        return f"{self.record.file_stem}{suffix}.vmdk"


def layer_name(number: int) -> str:
    """What the files of a disk's layer begin with."""
    return f"layer-{number:06}"


def _read(layers: "list[Layer] | tuple[Layer, ...]", offset: int, length: int) -> bytes:
    parts: list[bytes] = []
    for run in resolve(layers, offset // BLOCK, -(-(offset + length) // BLOCK)):
        start, end = max(run.first * BLOCK, offset), min(run.end * BLOCK, offset + length)
        parts.append(bytes(end - start) if run.layer is None else run.layer.read(start, end - start))
    return b"".join(parts)


def _tracking_uuid() -> str:
    """As ESXi writes it: `52 de c0 d9 b9 43 9d 10-61 5b 4d 63 6b 49 5d 8d`."""
    octets = uuid4().bytes
    return f"{octets[:8].hex(' ')}-{octets[8:].hex(' ')}"
