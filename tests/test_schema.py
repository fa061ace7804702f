"""The schema: made by migrations both ways, safe to make twice at once, checked before it is used."""

import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from psycopg import sql
from sqlalchemy import Engine, make_url

from collector.errors import UsageError, WarehouseError
from collector.warehouse import schema
from collector.warehouse.engine import connect_to_url, make_engine
from collector.warehouse.tables import SCHEMA, metadata
from tests.conftest import drop_database

_FIRST_REVISION = "20261123_tables"
_PASSWORD = "s3cret"  # noqa: S105 - of nobody

_CATALOG = """
    SELECT 'column', c.relname::text, a.attname::text, format_type(a.atttypid, a.atttypmod),
        a.attnotnull::text, a.attidentity::text, pg_get_expr(d.adbin, d.adrelid),
        col_description(c.oid, a.attnum)
    FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
    LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
    WHERE c.relkind IN ('r', 'v') AND c.relnamespace IN (SELECT oid FROM ours)
    UNION ALL SELECT 'relation', relname, relkind::text, pg_get_viewdef(oid), NULL, NULL, NULL,
        obj_description(oid, 'pg_class')
    FROM pg_class WHERE relkind IN ('r', 'v') AND relnamespace IN (SELECT oid FROM ours)
    UNION ALL SELECT 'index', relname, pg_get_indexdef(oid), NULL, NULL, NULL, NULL, NULL
    FROM pg_class WHERE relkind = 'i' AND relnamespace IN (SELECT oid FROM ours)
    UNION ALL SELECT 'constraint', conname, conrelid::regclass::text, pg_get_constraintdef(oid), NULL, NULL,
        NULL, NULL
    FROM pg_constraint WHERE connamespace IN (SELECT oid FROM ours)
    UNION ALL SELECT 'function', proname, pg_get_functiondef(oid), obj_description(oid, 'pg_proc'), NULL,
        NULL, NULL, NULL
    FROM pg_proc WHERE pronamespace IN (SELECT oid FROM ours)
    UNION ALL SELECT 'schema', nspname, obj_description(oid, 'pg_namespace'), NULL, NULL, NULL, NULL, NULL
    FROM ours
"""


def _catalog(url: str) -> list[tuple[str | None, ...]]:
    """Return everything that the migrations make, comments included."""
    ours = "WITH ours AS (SELECT * FROM pg_namespace WHERE nspname IN ('vm_import', 'ec2_api'))"
    with psycopg.connect(url) as connection:
        return connection.execute(f"{ours} {_CATALOG} ORDER BY 1, 2, 3, 4").fetchall()


@pytest.fixture
def unused_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def empty_engine(empty_database_url: str) -> Iterator[Engine]:
    """An engine on a database without anything in it."""
    engine = make_engine(connect_to_url(empty_database_url))
    yield engine
    engine.dispose()


# Up, down, and both ways alike


def test_up_down_and_up_again_ends_where_up_ends(
    empty_engine: Engine, empty_database_url: str, database_url: str
) -> None:
    """Nothing of the tables and views is left behind in between."""
    schema.upgrade(empty_engine)
    schema.downgrade(empty_engine, "base")
    kinds = {row[0]: row[1] for row in _catalog(empty_database_url) if "alembic_version" not in str(row)}
    assert kinds == {"schema": "vm_import"}
    schema.upgrade(empty_engine)
    assert _catalog(empty_database_url) == _catalog(database_url)


def test_every_migration_can_be_taken_back_alone(empty_engine: Engine, empty_database_url: str) -> None:
    """Each on top of the ones before it."""
    schema.upgrade(empty_engine, _FIRST_REVISION)
    while schema.current_revision(empty_engine) != schema.head_revision():
        before = _catalog(empty_database_url)
        schema.upgrade(empty_engine, "+1")
        schema.downgrade(empty_engine, "-1")
        assert _catalog(empty_database_url) == before
        schema.upgrade(empty_engine, "+1")


def test_the_migrations_make_the_tables_that_the_code_knows(engine: Engine) -> None:
    """What ``alembic check`` asks."""
    options = {
        "compare_type": True,
        "include_schemas": True,
        "version_table_schema": SCHEMA,
        "include_name": lambda name, kind, _parents: kind != "schema" or name == SCHEMA,
        "include_object": lambda _item, name, _kind, _reflected, _other: name != "alembic_version",
    }
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, metadata) == []


