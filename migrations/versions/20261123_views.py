"""The views and functions that people read: schemas vm_import and ec2_api."""

from alembic import op

revision = "20261123_views"
down_revision = "20261123_tables"
branch_labels = None
depends_on = None

_FINISHED = "('completed', 'deleted')"

_STATE = """
    v.status, v.status_message, v.progress,
    CASE WHEN v.progress ~ '^[0-9]{1,3}([.][0-9]+)?$' THEN v.progress::numeric END AS progress_percent,
    v.description, v.platform, v.architecture, v.boot_mode, v.hypervisor, v.image_id,
    v.encrypted, v.kms_key_id, v.license_type, v.usage_operation, v.extra"""

_DISK = """
    d.position, d.device_name, d.disk_image_size, d.format, d.status, d.status_message, d.progress,
    CASE WHEN d.progress ~ '^[0-9]{1,3}([.][0-9]+)?$' THEN d.progress::numeric END AS progress_percent,
    d.snapshot_id, d.s3_bucket, d.s3_key, d.url, d.description, d.extra"""

_TASKS_AND_TARGETS = """
    JOIN vm_import.tasks k ON k.task_id = v.task_id
    JOIN vm_import.targets t ON t.target_id = k.target_id"""


def _last_scan(before: str, *, of: str = "v") -> str:
    """SQL for the last scan before an instant that could see the task: where its change cannot lie."""
    return f"""(
        SELECT s.observed_at FROM vm_import.scans s
        WHERE s.target_id = {of}.target_id AND s.observed_at < {before}
          AND (s.complete OR {of}.task_id = ANY (s.seen))
        ORDER BY s.observed_at DESC LIMIT 1)"""


_PHASE = """
CREATE FUNCTION vm_import.phase(listed boolean, status text, status_message text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN listed AND coalesce(status, '') NOT IN ('completed', 'deleted')
            THEN coalesce(status_message, status, 'unknown') END
"""

_CURRENT_TASKS = f"""
CREATE VIEW vm_import.current_tasks AS
SELECT t.account_id, t.region, k.import_task_id, {_last_scan("'infinity'")} AS last_observed_at, v.valid_from,
    {_STATE}
FROM vm_import.task_versions v {_TASKS_AND_TARGETS}
WHERE v.listed AND v.valid_to IS NULL
"""

_LATEST_TASKS = f"""
CREATE VIEW vm_import.latest_tasks AS
SELECT t.account_id, t.region, k.import_task_id,
    v.task_id IS NOT NULL AND v.valid_to IS NULL AS listed,
    CASE WHEN v.task_id IS NULL THEN 'unknown'
         WHEN v.status = 'completed' THEN 'completed'
         WHEN v.status = 'deleted' AND c.cancelled THEN 'cancelled'
         WHEN v.status = 'deleted' THEN 'failed'
         WHEN v.valid_to IS NULL THEN 'in progress'
         WHEN v.valid_to - o.last_observed_at < interval '7 days' THEN 'vanished'
         ELSE 'unknown' END AS outcome,
    CASE WHEN v.status IS DISTINCT FROM 'deleted' THEN NULL
         WHEN c.cancelled THEN 'cancelled by user'
         WHEN v.status_message ~* 'first ?boot ?failure' THEN 'first boot failure'
         WHEN v.status_message ~* 'client_?error' THEN 'client error'
         WHEN v.status_message ~* 'server_?error' THEN 'server error'
         ELSE 'unknown' END AS error_class,
    f.first_seen_at, o.last_observed_at,
    CASE WHEN e.finished_before IS NOT NULL THEN {_last_scan("e.finished_before", of="k")} END AS finished_after,
    e.finished_before,
    NULL::timestamptz AS requested_at,
    NULL::text AS requested_by,
    CASE WHEN f.first_seen_at < e.finished_before THEN e.finished_before - f.first_seen_at END AS duration,
    {_STATE}
FROM vm_import.tasks k
JOIN vm_import.targets t ON t.target_id = k.target_id
LEFT JOIN LATERAL (
    SELECT * FROM vm_import.task_versions w
    WHERE w.task_id = k.task_id AND w.listed ORDER BY w.valid_from DESC LIMIT 1) v ON true
LEFT JOIN LATERAL (
    SELECT min(w.valid_from) AS first_seen_at FROM vm_import.task_versions w WHERE w.task_id = k.task_id) f ON true
LEFT JOIN LATERAL (
    SELECT {_last_scan("coalesce(v.valid_to, 'infinity')", of="k")} AS last_observed_at
    WHERE v.task_id IS NOT NULL) o ON true
LEFT JOIN LATERAL (
    SELECT min(w.valid_from) AS finished_before FROM vm_import.task_versions w
    WHERE v.status IN {_FINISHED} AND w.task_id = k.task_id AND w.listed AND w.status IN {_FINISHED}
      AND NOT EXISTS (
        SELECT FROM vm_import.task_versions u
        WHERE u.task_id = k.task_id AND u.valid_from > w.valid_from
          AND vm_import.phase(u.listed, u.status, u.status_message) IS NOT NULL)) e ON true
CROSS JOIN LATERAL (
    SELECT coalesce(v.status_message ~* 'user initiated task cancell?ation', false) AS cancelled) c
"""

