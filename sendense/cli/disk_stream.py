"""A restored disk as the hub streams it, believed only when order, coverage and counts are right."""

from collections.abc import Iterator
from dataclasses import dataclass

from sendense.cli.errors import CommandFailed, ExitCode
from sendense.v1.restore_pb2 import DataExtent, DiskEnd, DiskHeader, ReadDiskResponse, ZeroExtent


def read_header(responses: Iterator[ReadDiskResponse]) -> DiskHeader:
    """The first message. Raises CommandFailed (DATA_LOSS) when it is something else, or missing."""
    for response in responses:
        if response.WhichOneof("content") == "header":
            return response.header
        break
    raise _broken("it does not begin with a header")


def read_extents(responses: Iterator[ReadDiskResponse], size: int) -> Iterator[DataExtent | ZeroExtent]:
    """The extents after the header, which tile [0, `size`) exactly: in order, no gap, no overlap.

    Ends only after an `end` whose counts are right; raises CommandFailed (DATA_LOSS) for any other stream.
    """
    tally = _Tally(size)
    for response in responses:
        match response.WhichOneof("content"):
            case "data":
                tally.add_data(response.data)
                yield response.data
            case "zero":
                tally.add_zero(response.zero)
                yield response.zero
            case "end":
                tally.check_end(response.end)
                if next(responses, None) is not None:
                    raise _broken("it goes on after its end")
                return
            case other:
                raise _broken(f"it holds {other or 'a message of a kind unknown here'} among its extents")
    raise _broken(f"it stops at byte {tally.position} of {size}, without an end")


@dataclass
class _Tally:
    size: int
    data_bytes: int = 0
    zero_bytes: int = 0

    @property
    def position(self) -> int:
        return self.data_bytes + self.zero_bytes

    def add_data(self, extent: DataExtent) -> None:
        self._check_extent(extent.offset, len(extent.data))
        self.data_bytes += len(extent.data)

    def add_zero(self, extent: ZeroExtent) -> None:
        self._check_extent(extent.offset, extent.length)
        self.zero_bytes += extent.length

    def check_end(self, end: DiskEnd) -> None:
        if self.position != self.size:
            raise _broken(f"it ends at byte {self.position} of {self.size}")
        if (end.data_bytes, end.zero_bytes) != (self.data_bytes, self.zero_bytes):
            raise _broken("its counts are not those of the bytes that arrived")

    def _check_extent(self, offset: int, length: int) -> None:
        if offset != self.position:
            raise _broken(f"byte {self.position} is next, and byte {offset} came")
        if not 0 < length <= self.size - self.position:
            raise _broken(f"{length} bytes at byte {offset} of {self.size} cannot be")


def _broken(why: str) -> CommandFailed:
    return CommandFailed(f"the hub's stream of the disk is damaged: {why}", ExitCode.DATA_LOSS)
