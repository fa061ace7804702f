"""``python -m tests.soak``: the daemon at speed for simulated weeks, faults all the time, then an audit.

Three accounts whose roles are assumed, eight Regions, imports that come and end. Faults of AWS, of the
network, of credentials, of the database and of the clock come and go by a seeded chance, and the daemon is
restarted among them. At the end all is made well again, and ``soak_audit`` asks what is wrong.
"""

import argparse
import gc
import logging
import os
import sys
import tempfile
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from time import monotonic, sleep
from typing import Any, NamedTuple

import psutil
import psycopg
import pytest
import structlog
from sqlalchemy import Engine, make_url

from collector.commands.composition import spool_of, warehouse_of
from collector.commands.daemon import daemon_of
from collector.config import Settings
from collector.daemon import Daemon
from collector.domain import Target
from collector.errors import WarehouseError
from collector.simulator import Faults, Fleet, SimulatedClock, Simulator
from collector.simulator.faults import (
    Denied,
    Drip,
    DuplicateOverPages,
    EmptyListing,
    ErrorAnswer,
    Fault,
    HtmlPage,
    Latency,
    MissingTask,
    RepeatedToken,
    Reset,
    ServerError,
    Stall,
    Throttle,
    TokenCycle,
    TruncatedXml,
)
from collector.warehouse import reading, schema
from collector.warehouse.embedded import EmbeddedPostgres
from collector.warehouse.engine import connect_to_url, make_engine
from collector.warehouse.recording import record
from tests.absence import shut
from tests.conftest import create_database, drop_database
from tests.simulation import eventually, lead_here, rows, settings
from tests.soak_audit import Audit, Journal, Watch

ACCOUNTS = ("222233334444", "444455556666", "777788889999")
REGIONS = (
    "eu-west-1",
    "eu-central-1",
    "eu-north-1",
    "us-east-1",
    "us-west-2",
    "ap-south-1",
    "ap-southeast-2",
    "sa-east-1",
)
PAGE = 6
"""Tasks on a page: a week's imports of one target are some pages."""

IMPORTS_EVERY = timedelta(hours=12)
TICK = timedelta(seconds=0.05)
SPEED = {
    "interval": timedelta(seconds=0.6),
    "idle_interval": timedelta(seconds=1.2),
    "target_deadline": timedelta(seconds=2.5),
}
"""Too short for a configuration; everything else is as configured."""

CALM = {"interval": timedelta(seconds=2), "idle_interval": timedelta(seconds=2)}
"""How often to look while the daemon is measured: no look waits for the database then."""

_AT_ONCE = 4
"""The most faults in force at a time."""

_LONGEST_SPELL = 4.0
"""Seconds."""

_MARGINS = {"threads": 24, "sockets": 24, "files": 24}
"""How many more there may be at the end than after the warm-up: pools grow with the looks at once."""

_MEGABYTES = 100
"""How much more memory there may be at the end: what a busy time took is not all given back."""

Say = Callable[[str], object]


class Usage(NamedTuple):
    """What this process holds of the machine."""

    megabytes: float
    threads: int
    sockets: int
    files: int

    @classmethod
    def now(cls) -> "Usage":
        """Measure."""
        gc.collect()
        process = psutil.Process()
        files = process.num_fds() if hasattr(process, "num_fds") else len(process.open_files())
        megabytes = process.memory_info().rss / 2**20
        return cls(megabytes, process.num_threads(), len(process.net_connections("all")), files)