_TASK_HISTORY = f"""
CREATE VIEW vm_import.task_history AS
SELECT t.account_id, t.region, k.import_task_id, v.valid_from, v.valid_to,
    {_last_scan("v.valid_from")} AS not_before,
    CASE WHEN v.valid_to IS NULL THEN 'open'
         WHEN n.listed THEN 'superseded'
         WHEN v.status IN {_FINISHED} THEN 'expired'
         ELSE 'vanished' END AS ended,
    {_STATE}
FROM vm_import.task_versions v {_TASKS_AND_TARGETS}
LEFT JOIN vm_import.task_versions n ON n.task_id = v.task_id AND n.valid_from = v.valid_to
WHERE v.listed
"""


def _child_history(view: str, table: str, version_set: str, columns: str) -> str:
    return f"""
CREATE VIEW vm_import.{view} AS
SELECT t.account_id, t.region, k.import_task_id, v.valid_from, v.valid_to, {columns}
FROM vm_import.task_versions v {_TASKS_AND_TARGETS}
JOIN vm_import.{table} d ON d.task_id = v.task_id AND d.set_id = v.{version_set}
"""


_SNAPSHOT_DETAIL_HISTORY = _child_history("snapshot_detail_history", "snapshot_details", "details_set", _DISK)
_TAG_HISTORY = _child_history("tag_history", "tags", "tags_set", "d.key, d.value")
_LICENSE_HISTORY = _child_history(
    "license_specification_history",
    "license_specifications",
    "licenses_set",
    "d.position, d.license_configuration_arn, d.extra",
)


def _as_of(function: str, view: str) -> str:
    """SQL for the rows of a history that were valid at an instant."""
    return f"""
CREATE FUNCTION vm_import.{function}(at timestamptz) RETURNS SETOF vm_import.{view}
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT h.* FROM vm_import.{view} h WHERE h.valid_from <= at AND (h.valid_to IS NULL OR h.valid_to > at);
END
"""


_PHASES = f"""
CREATE VIEW vm_import.phases AS
SELECT p.account_id, p.region, p.import_task_id, p.phase, p.entered_after, p.entered_at, p.left_after, p.left_at,
    p.left_at - p.entered_at AS duration,
    p.left_after - p.entered_at AS duration_min,
    p.left_at - p.entered_after AS duration_max
FROM (
    SELECT t.account_id, t.region, k.import_task_id,
        vm_import.phase(v.listed, v.status, v.status_message) AS phase,
        {_last_scan("v.valid_from")} AS entered_after,
        v.valid_from AS entered_at,
        CASE WHEN n.left_at IS NOT NULL THEN {_last_scan("n.left_at")} END AS left_after,
        n.left_at
    FROM vm_import.task_versions v {_TASKS_AND_TARGETS}
    LEFT JOIN vm_import.task_versions b ON b.task_id = v.task_id AND b.valid_to = v.valid_from
    LEFT JOIN LATERAL (
        SELECT w.valid_from AS left_at FROM vm_import.task_versions w
        WHERE w.task_id = v.task_id AND w.valid_from > v.valid_from
          AND vm_import.phase(w.listed, w.status, w.status_message)
              IS DISTINCT FROM vm_import.phase(v.listed, v.status, v.status_message)
        ORDER BY w.valid_from LIMIT 1) n ON true
    WHERE vm_import.phase(v.listed, v.status, v.status_message) IS NOT NULL
      AND vm_import.phase(b.listed, b.status, b.status_message)
          IS DISTINCT FROM vm_import.phase(v.listed, v.status, v.status_message)) p
"""

