"""The reader of one frozen disk: its size, what of it is allocated, and its bytes."""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from shared.extents import Extent
from shared.nbd import Piece


class DiskReader(Protocol):
    """A disk as a snapshot holds it: the same answers, however often and in whichever order asked.

    Whoever opened the reader closes it. One thread at a time; but the pieces of a `read` may be drawn from `allocated`
    of the same reader while reading. After an error the reader is of no more use: open another one and go on from the
    offset reached; the bytes already given stand.
    """

    @property
    def capacity(self) -> int:
        """Bytes, a multiple of 512."""

    def allocated(self) -> Iterator[Extent]:
        """Tile `[0, capacity)` with DATA and ZERO extents, ascending; what is not known counts as DATA.

        May be called again. Raises ReadFailed, or SourceUnavailable when another reader may succeed.
        """

    def read(
        self, pieces: Iterable[Extent], *, depth: int = 4, stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[Piece]:
        """Each DATA piece with its bytes, each ZERO piece with none, in the order given.

        Pieces may come in any order and repeat; offsets and lengths are multiples of 512 within the disk, anything
        else is ReadFailed. Up to `depth` pieces are read ahead and held. When `stopped()` turns true the iteration
        ends early, without an error, within about a second. Raises ReadFailed naming the offset, or SourceUnavailable
        when another reader may succeed.
        """
