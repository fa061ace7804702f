"""Several daemons: one polls, the others stand by and take over within seconds, also behind a pooler."""

import json
import os
import pwd
import re
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import Engine, make_url

from collector.config import Settings
from collector.simulator import Fleet, SimulatedClock, Simulator
from collector.warehouse import schema
from tests.commands import PLACE, Shell
from tests.daemons import Running, running, start_daemon
from tests.proxy import CAN_LOSE, Proxy
from tests.simulation import (
    ACCOUNT,
    OTHER_REGION,
    REGION,
    eventually,
    lead_here,
    rows,
    settings,
    simulated,
    wire,
)
from tests.witness import (
    assert_nothing_is_lost,
    changing,
    recovers,
    seen_by,
    sessions,
    spooled,
    spools,
    stores,
)

OFTEN = timedelta(seconds=0.1)
PGBOUNCER = Path("/usr/sbin/pgbouncer")
LISTING = "DescribeImportImageTasks"


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    eventually(lambda: set(threading.enumerate()) <= before)


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    """A simulated EC2 whose tasks come, change and go."""
    with simulated() as simulator, changing(simulator, REGION, OTHER_REGION):
        yield simulator


def often(url: str, folder: Path, **flags: Any) -> Settings:
    """Return a configuration that polls more often than a user may."""
    return settings(url, data_dir=folder, **flags).model_copy(
        update={"interval": OFTEN, "idle_interval": OFTEN}
    )


# As processes


class Process:
    """``collector run``, its log, and what it says of itself."""

    def __init__(self, url: str, folder: Path, account: str, **variables: str) -> None:
        self.account = account
        self._log: list[str] = []
        variables |= {"COLLECTOR_DATA_DIR": str(folder), "AWS_ACCESS_KEY_ID": f"AKIA{account}"}
        self.process = start_daemon(url, **variables)
        self._reader = threading.Thread(target=self._read, name="log")
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self._log.extend(self.process.stderr)

    @property
    def log(self) -> str:
        """What it has logged so far."""
        return "".join(list(self._log))

    def leading(self) -> bool | None:
        """Whether it says that it polls, as soon as it is ready."""
        (address, *_) = eventually(lambda: re.findall(r"http://127\.0\.0\.1:\d+", self.log))
        with suppress(HTTPError), urlopen(f"{address}/readyz", timeout=10) as answer:  # noqa: S310 - our own
            return bool(json.load(answer)["leading"])
        return None

    def kill(self) -> None:
        """End it by force, if it still runs."""
        self.process.kill()
        self.process.wait()
        self._reader.join(timeout=10)
        if self.process.stderr is not None:
            self.process.stderr.close()


@pytest.mark.parametrize("number", [2, 5])
def test_one_polls_and_another_one_takes_over(
    monkeypatch: pytest.MonkeyPatch, database_url: str, engine: Engine, tmp_path: Path, number: int
) -> None:
    """Each has an account of its own, so that EC2 can tell who asks. The leader is killed."""
    accounts = [f"{number:012}" for number in range(number)]
    fleet = Fleet(SimulatedClock(datetime.now(UTC)), record=True)
    keys = {f"AKIA{account}": account for account in accounts}
    with Simulator(fleet, accounts=keys, regions=[REGION]) as simulator, ExitStack() as stack:
        lead_here(monkeypatch, simulator)

        def polls(account: str) -> int:
            return simulator.count(action=LISTING, account=account)

        daemons = [Process(database_url, tmp_path / account, account) for account in accounts]
        for daemon in daemons:
            stack.callback(daemon.kill)
            fleet.put(daemon.account, REGION, wire("a"))
        eventually(lambda: all(daemon.leading() is not None for daemon in daemons))
        states = {daemon.account: daemon.leading() for daemon in daemons}
        (leader,) = (daemon for daemon in daemons if states[daemon.account])
        others = [daemon for daemon in daemons if daemon is not leader]
        eventually(lambda: polls(leader.account) > 3)
        assert {polls(daemon.account) for daemon in others} == {0}
        assert {states[daemon.account] for daemon in others} == {False}

        leader.kill()
        began = monotonic()
        eventually(lambda: any(polls(daemon.account) for daemon in others))
        assert monotonic() - began < 10
        sys.stdout.write(f"taken over after {monotonic() - began:.1f} s\n")
        successor = next(daemon for daemon in others if polls(daemon.account))
        eventually(lambda: polls(successor.account) > 3)
        assert [daemon.leading() for daemon in others] == [daemon is successor for daemon in others]
        assert sum(polls(daemon.account) > 0 for daemon in others) == 1

        for daemon in others:
            daemon.process.terminate()
        assert [daemon.process.wait(timeout=20) for daemon in others] == [0] * len(others)
    assert max(simulator.peaks.values()) == 1
    eventually(lambda: sessions(engine) == 0)


