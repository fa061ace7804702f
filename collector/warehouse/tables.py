"""The warehouse's tables, as migrated by ``migrations/``; ``alembic check`` holds the two together.

Nothing points up from scans, versions and child rows to ``targets`` and ``tasks``: a foreign key there locks
a row of the parent for every insert (an unchanged poll would write twice) and costs a third of a first load,
and the merge registers targets and tasks before it names them.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

SCHEMA = "vm_import"

metadata = MetaData(schema=SCHEMA)

_INSTANT = DateTime(timezone=True)


def _text(name: str, comment: str) -> Column[str]:
    return Column(name, Text, comment=comment)


targets = Table(
    "targets",
    metadata,
    Column(
        "target_id", Integer, Identity(always=True), primary_key=True, comment="Ours, within this warehouse."
    ),
    Column("account_id", Text, nullable=False, comment="AWS account, 12 digits."),
    Column("region", Text, nullable=False, comment="AWS Region, such as eu-west-1."),
    UniqueConstraint("account_id", "region"),
    comment="One (account, Region) that was ever looked at: the unit of polling, locking and failure.",
)

scans = Table(
    "scans",
    metadata,
    Column("target_id", Integer, primary_key=True, autoincrement=False, comment="The target looked at."),
    Column("observed_at", _INSTANT, primary_key=True, comment="Taken just before the first request."),
    Column("finished_at", _INSTANT, nullable=False, comment="When the last answer was in."),
    Column(
        "complete",
        Boolean,
        nullable=False,
        comment="Whether it saw every listed task. Only then does a task's absence mean that it is gone.",
    ),
    Column(
        "seen", ARRAY(BigInteger), comment="The task_ids that a partial scan covered; null when complete."
    ),
    Column("task_count", Integer, nullable=False, comment="How many tasks it saw."),
    Column("digest", LargeBinary, nullable=False, comment="Order-free hash of the tasks' ids and contents."),
    Column("source", Text, nullable=False, comment="Where it came from: api or file."),
    Column(
        "recorded_at",
        _INSTANT,
        nullable=False,
        server_default=func.clock_timestamp(),
        comment="When this warehouse learned it; later than observed_at for late data.",
    ),
    CheckConstraint("complete = (seen IS NULL)", name="partial_scans_say_what_they_saw"),
    comment="One look at a target. Together with the versions, every unchanged observation can be read back.",
)

tasks = Table(
    "tasks",
    metadata,
    Column(
        "task_id", BigInteger, Identity(always=True), primary_key=True, comment="Ours, within this warehouse."
    ),
    Column("target_id", Integer, nullable=False, comment="The target that the task belongs to."),
    Column("import_task_id", Text, nullable=False, comment="AWS's id, opaque text: import-ami-…"),
    UniqueConstraint("target_id", "import_task_id"),
    Index("tasks_by_name", "import_task_id"),
    comment="An import image task that is known at all. A row here says nothing about having versions.",
)

STATE = (
    _text("architecture", "i386, x86_64, arm64, …"),
    _text("boot_mode", "legacy-bios, uefi, uefi-preferred; legacy_bios has been seen."),
    _text("description", "What the requester wrote."),
    Column("encrypted", Boolean, comment="Whether the image is encrypted; null is unknown."),
    _text("hypervisor", "Target hypervisor, xen."),
    _text("image_id", "The AMI, once there is one."),
    _text("kms_key_id", "Key of an encrypted image."),
    _text("license_type", "AWS or BYOL."),
    _text("platform", "Windows or Linux."),
    _text("progress", "Percent as AWS sends it; null once the task has ended."),
    _text("status", "active, completed, deleting or deleted; a failed or cancelled task is deleted."),
    _text("status_message", "The phase while active; the error, or nothing, once ended."),
    _text("usage_operation", "Billing code of the operating system and its licence."),
    Column("extra", JSONB, comment="Members that have no column here, under their wire names."),
)
"""The columns of a version that hold what AWS said of the task itself."""

task_versions = Table(
    "task_versions",
    metadata,
    Column("task_id", BigInteger, primary_key=True, autoincrement=False, comment="The task."),
    Column("valid_from", _INSTANT, primary_key=True, comment="The first scan that saw this."),
    Column("valid_to", _INSTANT, comment="The first scan that saw something else; null while open."),
    Column(
        "target_id", Integer, nullable=False, comment="The task's target, to find a target's open versions."
    ),
    Column(
        "listed", Boolean, nullable=False, comment="Whether the API showed the task; else all below is null."
    ),
    Column("content_hash", BigInteger, comment="Hash of everything observed."),
    Column("details_set", BigInteger, comment="Names the disks in snapshot_details; null when none."),
    Column("tags_set", BigInteger, comment="Names the tags in tags; null when none."),
    Column(
        "licenses_set", BigInteger, comment="Names the licences in license_specifications; null when none."
    ),
    *STATE,
    CheckConstraint("valid_to > valid_from", name="versions_last"),
    CheckConstraint("listed = (content_hash IS NOT NULL)", name="listed_versions_have_content"),
    # With the primary key and the reference below: no gap, no overlap, one open end.
    UniqueConstraint("task_id", "valid_to", postgresql_nulls_not_distinct=True),
    ForeignKeyConstraint(
        ["task_id", "valid_to"],
        ["vm_import.task_versions.task_id", "vm_import.task_versions.valid_from"],
        name="task_versions_have_no_gap",
        deferrable=True,
        initially="DEFERRED",
    ),
    # Together one entry for each version that was listed; what is listed now is found without its past.
    Index("task_versions_current", "target_id", postgresql_where=text("listed AND valid_to IS NULL")),
    Index(
        "task_versions_past",
        "target_id",
        "valid_to",
        postgresql_where=text("listed AND valid_to IS NOT NULL"),
    ),
    comment="Tiles: a longest interval [valid_from, valid_to) in which a task's observed content"
    " did not change.",
)


def _child_keys() -> tuple[Column[int], Column[int]]:
    return (
        Column("task_id", BigInteger, primary_key=True, autoincrement=False, comment="The task."),
        Column(
            "set_id", BigInteger, primary_key=True, autoincrement=False, comment="Hash of the whole list."
        ),
    )


def _position(what: str) -> Column[int]:
    comment = f"Place of the {what} in the canonical order, from 0; AWS promises no order."
    return Column("position", Integer, primary_key=True, autoincrement=False, comment=comment)


snapshot_details = Table(
    "snapshot_details",
    metadata,
    *_child_keys(),
    _position("disk"),
    _text("description", "What the requester wrote."),
    _text("device_name", "Device, such as /dev/sda1."),
    Column("disk_image_size", Double, comment="Bytes, whatever AWS's documentation says; 0 while pending."),
    _text("format", "VMDK, VHD, VHDX, RAW or OVA."),
    _text("progress", "Percent as AWS sends it."),
    _text("snapshot_id", "Appears late and may change before completion."),
    _text("status", "Of this disk; a failed task's disks can say completed."),
    _text("status_message", "Of this disk."),
    _text("url", "Where the disk was read from, without credentials."),
    _text("s3_bucket", "Bucket that the disk was read from."),
    _text("s3_key", "Object that the disk was read from."),
    Column("extra", JSONB, comment="Members that have no column here, under their wire names."),
    comment="Disks of a task, one immutable list per set_id.",
)

tags = Table(
    "tags",
    metadata,
    *_child_keys(),
    Column("key", Text, primary_key=True, comment="The tag's key."),
    _text("value", "The tag's value; null is the empty value."),
    comment="Tags of a task, one immutable list per set_id.",
)

license_specifications = Table(
    "license_specifications",
    metadata,
    *_child_keys(),
    _position("licence"),
    _text("license_configuration_arn", "ARN of the licence configuration."),
    Column("extra", JSONB, comment="Members that have no column here, under their wire names."),
    comment="Licence configurations of a task, one immutable list per set_id.",
)

outages = Table(
    "outages",
    metadata,
    Column("outage_id", BigInteger, Identity(always=True), primary_key=True, comment="Ours."),
    Column("account_id", Text, nullable=False, comment="AWS account, 12 digits."),
    Column("region", Text, comment="AWS Region; null where an account failed before its Regions were known."),
    Column("first_failed_at", _INSTANT, nullable=False, comment="The first failed look."),
    Column("last_failed_at", _INSTANT, nullable=False, comment="The last failed look."),
    Column("failures", BigInteger, nullable=False, comment="How many looks failed."),
    Column("error_code", Text, nullable=False, comment="Of the last failure: AWS's code, or ours."),
    Column("message", Text, nullable=False, comment="Of the last failure, without secrets."),
    Column("recovered_at", _INSTANT, comment="The first good look afterwards; null while the outage lasts."),
    Index(
        "outages_open",
        "account_id",
        "region",
        unique=True,
        postgresql_nulls_not_distinct=True,
        postgresql_where=text("recovered_at IS NULL"),
    ),
    comment="One unbroken series of failed looks at a target. What was not seen in it changed no version.",
)

task_events = Table(
    "task_events",
    metadata,
    Column("source", Text, primary_key=True, comment="Where it came from: cloudtrail or images."),
    Column("event_id", Text, primary_key=True, comment="CloudTrail's id of the event, or the AMI's id."),
    Column("target_id", Integer, nullable=False, comment="The target that it happened in."),
    Column("task_id", BigInteger, comment="The task that it is about; null for a request that failed."),
    Column("event_name", Text, nullable=False, comment="ImportImage, CancelImportTask; of an AMI: image."),
    Column(
        "occurred_at",
        _INSTANT,
        nullable=False,
        comment="When it was asked for; of an AMI when it was made, which is the end of the import.",
    ),
    _text("requested_by", "ARN of whoever asked."),
    _text("source_address", "Address that the request came from, or the AWS service."),
    _text("user_agent", "Program that asked."),
    _text("error_code", "Why the request failed; null when it did not."),
    _text("error_message", "The same in AWS's words."),
    _text("image_id", "The AMI."),
    _text("architecture", "Of the AMI: i386, x86_64, arm64, …"),
    _text("boot_mode", "Of the AMI: legacy-bios, uefi, uefi-preferred."),
    _text("platform", "Of the AMI: Windows or Linux."),
    _text("usage_operation", "Of the AMI: billing code of the operating system and its licence."),
    Column("encrypted", Boolean, comment="Of the AMI: whether a snapshot of it is encrypted."),
    Column("details", JSONB, comment="All else: request parameters, or the AMI's disks and tags."),
    Column(
        "recorded_at",
        _INSTANT,
        nullable=False,
        server_default=func.clock_timestamp(),
        comment="When this warehouse learned it.",
    ),
    Index("task_events_of_task", "task_id", postgresql_where=text("task_id IS NOT NULL")),
    comment="Evidence: facts about tasks from elsewhere, each with its own time. It never makes a version.",
)

event_scans = Table(
    "event_scans",
    metadata,
    Column("target_id", Integer, primary_key=True, autoincrement=False, comment="The target looked at."),
    Column("source", Text, primary_key=True, comment="What was read: cloudtrail."),
    Column("scanned_from", _INSTANT, primary_key=True, comment="Begin of the stretch of time."),
    Column("scanned_to", _INSTANT, nullable=False, comment="Its end, long enough ago for all to be in."),
    CheckConstraint("scanned_to > scanned_from", name="stretches_last"),
    comment="A stretch of time whose events are all stored, so that nobody need read them again.",
)

error_classes = Table(
    "error_classes",
    metadata,
    Column(
        "position",
        Double,
        primary_key=True,
        autoincrement=False,
        comment="Which rule is tried first: the lowest that fits counts. Ours are whole tens.",
    ),
    Column(
        "pattern",
        Text,
        nullable=False,
        comment="POSIX regular expression, held against the status message whatever the case.",
    ),
    Column("error_class", Text, nullable=False, comment="AWS's class of the failure."),
    _text("error_kind", "What kind within the class; null is none in particular."),
    comment="How failures are sorted. Add rows of your own; the message itself is never changed.",
)
