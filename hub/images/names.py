"""The names of an image's files, and the two ways the names of an image in flight end: commit and discard.

<id>.qcow2.partial   <id>.manifest.partial   <id>.qcow2.journal        until committed
<id>.qcow2           <id>.manifest                                     from then on
"""

from dataclasses import dataclass
from pathlib import Path

from hub.files import DurableFile, storage_errors, sync_folder
from hub.images.qcow2 import MAGIC
from shared.errors import NotFound, NotPossibleNow


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """The files of one image; `image` is the committed one's path and ends in `.qcow2`."""

    image: Path

    @property
    def manifest(self) -> Path:
        return self.image.with_suffix(".manifest")

    @property
    def partial_image(self) -> Path:
        return self.image.with_name(self.image.name + ".partial")

    @property
    def partial_manifest(self) -> Path:
        return self.manifest.with_name(self.manifest.name + ".partial")

    @property
    def journal(self) -> Path:
        return self.image.with_name(self.image.name + ".journal")

    @property
    def next_journal(self) -> Path:
        """Where a journal is written before it takes its predecessor's name."""
        return self.image.with_name(self.image.name + ".journal.next")

    def in_flight(self) -> list[Path]:
        """The names that exist only before the commit."""
        return [self.partial_image, self.partial_manifest, self.journal, self.next_journal]

    def delete_in_flight(self) -> None:
        """Delete what exists under those names."""
        with storage_errors(self.image.parent):
            for path in self.in_flight():
                path.unlink(missing_ok=True)


def commit(image: Path) -> None:
    """Give a sealed image and its manifest their own names, durably, and remove the journal.

    May be called again after a crash between any two steps. Raises NotPossibleNow when the image is not sealed,
    NotFound when there is none.
    """
    files = ImageFiles(image)
    with storage_errors(image):
        if files.partial_image.exists():
            _check_sealed(files.partial_image)
        elif not image.exists():
            raise NotFound(f"there is neither {image} nor its partial image")
        for partial, final in ((files.partial_manifest, files.manifest), (files.partial_image, image)):
            if partial.exists():
                partial.rename(final)
    sync_folder(image.parent)
    files.delete_in_flight()


def discard(image: Path) -> None:
    """Delete the files of an image in flight, as far as they exist; raises Conflict while somebody writes it."""
    files = ImageFiles(image)
    if files.partial_image.exists():
        DurableFile.reopen(files.partial_image).close()  # refused while it is locked
    files.delete_in_flight()
    sync_folder(image.parent)


def _check_sealed(partial_image: Path) -> None:
    """A sealed image has a header: that is written last, when everything else is on stable storage."""
    with partial_image.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise NotPossibleNow(f"{partial_image} is not sealed")
