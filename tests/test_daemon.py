"""The daemon: in this process with the parts of ``collector run``, or as the command itself."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from time import monotonic

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import Engine, make_url
from sqlalchemy.exc import DBAPIError

from collector.commands.composition import Polling
from collector.config import load
from collector.daemon import Daemon, Work
from collector.domain import Failure, Scan, Target
from collector.errors import CollectorError, WarehouseError
from collector.outcomes import Tally
from collector.polling import Cadence
from collector.simulator import Simulator
from collector.simulator.faults import Latency, Stall
from collector.warehouse.access import Warehouse
from collector.warehouse.recording import record
from tests.factories import TARGET, scan, task
from tests.simulation import (
    ACCOUNT,
    OTHER_REGION,
    REGION,
    eventually,
    polled,
    rows,
    settings,
    simulated,
    wire,
)

OFTEN = timedelta(seconds=0.1)
Result = Scan | Failure | None


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    """A simulated EC2 with a task under way in each of its two Regions."""
    with simulated() as simulator:
        for region in (REGION, OTHER_REGION):
            simulator.fleet.put(ACCOUNT, region, wire("a", Progress="10"))
        yield simulator


def work_of(warehouse: Warehouse, polling: Polling) -> Work:
    """Join the parts as ``collector run`` does."""
    return Work(
        discover=polling.targets,
        look=polling.look,
        cancel=polling.cancel,
        record=lambda looks: record(warehouse.engine, looks),
        repair=warehouse.repair,
    )


@contextmanager
def running(work: Work, *, interval: timedelta = OFTEN) -> Iterator[Daemon]:
    """Run a daemon; it must end within seconds, and without an error."""
    daemon = Daemon(work, Cadence(interval=interval, idle_interval=interval), concurrency=8, tick=OFTEN / 5)
    ends: list[BaseException | None] = []

    def run() -> None:
        try:
            daemon.run()
        except BaseException as error:  # noqa: BLE001 - handed to the test, which lies in another thread
            ends.append(error)
        else:
            ends.append(None)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield daemon
    finally:
        daemon.stop()
        thread.join(timeout=30)
    assert ends == [None]


def scans(engine: Engine, region: str = REGION) -> int:
    """Return how many scans of a Region are stored."""
    query = (
        "SELECT count(*) FROM vm_import.scans JOIN vm_import.targets USING (target_id) WHERE region = :region"
    )
    return int(rows(engine, query, region=region)[0][0])


def more_scans(engine: Engine, region: str = REGION) -> None:
    """Wait until two more scans of a Region are stored."""
    seen = scans(engine, region)
    eventually(lambda: scans(engine, region) >= seen + 2, timeout=30)


def progresses(engine: Engine, region: str = REGION) -> list[str]:
    """Return what progress the Region's task made, as far as it was recorded."""
    query = (
        "SELECT progress FROM vm_import.task_history WHERE region = :region AND progress IS NOT NULL"
        " ORDER BY valid_from"
    )
    return [row.progress for row in rows(engine, query, region=region)]


def test_it_polls_on_its_interval_and_records_what_changes(
    simulator: Simulator, database_url: str, engine: Engine
) -> None:
    """Neither more often than told, nor without end of a task's news."""
    with polled(settings(database_url)) as parts, running(work_of(*parts)):
        for percent in ("20", "30"):
            more_scans(engine)
            simulator.fleet.put(ACCOUNT, REGION, wire("a", Progress=percent))
        more_scans(engine)
    assert progresses(engine) == ["10", "20", "30"]
    # A look may begin late on a busy machine, and the next one in time: only their number is bounded.
    statement = (
        "SELECT count(*) AS number, max(observed_at) - min(observed_at) AS time"
        " FROM vm_import.scans GROUP BY target_id"
    )
    assert all(scans.time > (scans.number - 3) * OFTEN for scans in rows(engine, statement))


def test_a_stalled_region_delays_nobody(simulator: Simulator, database_url: str, engine: Engine) -> None:
    """The others are polled on, and it answers again by itself."""
    with polled(settings(database_url)) as parts, running(work_of(*parts)):
        more_scans(engine)
        rule = simulator.faults.add(Stall(seconds=1.5), region=REGION, times=1)
        eventually(lambda: rule.hits)
        seen = scans(engine)
        more_scans(engine, OTHER_REGION)
        assert scans(engine) <= seen + 1  # one may have been on its way into the database
        more_scans(engine)
    assert rows(engine, "SELECT * FROM vm_import.outages") == []


