"""An image in flight: runs appended in ascending order, made durable step by step, then sealed and committed.

    create ── append* ── sync ── append* ── sync ── seal ── commit
                │ crash, or an error of storage        (before commit: discard)
              reopen: goes on at the last durable offset

The order that makes a durable offset true: image data to stable storage, then the journal's records of it, then the
offset is told. After an error of storage the object refuses to go on, since nothing is known of what was not yet
durable; `reopen` goes back to what is.
"""

import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from hub.files import DurableFile
from hub.images import journal
from hub.images.journal import Journal
from hub.images.layout import Layout
from hub.images.manifest import ManifestWriter
from hub.images.names import ImageFiles, commit, discard
from hub.images.qcow2 import ParentImage
from shared.errors import AlreadyExists, DataLoss, InvalidRequest, NotFound, NotPossibleNow
from shared.runs import ClusterRun
from shared.units import CLUSTER, SECTOR, MiB, align_up

CHECKPOINT_AFTER = 8 * MiB
"""Journal bytes after which a new checkpoint replaces them: reading that many back takes well under a second."""

MOST_UNSYNCED = 4 * MiB
"""Journal records held in memory before `append` syncs by itself: those of about 7 GiB of full runs."""

_SCALARS = struct.Struct(">QQ")


@dataclass(frozen=True, slots=True)
class SealedImage:
    """What a finished image holds. Sizes in bytes; clusters are 64 KiB."""

    path: Path
    capacity: int
    stored: int
    """Size of the image file."""
    data_clusters: int
    zero_clusters: int
    root: bytes
    """The manifest's root digest."""


