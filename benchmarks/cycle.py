"""How long does one cycle of the daemon take, fetch and load together, when nothing has changed?

Targets of 20 tasks, which a backfill has stored before, polled by the daemon's own parts without a pause:
each is due again long before a cycle is over. A cycle lasts until as many looks are stored as there are
targets. The limit is the slower of two: the same number of answers fetched by a bare HTTP client, which
neither signs nor parses, over as many connections; and one COPY of as many rows into ``scans``. Set
``BENCH_FULL=1`` for 3,500 targets instead of 700.
"""

import os
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from io import StringIO
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from unittest.mock import patch

import psycopg
from psycopg import sql

from benchmarks.canned import canned
from benchmarks.load import Row
from collector.aws.regions import known_regions
from collector.commands.backfill import from_sources
from collector.commands.composition import warehouse_of
from collector.commands.wiring import daemon_of
from collector.config import Settings, load
from collector.daemon import Daemon, Result
from collector.domain import Target
from collector.logs import configure
from collector.outcomes import Tally
from collector.warehouse import schema

ACCOUNTS, REGIONS, TASKS = 100 if os.environ.get("BENCH_FULL") else 20, 35, 20
TARGETS = ACCOUNTS * REGIONS
LATENCY, CONNECTIONS = 0.08, 64
WARM_UP, CYCLES = 2, 6
"""The first cycle makes clients and parses what later ones recognise."""

LIMITS = 5


class Stored:
    """An observer that notes when each cycle was fetched, and when it was stored, by two clocks."""

    def __init__(self, targets: int) -> None:
        self._targets = targets
        self._changed = threading.Condition()
        self._scans = 0
        self.ends: list[tuple[float, float]] = []
        self.failures = 0

    def looked(self, target: Target, result: Result, seconds: float) -> None:
        """Tell nothing: a look counts when it is stored."""

    def recorded(self, tally: Tally, seconds: float) -> None:  # noqa: ARG002 - not of interest
        """Count the scans of a batch, and note the ends of cycles."""
        with self._changed:
            self._scans += tally.scans
            self.failures += len(tally.failures) + len(tally.refused)
            while self._scans >= self._targets * (len(self.ends) + 1):
                self.ends.append((perf_counter(), process_time()))
            self._changed.notify_all()

    def wait_for(self, cycles: int) -> None:
        """Wait until so many cycles are stored."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.ends) >= cycles, timeout=300.0 * cycles):
                raise TimeoutError(f"{self._scans} scans stored, {self.failures} looks failed")


@dataclass(frozen=True, slots=True)
class Cycle:
    """Seconds by the clock on the wall, and of this process's CPU."""

    wall: float
    cpu: float


def rows(server_url: str) -> Iterator[Row]:
    """Measure the limits before and after the daemon, in a database of this benchmark's own."""
    with database(server_url) as url, canned(tasks=TASKS, latency=LATENCY) as variables:
        port = int(variables["AWS_ENDPOINT_URL"].rpartition(":")[2])
        fetches = [bare_fetch(port) for _ in range(LIMITS)]
        cycle = measure(url, variables)
        fetches += [bare_fetch(port) for _ in range(LIMITS)]
        copies = [_copy(url, turn) for turn in range(LIMITS)]
    limit = max(median(one.wall for one in fetches), median(copies))
    question = f"one cycle, {TARGETS} targets of {TASKS} tasks, unchanged"
    yield Row(f"{question} / bare fetch or COPY", cycle.wall, limit)
    yield Row(f"{question}, CPU / bare fetch", cycle.cpu, median(one.cpu for one in fetches))


def measure(url: str, variables: Mapping[str, str]) -> Cycle:
    """Store all, then poll, and return the mean cycle after the warm-up: looks are stored once a second."""
    stored = Stored(TARGETS)
    with configured(url, variables, accounts=ACCOUNTS, regions=REGIONS) as settings:
        store_all(settings)
        with polling(settings, stored):
            stored.wait_for(WARM_UP + CYCLES)
    if stored.failures:
        raise RuntimeError(f"{stored.failures} looks failed")
    (wall, cpu), (last_wall, last_cpu) = stored.ends[WARM_UP - 1], stored.ends[WARM_UP + CYCLES - 1]
    return Cycle((last_wall - wall) / CYCLES, (last_cpu - cpu) / CYCLES)


