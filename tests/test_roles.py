"""Roles: the script that makes them, what each may do, and what it may not.

Roles belong to the whole server, so each test leaves the server with the roles that it found.
"""

import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterable, Iterator
from importlib.resources import files

import psycopg
import pytest
from psycopg import sql
from psycopg.errors import InsufficientPrivilege
from sqlalchemy import Engine, make_url

from collector.domain import Failure, Scan
from collector.errors import WarehouseError
from collector.warehouse import history, schema
from collector.warehouse.engine import connect_to_url, make_engine
from collector.warehouse.probes import missing_rights
from collector.warehouse.recording import record
from tests.conftest import create_database, drop_database
from tests.factories import TARGET, at, numbered, scan, stored

SCRIPT = files("collector.warehouse").joinpath("roles.sql")
GROUPS = ("collector_writer", "collector_reader")
BEFORE_GRANTS, GRANTS = "20261125_mends", "20261125_grants"
PASSWORD = "s3cret"  # noqa: S105 - of nobody

_ONE_AT_A_TIME = 0x726F6C65
"""Advisory lock of these tests, for runs that share a server."""

_RIGHTS = """
    SELECT kind, name, CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END, privilege_type
    FROM (
        SELECT 'schema' AS kind, nspname::text AS name, oid AS place, nspacl AS acl FROM pg_namespace
        UNION ALL SELECT 'relation', relname, relnamespace, relacl FROM pg_class
        UNION ALL SELECT 'column', relname || '.' || attname, relnamespace, attacl
        FROM pg_attribute JOIN pg_class c ON c.oid = attrelid
        UNION ALL SELECT 'function', proname, pronamespace, proacl FROM pg_proc
        UNION ALL SELECT 'later', concat(defaclrole::regrole, defaclobjtype), defaclnamespace, defaclacl
        FROM pg_default_acl
    ) AS granted, aclexplode(acl)
    WHERE place IN (to_regnamespace('vm_import'), to_regnamespace('ec2_api'))
    ORDER BY 1, 2, 3, 4
"""


def _rights(url: str) -> list[tuple[str, ...]]:
    """Return what is granted in our schemas: kind and name of the thing, who may, and what."""
    with psycopg.connect(url) as connection:
        return connection.execute(_RIGHTS).fetchall()


def _run_script(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(SCRIPT.read_bytes())


def _groups(connection: psycopg.Connection) -> set[str]:
    rows = connection.execute("SELECT rolname FROM pg_roles WHERE rolname = ANY (%s)", [[*GROUPS]])
    return {row[0] for row in rows}


def _drop_role(server_url: str, role: str) -> None:
    """Drop a role, and before it what it may do in any database of the server."""
    query = """SELECT DISTINCT datname FROM pg_shdepend JOIN pg_database d ON d.oid = dbid
        WHERE refclassid = 'pg_authid'::regclass AND refobjid = to_regrole(%s)"""
    name = sql.Identifier(role)
    with psycopg.connect(server_url, autocommit=True) as connection:
        for (database,) in connection.execute(query, [role]).fetchall():
            url = make_url(server_url).set(database=database).render_as_string(hide_password=False)
            with psycopg.connect(url, autocommit=True) as other:
                other.execute(sql.SQL("DROP OWNED BY {}").format(name))
        connection.execute(sql.SQL("DROP ROLE {}").format(name))


@pytest.fixture(autouse=True)
def _groups_as_before(server_url: str, migrated: str) -> Iterator[None]:  # noqa: ARG001 - copies know no roles
    """Drop the group roles again if the test made them."""
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", [_ONE_AT_A_TIME])
        before = _groups(connection)
        yield
        for role in _groups(connection) - before:
            _drop_role(server_url, role)


MakeLogin = Callable[..., str]


@pytest.fixture
def make_login(server_url: str) -> Iterator[MakeLogin]:
    """Make login roles of this test's own, with options such as ``CREATEROLE``."""
    made: list[str] = []

    def make(options: str = "") -> str:
        made.append(f"login_{uuid.uuid4().hex}")
        with psycopg.connect(server_url, autocommit=True) as connection:
            statement = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {} ").format(
                sql.Identifier(made[-1]), sql.Literal(PASSWORD)
            )
            connection.execute(statement + sql.SQL(options))
        return made[-1]

    yield make
    for role in made:
        _drop_role(server_url, role)


