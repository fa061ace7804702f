"""Runs the migrations: one transaction each, one upgrade at a time, never waiting long for a lock.

``collector migrate`` hands its connection in; ``alembic`` in a checkout reads the collector's configuration.
"""

from alembic import context
from alembic.util import CommandError
from sqlalchemy import Connection, text
from sqlalchemy.schema import SchemaItem

from collector.errors import CollectorError
from collector.warehouse.engine import translated_errors
from collector.warehouse.tables import SCHEMA, metadata

_UPGRADE_LOCK = 0x636F6C6C  # 'coll': the same number for every release, in the one-key lock space
_COMMENT = f"COMMENT ON SCHEMA {SCHEMA} IS 'True history of AWS VM imports'"


def _ours(_item: SchemaItem, name: str | None, kind: str, _reflected: bool, _other: object) -> bool:
    return not (kind == "table" and name == "alembic_version")


def _configure(connection: Connection | None) -> None:
    context.configure(
        connection=connection,
        dialect_name="postgresql",
        target_metadata=metadata,
        version_table_schema=SCHEMA,
        include_schemas=True,
        include_name=lambda name, kind, _parents: kind != "schema" or name == SCHEMA,
        include_object=_ours,
        compare_type=True,
        transaction_per_migration=True,
    )


def _run_online(connection: Connection) -> None:
    """Migrate under a session lock, so that the second of two upgrades finds the first one's work done."""
    connection.execute(text("SET statement_timeout = '10min'"))
    connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _UPGRADE_LOCK})
    try:
        # Waiting longer for a table would queue everybody else behind us.
        connection.execute(text("SET lock_timeout = '5s'"))
        if not _has_schema(connection):
            connection.execute(text(f"CREATE SCHEMA {SCHEMA}"))
            connection.execute(text(_COMMENT))
        connection.commit()
        _configure(connection)
        with context.begin_transaction():
            context.run_migrations()
        connection.commit()
    finally:
        connection.rollback()
        connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": _UPGRADE_LOCK})
        connection.execute(text("RESET lock_timeout"))
        connection.execute(text("RESET statement_timeout"))
        connection.commit()


def _has_schema(connection: Connection) -> bool:
    return bool(connection.scalar(text("SELECT to_regnamespace(:name) IS NOT NULL"), {"name": SCHEMA}))


def _run_offline() -> None:
    _configure(None)
    with context.begin_transaction():
        context.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
        context.execute(_COMMENT)
        context.run_migrations()


if context.is_offline_mode():
    _run_offline()
elif (handed_in := context.config.attributes.get("connection")) is not None:
    _run_online(handed_in)
else:
    from collector.cli import configured_warehouse

    try:
        with (
            configured_warehouse() as warehouse,
            translated_errors(),
            warehouse.direct_engine.connect() as own,
        ):
            _run_online(own)
    except CollectorError as error:
        raise CommandError(str(error)) from error  # alembic prints it without a traceback
