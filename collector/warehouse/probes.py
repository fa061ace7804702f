"""What the database would let us do, found out without writing anything."""

from collections.abc import Sequence
from secrets import randbits
from typing import Any

import psycopg
from sqlalchemy import Engine, text

from collector.warehouse.engine import Connect, translated_errors

GROUPS = ("collector_writer", "collector_reader")
"""The roles that ``roles.sql`` makes."""

_PROBES = 0x766D6905
"""Key space of advisory locks; leases, leadership and the merge have others."""


def missing_rights(engine: Engine) -> list[str] | None:
    """Return what the current role may not do, though whoever polls must; ``None``: nothing was migrated yet.

    Raises:
        WarehouseError: the database cannot be asked.
    """
    with translated_errors(), engine.connect() as connection:
        usage = connection.execute(_USAGE).scalar_one_or_none()
        if usage is None:
            return None
        missing = [*connection.execute(_MISSING).scalars()]
    return missing if usage else ["USAGE on schema vm_import", *missing]


def missing_groups(engine: Engine) -> list[str]:
    """Return those of the group roles that the server does not have.

    Raises:
        WarehouseError: the database cannot be asked.
    """
    with translated_errors(), engine.connect() as connection:
        found = set(connection.execute(_FOUND_GROUPS, {"groups": [*GROUPS]}).scalars())
    return [group for group in GROUPS if group not in found]


def keeps_sessions(connect: Connect) -> bool:
    """Whether a connection has a session of its own, whose locks nobody else has.

    Behind a transaction pooler, two connections meet in one session as soon as the first is idle.

    Raises:
        WarehouseError: no connection, or no lock, can be had.
    """
    key = [_PROBES, randbits(31)]
    with translated_errors(), connect() as first, connect() as second:
        first.autocommit = True
        taken, ours = _ask(first, _TAKE, key)
        with second.transaction():  # which keeps the session that it got
            taken_too, _ = _ask(second, _TAKE, key)
            if taken_too:  # so it is the session of the first one, which has the lock twice now
                _ask(second, _GIVE_BACK, key)
                _ask(second, _GIVE_BACK, key)
                return False
        _, still_ours = _ask(first, _GIVE_BACK, key)
    return taken and still_ours == ours


def _ask(connection: psycopg.Connection[Any], statement: str, parameters: Sequence[int]) -> tuple[bool, int]:
    """Return a lock's answer, and which session gave it."""
    row = connection.execute(statement.encode(), parameters).fetchone()
    assert row is not None  # noqa: S101 - for the type checker
    return bool(row[0]), int(row[1])


_TAKE = "SELECT pg_try_advisory_lock(%s, %s), pg_backend_pid()"
_GIVE_BACK = "SELECT pg_advisory_unlock(%s, %s), pg_backend_pid()"

_USAGE = text("SELECT has_schema_privilege(oid, 'USAGE') FROM pg_namespace WHERE nspname = 'vm_import'")

_FOUND_GROUPS = text("SELECT rolname::text FROM pg_roles WHERE rolname = ANY (:groups)")

# What roles.sql grants to collector_writer, and what reading takes. A table that is not there yet is the
# schema's fault, not the role's.
_MISSING = text("""
    WITH needed (name, privilege, columns) AS (VALUES
        ('targets', 'SELECT, INSERT', '{}'::text[]),
        ('scans', 'SELECT, INSERT', '{}'),
        ('outages', 'SELECT, INSERT, UPDATE', '{}'),
        ('tasks', 'SELECT, INSERT', '{}'),
        ('task_versions', 'SELECT, INSERT', '{}'),
        ('task_versions', 'UPDATE', '{valid_from,valid_to}'),
        ('snapshot_details', 'SELECT, INSERT', '{}'),
        ('tags', 'SELECT, INSERT', '{}'),
        ('license_specifications', 'SELECT, INSERT', '{}'),
        ('task_events', 'SELECT, INSERT', '{}'),
        ('event_scans', 'SELECT, INSERT', '{}'),
        ('alembic_version', 'SELECT', '{}')
    ), single AS (
        SELECT c.oid, n.name, one.privilege, n.columns
        FROM needed n CROSS JOIN LATERAL regexp_split_to_table(n.privilege, ', ') AS one (privilege)
        JOIN pg_class c ON c.relname = n.name
        JOIN pg_namespace s ON s.oid = c.relnamespace AND s.nspname = 'vm_import'
    )
    SELECT string_agg(privilege, ', ' ORDER BY privilege) || ' on ' || name FROM single
    WHERE CASE WHEN columns = '{}' THEN NOT has_table_privilege(oid, privilege)
        ELSE EXISTS (
            SELECT FROM unnest(columns) AS c (name) WHERE NOT has_column_privilege(oid, c.name, privilege))
        END
    GROUP BY name ORDER BY name
""")
