"""The database fails in every way that it has: the daemon polls on, and nothing that it saw is lost.

After each fault everything that was observed is stored, the history is what an undisturbed one would be, and
nothing is left running: no thread, no session, no file.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from random import Random
from time import sleep
from typing import Any

import psutil
import psycopg
import pytest
from psycopg import sql
from sqlalchemy import Engine, make_url

from collector.config import Settings, load
from collector.simulator import Simulator
from collector.simulator.faults import Denied
from collector.warehouse import schema
from collector.warehouse.embedded import EmbeddedPostgres
from collector.warehouse.engine import connect_to_url, make_engine
from tests.conftest import create_database, drop_database
from tests.daemons import Running, running, start_daemon
from tests.proxy import CAN_LOSE, Proxy
from tests.simulation import ACCOUNT, OTHER_REGION, REGION, eventually, rows, settings, simulated, wire
from tests.witness import (
    assert_nothing_is_lost,
    assert_right_history,
    changing,
    recorded,
    recovers,
    row_of,
    scan_rows,
    seen_by,
    sessions,
    spooled,
    spools,
    stores,
)

OFTEN = timedelta(seconds=0.1)
ANSWER = 1.0
"""Seconds that the database may take for an answer here."""


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    """A simulated EC2 whose tasks come, change and go."""
    with simulated() as simulator, changing(simulator, REGION, OTHER_REGION):
        yield simulator


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    eventually(lambda: set(threading.enumerate()) <= before)


@pytest.fixture(scope="module")
def own_server(public_folder: Path) -> Iterator[EmbeddedPostgres]:
    """A server of these tests' own, which they may kill."""
    with EmbeddedPostgres(public_folder / "away") as server:
        yield server


@pytest.fixture
def own_url(own_server: EmbeddedPostgres) -> str:
    """The URL of that server, whose port stays the same."""
    return "postgresql://{user}:{password}@{host}:{port}/{dbname}".format(**own_server.conninfo())


@pytest.fixture
def own_database_url(own_url: str) -> Iterator[str]:
    """The URL of a migrated database on that server."""
    name = f"test_{uuid.uuid4().hex}"
    url = create_database(own_url, name, "template0")
    migrate(url)
    yield url
    drop_database(own_url, name)


def migrate(url: str) -> None:
    """Bring a database to the newest migration."""
    with engine_on(url) as engine:
        schema.upgrade(engine)


@contextmanager
def engine_on(url: str) -> Iterator[Engine]:
    """Give an engine for a while."""
    engine = make_engine(connect_to_url(url))
    yield engine
    engine.dispose()


def often(url: str, folder: Path) -> Settings:
    """Return a configuration that polls more often than a user may."""
    return settings(url, data_dir=folder / "data").model_copy(
        update={"interval": OFTEN, "idle_interval": OFTEN}
    )


@contextmanager
def watched(simulator: Simulator, url: str, folder: Path, *, direct: str | None = None) -> Iterator[Running]:
    """Run a daemon on a database; after its end, hold everything against what was observed.

    ``url`` may lead through a proxy, ``direct`` goes past it.
    """
    configuration = often(url, folder)
    with running(configuration, answer=ANSWER) as daemon:
        stores(daemon)
        yield daemon
    with engine_on(direct or url) as engine:
        assert spooled(configuration) == []
        eventually(lambda: sessions(engine) == 0)
        assert_nothing_is_lost(engine, simulator, seen_by(daemon))


def one_region_is_denied(simulator: Simulator) -> None:
    """Let two looks fail while the database is away, so that an outage waits on disk, too."""
    rule = simulator.faults.add(Denied(), region=OTHER_REGION, times=2)
    eventually(lambda: rule.hits == 2, timeout=40)


# The network


@pytest.mark.parametrize(
    "cut",
    [
        Proxy.refuse,
        Proxy.swallow,
        pytest.param(
            Proxy.lose,
            marks=pytest.mark.skipif(not CAN_LOSE, reason="only Linux lets a program lose packets"),
        ),
    ],
)
def test_the_network_is_cut(
    simulator: Simulator, database_url: str, tmp_path: Path, cut: Callable[[Proxy], None]
) -> None:
    """Refused, black hole, and packets that nobody acknowledges: what is seen waits on disk."""
    with Proxy(database_url) as proxy, watched(simulator, proxy.url, tmp_path, direct=database_url) as daemon:
        cut(proxy)
        spools(daemon)
        one_region_is_denied(simulator)
        proxy.resume()
        recovers(daemon)


