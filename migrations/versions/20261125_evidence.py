"""Evidence from CloudTrail and AMIs, rules that sort failures, and the views that combine it all."""

import sqlalchemy as sa
from alembic import context, op
from sqlalchemy.dialects import postgresql

revision = "20261125_evidence"
down_revision = "20261125_grants"
branch_labels = None
depends_on = None

_FINISHED = "('completed', 'deleted')"

_CANCELLED = "user initiated task cancell?ation"

_RULES = (
    ("first ?boot ?failure", "first boot failure", None),
    (
        "client_?error.*(not authorized|access ?denied|permission|service role|kms|encrypted|decrypt)",
        "client error",
        "permission",
    ),
    ("client_?error.*(does not exist|no such|not found|invalid s3|bucket)", "client error", "source"),
    ("client_?error.*(exceed|limit|too large|too many|insufficient)", "client error", "limit"),
    (
        "client_?error.*(unknown os|missing os|unsupported (operating system|os|kernel|windows|linux)|operating system)",
        "client error",
        "operating system",
    ),
    (
        "client_?error.*(domain controller|antivirus|hibernat|eula|upgrade|grub|boot ?loader|fstab|driver|multi.?boot)",
        "client error",
        "guest configuration",
    ),
    (
        "client_?error.*(disk|partition|volume|vmdk|vhdx?|ova|ovf|image format|file ?system|footer|raid|lvm)",
        "client error",
        "disk",
    ),
    ("client_?error", "client error", None),
    ("server_?error", "server error", None),
)
"""Pattern, class and kind; AWS's classes are in its guide to troubleshooting VM Import/Export."""


def _last_scan(before: str, *, of: str) -> str:
    """SQL for the last scan before an instant that could see the task: where its change cannot lie."""
    return f"""(
        SELECT s.observed_at FROM vm_import.scans s
        WHERE s.target_id = {of}.target_id AND s.observed_at < {before}
          AND (s.complete OR {of}.task_id = ANY (s.seen))
        ORDER BY s.observed_at DESC LIMIT 1)"""


_STATE = """
    v.status, v.status_message, v.progress,
    CASE WHEN v.progress ~ '^[0-9]{1,3}([.][0-9]+)?$' THEN v.progress::numeric END AS progress_percent,
    v.description, coalesce(v.platform, i.platform) AS platform,
    coalesce(v.architecture, i.architecture) AS architecture, coalesce(v.boot_mode, i.boot_mode) AS boot_mode,
    v.hypervisor, coalesce(v.image_id, i.image_id) AS image_id, coalesce(v.encrypted, i.encrypted) AS encrypted,
    v.kms_key_id, v.license_type, coalesce(v.usage_operation, i.usage_operation) AS usage_operation, v.extra"""