_STALLED_TASKS = """
CREATE FUNCTION vm_import.stalled_tasks(unchanged_for interval) RETURNS SETOF vm_import.current_tasks
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT c.* FROM vm_import.current_tasks c
    WHERE coalesce(c.status, '') NOT IN ('completed', 'deleted')
      AND c.last_observed_at - c.valid_from >= unchanged_for;
END
"""

_COVERAGE = """
CREATE VIEW vm_import.coverage AS
SELECT t.account_id, t.region,
    min(s.observed_at) AS first_complete_scan,
    max(s.observed_at) AS last_complete_scan,
    count(s.observed_at) AS complete_scans,
    max(s.gap) AS longest_gap,
    count(*) FILTER (WHERE s.gap > interval '7 days') AS gaps_over_7_days
FROM vm_import.targets t
LEFT JOIN LATERAL (
    SELECT c.observed_at, c.observed_at - lag(c.observed_at) OVER (ORDER BY c.observed_at) AS gap
    FROM vm_import.scans c WHERE c.target_id = t.target_id AND c.complete) s ON true
GROUP BY t.account_id, t.region
"""

_IMPORT_IMAGE_TASKS = """
CREATE VIEW ec2_api.import_image_tasks AS
SELECT t.region, t.account_id,
    v.description, v.architecture, v.boot_mode AS bootMode, v.encrypted, v.hypervisor, v.image_id AS imageId,
    k.import_task_id AS importTaskId, v.kms_key_id AS kmsKeyId,
    coalesce((
        SELECT jsonb_agg(jsonb_strip_nulls(jsonb_build_object(
            'licenseConfigurationArn', l.license_configuration_arn)) || coalesce(l.extra, '{}') ORDER BY l.position)
        FROM vm_import.license_specifications l
        WHERE l.task_id = v.task_id AND l.set_id = v.licenses_set), '[]') AS licenseSpecifications,
    v.license_type AS licenseType, v.platform, v.progress,
    coalesce((
        SELECT jsonb_agg(jsonb_strip_nulls(jsonb_build_object(
            'description', d.description, 'deviceName', d.device_name, 'diskImageSize', d.disk_image_size,
            'format', d.format, 'progress', d.progress, 'snapshotId', d.snapshot_id, 'status', d.status,
            'statusMessage', d.status_message, 'url', d.url,
            'userBucket', nullif(
                jsonb_strip_nulls(jsonb_build_object('s3Bucket', d.s3_bucket, 's3Key', d.s3_key))
                || coalesce(d.extra -> 'userBucket', '{}'), '{}')))
            || coalesce(d.extra - 'userBucket', '{}') ORDER BY d.position)
        FROM vm_import.snapshot_details d
        WHERE d.task_id = v.task_id AND d.set_id = v.details_set), '[]') AS snapshotDetailSet,
    v.status, v.status_message AS statusMessage,
    coalesce((
        SELECT jsonb_agg(jsonb_build_object('key', g.key, 'value', coalesce(g.value, '')) ORDER BY g.key)
        FROM vm_import.tags g
        WHERE g.task_id = v.task_id AND g.set_id = v.tags_set), '[]') AS tagSet,
    v.usage_operation AS usageOperation
FROM vm_import.task_versions v
JOIN vm_import.tasks k ON k.task_id = v.task_id
JOIN vm_import.targets t ON t.target_id = k.target_id
WHERE v.listed AND v.valid_to IS NULL
"""

