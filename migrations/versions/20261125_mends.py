"""A task that is being deleted is in the phase of that name; Alembic's own table says what it is."""

from alembic import op

revision = "20261125_mends"
down_revision = "20261123_views"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Replace the function, and comment on the table that this revision is written into."""
    op.execute(_phase("WHEN listed AND status = 'deleting' THEN status"))
    op.execute("COMMENT ON TABLE vm_import.alembic_version IS 'Which migration this database is at.'")
    op.execute("COMMENT ON COLUMN vm_import.alembic_version.version_num IS 'Name of the migration.'")


def downgrade() -> None:
    """Take both back."""
    op.execute(_phase(""))
    op.execute("COMMENT ON TABLE vm_import.alembic_version IS NULL")
    op.execute("COMMENT ON COLUMN vm_import.alembic_version.version_num IS NULL")


def _phase(deleting: str) -> str:
    """SQL for the function; the message of a task that is being deleted is its error, not a phase."""
    return f"""
CREATE OR REPLACE FUNCTION vm_import.phase(listed boolean, status text, status_message text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE {deleting} WHEN listed AND coalesce(status, '') NOT IN ('completed', 'deleted')
            THEN coalesce(status_message, status, 'unknown') END
"""
