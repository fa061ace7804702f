"""The daemon in this process, with the very parts of ``collector run``: it polls on, whatever happens."""

import os
import signal
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, suppress
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError
from structlog.testing import capture_logs

from collector.aws.transform import import_task, wire_task
from collector.clock import utc_now
from collector.config import Settings, load
from collector.daemon import Daemon, Work
from collector.domain import Discovered, Scan, Target
from collector.loader import Loader
from collector.polling import Cadence
from collector.sightings import Sightings
from collector.simulator import Simulator
from collector.simulator.faults import Denied, EmptyListing, Latency, Stall
from collector.spool import Spool
from collector.warehouse import history
from collector.warehouse.engine import connect_to_url, make_engine
from collector.warehouse.recording import record
from tests.absence import shut
from tests.conftest import create_database, drop_database
from tests.daemons import Running, Watched, running
from tests.factories import TARGET, at, scan, stored
from tests.simulation import (
    ACCOUNT,
    OTHER_REGION,
    REGION,
    eventually,
    rows,
    settings,
    simulated,
    wire,
)

OFTEN = timedelta(seconds=0.1)
Away = Callable[[], AbstractContextManager[None]]


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    """A simulated EC2 with a task under way in each of its two Regions."""
    with simulated() as simulator:
        for region in (REGION, OTHER_REGION):
            simulator.fleet.put(ACCOUNT, region, wire("a", Progress="10"))
        yield simulator


def hurried(configuration: Settings) -> Settings:
    """Return a configuration with intervals that no user may have."""
    return configuration.model_copy(update={"interval": OFTEN, "idle_interval": OFTEN})


@pytest.fixture
def configuration(simulator: Simulator, database_url: str, tmp_path: Path) -> Settings:
    """Every enabled Region, ten times a second, into this test's database."""
    assert simulator
    return hurried(settings(database_url, data_dir=tmp_path / "data", target_deadline=timedelta(seconds=2)))


@pytest.fixture
def away(server_url: str, database_url: str) -> Away:
    """Take this test's database away for a while."""
    return lambda: shut(server_url, database_url)


@pytest.fixture
def often_discovered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask for accounts and Regions all the time, not once a day."""
    monkeypatch.setattr("collector.daemon.DISCOVERY_INTERVAL", OFTEN)
    monkeypatch.setattr("collector.daemon.DISCOVERY_RETRY", OFTEN)


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


def looks(seen: Watched, region: str = REGION) -> int:
    """Return how many looks at a Region have ended."""
    return sum(target.region == region for target, _ in list(seen.looks))


def more_looks(seen: Watched, region: str = REGION) -> None:
    """Wait until two more looks at a Region have ended: what they saw waits, if it is not stored."""
    had = looks(seen, region)
    eventually(lambda: looks(seen, region) >= had + 2, timeout=30)


def progresses(engine: Engine, region: str = REGION) -> list[str]:
    """Return what progress the Region's task made, as far as it was recorded."""
    query = (
        "SELECT progress FROM vm_import.task_history WHERE region = :region AND progress IS NOT NULL"
        " ORDER BY valid_from"
    )
    return [row.progress for row in rows(engine, query, region=region)]


def shows(engine: Engine, progress: str) -> None:
    """Wait until the warehouse knows of this progress."""
    eventually(lambda: progress in progresses(engine), timeout=30)


def outages(engine: Engine) -> list[tuple[Any, ...]]:
    """Return Region, code and whether it is over, of every outage."""
    query = "SELECT region, error_code, recovered_at IS NOT NULL FROM vm_import.outages ORDER BY outage_id"
    return [tuple(row) for row in rows(engine, query)]


# What it does


def test_it_polls_on_its_interval_and_records_what_changes(
    configuration: Settings, simulator: Simulator, engine: Engine
) -> None:
    """Neither more often than told, nor without end of a task's news."""
    with running(configuration):
        more_scans(engine)
        for percent in ("20", "30"):
            simulator.fleet.put(ACCOUNT, REGION, wire("a", Progress=percent))
            shows(engine, percent)
        more_scans(engine)
    assert progresses(engine) == ["10", "20", "30"]
    # A look may begin late on a busy machine, and the next one in time: only their number is bounded.
    statement = (
        "SELECT count(*) AS number, max(observed_at) - min(observed_at) AS time"
        " FROM vm_import.scans GROUP BY target_id"
    )
    assert all(scans.time > (scans.number - 3) * 0.9 * OFTEN for scans in rows(engine, statement))