_VIEWS = {
    "vm_import.current_tasks": (
        _CURRENT_TASKS,
        "Tasks that the API listed at their target's last good look, which is last_observed_at.",
    ),
    "vm_import.latest_tasks": (
        _LATEST_TASKS,
        "Every task ever seen, in its last known state, with how it ended and what is known of when.",
    ),
    "vm_import.task_history": (
        _TASK_HISTORY,
        "Every version of every task: what was observed from valid_from until valid_to.",
    ),
    "vm_import.snapshot_detail_history": (
        _SNAPSHOT_DETAIL_HISTORY,
        "Disks, one row per version of their task.",
    ),
    "vm_import.tag_history": (_TAG_HISTORY, "Tags, one row per version of their task."),
    "vm_import.license_specification_history": (
        _LICENSE_HISTORY,
        "Licences, one row per version of their task.",
    ),
    "vm_import.phases": (
        _PHASES,
        "Every stay of an unfinished task in a phase (its status message), with bounds of the duration.",
    ),
    "vm_import.coverage": (
        _COVERAGE,
        "How closely each target was watched; a task can come and go unseen in a gap over 7 days.",
    ),
    "ec2_api.import_image_tasks": (
        _IMPORT_IMAGE_TASKS,
        "Tasks now listed, shaped like StackQL's aws.ec2_api.import_image_tasks.",
    ),
}

_FUNCTIONS = {
    "vm_import.phase(boolean, text, text)": (_PHASE, "The phase of an unfinished task; null for any other."),
    "vm_import.tasks_as_of(timestamptz)": (
        _as_of("tasks_as_of", "task_history"),
        "The versions of tasks that were valid at an instant.",
    ),
    "vm_import.snapshot_details_as_of(timestamptz)": (
        _as_of("snapshot_details_as_of", "snapshot_detail_history"),
        "The disks that were valid at an instant.",
    ),
    "vm_import.tags_as_of(timestamptz)": (
        _as_of("tags_as_of", "tag_history"),
        "The tags that were valid at an instant.",
    ),
    "vm_import.stalled_tasks(interval)": (
        _STALLED_TASKS,
        "Unfinished tasks that were seen unchanged for at least so long, as of their last good look.",
    ),
}

_COLUMNS = {
    "account_id": "AWS account, 12 digits.",
    "region": "AWS Region, such as eu-west-1.",
    "import_task_id": "AWS's id, opaque text: import-ami-…",
    "importtaskid": "AWS's id, opaque text: import-ami-…",
    "last_observed_at": "The last scan that saw the task in this state.",
    "valid_from": "The first scan that saw this.",
    "valid_to": "The first scan that saw something else; null while open.",
    "not_before": "The last scan that still saw the previous state: the change lies in (not_before, valid_from].",
    "ended": "open, superseded (changed), expired (left the list finished), vanished (left it unfinished).",
    "listed": "Whether the API still shows the task.",
    "outcome": "in progress, completed, failed, cancelled; vanished or unknown when it went unfinished, watched"
    " within 7 days or not.",
    "error_class": "Kind of a failure: client error, server error, first boot failure, cancelled by user, unknown.",
    "first_seen_at": "The first scan that saw the task; it was requested before.",
    "finished_after": "The last scan before finished_before that could see the task: it ended later. Null: there is none.",
    "finished_before": "The first scan that saw the task finished.",
    "requested_at": "When the import was requested; null while no evidence has told.",
    "requested_by": "Who requested the import; null while no evidence has told.",
    "duration": "From the first scan that saw it to the first that saw its end; null when either was not seen.",
    "duration_min": "The stay lasted at least this long.",
    "duration_max": "The stay lasted at most this long; null when nothing bounds it.",
    "phase": "Status message of the unfinished task, such as converting.",
    "entered_after": "The last scan before the phase was seen.",
    "entered_at": "The first scan that saw the phase.",
    "left_after": "The last scan that saw the phase.",
    "left_at": "The first scan that no longer saw the phase; null while in it.",
    "first_complete_scan": "The first scan that saw everything.",
    "last_complete_scan": "The last scan that saw everything.",
    "complete_scans": "How many scans saw everything.",
    "longest_gap": "The longest time between two complete scans in a row.",
    "gaps_over_7_days": "How many such gaps are longer than AWS remembers a task.",
    "status": "active, completed, deleting or deleted; a failed or cancelled task is deleted.",
    "status_message": "The phase while active; the error, or nothing, once ended.",
    "statusmessage": "The phase while active; the error, or nothing, once ended.",
    "progress": "Percent as AWS sends it; null once ended.",
    "progress_percent": "The progress as a number; null where AWS sends none.",
    "description": "What the requester wrote.",
    "platform": "Windows or Linux.",
    "architecture": "i386, x86_64, arm64, …",
    "boot_mode": "legacy-bios, uefi, uefi-preferred; legacy_bios has been seen.",
    "bootmode": "legacy-bios, uefi, uefi-preferred; legacy_bios has been seen.",
    "hypervisor": "Target hypervisor, xen.",
    "image_id": "The AMI, once there is one.",
    "imageid": "The AMI, once there is one.",
    "encrypted": "Whether the image is encrypted; null is unknown.",
    "kms_key_id": "Key of an encrypted image.",
    "kmskeyid": "Key of an encrypted image.",
    "license_type": "AWS or BYOL.",
    "licensetype": "AWS or BYOL.",
    "usage_operation": "Billing code of the operating system and its licence.",
    "usageoperation": "Billing code of the operating system and its licence.",
    "extra": "Members that have no column here, under their wire names.",
    "position": "Place in the canonical order, from 0; AWS promises no order.",
    "device_name": "Device, such as /dev/sda1.",
    "disk_image_size": "Bytes, whatever AWS's documentation says; 0 while pending.",
    "format": "VMDK, VHD, VHDX, RAW or OVA.",
    "snapshot_id": "Appears late and may change before completion.",
    "s3_bucket": "Bucket that the disk was read from.",
    "s3_key": "Object that the disk was read from.",
    "url": "Where the disk was read from, without credentials.",
    "key": "The tag's key.",
    "value": "The tag's value; null is the empty value.",
    "license_configuration_arn": "ARN of the licence configuration.",
    "licensespecifications": "Licence configurations, an array with wire names.",
    "snapshotdetailset": "Disks, an array with wire names.",
    "tagset": "Tags, an array with wire names.",
}