_LATEST_TASKS = f"""
CREATE OR REPLACE VIEW vm_import.latest_tasks AS
SELECT t.account_id, t.region, k.import_task_id,
    v.task_id IS NOT NULL AND v.valid_to IS NULL AS listed,
    x.outcome,
    CASE WHEN v.status IS DISTINCT FROM 'deleted' THEN NULL
         WHEN c.seen_cancelled THEN 'cancelled by user'
         ELSE coalesce(r.error_class, 'unknown') END AS error_class,
    f.first_seen_at, o.last_observed_at,
    CASE WHEN b.agree THEN b.ended_after ELSE e.finished_after END AS finished_after,
    CASE WHEN b.agree THEN b.ended_before ELSE e.finished_before END AS finished_before,
    q.requested_at,
    q.requested_by,
    CASE WHEN d.began_at < d.ended_at THEN d.ended_at - d.began_at END AS duration,
    {_STATE},
    CASE WHEN v.status = 'deleted' AND NOT c.seen_cancelled THEN r.error_kind END AS error_kind,
    v.task_id IS NULL AS evidence_only,
    nullif(concat_ws('; ',
        CASE WHEN v.status = 'deleted' AND i.image_id IS NOT NULL
            THEN 'seen ' || x.outcome || ', but there is the AMI ' || i.image_id END,
        CASE WHEN v.status = 'completed' AND g.cancelled_at IS NOT NULL
            THEN 'seen completed, but cancelled at ' || g.cancelled_at END,
        CASE WHEN v.status IS DISTINCT FROM 'completed' AND v.status IS DISTINCT FROM 'deleted'
                  AND i.image_id IS NOT NULL AND g.cancelled_at IS NOT NULL
            THEN 'cancelled at ' || g.cancelled_at || ', but there is the AMI ' || i.image_id END,
        CASE WHEN v.status IS DISTINCT FROM 'deleted' AND i.created_at < u.unfinished_at
            THEN 'its AMI is of ' || i.created_at || ', but it was seen unfinished at ' || u.unfinished_at END,
        CASE WHEN v.status IS DISTINCT FROM 'deleted' AND i.created_at > e.finished_before
            THEN 'its AMI is of ' || i.created_at || ', but it was seen finished at ' || e.finished_before END,
        CASE WHEN q.requested_at > f.first_seen_at
            THEN 'requested at ' || q.requested_at || ', but seen at ' || f.first_seen_at END,
        CASE WHEN q.requests > 1 THEN q.requests || ' requests are said to have begun it' END
    ), '') AS contradiction
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
    SELECT n.finished_before, {_last_scan("n.finished_before", of="k")} AS finished_after
    FROM (
        SELECT min(w.valid_from) AS finished_before FROM vm_import.task_versions w
        WHERE v.status IN {_FINISHED} AND w.task_id = k.task_id AND w.listed AND w.status IN {_FINISHED}
          AND NOT EXISTS (
            SELECT FROM vm_import.task_versions u
            WHERE u.task_id = k.task_id AND u.valid_from > w.valid_from
              AND vm_import.phase(u.listed, u.status, u.status_message) IS NOT NULL)) n
    WHERE n.finished_before IS NOT NULL) e ON true
LEFT JOIN LATERAL (
    SELECT CASE WHEN v.status IN {_FINISHED} THEN e.finished_after ELSE o.last_observed_at END AS unfinished_at) u ON true
LEFT JOIN LATERAL (
    SELECT min(y.occurred_at) AS requested_at, count(*) AS requests,
        (array_agg(y.requested_by ORDER BY y.occurred_at))[1] AS requested_by
    FROM vm_import.task_events y WHERE y.task_id = k.task_id AND y.event_name = 'ImportImage') q ON true
LEFT JOIN LATERAL (
    SELECT min(y.occurred_at) AS cancelled_at FROM vm_import.task_events y
    WHERE y.task_id = k.task_id AND y.event_name = 'CancelImportTask' AND y.error_code IS NULL) g ON true
LEFT JOIN LATERAL (
    SELECT y.occurred_at AS created_at, y.image_id, y.platform, y.architecture, y.boot_mode, y.usage_operation, y.encrypted
    FROM vm_import.task_events y
    WHERE y.task_id = k.task_id AND y.source = 'images' ORDER BY y.occurred_at, y.event_id LIMIT 1) i ON true
CROSS JOIN LATERAL (
    SELECT coalesce(v.status_message ~* '{_CANCELLED}', false) AS seen_cancelled) c
LEFT JOIN LATERAL (
    SELECT z.error_class, z.error_kind FROM vm_import.error_classes z
    WHERE v.status = 'deleted' AND v.status_message ~* z.pattern ORDER BY z.position LIMIT 1) r ON true
CROSS JOIN LATERAL (
    SELECT CASE
        WHEN v.status = 'completed' THEN 'completed'
        WHEN v.status = 'deleted' AND c.seen_cancelled THEN 'cancelled'
        WHEN v.status = 'deleted' THEN 'failed'
        WHEN i.image_id IS NOT NULL THEN 'completed'
        WHEN g.cancelled_at IS NOT NULL THEN 'cancelled'
        WHEN v.task_id IS NULL THEN 'unknown'
        WHEN v.valid_to IS NULL THEN 'in progress'
        WHEN v.valid_to - o.last_observed_at < interval '7 days' THEN 'vanished'
        ELSE 'unknown' END AS outcome) x
CROSS JOIN LATERAL (
    SELECT m.ended_after, m.ended_before, coalesce(m.ended_after <= m.ended_before, true) AS agree
    FROM (SELECT
        CASE x.outcome WHEN 'completed' THEN greatest(u.unfinished_at, i.created_at)
                       WHEN 'cancelled' THEN greatest(u.unfinished_at, g.cancelled_at)
                       ELSE e.finished_after END AS ended_after,
        CASE x.outcome WHEN 'completed' THEN least(e.finished_before, i.created_at)
                       ELSE e.finished_before END AS ended_before) m) b
CROSS JOIN LATERAL (
    SELECT coalesce(q.requested_at, f.first_seen_at) AS began_at,
        CASE WHEN b.agree THEN b.ended_before ELSE e.finished_before END AS ended_at) d
"""