class House:
    """The daemon that runs in this process, with the very parts of ``collector run``; it can be restarted."""

    def __init__(self, configuration: Settings, journal: Journal, watch: Watch) -> None:
        self._configuration = configuration
        self._journal = journal
        self._watch = watch
        self._stack = ExitStack()
        self.daemon: Daemon | None = None
        self.errors: list[BaseException] = []

    def start(self) -> None:
        """Begin, with the database or without it."""
        self._journal.whole.clear()
        with ExitStack() as stack:
            warehouse = stack.enter_context(warehouse_of(self._configuration))
            known: dict[Target, datetime] = {}
            with suppress(WarehouseError):
                known = reading.last_good_looks(warehouse.engine)
            warehouse.patience.seconds = 5.0
            parts = daemon_of(
                self._configuration,
                warehouse,
                accounts=(),
                known=known,
                observer=self._journal,
                now=self._watch,
                tick=TICK,
            )
            self.daemon = stack.enter_context(parts)
            thread = threading.Thread(target=self._run, args=[self.daemon], name="daemon")
            thread.start()
            stack.callback(self._ended, thread)
            stack.callback(self.daemon.stop)
            self._stack = stack.pop_all()

    def stop(self) -> None:
        """End, as SIGTERM does."""
        self._stack.close()
        self.daemon = None

    def restart(self) -> None:
        """Stop, and start anew with what waits on disk."""
        self.stop()
        self.start()

    def calm_down(self) -> None:
        """Look less often from the next start on."""
        self._configuration = self._configuration.model_copy(update=CALM)

    def drain(self) -> None:
        """Store what waits on disk, as ``collector backfill --spool`` does."""
        spool = spool_of(self._configuration)
        with warehouse_of(self._configuration) as warehouse:
            while waiting := spool.waiting(200):
                self._journal.recorded(record(warehouse.engine, [each.look for each in waiting]), 0)
                spool.remove(waiting)

    @property
    def knows_all(self) -> bool:
        """Whether it has seen every target whole since it began."""
        return len(self._journal.whole) == len(ACCOUNTS) * len(REGIONS)

    @property
    def waiting(self) -> int:
        """How many looks wait on disk."""
        return self.daemon.state().spool_files if self.daemon else 0

    def _run(self, daemon: Daemon) -> None:
        try:
            daemon.run()
        except BaseException as error:  # noqa: BLE001 - shown at the end
            self.errors.append(error)

    def _ended(self, thread: threading.Thread) -> None:
        thread.join(timeout=20)
        if thread.is_alive():
            self.errors.append(TimeoutError("the daemon did not end within 20 s"))


def terminate_backends(server_url: str, database_url: str, share: float) -> None:
    """End some of the backends of a database, whatever they are doing."""
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND random() < %s",
            [make_url(database_url).database, share],
        )


@dataclass
class Spell:
    """Something that is wrong for a while."""

    kind: Callable[[], AbstractContextManager[str]]
    ends: float
    trouble: AbstractContextManager[str]
    name: str = ""


ANSWERS: tuple[tuple[Fault, dict[str, Any]], ...] = (
    (Throttle(), {}),
    (ServerError(), {}),
    (ServerError("Unavailable"), {}),
    (Reset(), {}),
    (Reset(after_half=True), {}),
    (Stall(), {}),
    (Drip(0.005), {}),
    (Latency(0.3), {}),
    (TruncatedXml(), {}),
    (HtmlPage(), {}),
    (HtmlPage(well_formed=False), {}),
    (TokenCycle(), {}),
    (RepeatedToken(), {}),
    (DuplicateOverPages(), {}),
    (Denied(), {}),
    (Denied("AuthFailure"), {}),
    (ErrorAnswer("ExpiredToken"), {}),
    (ErrorAnswer("InvalidNextToken"), {}),
)
"""What EC2's answers meet."""

LIES: tuple[tuple[Fault, dict[str, Any]], ...] = (
    (EmptyListing(), {}),
    (EmptyListing(), {"only_listing": True}),
    (EmptyListing(), {"only_lookups": True}),
    (EmptyListing(), {"page": 2, "only_listing": True}),
    (MissingTask(fraction=0.4), {}),
)
"""Listings that leave tasks out. Where look-ups do so too, a listing stays in doubt."""