@pytest.mark.parametrize("reset", [Proxy.reset, Proxy.reset_in_answer])
def test_connections_are_reset(
    simulator: Simulator, database_url: str, tmp_path: Path, reset: Callable[[Proxy], None]
) -> None:
    """Between two answers or in the midst of one, again and again."""
    with Proxy(database_url) as proxy, watched(simulator, proxy.url, tmp_path, direct=database_url) as daemon:
        for _ in range(8):
            had = proxy.resets
            reset(proxy)
            eventually(lambda had=had: proxy.resets > had)  # type: ignore[misc] # mypy knows no such lambda
            stores(daemon, 2)
        recovers(daemon)


# The server


def postmaster(folder: Path) -> int:
    """Return the number of the process that leads an embedded server."""
    return int((folder / "data" / "postmaster.pid").read_text(encoding="utf-8").split()[0])


@pytest.mark.parametrize("kill", [signal.SIGQUIT, signal.SIGKILL])
def test_a_foreign_server_is_stopped_and_started(
    simulator: Simulator,
    public_folder: Path,
    own_server: EmbeddedPostgres,
    own_database_url: str,
    tmp_path: Path,
    kill: signal.Signals,
) -> None:
    """At once (``pg_ctl stop -m immediate`` sends SIGQUIT) or killed, at random moments."""
    rng = Random(int(kill))
    with watched(simulator, own_database_url, tmp_path) as daemon:
        for _ in range(2):
            sleep(rng.uniform(0, 0.5))  # the moment is the point
            os.kill(postmaster(public_folder / "away"), kill)
            spools(daemon)
            own_server.ensure_running()
            recovers(daemon)


@pytest.mark.parametrize("kill", [signal.SIGQUIT, signal.SIGKILL])
def test_an_embedded_server_is_repaired_by_the_daemon(
    simulator: Simulator, public_folder: Path, kill: signal.Signals
) -> None:
    """Nobody else starts it."""
    folder = public_folder / f"repaired-{kill}"
    configuration = load({"data_dir": folder, "concurrency": 8}).model_copy(
        update={"interval": OFTEN, "idle_interval": OFTEN}
    )
    rng = Random(int(kill))
    with running(configuration, answer=ANSWER) as daemon:
        stores(daemon)
        for _ in range(3):
            sleep(rng.uniform(0, 0.5))  # the moment is the point
            had = postmaster(folder / "postgres")
            os.kill(had, kill)
            eventually(lambda had=had: not psutil.pid_exists(had))  # type: ignore[misc] # as above
            stores(daemon, 10)
            recovers(daemon)
    assert spooled(configuration) == []
    assert not (folder / "postgres" / "data" / "postmaster.pid").exists()
    with EmbeddedPostgres(folder / "postgres") as server:
        url = "postgresql://{user}:{password}@{host}:{port}/{dbname}".format(**server.conninfo())
        with engine_on(url) as engine:
            assert_nothing_is_lost(engine, simulator, seen_by(daemon))


def test_the_server_hangs_and_goes_on(
    simulator: Simulator, public_folder: Path, own_database_url: str, tmp_path: Path
) -> None:
    """All of its processes are stopped: the kernel still takes what is sent, but nobody answers."""
    with watched(simulator, own_database_url, tmp_path) as daemon:
        leader = psutil.Process(postmaster(public_folder / "away"))
        stopped = [leader, *leader.children()]
        for process in stopped:
            process.suspend()
        try:
            spools(daemon)
            one_region_is_denied(simulator)
        finally:
            for process in stopped:
                process.resume()
        recovers(daemon)


def test_statements_hang(simulator: Simulator, database_url: str, engine: Engine, tmp_path: Path) -> None:
    """A lock that is held for longer than our patience piles up no sessions that wait for it."""
    with watched(simulator, database_url, tmp_path) as daemon:
        with engine.begin() as connection:
            connection.exec_driver_sql("LOCK TABLE vm_import.task_versions")
            spools(daemon, 20)
            eventually(lambda: daemon.daemon.state().database is not None)
            assert sessions(engine) < 12
        engine.dispose()
        recovers(daemon)