def test_a_daemon_and_a_backfill_never_look_at_once(
    simulator: Simulator, database_url: str, engine: Engine, tmp_path: Path
) -> None:
    """However often they try."""
    simulator.latency = 0.2
    environment = {"COLLECTOR_DATABASE_URL": database_url, "COLLECTOR_REGIONS": f"{REGION},{OTHER_REGION}"}
    every = {"interval": "1s", "idle_interval": "1s", "regions": [REGION, OTHER_REGION]}
    with running(settings(database_url, data_dir=tmp_path / "daemon", **every)) as daemon:
        stores(daemon)
        for number in range(3):
            (tmp_path / str(number)).mkdir()
            shell = Shell(tmp_path / str(number), **simulator.environment, **environment)
            assert shell("backfill", "--source", "api").code == 0
    both = {type(result).__name__ for _, result in daemon.seen.looks}
    assert both == {"Scan", "NoneType"}  # sometimes the other one was at it
    assert {simulator.peaks[ACCOUNT, region] for region in (REGION, OTHER_REGION)} == {1}
    own = len([result for _, result in daemon.seen.looks if result])
    assert rows(engine, "SELECT count(*) FROM vm_import.scans") == [(own + 6,)]


# In this process, where what they see can be kept


def ends_well(engine: Engine, simulator: Simulator, *daemons: Running) -> None:
    """Hold what daemons that have ended saw together against what is stored."""
    engine.dispose()
    eventually(lambda: sessions(engine) == 0)
    assert_nothing_is_lost(engine, simulator, seen_by(*daemons))


@pytest.mark.skipif(not CAN_LOSE, reason="only Linux lets a program lose packets")
def test_the_leader_loses_its_network(
    simulator: Simulator, database_url: str, engine: Engine, tmp_path: Path
) -> None:
    """Another one takes over; the first goes on into its spool, and gives way when its network is back."""
    with Proxy(database_url) as proxy:
        if not proxy.over_tcp:
            pytest.skip("packets are lost only on the way to a server that is reached over TCP")
        cut_off, whole = often(proxy.url, tmp_path / "1"), often(database_url, tmp_path / "2")
        with running(cut_off, answer=1) as first, ExitStack() as stack:
            stores(first)
            second = stack.enter_context(running(whole))
            eventually(lambda: second.daemon.state().leading is False)

            proxy.lose()
            began = monotonic()
            eventually(lambda: second.daemon.state().leading, timeout=25)
            sys.stdout.write(f"taken over after {monotonic() - began:.1f} s\n")
            stores(second)
            spools(first)

            proxy.resume()
            eventually(lambda: first.daemon.state().leading is False)
            eventually(lambda: first.daemon.state().spool_files == 0)
            looks = len(first.seen.looks)
            stores(second, 10)
            assert len(first.seen.looks) == looks
        assert spooled(cut_off) == spooled(whole) == []
        ends_well(engine, simulator, first, second)


def test_a_standby_that_loses_its_database_does_not_begin_to_poll(
    simulator: Simulator, database_url: str, engine: Engine, tmp_path: Path
) -> None:
    """Not even when the leader ends meanwhile: it begins when it has the lock."""
    with Proxy(database_url) as proxy, ExitStack() as stack:
        with running(often(database_url, tmp_path / "1")) as leader:
            stores(leader)
            standby = stack.enter_context(running(often(proxy.url, tmp_path / "2"), answer=1))
            eventually(lambda: standby.daemon.state().leading is False)
            proxy.swallow()
            proxy.reset()
            had = proxy.connections
            eventually(lambda: proxy.connections >= had + 2, timeout=40)
            stores(leader)
        had = proxy.connections
        eventually(lambda: proxy.connections > had, timeout=40)
        assert standby.seen.looks == []
        assert standby.daemon.state().leading is False
        proxy.resume()
        recovers(standby)
        stack.close()
        ends_well(engine, simulator, leader, standby)


# Behind pgbouncer


@pytest.fixture
def powerless(server_url: str) -> Iterator[Callable[[str], str]]:
    """Turn a database's URL into that of a role that may do nothing there but connect, and lock by number."""
    role, password = f"powerless_{uuid.uuid4().hex}", uuid.uuid4().hex
    with psycopg.connect(server_url, autocommit=True) as connection:
        create = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}")
        connection.execute(create.format(sql.Identifier(role), password))
        yield (
            lambda url: (
                make_url(url).set(username=role, password=password).render_as_string(hide_password=False)
            )
        )
        connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