class PartialImage:
    """An image in flight, made by `create` or `reopen`. Not for use by two threads at once."""

    def __init__(
        self, files: ImageFiles, image: DurableFile, manifest: ManifestWriter, layout: Layout, appended: int
    ) -> None:
        self._files = files
        self._image = image
        self._manifest = manifest
        self._layout = layout
        self._unsynced = bytearray()
        self._appended = appended
        self._durable = appended
        self._refusal = ""
        # Begun anew after a crash, too: the old one may have been read from a cache that never reached the disk.
        self._journal = self._start_journal()

    @classmethod
    def create(cls, path: Path, capacity: int, parent: ParentImage | None) -> Self:
        """Begin the image that is to be `path` (`<backup-id>.qcow2`), of a disk of `capacity` bytes.

        Raises AlreadyExists when any of its files exists, NotFound when the parent does not, InvalidRequest,
        RepositoryFull, RepositoryUnavailable.
        """
        files = ImageFiles(path)
        _check_new(files, capacity, parent)
        with ExitStack() as on_error:
            image = on_error.enter_context(DurableFile.create(files.partial_image))
            on_error.callback(files.delete_in_flight)
            image.truncate(CLUSTER)  # room for the header; until it is there, nothing takes the file for an image
            manifest = on_error.enter_context(ManifestWriter.create(files.partial_manifest, capacity))
            created = cls(files, image, manifest, Layout(capacity, parent, image.write), 0)
            on_error.pop_all()
            return created

    @classmethod
    def reopen(cls, path: Path) -> Self:
        """Go on with the image that is to be `path`, after a crash or an error, at its durable offset.

        Raises NotFound, Conflict while another has it open, DataLoss when a file holds less than was once durable,
        RepositoryFull, RepositoryUnavailable.
        """
        files = ImageFiles(path)
        with ExitStack() as on_error:
            image = on_error.enter_context(DurableFile.reopen(files.partial_image))
            records = journal.read(files.journal)
            layout, manifest_state, appended = _from_checkpoint(next(records))
            manifest = on_error.enter_context(
                ManifestWriter.reopen(files.partial_manifest, layout.capacity, manifest_state)
            )
            for run in map(journal.run_of, records):
                layout.place(run)
                manifest.add(run)
                appended = run.end
            _cut(image, layout.end)
            layout.write = image.write
            reopened = cls(files, image, manifest, layout, appended)
            on_error.pop_all()
            return reopened

    @property
    def capacity(self) -> int:
        """Bytes of the disk."""
        return self._layout.capacity

    @property
    def parent(self) -> ParentImage | None:
        """The image this one is laid over."""
        return self._layout.parent

    @property
    def durable(self) -> int:
        """The durable offset, in bytes of the disk: what was appended below it survives a crash. Never goes back."""
        return min(self._durable, self.capacity)

    def append(self, run: ClusterRun) -> None:
        """Write a run whose digests the caller has checked; it begins at or after the end of the last one.

        Raises InvalidRequest when it does not, or leaves the disk; RepositoryFull, RepositoryUnavailable.
        """
        self._check_order(run)
        with self._writing():
            host = self._layout.place(run)
            if run.payload:
                self._image.write(host, run.payload)
            self._manifest.add(run)
            self._unsynced += journal.record(journal.run_body(run))
            self._appended = run.end
        if len(self._unsynced) > MOST_UNSYNCED:
            self.sync()

    def sync(self) -> int:
        """Make all that was appended durable; returns the durable offset.

        Raises RepositoryFull, RepositoryUnavailable.
        """
        with self._writing():
            if self._unsynced:
                self._image.sync()
                self._journal.append(self._unsynced)
                self._unsynced.clear()
                self._durable = self._appended
            if self._journal.size > CHECKPOINT_AFTER:
                self._journal.close()
                self._journal = self._start_journal()
        return self.durable

    def seal(self) -> SealedImage:
        """Finish image and manifest: on stable storage on return, still under their partial names.

        Once only; after an error or a crash, `reopen` and seal again.
        """
        self.sync()
        with self._writing():
            header = self._layout.finish()
            summary = self._manifest.finish()
            self._image.sync()
            # The header comes last: a file that has one is whole, and so is its manifest.
            self._image.write(0, header)
            self._image.sync()
        self._refusal = "is sealed"
        return SealedImage(
            path=self._files.image,
            capacity=self.capacity,
            stored=self._image.size,
            data_clusters=summary.data_clusters,
            zero_clusters=summary.zero_clusters,
            root=summary.root,
        )

    def commit(self) -> None:
        """Give the sealed image and its manifest their own names; see `names.commit`."""
        self.close()
        commit(self._files.image)

    def discard(self) -> None:
        """Give the image up and delete its files."""
        self.close()
        discard(self._files.image)

    def close(self) -> None:
        """Leave the files as they are, for `reopen` or `commit`; may be called twice."""
        self._refusal = self._refusal or "is closed"
        self._journal.close()
        self._manifest.close()
        self._image.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        if self._refusal:
            raise NotPossibleNow(f"{self._files.partial_image} {self._refusal}")
        try:
            yield
        except BaseException:
            self._refusal = "failed while it was written, and must be reopened"
            raise

    def _check_order(self, run: ClusterRun) -> None:
        if run.offset < self._appended or run.offset % CLUSTER or run.end > align_up(self.capacity, CLUSTER):
            raise InvalidRequest(
                f"clusters [{run.offset}, {run.end}) cannot follow offset {self._appended} "
                f"on a disk of {self.capacity} bytes",
                offset=run.offset,
            )

    def _start_journal(self) -> Journal:
        """A journal that begins with the present state, all of it durable before the journal speaks of it."""
        self._image.sync()
        self._manifest.sync()
        parent = self.parent.name.encode() if self.parent is not None else b""
        checkpoint = journal.pack_sections(
            [
                _SCALARS.pack(self.capacity, self._appended),
                parent,
                journal.pack_sections(self._manifest.save()),
                journal.pack_sections(self._layout.save()),
            ]
        )
        return Journal.start(self._files.journal, self._files.next_journal, checkpoint)


def _check_new(files: ImageFiles, capacity: int, parent: ParentImage | None) -> None:
    if capacity <= 0 or capacity % SECTOR:
        raise InvalidRequest(f"a disk has a positive multiple of {SECTOR} bytes, not {capacity}")
    for path in (files.image, files.manifest, *files.in_flight()):
        if path.exists():
            raise AlreadyExists(f"{path} exists")
    if parent is not None and not (files.image.parent / parent.name).is_file():
        raise NotFound(f"the parent image {parent.name} of {files.image} does not exist")


def _from_checkpoint(body: bytes) -> tuple[Layout, list[bytes], int]:
    """The layout, the manifest's state and the offset after the last run, as `_start_journal` packed them."""
    scalars, parent, manifest_state, layout_state = journal.unpack_sections(body)
    capacity, appended = _SCALARS.unpack(scalars)
    layout = Layout(capacity, ParentImage(parent.decode()) if parent else None, _is_written)
    layout.load(*journal.unpack_sections(layout_state))
    return layout, journal.unpack_sections(manifest_state), appended


def _is_written(offset: int, data: bytes) -> None:
    """Stands for writing while a journal is replayed: the image was synced before the journal spoke of it."""


def _cut(image: DurableFile, size: int) -> None:
    """Take from the image what came after its durable part, and the header it has if it was sealed."""
    if image.size < size:
        raise DataLoss(f"{image.path} has {image.size} bytes, and {size} were durable")
    image.write(0, bytes(CLUSTER))
    image.sync()  # first of all it must no longer look whole
    image.truncate(size)