def test_a_backend_is_killed_in_the_midst_of_a_copy(
    simulator: Simulator, database_url: str, engine: Engine, tmp_path: Path
) -> None:
    """The scan is stored whole a moment later, and no other one suffers."""
    slow = """
        CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM pg_sleep(0.01); RETURN NEW; END $$;
        CREATE TRIGGER slow BEFORE INSERT ON vm_import.task_versions FOR EACH ROW
            EXECUTE FUNCTION slow()
    """
    half_way = """
        SELECT pg_terminate_backend(pid) FROM pg_stat_progress_copy
        WHERE relid = 'vm_import.task_versions'::regclass AND tuples_processed > 20"""
    with watched(simulator, database_url, tmp_path) as daemon:
        with engine.begin() as connection:
            connection.exec_driver_sql(slow)
        for number in range(400):
            simulator.fleet.put(ACCOUNT, REGION, wire(f"bulk{number:04}"))
        for _ in range(3):
            eventually(lambda: rows(engine, half_way))
        with engine.begin() as connection:
            connection.exec_driver_sql("DROP FUNCTION slow CASCADE")
        engine.dispose()
        recovers(daemon)


def test_the_database_is_read_only_for_a_while(
    simulator: Simulator, server_url: str, database_url: str, tmp_path: Path
) -> None:
    """As after a failover; sessions that began meanwhile would stay read-only for ever."""
    name = sql.Identifier(str(make_url(database_url).database))
    end_sessions = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
    with (
        psycopg.connect(server_url, autocommit=True) as connection,
        watched(simulator, database_url, tmp_path) as daemon,
    ):
        connection.execute(sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(name))
        connection.execute(end_sessions, [make_url(database_url).database])
        spools(daemon)
        eventually(lambda: "read-only" in str(daemon.daemon.state().database))
        one_region_is_denied(simulator)
        connection.execute(sql.SQL("ALTER DATABASE {} RESET default_transaction_read_only").format(name))
        recovers(daemon)


@pytest.fixture
def small_disk(public_folder: Path, own_url: str) -> Iterator[Path]:
    """A small disk that is a tablespace of the server: what the database holds, though not its log."""
    folder = public_folder / "small"
    folder.mkdir()
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root on Linux can mount a small disk")
    owner = (public_folder / "away" / "data").stat()
    options = f"size=32m,mode=700,uid={owner.st_uid},gid={owner.st_gid}"
    done = subprocess.run(
        ["/bin/mount", "-t", "tmpfs", "-o", options, "none", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        folder.rmdir()
        pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
    try:
        with psycopg.connect(own_url, autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE TABLESPACE small LOCATION {}").format(str(folder)))
            yield folder
            connection.execute("DROP TABLESPACE small")
    finally:
        subprocess.run(["/bin/umount", "-l", str(folder)], check=True)
        folder.rmdir()


def test_the_disk_of_the_database_is_full(own_url: str, small_disk: Path, tmp_path: Path) -> None:
    """Nothing is stored by halves, and everything when there is room again."""
    with psycopg.connect(own_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE full_disk TEMPLATE template0 TABLESPACE small")
    url = make_url(own_url).set(database="full_disk").render_as_string(hide_password=False)
    migrate(url)
    ballast = small_disk / "ballast"
    with (
        simulated() as simulator,
        changing(simulator, REGION, OTHER_REGION, text=1000),
        watched(simulator, url, tmp_path) as daemon,
    ):
        left = shutil.disk_usage(small_disk).free
        ballast.write_bytes(bytes(left))
        eventually(lambda: daemon.daemon.state().database is not None, timeout=60)
        spools(daemon)
        ballast.unlink()
        recovers(daemon)
    drop_database(own_url, "full_disk")


# The daemon itself


def test_the_daemon_is_killed(
    simulator: Simulator, database_url: str, engine: Engine, tmp_path: Path
) -> None:
    """With and without its database, at random moments: what it had stored or spooled is not lost."""
    configuration = settings(database_url, data_dir=tmp_path)
    rng = Random(9)
    safe: set[Any] = set()
    with Proxy(database_url) as proxy:
        for away in (False, True, True, False):
            daemon = start_daemon(proxy.url, COLLECTOR_DATA_DIR=str(tmp_path))
            try:
                had = len(scan_rows(engine))
                eventually(lambda had=had: len(scan_rows(engine)) > had + 2)  # type: ignore[misc] # as above
                if away:
                    proxy.refuse()
                sleep(rng.uniform(0.5, 2.5))  # the moment is the point
            finally:
                daemon.kill()
                daemon.communicate()
            safe |= {*scan_rows(engine), *map(row_of, spooled(configuration))}  # type: ignore[arg-type] # no look fails here
            proxy.resume()
        daemon = start_daemon(proxy.url, COLLECTOR_DATA_DIR=str(tmp_path))
        try:
            eventually(lambda: safe <= set(scan_rows(engine)) and spooled(configuration) == [])
        finally:
            daemon.terminate()
            _, log = daemon.communicate(timeout=20)
    assert daemon.returncode == 0, log
    assert_right_history(engine, recorded(engine, simulator))
    assert spooled(configuration) == []
