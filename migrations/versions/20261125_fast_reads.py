"""Questions about some tasks read those tasks only, however long the history is."""

from alembic import context, op

revision = "20261125_fast_reads"
down_revision = "20261125_evidence"
branch_labels = None
depends_on = None

_OF_TASK = "JOIN vm_import.targets t ON t.target_id = k.target_id"
_OF_VERSION = "JOIN vm_import.targets t ON t.target_id = v.target_id"
"""A filter on account or Region then finds what is listed now, not first every task that ever was."""

_VIEWS = ("vm_import.current_tasks", "ec2_api.import_image_tasks")


def upgrade() -> None:
    """Index what is listed now apart from what was, and tasks by AWS's id alone; views of now follow."""
    _index("task_versions", "task_versions_current", "(target_id) WHERE listed AND valid_to IS NULL")
    _index(
        "task_versions", "task_versions_past", "(target_id, valid_to) WHERE listed AND valid_to IS NOT NULL"
    )
    _index("tasks", "tasks_by_name", "(import_task_id)")
    op.execute("DROP INDEX vm_import.task_versions_listed")
    _replace_views(_OF_VERSION)


def downgrade() -> None:
    """Restore the views and the one index as they were."""
    _replace_views(_OF_TASK)
    _index("task_versions", "task_versions_listed", "(target_id, valid_to) WHERE listed")
    for index in ("tasks_by_name", "task_versions_past", "task_versions_current"):
        op.execute(f"DROP INDEX vm_import.{index}")


def _index(table: str, name: str, definition: str) -> None:
    op.execute(f"CREATE INDEX {name} ON vm_import.{table} {definition}")


def _replace_views(target: str) -> None:
    """Replace the views, which keeps their grants and comments; no column changes."""
    views = context.script.get_revision("20261123_views").module
    for name in _VIEWS:
        definition = views._VIEWS[name][0].replace(_OF_TASK, target)  # noqa: SLF001 - its text
        op.execute(definition.replace("CREATE VIEW", "CREATE OR REPLACE VIEW").replace(":", r"\:"))