def _as(url: str, role: str) -> str:
    return make_url(url).set(username=role, password=PASSWORD).render_as_string(hide_password=False)


@pytest.fixture
def granted_url(make_login: MakeLogin, database_url: str) -> str:  # noqa: ARG001 - its roles go after the database
    """The URL, as its owner, of a migrated database in which the script has run."""
    _run_script(database_url)
    return database_url


@pytest.fixture
def writer_url(make_login: MakeLogin, granted_url: str) -> str:
    """The URL of the same as a login that is a collector_writer."""
    return _as(granted_url, make_login("IN ROLE collector_writer"))


@pytest.fixture
def reader_url(make_login: MakeLogin, granted_url: str) -> str:
    """The URL of the same as a login that is a collector_reader."""
    return _as(granted_url, make_login("IN ROLE collector_reader"))


@pytest.fixture
def writer(writer_url: str) -> Iterator[Engine]:
    """An engine as the daemon has it."""
    engine = make_engine(connect_to_url(writer_url))
    yield engine
    engine.dispose()


# The script


def test_the_roles_are_groups(granted_url: str) -> None:
    """Nobody logs in as one, and neither may do anything to the server."""
    query = """SELECT rolcanlogin OR rolsuper OR rolcreaterole OR rolcreatedb OR rolbypassrls FROM pg_roles
        WHERE rolname = ANY (%s)"""
    with psycopg.connect(granted_url) as connection:
        assert connection.execute(query, [[*GROUPS]]).fetchall() == [(False,), (False,)]


def test_running_it_again_changes_nothing(granted_url: str) -> None:
    """At any time."""
    before = _rights(granted_url)
    _run_script(granted_url)
    assert _rights(granted_url) == before


@pytest.mark.parametrize("revision", ["base", "20261123_tables", BEFORE_GRANTS, GRANTS])
def test_run_before_a_migration_or_after_all_the_rights_are_the_same(
    empty_database_url: str, granted_url: str, revision: str
) -> None:
    """A table, view or function that comes in a later release needs its grants in both."""
    engine = make_engine(connect_to_url(empty_database_url))
    if revision != "base":
        schema.upgrade(engine, revision)
    _run_script(empty_database_url)
    schema.upgrade(engine)
    engine.dispose()
    assert _rights(empty_database_url) == _rights(granted_url)


def test_the_migration_can_be_taken_back(granted_url: str) -> None:
    """Then the roles may do nothing any more."""
    engine = make_engine(connect_to_url(granted_url))
    schema.downgrade(engine, BEFORE_GRANTS)
    engine.dispose()
    assert [right for right in _rights(granted_url) if right[2] in GROUPS] == []


