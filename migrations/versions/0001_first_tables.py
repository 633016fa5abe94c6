"""First tables: agents, invitations, VMs and disks, repositories, tasks and their log, backups and images."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision: str = "0001"
down_revision: str | None = None

# A revision keeps its own words: what the models say may change, what this revision made never does.
ID = sa.String(36)
NAME = sa.String(255)
WORD = sa.String(32)
MOMENT = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")


def upgrade() -> None:
    """Make the tables, each after those it refers to."""
    create_agents()
    create_vms()
    create_repositories()
    create_tasks()
    create_backups()
    create_images()


def downgrade() -> None:
    """Drop the tables, each before those it refers to."""
    for table in (
        "images",
        "backups",
        "task_events",
        "tasks",
        "repositories",
        "disks",
        "vms",
        "invitations",
        "agents",
    ):
        op.drop_table(table)


def create_agents() -> None:
    table(
        "agents",
        key(),
        column("name", NAME),
        column("state", WORD),
        column("software_version", NAME),
        column("hostname", NAME),
        column("certificate_serial", NAME),
        column("certificate_expires_at", MOMENT, nullable=True),
        column("created_at", MOMENT),
        column("last_seen_at", MOMENT, nullable=True),
        column("version", sa.Integer()),
        sa.UniqueConstraint("name", name="uq_agents_name"),
    )
    table(
        "invitations",
        key(),
        column("agent_name", NAME),
        column("certificate_serial", NAME),
        column("created_at", MOMENT),
        column("expires_at", MOMENT),
        column("used_at", MOMENT, nullable=True),
        sa.UniqueConstraint("certificate_serial", name="uq_invitations_certificate_serial"),
    )


def create_vms() -> None:
    table(
        "vms",
        key(),
        column("agent_id", ID),
        column("vcenter", ID),
        column("moref", NAME),
        column("name", NAME),
        column("power_state", NAME),
        column("guest_os", NAME),
        column("hardware_version", sa.Integer()),
        column("cbt_enabled", sa.Boolean()),
        column("is_template", sa.Boolean()),
        column("folder_path", sa.Text()),
        column("host_name", NAME),
        column("seen_at", MOMENT),
        column("missing_since", MOMENT, nullable=True),
        reference("vms", "agent_id", "agents"),
    )
    indexes("vms", "agent_id", "name", "vcenter")
    table(
        "disks",
        key(),
        column("vm_id", ID),
        column("device_key", sa.Integer()),
        column("backing_uuid", NAME),
        column("disk_object_id", NAME),
        column("label", NAME),
        column("capacity", sa.BigInteger()),
        column("present", sa.Boolean()),
        reference("disks", "vm_id", "vms"),
        sa.UniqueConstraint(
            *("vm_id", "backing_uuid", "disk_object_id", "device_key"),
            name="uq_disks_vm_id_backing_uuid_disk_object_id_device_key",
        ),
    )


def create_repositories() -> None:
    table(
        "repositories",
        key(),
        column("name", NAME),
        column("kind", WORD),
        column("path", sa.Text()),
        column("created_at", MOMENT),
        column("version", sa.Integer()),
        sa.UniqueConstraint("name", name="uq_repositories_name"),
    )


def create_tasks() -> None:
    table(
        "tasks",
        key(),
        column("kind", WORD),
        column("state", WORD),
        column("vm_id", ID, nullable=True),
        column("agent_id", ID, nullable=True),
        column("created_at", MOMENT),
        column("started_at", MOMENT, nullable=True),
        column("ended_at", MOMENT, nullable=True),
        column("cancel_requested_at", MOMENT, nullable=True),
        column("error_reason", NAME),
        column("error_message", sa.Text()),
        *sizes("total_bytes", "read_bytes", "sent_bytes", "stored_bytes", "skipped_bytes"),
        column("time_limit_s", sa.Integer()),
        column("lease_owner", NAME),
        column("lease_expires_at", MOMENT),
        column("version", sa.Integer()),
        reference("tasks", "vm_id", "vms"),
        reference("tasks", "agent_id", "agents"),
    )
    indexes("tasks", "agent_id", "state", "vm_id")
    table(
        "task_events",
        sa.Column("task_id", ID, primary_key=True),
        sa.Column("number", sa.Integer(), primary_key=True, autoincrement=False),
        column("at", MOMENT),
        column("level", WORD),
        column("message", sa.Text()),
        column("facts", sa.Text()),
        reference("task_events", "task_id", "tasks", ondelete="CASCADE"),
    )


def create_backups() -> None:
    table(
        "backups",
        key(),
        column("vm_id", ID),
        column("repository_id", ID),
        column("task_id", ID),
        column("agent_id", ID),
        column("type_asked", WORD),
        column("state", WORD),
        column("consistency", WORD),
        column("snapshot_at", MOMENT, nullable=True),
        column("created_at", MOMENT),
        column("completed_at", MOMENT, nullable=True),
        column("failure_reason", NAME),
        column("failure_message", sa.Text()),
        column("skipped_disks", sa.Text()),
        sa.Column(
            "active_vm_id",
            ID,
            sa.Computed("CASE WHEN state IN ('PENDING', 'RUNNING') THEN vm_id END", persisted=True),
        ),
        column("version", sa.Integer()),
        reference("backups", "vm_id", "vms"),
        reference("backups", "repository_id", "repositories"),
        reference("backups", "task_id", "tasks"),
        reference("backups", "agent_id", "agents"),
        sa.UniqueConstraint("active_vm_id", name="uq_backups_active_vm_id"),
        sa.UniqueConstraint("task_id", name="uq_backups_task_id"),
        sa.UniqueConstraint("id", "repository_id", name="uq_backups_id_repository_id"),
    )
    indexes("backups", "agent_id", "repository_id", "state", "vm_id")


def create_images() -> None:
    as_child = ["parent_id", "disk_id", "repository_id", "base_change_id"]
    as_parent = ["id", "disk_id", "repository_id", "change_id"]
    table(
        "images",
        key(),
        column("backup_id", ID),
        column("repository_id", ID),
        column("disk_id", ID),
        column("ordinal", sa.Integer()),
        column("parent_id", ID, nullable=True),
        column("type_reason", NAME),
        column("capacity", sa.BigInteger()),
        column("change_id", NAME, nullable=True),
        column("base_change_id", NAME, nullable=True),
        column("path", sa.Text()),
        column("root_digest", NAME),
        *sizes("changed_bytes", "read_bytes", "sent_bytes", "stored_bytes", "skipped_bytes"),
        column("coverage", sa.Text()),
        column("created_at", MOMENT),
        sa.ForeignKeyConstraint(
            ["backup_id", "repository_id"],
            ["backups.id", "backups.repository_id"],
            name="fk_images_backup_id_repository_id_backups",
            ondelete="RESTRICT",
        ),
        reference("images", "disk_id", "disks"),
        sa.ForeignKeyConstraint(
            as_child, [f"images.{name}" for name in as_parent], name="fk_images_parent", ondelete="RESTRICT"
        ),
        sa.CheckConstraint("(parent_id IS NULL) = (base_change_id IS NULL)", name=op.f("ck_images_base_with_parent")),
        sa.UniqueConstraint(*as_parent, name="uq_images_as_parent"),
        sa.UniqueConstraint("backup_id", "disk_id", name="uq_images_backup_id_disk_id"),
        sa.UniqueConstraint("backup_id", "ordinal", name="uq_images_backup_id_ordinal"),
    )
    op.create_index("ix_images_head", "images", ["disk_id", "repository_id", "id"])
    op.create_index("ix_images_parent", "images", as_child)


def table(name: str, *parts: sa.schema.SchemaItem) -> None:
    op.create_table(
        name, *parts, mariadb_engine="InnoDB", mariadb_charset="utf8mb4", mariadb_collate="utf8mb4_nopad_bin"
    )


def indexes(name: str, *columns: str) -> None:
    for each in columns:
        op.create_index(f"ix_{name}_{each}", name, [each])


def key() -> sa.Column[Any]:
    return sa.Column("id", ID, primary_key=True)


def column(name: str, kind: sa.types.TypeEngine[Any], nullable: bool = False) -> sa.Column[Any]:
    return sa.Column(name, kind, nullable=nullable)


def sizes(*names: str) -> list[sa.Column[Any]]:
    return [column(name, sa.BigInteger()) for name in names]


def reference(name: str, local: str, remote: str, ondelete: str = "RESTRICT") -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint([local], [f"{remote}.id"], name=f"fk_{name}_{local}_{remote}", ondelete=ondelete)
