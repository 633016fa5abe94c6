"""RestoreService."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hub.catalogue import backups, images, repositories
from hub.catalogue.engine import Catalogue
from hub.catalogue.images import Image
from hub.catalogue.states import BackupState
from hub.repository import open_repository
from hub.restores import DiskFormat, opened
from hub.rpc.names import id_in
from sendense.v1 import restore_pb2, restore_pb2_grpc
from shared.errors import InvalidRequest, NotFound, NotPossibleNow
from shared.extents import Kind

_FORMATS: dict[int, DiskFormat] = {
    restore_pb2.DISK_FORMAT_UNSPECIFIED: DiskFormat.RAW,
    restore_pb2.DISK_FORMAT_RAW: DiskFormat.RAW,
    restore_pb2.DISK_FORMAT_QCOW2: DiskFormat.QCOW2,
}


class RestoreService(restore_pb2_grpc.RestoreServiceServicer):
    """Unpack, call, pack."""

    def __init__(self, catalogue: Catalogue, staging: Path) -> None:
        self._catalogue = catalogue
        self._staging = staging

    async def ReadDisk(
        self, request: restore_pb2.ReadDiskRequest, context: Any
    ) -> AsyncIterator[restore_pb2.ReadDiskResponse]:
        if request.format not in _FORMATS:
            raise InvalidRequest(f"there is no disk format {request.format}", field="format")
        image, path = await self._find(request)
        stop = threading.Event()
        stream = _messages(path, image.capacity, _FORMATS[request.format], self._staging, stop.is_set)
        loop = asyncio.get_running_loop()
        # A thread of its own: when the caller leaves, closing the stream waits its turn behind the read under way.
        thread = ThreadPoolExecutor(1, thread_name_prefix="restore")
        try:
            while (message := await loop.run_in_executor(thread, next, stream, None)) is not None:
                yield message
        finally:
            stop.set()
            thread.submit(stream.close)
            thread.shutdown(wait=False)  # the event loop does not wait for a program to end

    async def _find(self, request: restore_pb2.ReadDiskRequest) -> tuple[Image, Path]:
        """The image asked for, and where it is."""
        backup_id = id_in(request.backup, "backups", field="backup")
        async with self._catalogue.reading() as session:
            backup = await backups.get(session, backup_id)
            found = (await images.of_backups(session, [backup_id])).get(backup_id, [])
            repository = await repositories.get(session, backup.repository_id)
        if backup.state is not BackupState.COMPLETE:
            raise NotPossibleNow(f"backup {backup_id} is {backup.state}: only a complete one can be restored")
        for image in found:
            if image.ordinal == request.disk_index:
                folder = await asyncio.to_thread(open_repository, Path(repository.path), repository.id)
                return image, folder.path / image.path
        raise NotFound(f"backup {backup_id} has no disk {request.disk_index}; it has {len(found)}, counted from 0")


def _messages(
    path: Path, capacity: int, disk_format: DiskFormat, staging: Path, stopped: Callable[[], bool]
) -> Generator[restore_pb2.ReadDiskResponse, None, None]:
    data_bytes = zero_bytes = 0
    with opened(path, disk_format, staging, stopped) as stream:
        header = restore_pb2.DiskHeader(size_bytes=stream.size, capacity_bytes=capacity)
        yield restore_pb2.ReadDiskResponse(header=header)
        for extent, data in stream.pieces:
            if extent.kind is Kind.DATA:
                data_bytes += extent.length
                piece = restore_pb2.DataExtent(offset=extent.offset, data=bytes(data))
                yield restore_pb2.ReadDiskResponse(data=piece)
            else:
                zero_bytes += extent.length
                zero = restore_pb2.ZeroExtent(offset=extent.offset, length=extent.length)
                yield restore_pb2.ReadDiskResponse(zero=zero)
    yield restore_pb2.ReadDiskResponse(end=restore_pb2.DiskEnd(data_bytes=data_bytes, zero_bytes=zero_bytes))