@pytest.mark.skipif(shutil.which("psql") is None, reason="this machine has no psql")
def test_psql_runs_it(make_login: MakeLogin, database_url: str) -> None:  # noqa: ARG001 - as above
    """As its first lines say, and without a word."""
    command = [
        "psql",
        database_url,
        "--no-psqlrc",
        "--quiet",
        "--set",
        "ON_ERROR_STOP=1",
        "--file",
        str(SCRIPT),
    ]
    done = subprocess.run(command, text=True, capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [right for right in _rights(database_url) if right[2] == "collector_writer"]


@pytest.fixture
def owned_url(make_login: MakeLogin, server_url: str) -> Iterator[str]:
    """The URL of a migrated database as its owner, who is no superuser but may make roles."""
    name, owner = f"owned_{uuid.uuid4().hex}", make_login("CREATEROLE")
    url = create_database(server_url, name, "template0")
    with psycopg.connect(server_url, autocommit=True) as connection:
        statement = sql.SQL("ALTER DATABASE {} OWNER TO {}")
        connection.execute(statement.format(sql.Identifier(name), sql.Identifier(owner)))
    engine = make_engine(connect_to_url(_as(url, owner)))
    schema.upgrade(engine)
    engine.dispose()
    yield _as(url, owner)
    drop_database(server_url, name)


def test_an_owner_who_is_no_superuser_runs_it(make_login: MakeLogin, owned_url: str) -> None:
    """And the reader reads, later views too."""
    _run_script(owned_url)
    _run_script(owned_url)
    with psycopg.connect(owned_url) as connection:
        connection.execute("CREATE VIEW vm_import.later AS SELECT count(*) FROM vm_import.tasks")
    with psycopg.connect(_as(owned_url, make_login("IN ROLE collector_reader"))) as connection:
        assert connection.execute("SELECT * FROM vm_import.later").fetchall() == [(0,)]


def test_a_member_of_the_owner_runs_it(make_login: MakeLogin, owned_url: str) -> None:
    """What the owner makes later is readable all the same."""
    owner = make_url(owned_url).username
    _run_script(_as(owned_url, make_login(f"CREATEROLE IN ROLE {owner}")))
    with psycopg.connect(owned_url) as connection:
        connection.execute("CREATE VIEW vm_import.later AS SELECT count(*) FROM vm_import.tasks")
    with psycopg.connect(_as(owned_url, make_login("IN ROLE collector_reader"))) as connection:
        assert connection.execute("SELECT * FROM vm_import.later").fetchall() == [(0,)]


def test_who_may_only_make_roles_is_told_who_grants(make_login: MakeLogin, owned_url: str) -> None:
    """The owner goes on, and needs no right to make roles for that."""
    owner, admin = make_url(owned_url).username, make_login("CREATEROLE")
    with pytest.raises(InsufficientPrivilege, match=f"belongs to {owner}, for whom {admin} cannot grant"):
        _run_script(_as(owned_url, admin))
    _run_script(owned_url)


# The writer


def test_a_writer_stores_what_the_daemon_sees(writer: Engine, engine: Engine) -> None:
    """New, changed, unchanged, late, partial and gone tasks; failures, and their end."""
    schema.require_current(writer)
    looks: list[Scan | Failure] = [
        numbered(1, {"a": 1, "b": 2}),
        numbered(2, {"a": 1, "b": 2}),
        numbered(5, {"a": 3}),
        numbered(4, {"a": 3, "b": 2}),
        numbered(3, {"a": 4}, complete=False),
        numbered(1.5, {"a": 4}, complete=False),
        Failure(TARGET.account_id, TARGET.region, at(6), "Throttling", "slow down"),
        Failure(TARGET.account_id, TARGET.region, at(7), "Throttling", "slow down"),
        numbered(8, {"a": 3}),
    ]
    for look in looks:
        assert record(writer, [look]).refused == []
    assert history.missing_from(writer, scan(9)) == {"import-ami-a"}
    with engine.connect() as connection:
        (outage,) = connection.exec_driver_sql("SELECT failures, recovered_at FROM vm_import.outages")
    assert tuple(outage) == (2, at(8))
    assert [len(chain) for chain in stored(engine).values()] == [5, 2]


def _allowed(url: str, statements: Iterable[str]) -> list[str]:
    """Return those of the statements that the role in the URL is not kept from."""
    allowed = []
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            try:
                connection.execute(statement.encode())
            except InsufficientPrivilege:
                continue
            allowed.append(statement)
    return allowed


def test_a_writer_neither_rewrites_nor_reshapes(writer_url: str) -> None:
    """What was observed stays, and so does the shape of everything."""
    statements = [
        "TRUNCATE vm_import.outages",
        "DELETE FROM vm_import.tags",
        "DELETE FROM vm_import.task_versions",
        "UPDATE vm_import.task_versions SET status = 'completed'",
        "UPDATE vm_import.scans SET observed_at = now()",
        "UPDATE vm_import.alembic_version SET version_num = 'x'",
        "INSERT INTO vm_import.alembic_version VALUES ('x')",
        "CREATE TABLE vm_import.mine ()",
        "CREATE VIEW ec2_api.mine AS SELECT 1",
        "ALTER TABLE vm_import.tasks ADD x int",
        "DROP VIEW vm_import.coverage",
        "DROP SCHEMA ec2_api",
        "CREATE ROLE mine",
    ]
    assert _allowed(writer_url, statements) == []


def test_a_writer_may_not_migrate(make_login: MakeLogin, empty_database_url: str) -> None:
    """That is the owner's."""
    engine = make_engine(connect_to_url(empty_database_url))
    schema.upgrade(engine, BEFORE_GRANTS)
    engine.dispose()
    _run_script(empty_database_url)
    writer = make_engine(connect_to_url(_as(empty_database_url, make_login("IN ROLE collector_writer"))))
    with pytest.raises(WarehouseError, match=r"^the database role may not do this \("):
        schema.upgrade(writer)
    writer.dispose()


# The reader


_RELATIONS = """
    SELECT c.oid::regclass::text, relkind::text FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
    WHERE nspname IN ('vm_import', 'ec2_api') AND relkind IN ('r', 'v', 'm', 'p')
"""
_CALLS = """
    SELECT p.oid::regproc || '(' || coalesce(string_agg('NULL::' || a.type::regtype, ', '), '') || ')'
    FROM pg_proc p JOIN pg_namespace n ON n.oid = pronamespace LEFT JOIN unnest(proargtypes) a (type) ON true
    WHERE nspname IN ('vm_import', 'ec2_api') GROUP BY p.oid
"""


@pytest.mark.parametrize("whose", ["reader_url", "writer_url"])
def test_both_read_everything(
    request: pytest.FixtureRequest, granted_url: str, engine: Engine, whose: str
) -> None:
    """Every table, view and function, Alembic's own table too."""
    record(engine, [numbered(1, {"a": 1})])
    with psycopg.connect(granted_url) as connection:
        relations = [row[0] for row in connection.execute(_RELATIONS)]
        calls = [row[0] for row in connection.execute(_CALLS)]
    assert {"vm_import.latest_tasks", "vm_import.alembic_version", "ec2_api.import_image_tasks"} <= {
        *relations
    }
    assert "vm_import.tasks_as_of(NULL::timestamp with time zone)" in calls
    with psycopg.connect(request.getfixturevalue(whose)) as connection:
        for source in relations + calls:
            connection.execute(f"SELECT * FROM {source}".encode())


def test_a_reader_writes_nothing(granted_url: str, reader_url: str) -> None:
    """Into not one of the tables, and makes nothing of its own."""
    with psycopg.connect(granted_url) as connection:
        tables = [name for name, kind in connection.execute(_RELATIONS) if kind == "r"]
    verbs = ("INSERT INTO {} DEFAULT VALUES", "DELETE FROM {}", "TRUNCATE {}")
    statements = [verb.format(table) for verb in verbs for table in tables]
    statements += ["UPDATE vm_import.task_versions SET valid_to = NULL", "CREATE TABLE vm_import.mine ()"]
    assert len(tables) > 8
    assert _allowed(reader_url, statements) == []


def test_the_check_asks_for_every_table_that_the_writer_adds_to(granted_url: str, reader_url: str) -> None:
    """What a reader lacks is all that the script grants, so neither forgets what the other knows."""
    reader = make_engine(connect_to_url(reader_url))
    missing = missing_rights(reader)
    reader.dispose()
    with psycopg.connect(granted_url) as connection:
        granted = connection.execute(
            "SELECT c.relname FROM pg_class c WHERE c.relnamespace = 'vm_import'::regnamespace"
            " AND c.relkind = 'r' AND has_table_privilege('collector_writer', c.oid, 'INSERT')"
        ).fetchall()
    assert {lacking.rpartition(" ")[2] for lacking in missing or ()} == {name for (name,) in granted}


def test_what_a_later_migration_makes_is_readable(granted_url: str, reader_url: str) -> None:
    """Without another grant, and no more than readable."""
    with psycopg.connect(granted_url) as connection:
        connection.execute("CREATE TABLE vm_import.later (x int)")
        connection.execute("CREATE VIEW ec2_api.later AS SELECT x FROM vm_import.later")
        connection.execute("CREATE FUNCTION vm_import.later() RETURNS int LANGUAGE sql RETURN 1")
        connection.execute("REVOKE EXECUTE ON FUNCTION vm_import.later FROM PUBLIC")
    with psycopg.connect(reader_url, autocommit=True) as connection:
        connection.execute("SELECT vm_import.later(), v.x, t.x FROM ec2_api.later v, vm_import.later t")
        with pytest.raises(InsufficientPrivilege):
            connection.execute("INSERT INTO vm_import.later VALUES (1)")


def test_the_rights_of_nobody_else_change(granted_url: str, database_url: str) -> None:
    """What PUBLIC may is what PostgreSQL gives it: to call functions."""
    assert granted_url == database_url
    public = {right[::3] for right in _rights(granted_url) if right[2] == "PUBLIC"}
    assert public == {("function", "EXECUTE")}