_FAILURES_BY_WEEK = """
CREATE VIEW vm_import.failures_by_week AS
SELECT date_trunc('week', l.finished_before AT TIME ZONE 'UTC')::date AS week, l.error_class, l.error_kind, l.platform,
    count(*) AS failures, min(l.status_message) AS for_example
FROM vm_import.latest_tasks l
WHERE l.outcome = 'failed'
GROUP BY 1, 2, 3, 4
"""

_COLUMNS = {
    "requested_at": "When the import was requested; null while no evidence has told.",
    "requested_by": "ARN of whoever requested the import; null while no evidence has told.",
    "finished_after": "The import ended later than this, or just then where an AMI tells its time. Null: nobody knows.",
    "finished_before": "The import ended no later than this: seen finished, or its AMI made. Null: nobody knows.",
    "duration": "From the request, or where that is unknown the first sight, to finished_before; null when either is unknown.",
    "outcome": "in progress, completed, failed, cancelled; vanished or unknown when it went unfinished, watched within 7 days"
    " or not. A seen end outranks evidence: without one an AMI makes it completed, a cancellation cancelled.",
    "error_class": "Class of a failure by the rules in error_classes; cancelled by user; unknown where none fits.",
    "error_kind": "What kind of failure within its class; null is none in particular.",
    "evidence_only": "Whether no scan ever saw the task: it is known from CloudTrail or its AMI alone.",
    "contradiction": "Where scans and evidence, or two pieces of evidence, do not fit together; null where all is well.",
    "week": "Monday of the week (UTC) in which the failures were seen.",
    "failures": "How many imports failed.",
    "for_example": "One of their messages.",
    "platform": "Windows or Linux.",
}

_WRITER = """
    GRANT INSERT ON vm_import.task_events, vm_import.event_scans TO collector_writer
"""


def upgrade() -> None:
    """Create the tables, fill the rules, and replace the view that combines."""
    _create_tables()
    for number, (pattern, error_class, error_kind) in enumerate(_RULES, 1):
        kind = "NULL" if error_kind is None else _literal(error_kind)
        op.execute(
            "INSERT INTO vm_import.error_classes (position, pattern, error_class, error_kind)"
            f" VALUES ({number * 10}, {_literal(pattern)}, {_literal(error_class)}, {kind})"
        )
    op.execute(_LATEST_TASKS.replace(":", r"\:"))
    op.execute(_FAILURES_BY_WEEK.replace(":", r"\:"))
    op.execute(
        "COMMENT ON VIEW vm_import.latest_tasks IS 'Every task ever seen or evidenced, in its last known state,"
        " with how it ended and what is known of when.'"
    )
    op.execute(
        "COMMENT ON VIEW vm_import.failures_by_week IS 'Failed imports by week, class, kind and platform.'"
    )
    _comment_on_columns()
    op.execute(f"DO $$ BEGIN IF to_regrole('collector_writer') IS NOT NULL THEN {_WRITER}; END IF; END $$")


def downgrade() -> None:
    """Drop what upgrade made, evidence included, and restore the view as it was."""
    op.execute("DROP VIEW vm_import.failures_by_week")
    op.execute("DROP VIEW vm_import.latest_tasks")
    for table in ("error_classes", "event_scans", "task_events"):
        op.drop_table(table, schema="vm_import")
    views = context.script.get_revision("20261123_views").module
    views._create("VIEW", "vm_import.latest_tasks", *views._VIEWS["vm_import.latest_tasks"])  # noqa: SLF001 - its text
    views._comment_on_columns()  # noqa: SLF001 - as above