@contextmanager
def polling(settings: Settings, stored: Stored) -> Iterator[Daemon]:
    """Run a daemon."""
    with (
        warehouse_of(settings) as warehouse,
        daemon_of(settings, warehouse, accounts=(), known={}, observer=stored) as daemon,
    ):
        thread = threading.Thread(target=daemon.run, name="daemon")
        thread.start()
        try:
            yield daemon
        finally:
            daemon.stop()
            thread.join()


def store_all(settings: Settings) -> None:
    """Store every task, as a backfill does, and say nothing."""
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        from_sources(settings, accounts=(), sources=["api"], since=None, dry_run=False, as_json=True)


@contextmanager
def configured(url: str, variables: Mapping[str, str], *, accounts: int, regions: int) -> Iterator[Settings]:
    """Lead boto3 to a server, and yield a configuration in which every target is always due."""
    configure("text", verbose=False)  # to standard error, past the table
    with TemporaryDirectory() as folder, patch.dict(os.environ, variables):
        yield _settings(url, Path(folder), accounts=accounts, regions=regions)


def _settings(url: str, folder: Path, *, accounts: int, regions: int) -> Settings:
    return load(
        {
            "database_url": url,
            "data_dir": folder,
            "accounts": [
                {"role_arn": f"arn:aws:iam::{number:012}:role/collector"} for number in range(accounts)
            ],
            "regions": known_regions()[:regions],
            "interval": "1s",
            "idle_interval": "1s",
            "concurrency": CONNECTIONS,
        }
    )


def bare_fetch(port: int) -> Cycle:
    """Fetch as many answers over as many connections, and do nothing with them."""
    left = iter(range(TARGETS))  # next() of it is one step, whatever the number of threads
    began, cpu = perf_counter(), process_time()
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        for worker in [pool.submit(_fetch, port, left) for _ in range(CONNECTIONS)]:
            worker.result()
    return Cycle(perf_counter() - began, process_time() - cpu)


def _fetch(port: int, left: Iterator[int]) -> None:
    connection = HTTPConnection("127.0.0.1", port)
    for number in left:
        credential = (
            f"AWS4-HMAC-SHA256 Credential=AKIA{number % ACCOUNTS:012}/20260101/us-east-1/ec2/aws4_request"
        )
        connection.request("POST", "/", "Action=DescribeImportImageTasks", {"Authorization": credential})
        connection.getresponse().read()
    connection.close()


def _copy(url: str, turn: int) -> float:
    """Copy one row for each target into ``scans``, in one transaction."""
    at = datetime(2000, 1, 1, tzinfo=UTC) + timedelta(days=turn)
    began = perf_counter()
    with psycopg.connect(url) as connection, connection.cursor() as cursor:
        statement = (
            "COPY vm_import.scans (target_id, observed_at, finished_at, complete, task_count, digest, source)"
            " FROM STDIN (FORMAT BINARY)"
        )
        with cursor.copy(statement) as copy:
            copy.set_types(["int4", "timestamptz", "timestamptz", "bool", "int4", "bytea", "text"])
            for target_id in range(1, TARGETS + 1):
                copy.write_row((target_id, at, at, True, TASKS, b"0123456789abcdef", "api"))
    return perf_counter() - began


@contextmanager
def database(server_url: str) -> Iterator[str]:
    """Make a migrated database, and remove it in the end."""
    name = "collector_benchmark_cycle"
    with psycopg.connect(server_url, autocommit=True) as connection:
        drop = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
        connection.execute(drop)
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        url = server_url.rpartition("/")[0] + f"/{name}"
        with warehouse_of(load({"database_url": url})) as warehouse:
            schema.upgrade(warehouse.engine)
        yield url
        connection.execute(drop)