@pytest.mark.parametrize("stalled", [False, True], ids=["healthy", "stalled Region"])
def test_sigterm_ends_the_command_with_0_within_seconds(
    simulator: Simulator, database_url: str, engine: Engine, *, stalled: bool
) -> None:
    """What was seen is stored, and no traceback is left behind."""
    rule = simulator.faults.add(Stall(), region=OTHER_REGION, times=None if stalled else 0)
    process = subprocess.Popen(
        [sys.executable, "-m", "collector", "run"],
        env={**os.environ, "COLLECTOR_DATABASE_URL": database_url, "COLLECTOR_INTERVAL": "1s"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        eventually(lambda: scans(engine) and (rule.hits or not stalled))
        began = monotonic()
        process.terminate()
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, errors
    assert monotonic() - began < 12
    assert "Traceback" not in errors


# Without the database


@pytest.fixture
def away(server_url: str, database_url: str) -> Callable[[], AbstractContextManager[None]]:
    """Take this test's database away for a while: nobody is in, nobody gets in."""
    name = str(make_url(database_url).database)
    allow = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")

    @contextmanager
    def shut() -> Iterator[None]:
        with psycopg.connect(server_url, autocommit=True) as connection:
            connection.execute(allow.format(sql.Identifier(name), False))
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name]
            )
            yield
            connection.execute(allow.format(sql.Identifier(name), True))

    return shut


def test_nothing_seen_is_lost_while_the_database_is_away(
    simulator: Simulator, database_url: str, engine: Engine, away: Callable[[], AbstractContextManager[None]]
) -> None:
    """A look in flight when it went is stored when it is back, though nobody could judge its listing."""
    seen: list[str | None] = []

    with polled(settings(database_url)) as (warehouse, polling):

        def look(target: Target) -> Result:
            result = polling.look(target)
            if isinstance(result, Scan) and target.region == REGION:
                seen.extend(task.progress for task in result.tasks)
            return result

        with running(replace(work_of(warehouse, polling), look=look)):
            more_scans(engine)
            simulator.fleet.put(ACCOUNT, REGION, wire("a", Progress="20"))
            held = simulator.faults.add(Latency(1), region=REGION, times=1)
            eventually(lambda: held.hits)
            before = seen.count("20")
            with away():
                eventually(lambda: seen.count("20") > before)
                simulator.fleet.put(ACCOUNT, REGION, wire("a", Progress="30"))
            more_scans(engine)
    assert progresses(engine) == ["10", "20", "30"]
    assert rows(engine, "SELECT * FROM vm_import.outages") == []


def test_a_command_that_has_lost_its_database_still_ends(
    simulator: Simulator, database_url: str, engine: Engine, away: Callable[[], AbstractContextManager[None]]
) -> None:
    """Within seconds, by itself."""
    assert simulator
    with polled(settings(database_url)) as parts, running(work_of(*parts)) as daemon:
        more_scans(engine)
        with away():
            began = monotonic()
            daemon.stop()
            eventually(lambda: not any(thread.name.startswith("look") for thread in threading.enumerate()))
    assert monotonic() - began < 15


def test_an_embedded_server_that_is_killed_is_repaired(simulator: Simulator, public_folder: Path) -> None:
    """The daemon goes on with what it polled."""
    configuration = load({"data_dir": public_folder / "daemon"})
    with polled(configuration) as (warehouse, polling), running(work_of(warehouse, polling)):
        more_scans(warehouse.engine)
        (pid_file,) = configuration.data_dir.rglob("postmaster.pid")
        postmaster = int(pid_file.read_text().split()[0])
        os.kill(postmaster, signal.SIGKILL)
        eventually(
            lambda: pid_file.exists() and int(pid_file.read_text().split()[0]) != postmaster, timeout=60
        )
        simulator.fleet.put(ACCOUNT, REGION, wire("a", Progress="20"))
        eventually(lambda: _progresses_if_up(warehouse.engine) == ["10", "20"], timeout=60)


def _progresses_if_up(engine: Engine) -> list[str]:
    with suppress(DBAPIError):
        return progresses(engine)
    return []


# Several daemons


def test_two_daemons_never_look_at_one_target_at_a_time(
    simulator: Simulator, database_url: str, engine: Engine
) -> None:
    """However often they try, and both of them get their turns."""
    simulator.latency = 0.05
    turns: list[set[str]] = [set(), set()]

    with ExitStack() as daemons:
        # Regions by name, and both ready before one begins: questions about the account hold no lease.
        configuration = settings(database_url, regions=[REGION, OTHER_REGION])
        ready = [daemons.enter_context(polled(configuration)) for _ in turns]
        for (warehouse, polling), mine in zip(ready, turns, strict=True):

            def look(target: Target, polling: Polling = polling, mine: set[str] = mine) -> Result:
                result = polling.look(target)
                mine.add(type(result).__name__)
                return result

            work = replace(work_of(warehouse, polling), look=look)
            daemons.enter_context(running(work, interval=timedelta(0)))
        eventually(lambda: scans(engine) >= 20)
        eventually(lambda: all(mine == {"Scan", "NoneType"} for mine in turns))
    assert {simulator.peaks[ACCOUNT, region] for region in (REGION, OTHER_REGION)} == {1}


# What is handed in may fail


