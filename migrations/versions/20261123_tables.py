"""The tables: targets, scans, tasks, versions and their child rows, outages."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "20261123_tables"
down_revision = None
branch_labels = None
depends_on = None


_TABLES = (
    "outages",
    "license_specifications",
    "tags",
    "snapshot_details",
    "task_versions",
    "tasks",
    "scans",
    "targets",
)


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "license_specifications",
        sa.Column("task_id", sa.BigInteger(), nullable=False, comment="The task."),
        sa.Column("set_id", sa.BigInteger(), nullable=False, comment="Hash of the whole list."),
        sa.Column(
            "position",
            sa.Integer(),
            nullable=False,
            comment="Place of the licence in the canonical order, from 0; AWS promises no order.",
        ),
        sa.Column("license_configuration_arn", sa.Text(), comment="ARN of the licence configuration."),
        sa.Column(
            "extra", postgresql.JSONB(), comment="Members that have no column here, under their wire names."
        ),
        sa.PrimaryKeyConstraint("task_id", "set_id", "position"),
        schema="vm_import",
        comment="Licence configurations of a task, one immutable list per set_id.",
    )
    op.create_table(
        "outages",
        sa.Column("outage_id", sa.BigInteger(), sa.Identity(always=True), nullable=False, comment="Ours."),
        sa.Column("account_id", sa.Text(), nullable=False, comment="AWS account, 12 digits."),
        sa.Column(
            "region",
            sa.Text(),
            comment="AWS Region; null where an account failed before its Regions were known.",
        ),
        sa.Column(
            "first_failed_at", sa.DateTime(timezone=True), nullable=False, comment="The first failed look."
        ),
        sa.Column(
            "last_failed_at", sa.DateTime(timezone=True), nullable=False, comment="The last failed look."
        ),
        sa.Column("failures", sa.BigInteger(), nullable=False, comment="How many looks failed."),
        sa.Column(
            "error_code", sa.Text(), nullable=False, comment="Of the last failure: AWS's code, or ours."
        ),
        sa.Column("message", sa.Text(), nullable=False, comment="Of the last failure, without secrets."),
        sa.Column(
            "recovered_at",
            sa.DateTime(timezone=True),
            comment="The first good look afterwards; null while the outage lasts.",
        ),
        sa.PrimaryKeyConstraint("outage_id"),
        schema="vm_import",
        comment="One unbroken series of failed looks at a target. What was not seen in it changed no version.",
    )
    op.create_index(
        "outages_open",
        "outages",
        ["account_id", "region"],
        unique=True,
        schema="vm_import",
        postgresql_nulls_not_distinct=True,
        postgresql_where=sa.text("recovered_at IS NULL"),
    )
    op.create_table(
        "scans",
        sa.Column("target_id", sa.Integer(), nullable=False, comment="The target looked at."),
        sa.Column(
            "observed_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="Taken just before the first request.",
        ),
        sa.Column(
            "finished_at", sa.DateTime(timezone=True), nullable=False, comment="When the last answer was in."
        ),
        sa.Column(
            "complete",
            sa.Boolean(),
            nullable=False,
            comment="Whether it saw every listed task. Only then does a task's absence mean that it is gone.",
        ),
        sa.Column(
            "seen",
            postgresql.ARRAY(sa.BigInteger()),
            comment="The task_ids that a partial scan covered; null when complete.",
        ),
        sa.Column("task_count", sa.Integer(), nullable=False, comment="How many tasks it saw."),
        sa.Column(
            "digest",
            sa.LargeBinary(),
            nullable=False,
            comment="Order-free hash of the tasks' ids and contents.",
        ),
        sa.Column("source", sa.Text(), nullable=False, comment="Where it came from: api or file."),
        sa.Column(
            "recorded_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
            comment="When this warehouse learned it; later than observed_at for late data.",
        ),
        sa.CheckConstraint("complete = (seen IS NULL)", name="partial_scans_say_what_they_saw"),
        sa.PrimaryKeyConstraint("target_id", "observed_at"),
        schema="vm_import",
        comment="One look at a target. Together with the versions, every unchanged observation can be read back.",
    )
    op.create_table(
        "snapshot_details",
        sa.Column("task_id", sa.BigInteger(), nullable=False, comment="The task."),
        sa.Column("set_id", sa.BigInteger(), nullable=False, comment="Hash of the whole list."),
        sa.Column(
            "position",
            sa.Integer(),
            nullable=False,
            comment="Place of the disk in the canonical order, from 0; AWS promises no order.",
        ),
        sa.Column("description", sa.Text(), comment="What the requester wrote."),
        sa.Column("device_name", sa.Text(), comment="Device, such as /dev/sda1."),
        sa.Column(
            "disk_image_size",
            sa.Double(),
            comment="Bytes, whatever AWS's documentation says; 0 while pending.",
        ),
        sa.Column("format", sa.Text(), comment="VMDK, VHD, VHDX, RAW or OVA."),
        sa.Column("progress", sa.Text(), comment="Percent as AWS sends it."),
        sa.Column("snapshot_id", sa.Text(), comment="Appears late and may change before completion."),
        sa.Column("status", sa.Text(), comment="Of this disk; a failed task's disks can say completed."),
        sa.Column("status_message", sa.Text(), comment="Of this disk."),
        sa.Column("url", sa.Text(), comment="Where the disk was read from, without credentials."),
        sa.Column("s3_bucket", sa.Text(), comment="Bucket that the disk was read from."),
        sa.Column("s3_key", sa.Text(), comment="Object that the disk was read from."),
        sa.Column(
            "extra", postgresql.JSONB(), comment="Members that have no column here, under their wire names."
        ),
        sa.PrimaryKeyConstraint("task_id", "set_id", "position"),
        schema="vm_import",
        comment="Disks of a task, one immutable list per set_id.",
    )
    op.create_table(
        "tags",
        sa.Column("task_id", sa.BigInteger(), nullable=False, comment="The task."),
        sa.Column("set_id", sa.BigInteger(), nullable=False, comment="Hash of the whole list."),
        sa.Column("key", sa.Text(), nullable=False, comment="The tag's key."),
        sa.Column("value", sa.Text(), comment="The tag's value; null is the empty value."),
        sa.PrimaryKeyConstraint("task_id", "set_id", "key"),
        schema="vm_import",
        comment="Tags of a task, one immutable list per set_id.",
    )
    op.create_table(
        "targets",
        sa.Column(
            "target_id",
            sa.Integer(),
            sa.Identity(always=True),
            nullable=False,
            comment="Ours, within this warehouse.",
        ),
        sa.Column("account_id", sa.Text(), nullable=False, comment="AWS account, 12 digits."),
        sa.Column("region", sa.Text(), nullable=False, comment="AWS Region, such as eu-west-1."),
        sa.PrimaryKeyConstraint("target_id"),
        sa.UniqueConstraint("account_id", "region"),
        schema="vm_import",
        comment="One (account, Region) that was ever looked at: the unit of polling, locking and failure.",
    )
    op.create_table(
        "task_versions",
        sa.Column("task_id", sa.BigInteger(), nullable=False, comment="The task."),
        sa.Column(
            "valid_from", sa.DateTime(timezone=True), nullable=False, comment="The first scan that saw this."
        ),
        sa.Column(
            "valid_to",
            sa.DateTime(timezone=True),
            comment="The first scan that saw something else; null while open.",
        ),
        sa.Column(
            "target_id",
            sa.Integer(),
            nullable=False,
            comment="The task's target, to find a target's open versions.",
        ),
        sa.Column(
            "listed",
            sa.Boolean(),
            nullable=False,
            comment="Whether the API showed the task; else all below is null.",
        ),
        sa.Column("content_hash", sa.BigInteger(), comment="Hash of everything observed."),
        sa.Column(
            "details_set", sa.BigInteger(), comment="Names the disks in snapshot_details; null when none."
        ),
        sa.Column("tags_set", sa.BigInteger(), comment="Names the tags in tags; null when none."),
        sa.Column(
            "licenses_set",
            sa.BigInteger(),
            comment="Names the licences in license_specifications; null when none.",
        ),
        sa.Column("architecture", sa.Text(), comment="i386, x86_64, arm64, …"),
        sa.Column(
            "boot_mode", sa.Text(), comment="legacy-bios, uefi, uefi-preferred; legacy_bios has been seen."
        ),
        sa.Column("description", sa.Text(), comment="What the requester wrote."),
        sa.Column("encrypted", sa.Boolean(), comment="Whether the image is encrypted; null is unknown."),
        sa.Column("hypervisor", sa.Text(), comment="Target hypervisor, xen."),
        sa.Column("image_id", sa.Text(), comment="The AMI, once there is one."),
        sa.Column("kms_key_id", sa.Text(), comment="Key of an encrypted image."),
        sa.Column("license_type", sa.Text(), comment="AWS or BYOL."),
        sa.Column("platform", sa.Text(), comment="Windows or Linux."),
        sa.Column("progress", sa.Text(), comment="Percent as AWS sends it; null once the task has ended."),
        sa.Column(
            "status",
            sa.Text(),
            comment="active, completed, deleting or deleted; a failed or cancelled task is deleted.",
        ),
        sa.Column(
            "status_message", sa.Text(), comment="The phase while active; the error, or nothing, once ended."
        ),
        sa.Column(
            "usage_operation", sa.Text(), comment="Billing code of the operating system and its licence."
        ),
        sa.Column(
            "extra", postgresql.JSONB(), comment="Members that have no column here, under their wire names."
        ),
        sa.CheckConstraint("listed = (content_hash IS NOT NULL)", name="listed_versions_have_content"),
        sa.CheckConstraint("valid_to > valid_from", name="versions_last"),
        sa.ForeignKeyConstraint(
            ["task_id", "valid_to"],
            ["vm_import.task_versions.task_id", "vm_import.task_versions.valid_from"],
            name="task_versions_have_no_gap",
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("task_id", "valid_from"),
        sa.UniqueConstraint("task_id", "valid_to", postgresql_nulls_not_distinct=True),
        schema="vm_import",
        comment="Tiles: a longest interval [valid_from, valid_to) in which a task's observed content did not change.",
    )
    op.create_index(
        "task_versions_listed",
        "task_versions",
        ["target_id", "valid_to"],
        unique=False,
        schema="vm_import",
        postgresql_where=sa.text("listed"),
    )
    op.create_table(
        "tasks",
        sa.Column(
            "task_id",
            sa.BigInteger(),
            sa.Identity(always=True),
            nullable=False,
            comment="Ours, within this warehouse.",
        ),
        sa.Column("target_id", sa.Integer(), nullable=False, comment="The target that the task belongs to."),
        sa.Column("import_task_id", sa.Text(), nullable=False, comment="AWS's id, opaque text: import-ami-…"),
        sa.PrimaryKeyConstraint("task_id"),
        sa.UniqueConstraint("target_id", "import_task_id"),
        schema="vm_import",
        comment="An import image task that is known at all. A row here says nothing about having versions.",
    )


def downgrade() -> None:
    """Drop the tables, and with them all history."""
    for table in _TABLES:
        op.drop_table(table, schema="vm_import")