@dataclass
class Weather:
    """Faults that come and go."""

    simulator: Simulator
    server_url: str
    database_url: str
    watch: Watch
    house: House
    rng: Random
    spells: list[Spell] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)

    def change(self) -> None:
        """Let what is over go, and let something come."""
        for spell in [spell for spell in self.spells if spell.ends < monotonic()]:
            self._end(spell)
        if len(self.spells) < _AT_ONCE and self.rng.random() < 0.5:
            self._begin()

    def clear(self) -> None:
        """Let everything be well."""
        while self.spells:
            self._end(self.spells[0])

    def _end(self, spell: Spell) -> None:
        self.spells.remove(spell)
        spell.trouble.__exit__(None, None, None)

    def _begin(self) -> None:
        kinds = {
            self._answers: 45,
            self._lies: 15,
            self._denied_role: 3,
            self._short_lived_roles: 3,
            self._revoked_roles: 2,
            self._database_away: 4,
            self._backends_terminated: 5,
            self._wrong_clock: 5,
            self._restart: 4,
        }
        (kind,) = self.rng.choices(list(kinds), list(kinds.values()))
        here = {spell.kind for spell in self.spells}
        if (kind in here and kind not in {self._answers, self._lies}) or not self._makes_sense(kind, here):
            return
        spell = Spell(kind, monotonic() + self.rng.uniform(0.2, _LONGEST_SPELL), kind())
        spell.name = spell.trouble.__enter__()
        self.seen[spell.name] += 1
        self.spells.append(spell)

    def _makes_sense(self, kind: object, here: Collection[object]) -> bool:
        """Whether it is known what should come of it.

        A daemon that has just begun believes what it is told of targets that it has not seen yet, as far as
        the warehouse knows no better by the clock that there is: it is not lied to then, by clocks neither.
        """
        misleading = {self._lies, self._wrong_clock}
        if kind in misleading:
            return self.house.knows_all
        return kind != self._restart or not misleading & set(here)

    def _answers(self) -> AbstractContextManager[str]:
        return self._somewhere(*self.rng.choice(ANSWERS))

    def _lies(self) -> AbstractContextManager[str]:
        return self._somewhere(*self.rng.choice(LIES))

    @contextmanager
    def _somewhere(self, fault: Fault, hits: dict[str, Any]) -> Iterator[str]:
        """Let a fault hit some place: a Region, an account, both or everything, more or less often."""
        place: dict[str, Any] = {
            "region": self.rng.choice((None, *REGIONS)),
            "account": self.rng.choice((None, *ACCOUNTS)),
        }
        probability = self.rng.choice((0.2, 0.6, 1.0))
        with self.simulator.faults.add(fault, **place, **hits, probability=probability):
            yield " ".join([type(fault).__name__, *hits])

    @contextmanager
    def _denied_role(self) -> Iterator[str]:
        account = self.rng.choice(ACCOUNTS)
        self.simulator.revoke(account)
        with self.simulator.faults.add(Denied("AccessDenied"), action="AssumeRole", account=account):
            yield "denied role"

    @contextmanager
    def _short_lived_roles(self) -> Iterator[str]:
        self.simulator.expired_code = self.rng.choice(("ExpiredToken", "RequestExpired"))
        self.simulator.role_lifetime = timedelta(seconds=1)
        self.simulator.revoke(self.rng.choice(ACCOUNTS))
        yield "short-lived roles"
        self.simulator.role_lifetime = None

    @contextmanager
    def _revoked_roles(self) -> Iterator[str]:
        self.simulator.revoke(self.rng.choice(ACCOUNTS))
        yield "revoked roles"

    @contextmanager
    def _database_away(self) -> Iterator[str]:
        with shut(self.server_url, self.database_url):
            yield "database away"

    @contextmanager
    def _backends_terminated(self) -> Iterator[str]:
        terminate_backends(self.server_url, self.database_url, self.rng.choice((0.3, 1.0)))
        yield "backends terminated"

    @contextmanager
    def _wrong_clock(self) -> Iterator[str]:
        hours = self.rng.choice((-365 * 24, -24, -1, -0.2, 0.2, 1, 24, 365 * 24))
        self.watch.ahead = timedelta(hours=hours)
        yield "wrong clock"
        self.watch.ahead = timedelta(0)

    @contextmanager
    def _restart(self) -> Iterator[str]:
        self.house.restart()
        yield "restart"