@pytest.fixture
def pooled(public_folder: Path) -> Iterator[Callable[[str], str]]:
    """Put a pgbouncer in transaction mode before a URL, and return the URL that leads through it."""
    if not PGBOUNCER.exists():
        pytest.skip("pgbouncer is not installed: apt-get install pgbouncer")
    with ExitStack() as stack:
        yield lambda url: stack.enter_context(pgbouncer(url, public_folder))


@contextmanager
def pgbouncer(url: str, folder: Path) -> Iterator[str]:
    """Run a pooler of a few server sessions, which nobody keeps for longer than a transaction."""
    with psycopg.connect(url) as connection:
        info = connection.info
        database = info.dbname
        place = f"host={info.host} port={info.port} user={info.user} password='{info.password}'"
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    configuration = folder / f"pgbouncer-{port}.ini"
    configuration.write_text(
        f"[databases]\n{database} = dbname={database} {place}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        "auth_type = any\npool_mode = transaction\ndefault_pool_size = 3\nmax_prepared_statements = 0\n",
        encoding="utf-8",
    )
    configuration.chmod(0o644)
    as_nobody: dict[str, Any] = {}
    if os.geteuid() == 0:  # which it refuses
        nobody = pwd.getpwnam("nobody")
        as_nobody = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    process = subprocess.Popen(
        [PGBOUNCER, "--quiet", configuration],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        **as_nobody,
    )
    try:
        eventually(lambda: _listens(port))
        pooled = make_url(url).difference_update_query(["host", "port"]).set(host="127.0.0.1", port=port)
        yield pooled.render_as_string(hide_password=False)
    finally:
        process.terminate()
        process.wait(timeout=20)
        configuration.unlink()


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


LOCKS = """
    SELECT DISTINCT a.usename FROM pg_locks l JOIN pg_stat_activity a USING (pid)
    WHERE l.locktype = 'advisory' AND l.classid IN (:leases, :leadership)
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"""


def test_everything_but_leadership_and_leases_goes_through_a_pooler(
    simulator: Simulator,
    database_url: str,
    powerless: Callable[[str], str],
    pooled: Callable[[str], str],
    engine: Engine,
    tmp_path: Path,
) -> None:
    """Past it they come as a role that could do nothing else. Of two daemons one leads."""
    through, past = pooled(database_url), powerless(database_url)
    simulator.latency = 0.05
    regions = [REGION, OTHER_REGION]
    configurations = [
        often(through, tmp_path / str(number), direct_database_url=past, regions=regions)
        for number in range(2)
    ]
    with running(configurations[0]) as first, running(configurations[1]) as second:
        eventually(lambda: {d.daemon.state().leading for d in (first, second)} == {True, False})
        leader, standby = (first, second) if first.daemon.state().leading else (second, first)
        stores(leader, 20)
        found = rows(engine, LOCKS, leases=0x766D6903, leadership=0x766D6904)
        assert found == [(make_url(past).username,)]
        assert standby.seen.looks == []
    assert {simulator.peaks[ACCOUNT, region] for region in regions} == {1}
    assert_nothing_is_lost(engine, simulator, seen_by(leader))


def test_a_backfill_of_files_goes_through_a_pooler(
    database_url: str,
    powerless: Callable[[str], str],
    pooled: Callable[[str], str],
    engine: Engine,
    tmp_path: Path,
) -> None:
    """It needs nothing that outlives a transaction."""
    shell = Shell(
        tmp_path,
        COLLECTOR_DATABASE_URL=pooled(database_url),
        COLLECTOR_DIRECT_DATABASE_URL=powerless(database_url),
    )
    name = shell.write("saved.json", json.dumps({"ImportImageTasks": [wire("a")]}))
    done = shell("backfill", name, *PLACE)
    assert done.code == 0, done.err
    assert rows(engine, "SELECT count(*) FROM vm_import.scans") == [(1,)]


def test_migrations_go_past_a_pooler(
    empty_database_url: str,
    powerless: Callable[[str], str],
    pooled: Callable[[str], str],
    tmp_path: Path,
) -> None:
    """Here it is through the pooler that one comes as a role that may make nothing."""
    shell = Shell(
        tmp_path,
        COLLECTOR_DATABASE_URL=pooled(powerless(empty_database_url)),
        COLLECTOR_DIRECT_DATABASE_URL=empty_database_url,
    )
    done = shell("migrate")
    assert done.code == 0, done.err
    with psycopg.connect(empty_database_url) as connection:
        revision = connection.execute("SELECT version_num FROM vm_import.alembic_version").fetchone()
    assert revision == (schema.head_revision(),)
