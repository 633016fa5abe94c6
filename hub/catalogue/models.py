"""The tables. Rows stay inside this package: callers get the frozen dataclass that stands beside the queries of a noun.

    agents ◄── vms ◄── disks ◄──┐
      ▲         ▲               │
    tasks ◄── backups ◄────── images ──► images (the parent)
      ▲         │
    task_events └──► repositories                     invitations stand alone

Foreign keys restrict, so nothing that files or other rows depend on can be deleted by accident.
"""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Computed,
    Enum,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    MetaData,
    Text,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, declared_attr, mapped_column

from hub.catalogue import states
from hub.catalogue.columns import ID, NAME, WORD, Json, Moment

NAMES = {
    # No rule for primary keys: MariaDB calls each of them PRIMARY and warns about any other name.
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
}

TABLE = {
    "mariadb_engine": "InnoDB",
    "mariadb_charset": "utf8mb4",
    # Compares as SQLite does: byte by byte. Plain utf8mb4_bin would take "vm" and "vm " for one name.
    "mariadb_collate": "utf8mb4_nopad_bin",
}


class Base(DeclarativeBase):
    """Base of all tables."""

    metadata = MetaData(naming_convention=NAMES)


def _word(kind: type[StrEnum]) -> Mapped[Any]:
    return mapped_column(Enum(kind, native_enum=False, create_constraint=False, length=WORD.length))


def _reference(column: str, **options: Any) -> Mapped[Any]:
    return mapped_column(ID, ForeignKey(column, ondelete="RESTRICT"), **options)


def _bytes() -> Mapped[Any]:
    return mapped_column(BigInteger, default=0)


class Versioned(Base):
    """A row that counts its changes, from 1: the API's etag."""

    __abstract__ = True

    version: Mapped[int]

    @declared_attr.directive
    @classmethod
    def __mapper_args__(cls) -> dict[str, Any]:
        return {"version_id_col": cls.__table__.c.version}


class AgentRow(Versioned):
    __tablename__ = "agents"
    __table_args__ = TABLE

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    name: Mapped[str] = mapped_column(NAME, unique=True)
    state: Mapped[states.AgentState] = _word(states.AgentState)
    software_version: Mapped[str] = mapped_column(NAME, default="")
    hostname: Mapped[str] = mapped_column(NAME, default="")
    certificate_serial: Mapped[str] = mapped_column(NAME, default="")
    certificate_expires_at: Mapped[datetime | None] = mapped_column(Moment)
    created_at: Mapped[datetime] = mapped_column(Moment)
    last_seen_at: Mapped[datetime | None] = mapped_column(Moment)


class InvitationRow(Base):
    __tablename__ = "invitations"
    __table_args__ = TABLE

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    agent_name: Mapped[str] = mapped_column(NAME)
    certificate_serial: Mapped[str] = mapped_column(NAME, unique=True)
    created_at: Mapped[datetime] = mapped_column(Moment)
    expires_at: Mapped[datetime] = mapped_column(Moment)
    used_at: Mapped[datetime | None] = mapped_column(Moment)


class VmRow(Base):
    __tablename__ = "vms"
    __table_args__ = (Index(None, "vcenter"), Index(None, "name"), TABLE)

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    agent_id: Mapped[str] = _reference("agents.id", index=True)
    vcenter: Mapped[str] = mapped_column(ID)
    moref: Mapped[str] = mapped_column(NAME)
    name: Mapped[str] = mapped_column(NAME)
    power_state: Mapped[str] = mapped_column(NAME)
    guest_os: Mapped[str] = mapped_column(NAME)
    hardware_version: Mapped[int]
    cbt_enabled: Mapped[bool]
    is_template: Mapped[bool]
    folder_path: Mapped[str] = mapped_column(Text)
    host_name: Mapped[str] = mapped_column(NAME)
    seen_at: Mapped[datetime] = mapped_column(Moment)
    missing_since: Mapped[datetime | None] = mapped_column(Moment)


class DiskRow(Base):
    __tablename__ = "disks"
    __table_args__ = (UniqueConstraint("vm_id", "backing_uuid", "disk_object_id", "device_key"), TABLE)

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    vm_id: Mapped[str] = _reference("vms.id")
    device_key: Mapped[int]
    backing_uuid: Mapped[str] = mapped_column(NAME)
    disk_object_id: Mapped[str] = mapped_column(NAME)
    label: Mapped[str] = mapped_column(NAME)
    capacity: Mapped[int] = _bytes()
    present: Mapped[bool]


class RepositoryRow(Versioned):
    __tablename__ = "repositories"
    __table_args__ = TABLE

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    name: Mapped[str] = mapped_column(NAME, unique=True)
    kind: Mapped[states.RepositoryKind] = _word(states.RepositoryKind)
    path: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(Moment)


