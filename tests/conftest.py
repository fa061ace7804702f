"""Fixtures by subject: a real PostgreSQL migrated by Alembic, one fresh database per test."""

import os
import shutil
import signal
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import Engine, make_url

from collector.aws.clients import Clients
from collector.simulator import Fleet, Simulator
from collector.warehouse import schema
from collector.warehouse.embedded import EmbeddedPostgres
from collector.warehouse.engine import connect_to_url, make_engine
from tests.simulation import PLENTY, make_simulator, simulated

# A shell starts what runs in its background with SIGINT ignored, and children would inherit that: the tests
# that press Ctrl-C need it. What is handled here starts with the default there.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def public_folder() -> Iterator[Path]:
    """A folder that an unprivileged server can reach also when root runs the tests."""
    folder = Path(tempfile.mkdtemp(prefix="collector-tests-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def server_url(public_folder: Path) -> Iterator[str]:
    """A superuser's URL of the server under test: ``TEST_DATABASE_URL``, or an embedded one."""
    if url := os.environ.get("TEST_DATABASE_URL"):
        yield url
        return
    with EmbeddedPostgres(public_folder / "server") as server:
        info = server.conninfo()
        yield "postgresql://{user}:{password}@{host}:{port}/{dbname}".format(**info)


def pytest_report_header() -> str:
    """Name the server under test."""
    url = os.environ.get("TEST_DATABASE_URL")
    return f"server under test: {make_url(url).render_as_string() if url else 'embedded PostgreSQL'}"


def create_database(server_url: str, name: str, template: str) -> str:
    """Make a database and return its URL."""
    with psycopg.connect(server_url, autocommit=True) as connection:
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
        connection.execute(statement.format(sql.Identifier(name), sql.Identifier(template)))
    return make_url(server_url).set(database=name).render_as_string(hide_password=False)


def drop_database(server_url: str, name: str) -> None:
    """Remove a database, whoever is still connected."""
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture(scope="session")
def migrated(server_url: str) -> Iterator[str]:
    """The name of a database at the newest migration, to copy from."""
    name = f"migrated_{uuid.uuid4().hex}"
    engine = make_engine(connect_to_url(create_database(server_url, name, "template0")))
    schema.upgrade(engine)
    engine.dispose()
    yield name
    drop_database(server_url, name)


@pytest.fixture
def empty_database_url(server_url: str) -> Iterator[str]:
    """The URL of a database without anything in it."""
    name = f"empty_{uuid.uuid4().hex}"
    yield create_database(server_url, name, "template0")
    drop_database(server_url, name)


@pytest.fixture
def database_url(server_url: str, migrated: str) -> Iterator[str]:
    """The URL of a migrated database of this test's own."""
    name = f"test_{uuid.uuid4().hex}"
    yield create_database(server_url, name, migrated)
    drop_database(server_url, name)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """An engine on a migrated database of this test's own."""
    engine = make_engine(connect_to_url(database_url))
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Where all simulators of a module listen, so that one client, slow to make, serves all tests."""
    with simulated() as simulator:
        port = int(simulator.url.rpartition(":")[2])
        simulator.stop()
        yield port


@pytest.fixture
def simulator(port: int) -> Iterator[Simulator]:
    """A simulated AWS with two Regions, without faults."""
    with make_simulator(port=port) as simulator:
        yield simulator


@pytest.fixture
def fleet(simulator: Simulator) -> Fleet:
    """Its imports."""
    return simulator.fleet


@pytest.fixture(scope="module")
def clients(port: int) -> Iterator[Clients]:
    """Clients that are led to the simulators."""
    assert port
    clients = Clients(connections=8, patience=PLENTY)
    yield clients
    clients.close()