def _create_tables() -> None:
    op.create_table(
        "task_events",
        sa.Column("source", sa.Text(), nullable=False, comment="Where it came from: cloudtrail or images."),
        sa.Column(
            "event_id", sa.Text(), nullable=False, comment="CloudTrail's id of the event, or the AMI's id."
        ),
        sa.Column("target_id", sa.Integer(), nullable=False, comment="The target that it happened in."),
        sa.Column(
            "task_id", sa.BigInteger(), comment="The task that it is about; null for a request that failed."
        ),
        sa.Column(
            "event_name",
            sa.Text(),
            nullable=False,
            comment="ImportImage, CancelImportTask; of an AMI: image.",
        ),
        sa.Column(
            "occurred_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="When it was asked for; of an AMI when it was made, which is the end of the import.",
        ),
        sa.Column("requested_by", sa.Text(), comment="ARN of whoever asked."),
        sa.Column(
            "source_address", sa.Text(), comment="Address that the request came from, or the AWS service."
        ),
        sa.Column("user_agent", sa.Text(), comment="Program that asked."),
        sa.Column("error_code", sa.Text(), comment="Why the request failed; null when it did not."),
        sa.Column("error_message", sa.Text(), comment="The same in AWS's words."),
        sa.Column("image_id", sa.Text(), comment="The AMI."),
        sa.Column("architecture", sa.Text(), comment="Of the AMI: i386, x86_64, arm64, …"),
        sa.Column("boot_mode", sa.Text(), comment="Of the AMI: legacy-bios, uefi, uefi-preferred."),
        sa.Column("platform", sa.Text(), comment="Of the AMI: Windows or Linux."),
        sa.Column(
            "usage_operation",
            sa.Text(),
            comment="Of the AMI: billing code of the operating system and its licence.",
        ),
        sa.Column("encrypted", sa.Boolean(), comment="Of the AMI: whether a snapshot of it is encrypted."),
        sa.Column(
            "details",
            postgresql.JSONB(),
            comment="All else: request parameters, or the AMI's disks and tags.",
        ),
        sa.Column(
            "recorded_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
            comment="When this warehouse learned it.",
        ),
        sa.PrimaryKeyConstraint("source", "event_id"),
        schema="vm_import",
        comment="Evidence: facts about tasks from elsewhere, each with its own time. It never makes a version.",
    )
    op.create_index(
        "task_events_of_task",
        "task_events",
        ["task_id"],
        schema="vm_import",
        postgresql_where=sa.text("task_id IS NOT NULL"),
    )
    op.create_table(
        "event_scans",
        sa.Column("target_id", sa.Integer(), nullable=False, comment="The target looked at."),
        sa.Column("source", sa.Text(), nullable=False, comment="What was read: cloudtrail."),
        sa.Column(
            "scanned_from",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="Begin of the stretch of time.",
        ),
        sa.Column(
            "scanned_to",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="Its end, long enough ago for all to be in.",
        ),
        sa.CheckConstraint("scanned_to > scanned_from", name="stretches_last"),
        sa.PrimaryKeyConstraint("target_id", "source", "scanned_from"),
        schema="vm_import",
        comment="A stretch of time whose events are all stored, so that nobody need read them again.",
    )
    op.create_table(
        "error_classes",
        sa.Column(
            "position",
            sa.Double(),
            nullable=False,
            comment="Which rule is tried first: the lowest that fits counts. Ours are whole tens.",
        ),
        sa.Column(
            "pattern",
            sa.Text(),
            nullable=False,
            comment="POSIX regular expression, held against the status message whatever the case.",
        ),
        sa.Column("error_class", sa.Text(), nullable=False, comment="AWS's class of the failure."),
        sa.Column("error_kind", sa.Text(), comment="What kind within the class; null is none in particular."),
        sa.PrimaryKeyConstraint("position"),
        schema="vm_import",
        comment="How failures are sorted. Add rows of your own; the message itself is never changed.",
    )


def _comment_on_columns() -> None:
    """Comment the columns of both views; what the view had before keeps its comment."""
    comments = ", ".join(f"({_literal(name)}, {_literal(comment)})" for name, comment in _COLUMNS.items())
    op.execute(f"""
DO $$
DECLARE
    c record;
BEGIN
    FOR c IN
        SELECT a.attrelid::regclass AS view, a.attname, m.comment
        FROM (VALUES {comments}) AS m (attname, comment)
        JOIN pg_attribute a ON a.attname = m.attname AND a.attnum > 0
            AND a.attrelid IN ('vm_import.latest_tasks'::regclass, 'vm_import.failures_by_week'::regclass)
    LOOP
        EXECUTE 'COMMENT ON COLUMN ' || c.view || '.' || quote_ident(c.attname) || ' IS ' || quote_literal(c.comment);
    END LOOP;
END $$
""")


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