class TaskRow(Versioned):
    __tablename__ = "tasks"
    __table_args__ = (Index(None, "state"), TABLE)

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    kind: Mapped[states.TaskKind] = _word(states.TaskKind)
    state: Mapped[states.TaskState] = _word(states.TaskState)
    vm_id: Mapped[str | None] = _reference("vms.id", index=True)
    agent_id: Mapped[str | None] = _reference("agents.id", index=True)
    created_at: Mapped[datetime] = mapped_column(Moment)
    started_at: Mapped[datetime | None] = mapped_column(Moment)
    ended_at: Mapped[datetime | None] = mapped_column(Moment)
    cancel_requested_at: Mapped[datetime | None] = mapped_column(Moment)
    error_reason: Mapped[str] = mapped_column(NAME, default="")
    error_message: Mapped[str] = mapped_column(Text, default="")
    total_bytes: Mapped[int] = _bytes()
    read_bytes: Mapped[int] = _bytes()
    sent_bytes: Mapped[int] = _bytes()
    stored_bytes: Mapped[int] = _bytes()
    skipped_bytes: Mapped[int] = _bytes()
    time_limit_s: Mapped[int]
    lease_owner: Mapped[str] = mapped_column(NAME)
    lease_expires_at: Mapped[datetime] = mapped_column(Moment)


class TaskEventRow(Base):
    __tablename__ = "task_events"
    __table_args__ = TABLE

    task_id: Mapped[str] = mapped_column(ID, ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at: Mapped[datetime] = mapped_column(Moment)
    level: Mapped[states.Level] = _word(states.Level)
    message: Mapped[str] = mapped_column(Text)
    facts: Mapped[dict[str, str]] = mapped_column(Json)


class BackupRow(Versioned):
    __tablename__ = "backups"
    __table_args__ = (
        Index(None, "state"),
        Index(None, "vm_id"),
        # What an image refers to, so that it cannot lie in another repository than its backup.
        UniqueConstraint("id", "repository_id"),
        TABLE,
    )

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    vm_id: Mapped[str] = _reference("vms.id")
    repository_id: Mapped[str] = _reference("repositories.id", index=True)
    task_id: Mapped[str] = _reference("tasks.id", unique=True)
    agent_id: Mapped[str] = _reference("agents.id", index=True)
    type_asked: Mapped[states.BackupType] = _word(states.BackupType)
    state: Mapped[states.BackupState] = _word(states.BackupState)
    consistency: Mapped[states.Consistency] = _word(states.Consistency)
    snapshot_at: Mapped[datetime | None] = mapped_column(Moment)
    created_at: Mapped[datetime] = mapped_column(Moment)
    completed_at: Mapped[datetime | None] = mapped_column(Moment)
    failure_reason: Mapped[str] = mapped_column(NAME, default="")
    failure_message: Mapped[str] = mapped_column(Text, default="")
    skipped_disks: Mapped[list[dict[str, Any]]] = mapped_column(Json)
    # One backup per VM: the VM's ID while the backup is unfinished, else NULL, of which a unique index allows many.
    active_vm_id: Mapped[str | None] = mapped_column(
        ID, Computed("CASE WHEN state IN ('PENDING', 'RUNNING') THEN vm_id END", persisted=True), unique=True
    )


class ImageRow(Base):
    """A row exists only for a restore point: images are inserted in the transaction that completes their backup.

    The composite keys hold what a chain depends on: an image lies in its backup's repository, and its parent is an
    image of the same disk, in the same repository, with exactly the change ID the image was asked from.
    """

    __tablename__ = "images"
    __table_args__ = (
        ForeignKeyConstraint(
            ["backup_id", "repository_id"], ["backups.id", "backups.repository_id"], ondelete="RESTRICT"
        ),
        UniqueConstraint("id", "disk_id", "repository_id", "change_id", name="uq_images_as_parent"),
        ForeignKeyConstraint(
            ["parent_id", "disk_id", "repository_id", "base_change_id"],
            ["images.id", "images.disk_id", "images.repository_id", "images.change_id"],
            name="fk_images_parent",
            ondelete="RESTRICT",
        ),
        # A foreign key is not looked at while one of its columns is NULL.
        CheckConstraint("(parent_id IS NULL) = (base_change_id IS NULL)", name="base_with_parent"),
        UniqueConstraint("backup_id", "disk_id"),
        UniqueConstraint("backup_id", "ordinal"),
        Index("ix_images_head", "disk_id", "repository_id", "id"),
        Index("ix_images_parent", "parent_id", "disk_id", "repository_id", "base_change_id"),
        TABLE,
    )

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    backup_id: Mapped[str] = mapped_column(ID)
    repository_id: Mapped[str] = mapped_column(ID)
    disk_id: Mapped[str] = _reference("disks.id")
    ordinal: Mapped[int]
    parent_id: Mapped[str | None] = mapped_column(ID)
    type_reason: Mapped[str] = mapped_column(NAME)
    capacity: Mapped[int] = _bytes()
    change_id: Mapped[str | None] = mapped_column(NAME)
    base_change_id: Mapped[str | None] = mapped_column(NAME)
    path: Mapped[str] = mapped_column(Text)
    root_digest: Mapped[str] = mapped_column(NAME)
    changed_bytes: Mapped[int] = _bytes()
    read_bytes: Mapped[int] = _bytes()
    sent_bytes: Mapped[int] = _bytes()
    stored_bytes: Mapped[int] = _bytes()
    skipped_bytes: Mapped[int] = _bytes()
    coverage: Mapped[dict[str, Any]] = mapped_column(Json)
    created_at: Mapped[datetime] = mapped_column(Moment)