def test_the_sql_for_administrators_makes_the_same(empty_database_url: str, database_url: str) -> None:
    """Printed, read, and run as a script."""
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute(schema.upgrade_sql().encode())
    assert _catalog(empty_database_url) == _catalog(database_url)


@pytest.mark.skipif(shutil.which("psql") is None, reason="this machine has no psql")
def test_the_sql_for_administrators_runs_through_psql(empty_engine: Engine, empty_database_url: str) -> None:
    """And the collector then finds the schema at its own revision."""
    command = ["psql", empty_database_url, "--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1"]
    done = subprocess.run(
        command, input=schema.upgrade_sql(), text=True, capture_output=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    schema.require_current(empty_engine)


# Together with others


def test_two_upgrades_at_once_both_succeed(empty_database_url: str, database_url: str) -> None:
    """The second finds the first one's work done."""
    program = (
        "import sys; from collector.warehouse import engine, schema;"
        " schema.upgrade(engine.make_engine(engine.connect_to_url(sys.argv[1])))"
    )
    command = [sys.executable, "-c", program, empty_database_url]
    upgrades = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [(upgrade.communicate(timeout=60)[1], upgrade.returncode) for upgrade in upgrades] == [("", 0)] * 2
    assert _catalog(empty_database_url) == _catalog(database_url)


def test_a_locked_table_fails_the_upgrade_within_seconds_and_leaves_nothing(
    empty_engine: Engine, empty_database_url: str
) -> None:
    """Whoever reads the table goes on; the upgrade gives way."""
    schema.upgrade(empty_engine, _FIRST_REVISION)
    before = _catalog(empty_database_url)
    start = time.monotonic()
    with psycopg.connect(empty_database_url) as other:
        other.execute("LOCK TABLE vm_import.license_specifications IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(WarehouseError, match=r"^the database is busy \(.*\): try again$"):
            schema.upgrade(empty_engine)
    assert time.monotonic() - start < 10
    assert _catalog(empty_database_url) == before
    assert schema.current_revision(empty_engine) == _FIRST_REVISION
    schema.upgrade(empty_engine)
    schema.require_current(empty_engine)


# The database enforces the chain


def _version(start: str, end: str | None) -> str:
    """Return SQL that inserts a version of task 1 between two days of January."""
    until = f"'2026-01-{end}Z'" if end else "NULL"
    return f"""INSERT INTO vm_import.task_versions
        (task_id, target_id, valid_from, valid_to, listed)
        VALUES (1, 1, '2026-01-{start}Z', {until}, false);"""


@pytest.mark.parametrize(
    ("versions", "fault"),
    [
        ([("01", "03"), ("02", None)], psycopg.errors.ForeignKeyViolation),
        ([("01", "02"), ("03", None)], psycopg.errors.ForeignKeyViolation),
        ([("01", "02")], psycopg.errors.ForeignKeyViolation),
        ([("01", None), ("02", None)], psycopg.errors.UniqueViolation),
        ([("01", "02"), ("02", "01")], psycopg.errors.CheckViolation),
        ([("01", "01")], psycopg.errors.CheckViolation),
        ([("01", "03"), ("03", None), ("02", "03")], psycopg.errors.UniqueViolation),
    ],
    ids=["overlap", "gap", "no open end", "two open ends", "circle", "empty", "two that end at once"],
)
def test_a_chain_with_a_fault_is_refused(
    database_url: str, versions: list[tuple[str, str | None]], fault: type[psycopg.Error]
) -> None:
    """At the latest when it is committed, here with the last of the statements."""
    together = "".join(_version(start, end) for start, end in versions)
    with psycopg.connect(database_url, autocommit=True) as connection, pytest.raises(fault):
        connection.execute(together)


def test_a_chain_without_a_fault_is_accepted(database_url: str) -> None:
    """In any order within a transaction."""
    with psycopg.connect(database_url) as connection:
        for start, end in [("02", "03"), ("03", None), ("01", "02")]:
            connection.execute(_version(start, end))


# Checked before use


def _complaint(url: str) -> str:
    """Return what is said of the database at a URL whose password is ``s3cret``."""
    secret = make_url(url).set(password=_PASSWORD).render_as_string(hide_password=False)
    with pytest.raises(WarehouseError) as raised:
        schema.require_current(make_engine(connect_to_url(secret)))
    assert "\n" not in str(raised.value)
    assert "s3cret" not in str(raised.value)
    return str(raised.value)


def test_a_current_database_is_fine(engine: Engine) -> None:
    """Nothing is said."""
    schema.require_current(engine)


def test_a_database_that_was_never_migrated(empty_engine: Engine) -> None:
    """The mend is named."""
    with pytest.raises(WarehouseError, match=r"^the database was never migrated: run `collector migrate`$"):
        schema.require_current(empty_engine)


def test_a_database_that_is_behind(empty_engine: Engine) -> None:
    """Where it is, where it should be, and the mend."""
    schema.upgrade(empty_engine, _FIRST_REVISION)
    with pytest.raises(WarehouseError) as raised:
        schema.require_current(empty_engine)
    assert str(raised.value) == (
        f"the database is behind in migrations (at {_FIRST_REVISION}, needs {schema.head_revision()}):"
        " run `collector migrate`"
    )


def test_a_database_that_is_ahead(engine: Engine, database_url: str) -> None:
    """A newer release has migrated it."""
    with psycopg.connect(database_url) as connection:
        connection.execute("UPDATE vm_import.alembic_version SET version_num = '29990101_later'")
    for ask in (schema.require_current, schema.upgrade):
        with pytest.raises(WarehouseError) as raised:
            ask(engine)
        assert str(raised.value) == (
            "the database is at revision 29990101_later, which this release does not know:"
            " a newer collector migrated it, so update this one"
        )


def test_a_server_that_is_not_there(unused_port: int) -> None:
    """Host and port are named."""
    complaint = _complaint(f"postgresql://someone@127.0.0.1:{unused_port}/aws")
    assert complaint.startswith("the database cannot be reached: ")
    assert str(unused_port) in complaint


@pytest.mark.parametrize(
    "password", ["100%s3cret", "s3cret word", "s3@cret", "s3/cret", "s3@cr/s3cret", "12/s3cret"]
)
def test_a_url_whose_password_is_not_encoded_does_not_show_it(password: str) -> None:
    """The words of libpq would quote the part that it stumbles over."""
    with pytest.raises(UsageError) as raised:
        connect_to_url(f"postgresql://someone:{password}@127.0.0.1:5432/aws")
    assert "percent-encoded" in str(raised.value)
    assert "cret" not in str(raised.value)


def test_a_read_only_database(engine: Engine, database_url: str, server_url: str) -> None:
    """It can be read, not written."""
    name = make_url(database_url).database or ""
    with psycopg.connect(server_url, autocommit=True) as connection:
        statement = sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on")
        connection.execute(statement.format(sql.Identifier(name)))
    with pytest.raises(
        WarehouseError, match=r"^the database is read-only: point database_url at the primary$"
    ):
        schema.require_current(engine)
    schema.require_current(engine, to_write=False)
    with pytest.raises(WarehouseError, match="read-only"):
        schema.upgrade(engine)


@pytest.fixture
def ascii_engine(server_url: str) -> Iterator[Engine]:
    """An engine on a database that knows no encoding."""
    name = f"ascii_{uuid.uuid4().hex}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'")
        connection.execute(statement.format(sql.Identifier(name)))
    url = make_url(server_url).set(database=name).render_as_string(hide_password=False)
    engine = make_engine(connect_to_url(url))
    yield engine
    engine.dispose()
    drop_database(server_url, name)


@pytest.mark.parametrize("use", [schema.require_current, schema.upgrade])
def test_a_database_in_another_encoding(ascii_engine: Engine, use: Callable[[Engine], None]) -> None:
    """AWS's text would not fit, or would be garbled."""
    with pytest.raises(WarehouseError) as raised:
        use(ascii_engine)
    assert str(raised.value) == "the database is encoded in SQL_ASCII: create one with ENCODING 'UTF8'"


def test_a_database_that_does_not_exist(server_url: str) -> None:
    """The server's own words are good enough."""
    url = make_url(server_url).set(database="no_such_database").render_as_string(hide_password=False)
    with pytest.raises(WarehouseError, match='database "no_such_database" does not exist'):
        schema.require_current(make_engine(connect_to_url(url)))


def test_a_role_that_may_not_migrate(empty_database_url: str, server_url: str) -> None:
    """The right that is missing is named."""
    role = f"role_{uuid.uuid4().hex}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 's3cret'").format(sql.Identifier(role)))
    url = make_url(empty_database_url).set(username=role, password=_PASSWORD)
    engine = make_engine(connect_to_url(url.render_as_string(hide_password=False)))
    with pytest.raises(WarehouseError, match=r"^the database role may not do this \(permission denied"):
        schema.upgrade(engine)
    engine.dispose()
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))
