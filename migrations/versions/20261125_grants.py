"""Rights for the group roles that exist; ``collector/warehouse/roles.sql`` makes the roles.

Roles belong to the cluster and are an administrator's to make, so this is for a database that is migrated
after they were made. One that was migrated before gets its rights from the script.
"""

from alembic import op

revision = "20261125_grants"
down_revision = "20261125_mends"
branch_labels = None
depends_on = None

_READ = """
    GRANT USAGE ON SCHEMA vm_import, ec2_api TO {role};
    GRANT SELECT ON ALL TABLES IN SCHEMA vm_import, ec2_api TO {role};
    GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA vm_import, ec2_api TO {role};
    ALTER DEFAULT PRIVILEGES IN SCHEMA vm_import, ec2_api GRANT SELECT ON TABLES TO {role};
    ALTER DEFAULT PRIVILEGES IN SCHEMA vm_import, ec2_api GRANT EXECUTE ON FUNCTIONS TO {role};
"""

_WRITE = """
    GRANT INSERT ON vm_import.targets, vm_import.scans, vm_import.outages, vm_import.tasks, vm_import.task_versions,
        vm_import.snapshot_details, vm_import.tags, vm_import.license_specifications TO {role};
    GRANT UPDATE (valid_from, valid_to) ON vm_import.task_versions TO {role};
    GRANT UPDATE ON vm_import.outages TO {role};
"""

_NOTHING = """
    ALTER DEFAULT PRIVILEGES IN SCHEMA vm_import, ec2_api REVOKE ALL ON FUNCTIONS FROM {role};
    ALTER DEFAULT PRIVILEGES IN SCHEMA vm_import, ec2_api REVOKE ALL ON TABLES FROM {role};
    REVOKE ALL ON ALL FUNCTIONS IN SCHEMA vm_import, ec2_api FROM {role};
    REVOKE ALL ON ALL TABLES IN SCHEMA vm_import, ec2_api FROM {role};
    REVOKE ALL ON SCHEMA vm_import, ec2_api FROM {role};
"""


def upgrade() -> None:
    """Grant what each role needs, and reading of what later migrations make."""
    _if_there("collector_reader", _READ)
    _if_there("collector_writer", _READ + _WRITE)


def downgrade() -> None:
    """Take every right back, also those that the script has granted."""
    _if_there("collector_reader", _NOTHING)
    _if_there("collector_writer", _NOTHING)


def _if_there(role: str, statements: str) -> None:
    """Run statements if the role exists: asked in the database, so that offline SQL asks too."""
    op.execute(
        f"DO $$ BEGIN IF to_regrole('{role}') IS NOT NULL THEN {statements.format(role=role)} END IF; END $$"
    )
