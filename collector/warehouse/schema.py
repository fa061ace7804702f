"""The database's schema: brought up to date by Alembic, and checked before anything is written."""

from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine

import collector
from collector.errors import WarehouseError
from collector.warehouse.engine import server_of, translated_errors
from collector.warehouse.tables import SCHEMA


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Migrate to ``revision``; safe while others do the same, and while older code runs.

    Raises:
        WarehouseError: unreachable, too old, read-only, not allowed, migrated by a newer release, or a
            table stayed locked for 5 s.
    """
    with translated_errors(), engine.connect() as connection:
        _require_usable(connection, to_write=True)
        _require_known(_revision(connection))
        connection.rollback()
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def downgrade(engine: Engine, revision: str) -> None:
    """Take migrations back to ``revision``, with the data in what they made.

    Raises:
        WarehouseError: as ``upgrade``.
    """
    with translated_errors(), engine.connect() as connection:
        config = _config()
        config.attributes["connection"] = connection
        command.downgrade(config, revision)


def upgrade_sql() -> str:
    """Return the SQL of every migration, for a database administrator to read and run."""
    output = StringIO()
    config = _config()
    config.output_buffer = output
    with redirect_stdout(output):
        command.upgrade(config, "head", sql=True)
    return output.getvalue()


def current_revision(engine: Engine) -> str | None:
    """Return the revision that the database is at, ``None`` when it was never migrated."""
    with translated_errors(), engine.connect() as connection:
        return _revision(connection)


def head_revision() -> str | None:
    """Return the revision that this release needs."""
    return ScriptDirectory.from_config(_config()).get_current_head()


def require_current(engine: Engine, *, to_write: bool = True) -> None:
    """Check that the database can be worked with.

    Raises:
        WarehouseError: unreachable, too old, read-only (when ``to_write``), or not at this release's
            migrations; the text says which, and the mend.
    """
    with translated_errors(), engine.connect() as connection:
        _require_usable(connection, to_write=to_write)
        revision, head = _revision(connection), head_revision()
    if revision == head:
        return
    if revision is None:
        raise WarehouseError("the database was never migrated: run `collector migrate`")
    _require_known(revision)
    raise WarehouseError(
        f"the database is behind in migrations (at {revision}, needs {head}): run `collector migrate`"
    )


def _require_usable(connection: Connection, *, to_write: bool) -> None:
    server = server_of(connection)
    if server.fault:
        raise WarehouseError(server.fault)
    if server.read_only and to_write:
        connection.invalidate()  # a session may stay read-only for ever, when its database no longer is
        raise WarehouseError("the database is read-only: point database_url at the primary")


def _require_known(revision: str | None) -> None:
    scripts = ScriptDirectory.from_config(_config()).walk_revisions()
    if revision is not None and revision not in {script.revision for script in scripts}:
        raise WarehouseError(
            f"the database is at revision {revision}, which this release does not know: "
            "a newer collector migrated it, so update this one"
        )


def _revision(connection: Connection) -> str | None:
    options = {"version_table_schema": SCHEMA}
    return MigrationContext.configure(connection, opts=options).get_current_revision()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_script_location()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _script_location() -> Path:
    """Return the folder of migrations: inside the package when installed, beside it in a checkout."""
    package = Path(collector.__file__).parent
    inside = package / "migrations"
    return inside if inside.is_dir() else package.parent / "migrations"