@dataclass
class Report:
    """What came of a soak."""

    days: float
    counts: dict[str, int]
    faults: Counter[str]
    start: Usage
    end: Usage
    differences: dict[str, list[str]]

    @property
    def wrong(self) -> list[str]:
        """Every difference, and every bound that was passed, as a sentence."""
        found = [f"{question}: {one}" for question, some in self.differences.items() for one in some]
        if self.end.megabytes > self.start.megabytes + _MEGABYTES:
            found.append(f"memory grew from {self.start.megabytes:.0f} to {self.end.megabytes:.0f} MB")
        for name, margin in _MARGINS.items():
            before, after = getattr(self.start, name), getattr(self.end, name)
            if after > before + margin:
                found.append(f"there were {before} {name}, and there are {after}")
        return found

    def lines(self) -> Iterator[str]:
        """Return the summary table."""
        yield f"{'simulated days':40} {self.days:10.1f}"
        for what, number in sorted(self.counts.items()):
            yield f"{'looks: ' + what:40} {number:10}"
        for name, number in sorted(self.faults.items()):
            yield f"{'spells: ' + name:40} {number:10}"
        for name in Usage._fields:
            yield f"{name:40} {getattr(self.start, name):10.0f} -> {getattr(self.end, name):.0f}"
        for question, found in self.differences.items():
            yield f"{question:66} {len(found)}"


class Soak:
    """One soak: so many real seconds in which so many simulated days pass, on databases of its own."""

    def __init__(
        self, server_url: str, template: str, folder: Path, *, days: float, seconds: float, seed: int
    ) -> None:
        self._server_url = server_url
        self._template = template
        self._folder = folder
        self._days = days
        self._seconds = seconds
        self._seed = seed

    def run(self, say: Say = print) -> Report:
        """Soak, and audit."""
        with ExitStack() as stack:
            url, soaked = self._database(stack)
            _, fresh = self._database(stack)
            clock = SimulatedClock(datetime.now(UTC), rate=self._days * 86400 / self._seconds)
            watch = Watch(clock)
            fleet = Fleet(clock, self._seed, shuffle=True, record=True)
            journal = Journal(self._folder, watch, fleet)
            simulator = stack.enter_context(self._simulator(fleet))
            house = House(self._settings(url), journal, watch)
            stack.callback(house.stop)
            weather = Weather(simulator, self._server_url, url, watch, house, Random(self._seed))
            stack.callback(weather.clear)
            self._warm_up(house)
            start, began = Usage.now(), clock.now()
            self._weather(weather, journal, say)
            end = self._settle(weather, journal, soaked)
            days = (clock.now() - began) / timedelta(days=1)
            clock.set_rate(0)
            journal.read_ledger()
            say("the soak is over; the audit begins")
            differences = {
                "faults of the daemon": [repr(error) for error in house.errors],
                "threads left over": _threads_left(),
                "looks left on disk": [str(path) for path in (self._folder / "spool").rglob("*.*")],
                **Audit(journal, soaked, fresh).differences(),
            }
            return Report(days, dict(journal.counts), weather.seen, start, end, differences)

    def _database(self, stack: ExitStack) -> tuple[str, Engine]:
        name = f"soak_{uuid.uuid4().hex}"
        url = create_database(self._server_url, name, self._template)
        stack.callback(drop_database, self._server_url, name)
        engine = make_engine(connect_to_url(url))
        stack.callback(engine.dispose)
        return url, engine

    @contextmanager
    def _simulator(self, fleet: Fleet) -> Iterator[Simulator]:
        """Run an EC2 with a week's imports behind it, which boto3 in this process talks to."""
        simulator = Simulator(fleet, Faults(self._seed), regions=REGIONS, page_size=PAGE)
        simulator.external_ids.update({account: f"id of {account}" for account in ACCOUNTS})
        for account in ACCOUNTS:
            for region in REGIONS:
                fleet.populate(account, region, int(timedelta(days=8) / IMPORTS_EVERY), until=timedelta(0))
                fleet.keep_importing(account, region, every=IMPORTS_EVERY)
        with simulator, pytest.MonkeyPatch.context() as monkeypatch:
            lead_here(monkeypatch, simulator)
            yield simulator

    def _settings(self, url: str) -> Settings:
        accounts = [
            {"role_arn": f"arn:aws:iam::{account}:role/collector", "external_id": f"id of {account}"}
            for account in ACCOUNTS
        ]
        configured = settings(url, accounts=accounts, concurrency=16, data_dir=self._folder)
        return configured.model_copy(update=SPEED)

    @staticmethod
    def _warm_up(house: House) -> None:
        """Let every target be looked at, and that by three daemons: what stays, stays from the first ones."""
        for begin in (house.start, house.restart, house.restart):
            begin()
            eventually(lambda: house.knows_all, timeout=60)

    def _weather(self, weather: Weather, journal: Journal, say: Say) -> None:
        began, told = monotonic(), 0
        while (passed := monotonic() - began) < self._seconds:
            weather.change()
            journal.read_ledger()
            if told <= (part := int(passed / self._seconds * _PROGRESS)):
                told = part + 1
                say(_progress(passed / self._seconds * self._days, weather, journal))
            sleep(0.1)

    @staticmethod
    def _settle(weather: Weather, journal: Journal, engine: Engine) -> Usage:
        """Make all well, wait until the daemon is, measure it, and end it.

        Its clock goes on from its furthest reading: what was observed at a wrong time to come would be the
        newest otherwise, for a year.
        """
        weather.clear()
        weather.house.calm_down()
        weather.watch.ahead = weather.watch.furthest + timedelta(days=1)
        since = weather.watch()

        def well() -> bool:
            journal.read_ledger()
            return not weather.house.waiting and rows(engine, _WELL, since=since)[0].well

        for _ in range(_TRIES):
            weather.house.restart()
            with suppress(AssertionError):  # the audit says what is not well
                eventually(well, timeout=60)
            usage = Usage.now()
            weather.house.stop()
            weather.house.drain()  # on a busy machine an end may come too soon for all to be stored
            if well():
                break
        with suppress(AssertionError):
            eventually(lambda: not _threads_left())
        return usage


