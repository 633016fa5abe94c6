"""Leftovers: files of backups that ended badly while their repository was away, so that nobody could delete them."""

import asyncio
from pathlib import Path

from hub.catalogue import backups
from hub.catalogue.engine import Catalogue
from hub.catalogue.repositories import Repository
from hub.catalogue.states import BackupState
from hub.repository import RepositoryFolder, open_repository
from shared import logs
from shared.errors import RepositoryUnavailable

ENDED_BADLY = (BackupState.FAILED, BackupState.CANCELLED)
AT_ONCE = 500
"""IDs in one query."""

log = logs.get(__name__)


async def remove(catalogue: Catalogue, repository: Repository) -> None:
    """Remove them from a repository; one that is away is left to the next time.

    Only of backups which the catalogue knows as ended badly: files it knows nothing of may be all that is left of it.
    """
    try:
        folder = await asyncio.to_thread(open_repository, Path(repository.path), repository.id)
        found = sorted(await asyncio.to_thread(folder.backups))
        for start in range(0, len(found), AT_ONCE):
            await _remove(catalogue, folder, found[start : start + AT_ONCE])
    except RepositoryUnavailable as error:
        log.warning("not looked for leftovers", repository=repository.name, error=error.message)


async def _remove(catalogue: Catalogue, folder: RepositoryFolder, found: list[tuple[str, str]]) -> None:
    async with catalogue.reading() as session:
        known = await backups.get_many(session, [backup_id for _, backup_id in found])
    for backup in known.values():
        if backup.state in ENDED_BADLY and (backup.vm_id, backup.id) in found and backup.repository_id == folder.id:
            removed = await asyncio.to_thread(folder.remove_backup, backup.vm_id, backup.id)
            log.info("leftovers removed", backup=backup.id, files=removed)