def upgrade() -> None:
    """Create schema ec2_api, the views, the functions and every comment."""
    op.execute("CREATE SCHEMA ec2_api")
    op.execute("COMMENT ON SCHEMA ec2_api IS 'The present in the shape of other tools'")
    _create(
        "FUNCTION",
        "vm_import.phase(boolean, text, text)",
        *_FUNCTIONS["vm_import.phase(boolean, text, text)"],
    )
    for view, (definition, comment) in _VIEWS.items():
        _create("VIEW", view, definition, comment)
    for function, (definition, comment) in _FUNCTIONS.items():
        if definition is not _PHASE:
            _create("FUNCTION", function, definition, comment)
    _comment_on_columns()


def downgrade() -> None:
    """Drop what upgrade made; no data is in it."""
    for function in reversed(_FUNCTIONS):
        if function != "vm_import.phase(boolean, text, text)":
            op.execute(f"DROP FUNCTION {function}")
    for view in reversed(_VIEWS):
        op.execute(f"DROP VIEW {view}")
    op.execute("DROP FUNCTION vm_import.phase(boolean, text, text)")
    op.execute("DROP SCHEMA ec2_api")


def _create(kind: str, name: str, definition: str, comment: str) -> None:
    op.execute(definition.replace(":", r"\:"))
    op.execute(f"COMMENT ON {kind} {name} IS {_literal(comment)}")


def _comment_on_columns() -> None:
    """Comment every column of every view, in the database, so that offline SQL does it too."""
    comments = ", ".join(f"({_literal(name)}, {_literal(comment)})" for name, comment in _COLUMNS.items())
    op.execute(f"""
DO $$
DECLARE
    c record;
BEGIN
    FOR c IN
        SELECT n.nspname, r.relname, a.attname, m.comment
        FROM (VALUES {comments}) AS m (attname, comment)
        JOIN pg_attribute a ON a.attname = m.attname AND a.attnum > 0
        JOIN pg_class r ON r.oid = a.attrelid AND r.relkind = 'v'
        JOIN pg_namespace n ON n.oid = r.relnamespace AND n.nspname IN ('vm_import', 'ec2_api')
    LOOP
        EXECUTE 'COMMENT ON COLUMN ' || quote_ident(c.nspname) || '.' || quote_ident(c.relname) || '.'
            || quote_ident(c.attname) || ' IS ' || quote_literal(c.comment);
    END LOOP;
END $$
""")


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