class Stand:
    """Work without AWS and without a database, which fails when told to."""

    def __init__(self) -> None:
        self.targets = [TARGET]
        self.fail: dict[str, Exception] = {}
        self.failed: list[str] = []
        self.recorded: list[Scan | Failure] = []
        self.repaired = 0
        self._instants = iter(range(1_000_000))

    def work(self) -> Work:
        """Return what a daemon is given."""
        return Work(self.discover, self.look, lambda: None, self.record, self.repair)

    def discover(self) -> list[Target]:
        """Name the targets."""
        self._fail("discover")
        return self.targets

    def look(self, target: Target) -> Scan:
        """See something new each time."""
        self._fail("look")
        return scan(next(self._instants), task("a"), target=target)

    def record(self, looks: list[Scan | Failure]) -> Tally:
        """Store."""
        self._fail("record")
        self.recorded += looks
        return Tally(scans=len(looks))

    def repair(self) -> None:
        """Count."""
        self.repaired += 1
        self._fail("repair")

    def _fail(self, what: str) -> None:
        if what in self.fail:
            self.failed.append(what)
            raise self.fail[what]

    def goes_on(self) -> None:
        """Wait until more is recorded."""
        had = len(self.recorded)
        eventually(lambda: len(self.recorded) > had + 1)


@pytest.mark.parametrize("what", ["look", "record", "discover"])
@pytest.mark.parametrize("error", [WarehouseError("away"), RuntimeError("broken")], ids=repr)
def test_whatever_raises_does_not_stop_the_daemon(
    monkeypatch: pytest.MonkeyPatch, what: str, error: Exception
) -> None:
    """It goes on as soon as that works again, and has lost no target."""
    monkeypatch.setattr("collector.daemon.DISCOVERY_INTERVAL", OFTEN)  # a day, which no test can wait for
    stand = Stand()
    with running(stand.work()):
        stand.goes_on()
        stand.fail[what] = error
        eventually(lambda: stand.failed.count(what) > 1)
        stand.fail.clear()
        stand.goes_on()


def test_a_failing_discovery_keeps_the_known_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are polled all the while; the first one that works is followed."""
    monkeypatch.setattr("collector.daemon.DISCOVERY_INTERVAL", OFTEN)  # as above
    stand = Stand()
    other = Target(ACCOUNT, OTHER_REGION)
    with running(stand.work()):
        stand.goes_on()
        stand.fail["discover"] = CollectorError("EC2 does not say")
        eventually(lambda: len(stand.failed) > 1)
        stand.goes_on()
        stand.targets = [other]
        stand.fail.clear()
        eventually(lambda: stand.recorded[-1].target == other)  # type: ignore[union-attr] # only scans are recorded here


def test_a_daemon_that_finds_no_targets_does_not_begin() -> None:
    """Whoever starts it reads why."""
    stand = Stand()
    stand.fail["discover"] = CollectorError("EC2 does not say")
    daemon = Daemon(stand.work(), Cadence(interval=OFTEN, idle_interval=OFTEN), concurrency=1)
    with pytest.raises(CollectorError, match="does not say"):
        daemon.run()


def test_what_is_not_recorded_is_kept_and_polling_waits() -> None:
    """Nothing is dropped, nothing piles up, and the database's repair is tried, even if that fails too."""
    stand = Stand()
    with running(stand.work()):
        stand.goes_on()
        stand.fail |= {"record": WarehouseError("away"), "repair": CollectorError("cannot be repaired")}
        eventually(lambda: stand.failed.count("record") > 5)
        had = len(stand.recorded)
        stand.fail.clear()
        stand.goes_on()
    instants = [look.observed_at for look in stand.recorded if isinstance(look, Scan)]
    assert instants == sorted(set(instants))
    assert instants[had] == instants[had - 1] + timedelta(minutes=1)
    assert stand.repaired


def test_a_slow_discovery_delays_no_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked for beside the looks: a tick never waits for AWS."""
    monkeypatch.setattr("collector.daemon.DISCOVERY_INTERVAL", OFTEN)  # as above
    stand = Stand()
    asked, answer = threading.Semaphore(0), threading.Event()

    def discover() -> list[Target]:
        asked.release()
        answer.wait(timeout=30)
        return [TARGET]

    answer.set()
    with running(replace(stand.work(), discover=discover)):
        stand.goes_on()
        answer.clear()
        assert asked.acquire(timeout=10)
        stand.goes_on()
        answer.set()


def test_a_wall_clock_that_is_set_back_does_not_stop_the_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheduler would sleep for an hour, also while looks are in flight."""
    stand = Stand()

    class AnHourAgo(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override] # as the scheduler calls it
            return datetime.now(tz) - timedelta(hours=1)

    with running(stand.work()):
        stand.goes_on()
        for module in ("schedulers.base", "triggers.interval"):
            monkeypatch.setattr(f"apscheduler.{module}.datetime", AnHourAgo)
        stand.goes_on()