def test_it_says_how_it_is(configuration: Settings, engine: Engine) -> None:
    """Alive, leading, with its database, and with what each target showed."""
    with running(configuration) as run:
        more_scans(engine, OTHER_REGION)
        more_scans(engine)
        eventually(lambda: run.daemon.state().ready)
        state = run.daemon.state()
    assert (state.alive, state.leading, state.database, state.spool_files) == (True, True, None, 0)
    assert {target.target.region for target in state.targets} == {REGION, OTHER_REGION}
    assert all(target.last_good_at and target.statuses == {"active": 1} for target in state.targets)


def test_a_stalled_region_delays_nobody(
    configuration: Settings, simulator: Simulator, engine: Engine
) -> None:
    """The others are polled on, its outage has one row, and it answers again by itself."""
    with running(configuration) as run:
        more_scans(engine)
        stall = simulator.faults.add(Stall(), region=REGION)
        eventually(lambda: stall.hits)
        before = scans(engine)
        for _ in range(3):
            more_scans(engine, OTHER_REGION)
        assert scans(engine) <= before + 1  # one may have been on its way into the database
        eventually(lambda: run.daemon.state().failing)
        stall.remove()
        more_scans(engine)
    assert outages(engine) == [(REGION, "DeadlineExceeded", True)]


def test_empty_then_full_listings_close_nothing(
    configuration: Settings, simulator: Simulator, engine: Engine
) -> None:
    """A valid answer without tasks is partial if no look-up confirms it, and whole if one corrects it."""
    with running(configuration) as run:
        more_scans(engine)
        for lie in (EmptyListing(), None, EmptyListing()):
            told = simulator.faults.add(lie, region=REGION) if lie else None
            more_looks(run.seen)
            if told:
                told.remove()
        simulator.faults.add(EmptyListing(), region=REGION, only_listing=True)
        more_looks(run.seen)
    (chain,) = stored(engine).values()
    assert [observed and observed.progress for *_, observed in chain] == ["10"]
    assert {complete for (complete,) in rows(engine, "SELECT complete FROM vm_import.scans")} == {True, False}


# Which targets there are


@pytest.mark.usefixtures("often_discovered")
def test_a_failing_discovery_keeps_the_targets(
    configuration: Settings, simulator: Simulator, engine: Engine
) -> None:
    """They are polled all the while; the account has an outage with AWS's code, and its end."""
    with running(configuration):
        more_scans(engine)
        with simulator.faults.add(Denied(), action="DescribeRegions") as denial:
            eventually(lambda: denial.hits > 1)
            more_scans(engine, OTHER_REGION)
        eventually(lambda: outages(engine) == [(None, "UnauthorizedOperation", True)])


@pytest.mark.usefixtures("often_discovered")
def test_a_region_that_is_enabled_is_polled_after_the_next_discovery(
    configuration: Settings, simulator: Simulator, engine: Engine
) -> None:
    """And one that is disabled no longer; EC2 itself is out of reach for a moment."""
    port = int(simulator.url.rsplit(":", 1)[1])
    with running(configuration) as run:
        more_scans(engine)
        simulator.stop()
        with Simulator(simulator.fleet, regions=[REGION, "eu-north-1"], port=port):
            more_scans(engine, "eu-north-1")
            assert {target.target.region for target in run.daemon.state().targets} == {REGION, "eu-north-1"}
            more_scans(engine)


@pytest.mark.usefixtures("often_discovered")
def test_a_slow_discovery_delays_no_look(
    configuration: Settings, simulator: Simulator, engine: Engine
) -> None:
    """It is asked for beside the looks: a tick never waits for AWS."""
    with running(configuration):
        more_scans(engine)
        slow = simulator.faults.add(Stall(), action="DescribeRegions")
        eventually(lambda: slow.hits)
        for _ in range(3):
            more_scans(engine)
        assert slow.hits == 1
        slow.remove()