_TRIES = 3
"""How often the daemon may end just when a look at a target has failed, on a busy machine."""

_PROGRESS = 20
"""Lines that tell of progress."""

_WELL = """
    SELECT NOT EXISTS (SELECT FROM vm_import.outages WHERE recovered_at IS NULL) AND NOT EXISTS (
        SELECT FROM vm_import.targets t WHERE 3 > (
            SELECT count(*) FROM vm_import.scans s
            WHERE s.target_id = t.target_id AND s.complete AND s.observed_at > :since)) AS well
"""


def _progress(day: float, weather: Weather, journal: Journal) -> str:
    failed = sum(number for what, number in journal.counts.items() if what not in {"complete", "partial"})
    megabytes = psutil.Process().memory_info().rss / 2**20
    return (
        f"day {day:5.1f}: {journal.counts['complete']} complete, {journal.counts['partial']} partial,"
        f" {failed} failed; {weather.house.waiting} wait on disk; {megabytes:.0f} MB;"
        f" {', '.join(spell.name for spell in weather.spells) or 'all well'}"
    )


def _threads_left() -> list[str]:
    names = ("daemon", "discover", "leadership", "loader", "look")
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(names)]


@contextmanager
def _server(folder: Path) -> Iterator[str]:
    if url := os.environ.get("TEST_DATABASE_URL"):
        yield url
        return
    with EmbeddedPostgres(folder / "server") as server:
        yield "postgresql://{user}:{password}@{host}:{port}/{dbname}".format(**server.conninfo())


@contextmanager
def _migrated(server_url: str) -> Iterator[str]:
    name = f"soak_template_{uuid.uuid4().hex}"
    engine = make_engine(connect_to_url(create_database(server_url, name, "template0")))
    schema.upgrade(engine)
    engine.dispose()
    yield name
    drop_database(server_url, name)


def main() -> int:
    """Soak as the command line says, print what came of it, and exit with 1 if anything is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--days", type=float, default=20, help="simulated days (%(default)s)")
    parser.add_argument("--minutes", type=float, default=20, help="real minutes (%(default)s)")
    parser.add_argument("--seed", type=int, default=Random().randrange(1000), help="of the faults")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    logging.getLogger("apscheduler").setLevel(logging.CRITICAL)  # it complains of ticks that come too fast

    def say(line: str) -> None:
        print(line, flush=True)  # noqa: T201 - a command

    say(f"{options.days:g} days in {options.minutes:g} minutes, seed {options.seed}")
    with tempfile.TemporaryDirectory(prefix="collector-soak-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # an unprivileged server must reach its own
        data = folder / "data"
        data.mkdir()
        with _server(folder) as server_url, _migrated(server_url) as template:
            limits = {"days": options.days, "seconds": options.minutes * 60, "seed": options.seed}
            report = Soak(server_url, template, data, **limits).run(say)
    for line in (*report.lines(), *(report.wrong or ["nothing is wrong"])):
        say(line)
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