def test_a_first_discovery_that_fails_is_tried_again(
    configuration: Settings, simulator: Simulator, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regions that nobody can name now are those of earlier times, or of a later answer."""
    monkeypatch.setattr("collector.daemon.DISCOVERY_RETRY", OFTEN)
    denial = simulator.faults.add(Denied(), action="DescribeRegions")
    with running(configuration):
        eventually(lambda: outages(engine) == [(None, "UnauthorizedOperation", False)])
        denial.remove()
        more_scans(engine)


# Without the database


def test_nothing_seen_is_lost_while_the_database_is_away(
    configuration: Settings, simulator: Simulator, engine: Engine, away: Away
) -> None:
    """Polling goes on, a new task is seen and one that is gone is judged by what this process saw."""
    with running(configuration) as run:
        more_scans(engine)
        with away():
            for percent in ("20", "30"):
                simulator.fleet.put(ACCOUNT, REGION, wire("a", Progress=percent))
                more_looks(run.seen)
            simulator.fleet.put(ACCOUNT, OTHER_REGION, wire("b"))
            more_looks(run.seen, OTHER_REGION)
            simulator.fleet.remove(ACCOUNT, OTHER_REGION, "import-ami-b")
            more_looks(run.seen, OTHER_REGION)
            state = run.daemon.state()
            assert state.database
            assert state.spool_files
        eventually(lambda: not run.daemon.state().spool_files, timeout=40)
        more_scans(engine)
    assert progresses(engine) == ["10", "20", "30"]
    assert _all_scans(engine) >= {_key(look) for _, look in run.seen.looks if isinstance(look, Scan)}
    chains = stored(engine, Target(ACCOUNT, OTHER_REGION))
    assert [observed is not None for *_, observed in chains["import-ami-b"]] == [True, False]
    assert outages(engine) == []


def _all_scans(engine: Engine) -> set[tuple[Any, ...]]:
    query = (
        "SELECT account_id, region, observed_at, complete, digest"
        " FROM vm_import.scans JOIN vm_import.targets USING (target_id)"
    )
    return {(*row[:-1], bytes(row[-1])) for row in rows(engine, query)}


def _key(scan: Scan) -> tuple[Any, ...]:
    return scan.target.account_id, scan.target.region, scan.observed_at, scan.complete, scan.digest


def test_what_fails_while_the_database_is_away_is_an_outage_afterwards(
    configuration: Settings, simulator: Simulator, engine: Engine, away: Away
) -> None:
    """Failures wait on disk like scans."""
    with running(configuration) as run:
        more_scans(engine)
        with away():
            with simulator.faults.add(Denied(), region=REGION):
                more_looks(run.seen)
            more_looks(run.seen)
        eventually(lambda: not run.daemon.state().spool_files, timeout=40)
        eventually(lambda: outages(engine) == [(REGION, "UnauthorizedOperation", True)])


def test_an_account_that_answers_while_the_database_is_away_has_recovered(
    configuration: Settings,
    simulator: Simulator,
    engine: Engine,
    away: Away,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its failure is stored later than it answered, and a day before it is asked again."""
    monkeypatch.setattr("collector.daemon.DISCOVERY_RETRY", OFTEN)
    denial = simulator.faults.add(Denied(), action="DescribeRegions")
    with ExitStack() as shut_out:
        shut_out.enter_context(away())
        with running(configuration) as run:
            eventually(lambda: run.daemon.state().spool_files, timeout=40)
            denial.remove()
            more_looks(run.seen)
            shut_out.close()
            eventually(lambda: outages(engine) == [(None, "UnauthorizedOperation", True)], timeout=40)


def test_polling_stops_while_neither_database_nor_disk_takes_what_is_seen(
    configuration: Settings, simulator: Simulator, engine: Engine, away: Away
) -> None:
    """Nothing seen may be dropped, so nothing more is looked at; it begins again by itself."""
    spool = configuration.data_dir / "spool"
    with running(configuration) as run:
        more_scans(engine)
        with away():
            kept = spool.rename(spool.with_name("kept"))
            spool.touch()
            eventually(lambda: run.daemon.state().spool_full)
            eventually(lambda: not _in_flight(run))
            asked = simulator.count(action="DescribeImportImageTasks")
            began = monotonic()
            eventually(lambda: monotonic() - began > 5 * OFTEN.total_seconds())
            assert simulator.count(action="DescribeImportImageTasks") == asked
            spool.unlink()
            kept.rename(spool)
            eventually(lambda: not run.daemon.state().spool_full)
            more_looks(run.seen)
        eventually(lambda: not run.daemon.state().spool_files, timeout=40)
    assert _all_scans(engine) >= {_key(look) for _, look in run.seen.looks if isinstance(look, Scan)}


def test_polling_waits_for_a_database_that_is_slow(
    configuration: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not away, so nothing goes to disk; and what is seen must not fill the memory."""
    monkeypatch.setattr("collector.daemon._MOST_WAITING", 5)
    most = 5 + 2  # those that wait, and one in flight for each Region
    with running(configuration) as run:
        more_scans(engine)
        with engine.begin() as connection:
            connection.execute(text("LOCK TABLE vm_import.scans"))
            had = len(run.seen.looks)
            eventually(lambda: len(run.seen.looks) >= had + 3)
            began = monotonic()
            eventually(lambda: monotonic() - began > 20 * OFTEN.total_seconds())
            assert len(run.seen.looks) <= had + most
            assert run.daemon.state().schedule_lag > OFTEN.total_seconds()
            assert not run.daemon.state().spool_files
        had = len(run.seen.looks)
        eventually(lambda: len(run.seen.looks) > had + most)
    assert _all_scans(engine) >= {_key(look) for _, look in run.seen.looks if isinstance(look, Scan)}


def _in_flight(run: Running) -> bool:
    return any(not runner.done() for runner in run.daemon._runners)  # noqa: SLF001 - nobody else knows


def test_an_embedded_server_that_is_killed_is_repaired(simulator: Simulator, public_folder: Path) -> None:
    """The daemon goes on, and nothing that it saw meanwhile is lost."""
    configuration = hurried(load({"data_dir": public_folder / "daemon"}))
    with running(configuration) as run:
        engine = run.warehouse.engine
        more_scans(engine)
        (pid_file,) = configuration.data_dir.rglob("postmaster.pid")
        postmaster = int(pid_file.read_text().split()[0])
        os.kill(postmaster, signal.SIGKILL)
        simulator.fleet.put(ACCOUNT, REGION, wire("a", Progress="20"))
        more_looks(run.seen)
        simulator.fleet.put(ACCOUNT, REGION, wire("a", Progress="30"))
        eventually(lambda: _progresses_if_up(engine) == ["10", "20", "30"], timeout=60)
        assert int(pid_file.read_text().split()[0]) != postmaster


def _progresses_if_up(engine: Engine) -> list[str]:
    with suppress(DBAPIError):
        return progresses(engine)
    return []


# The end


def test_looks_in_flight_at_the_end_are_stored(
    configuration: Settings, simulator: Simulator, engine: Engine
) -> None:
    """They have a moment to finish."""
    with running(configuration) as run:
        more_scans(engine)
        simulator.fleet.put(ACCOUNT, REGION, wire("a", Progress="20"))
        held = simulator.faults.add(Latency(0.5), region=REGION)
        eventually(lambda: held.hits)
        run.daemon.stop()
    assert progresses(engine)[-1] == "20"


def test_the_end_leaves_no_thread(configuration: Settings, simulator: Simulator, engine: Engine) -> None:
    """Also with a Region, a discovery and the database that hang or are away."""
    before = set(threading.enumerate())
    with running(configuration) as run:
        more_scans(engine)
        stall = simulator.faults.add(Stall(), region=REGION)
        eventually(lambda: stall.hits)
        run.daemon.stop()
        began = monotonic()
    assert monotonic() - began < 8
    simulator.stop()
    eventually(lambda: not [thread for thread in set(threading.enumerate()) - before if thread.is_alive()])


def test_a_daemon_that_has_lost_its_database_still_ends(
    configuration: Settings, engine: Engine, away: Away
) -> None:
    """Within seconds, and what it saw is on disk."""
    with running(configuration) as run:
        more_scans(engine)
        with away():
            more_looks(run.seen)
            began = monotonic()
            run.daemon.stop()
            eventually(lambda: not any(thread.name == "loader" for thread in threading.enumerate()))
            assert monotonic() - began < 10
            assert list(configuration.data_dir.rglob("*.look"))


# Clocks


class Clock:
    """A wall clock that can be set."""

    def __init__(self) -> None:
        self.ahead = timedelta(0)

    def __call__(self) -> datetime:
        """Read it."""
        return utc_now() + self.ahead


@pytest.fixture
def another_engine(server_url: str, migrated: str) -> Iterator[Engine]:
    """An engine on a migrated database of its own."""
    name = f"another_{uuid.uuid4().hex}"
    engine = make_engine(connect_to_url(create_database(server_url, name, migrated)))
    yield engine
    engine.dispose()
    drop_database(server_url, name)


def test_history_stays_right_when_the_wall_clock_jumps(
    configuration: Settings, simulator: Simulator, engine: Engine, another_engine: Engine
) -> None:
    """An hour and a year, both ways: late scans are late scans, and the same set of scans is one history."""
    clock = Clock()
    with running(configuration, now=clock) as run:
        more_scans(engine)
        for number, hours in enumerate((-1, 1, 365 * 24, -365 * 24, 0), start=2):
            clock.ahead = timedelta(hours=hours)
            simulator.fleet.put(ACCOUNT, REGION, wire("a", Progress=f"{number}0"))
            if number == 3:
                simulator.fleet.put(ACCOUNT, REGION, wire("b"))
            if number == 5:
                simulator.fleet.remove(ACCOUNT, REGION, "import-ami-b")
            shows(engine, f"{number}0")
    seen = {look for _, look in run.seen.looks if isinstance(look, Scan)}
    assert _all_scans(engine) == {_key(scan) for scan in seen}
    assert max(scan.observed_at for scan in seen) - min(scan.observed_at for scan in seen) > timedelta(
        days=729
    )
    list(history.store(another_engine, sorted(seen, key=lambda scan: scan.observed_at)))
    assert stored(engine) == stored(another_engine)
    assert progresses(engine) == ["50", "20", "10", "60", "30", "40"]


@pytest.mark.parametrize("hours", [-1, 1, -365 * 24, 365 * 24])
def test_ticks_go_on_when_the_wall_clock_jumps(
    configuration: Settings, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    """The scheduler goes by it, and would sleep until it is what it was."""

    class Jumped(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override] # as the scheduler calls it
            return datetime.now(tz) + timedelta(hours=hours)

    with running(configuration) as run:
        more_looks(run.seen)
        for module in ("schedulers.base", "triggers.interval"):
            monkeypatch.setattr(f"apscheduler.{module}.datetime", Jumped)
        for _ in range(3):
            more_looks(run.seen)
        assert run.daemon.state().alive


# What is handed in may fail


def test_a_look_that_raises_loses_neither_its_target_nor_the_others(engine: Engine, tmp_path: Path) -> None:
    """Looks return their failures; one that raises is broken, named, and asked again."""
    instants = iter(range(1_000_000))
    broken = threading.Event()
    bad, good = TARGET, Target(ACCOUNT, OTHER_REGION)
    seen = Watched()

    def look(target: Target) -> Scan:
        if target == bad and broken.is_set():
            raise RuntimeError("broken")
        return scan(next(instants), target=target)

    spool = Spool(tmp_path, limit=2**30, to_wire=wire_task, from_wire=import_task)
    loader = Loader(
        store=lambda looks: record(engine, looks),
        reach=lambda: None,
        repair=lambda: None,
        give_up=lambda: None,
        spool=spool,
        told=seen.recorded,
    )
    cadence = Cadence(interval=OFTEN, idle_interval=OFTEN, concurrency=2)
    found = Discovered((bad, good), (), (), at(0))
    work = Work(lambda: found, look, lambda: None, lambda: True, lambda: at(0))
    daemon = Daemon(work, cadence, loader, spool, Sightings(), seen, concurrency=2, tick=OFTEN / 5)
    thread = threading.Thread(target=daemon.run)
    thread.start()
    try:
        with capture_logs() as logs:
            broken.set()
            more_looks(seen, bad.region)
            more_looks(seen, good.region)
            broken.clear()
            more_scans(engine, bad.region)
    finally:
        daemon.stop()
        thread.join(timeout=20)
    assert _named(logs, "look put off") == {(bad.account_id, bad.region, "broken")}


def _named(logs: Iterable[Any], event: str) -> set[tuple[Any, ...]]:
    return {(log["account"], log["region"], log["error"]) for log in logs if log["event"] == event}
