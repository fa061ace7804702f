"""What does it cost to load a target, against the plainest write of the same rows?

The limit of a load is a binary COPY of the very rows that it made into the same tables; that of an unchanged
poll is a committed insert of one row into ``scans``. "Load alone" begins with ready-made scans; "all
included" with tasks as boto3 parses them, so that canonicalising and hashing count. Times are wall times;
CPU is this process's and that of the server's process that works for it, where both are on one Linux.
Set ``BENCH_FULL=1`` for a target of 100,000 tasks instead of 20,000.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from time import perf_counter, thread_time
from typing import Any, NamedTuple

import psycopg
from psycopg import sql

from collector.aws.transform import import_task
from collector.domain import Scan, Target, Tasks
from collector.warehouse import history, schema
from collector.warehouse.engine import connect_to_url, make_asking_engine, make_engine
from collector.warehouse.recording import record

TASKS = 100_000 if os.environ.get("BENCH_FULL") else 20_000
REPEATS = 5
ACCOUNTS, REGIONS = 100, 35
TARGET = Target("111122223333", "eu-west-1")
START = datetime(2026, 1, 1, tzinfo=UTC)
TABLES = ("tasks", "task_versions", "snapshot_details", "tags", "scans")

_SCANS = """COPY vm_import.scans (target_id, observed_at, finished_at, complete, task_count, digest, source)
    FROM STDIN (FORMAT BINARY)"""
_SCAN_TYPES = ("int4", "timestamptz", "timestamptz", "bool", "int4", "bytea", "text")

Wire = Sequence[Mapping[str, Any]]


class Row(NamedTuple):
    """A question and its two answers, times in seconds if nothing else is said."""

    question: str
    ours: float
    limit: float
    unit: str = " s"


class Cost(NamedTuple):
    """What work took: seconds on the wall, seconds of CPU on both sides, bytes of the server's log."""

    wall: float
    cpu: float
    wal: float

    @classmethod
    def median(cls, costs: Sequence["Cost"]) -> "Cost":
        """Each on its own."""
        return cls(*map(median, zip(*costs, strict=True)))


class Bench:
    """A database of this benchmark's own, an engine with one connection to it, and a plain connection."""

    def __init__(self, url: str) -> None:
        self.engine = make_engine(connect_to_url(url))
        self._asking = make_asking_engine(connect_to_url(url), patience=10)
        schema.upgrade(self.engine)
        self.plain = psycopg.connect(url, autocommit=True)
        self._observer = psycopg.connect(url, autocommit=True)

    def cost(self, work: Callable[..., object], *arguments: object) -> Cost:
        """Do it once."""
        wal, cpu, began = wal_of(self._observer), self._cpu(), perf_counter()
        work(*arguments)
        return Cost(perf_counter() - began, self._cpu() - cpu, wal_of(self._observer) - wal)

    def store(self, *scans: Scan) -> None:
        """Load as a daemon does."""
        record(self.engine, scans)

    def missing(self, scans: Sequence[Scan]) -> None:
        """Ask what every look asks before its scan is complete."""
        for scan in scans:
            history.missing_from(self._asking, scan)

    def empty(self) -> None:
        """Begin anew; what was written before is on disk then."""
        self.plain.execute(
            "TRUNCATE vm_import.scans, vm_import.tasks, vm_import.task_versions,"
            " vm_import.snapshot_details, vm_import.tags, vm_import.targets"
        )
        self.plain.execute("CHECKPOINT")

    def copied_out(self) -> dict[str, bytes]:
        """Return all rows, ready-made."""
        copies = {}
        for table in TABLES:
            statement = sql.SQL("COPY {} TO STDOUT (FORMAT BINARY)").format(_name(table))
            with self.plain.cursor().copy(statement) as copy:
                copies[table] = b"".join(bytes(block) for block in copy)
        return copies

    def copy_in(self, copies: Mapping[str, bytes]) -> None:
        """Write ready-made rows in one transaction."""
        with self.plain.transaction():
            for table, rows_ in copies.items():
                statement = sql.SQL("COPY {} FROM STDIN (FORMAT BINARY)").format(_name(table))
                with self.plain.cursor().copy(statement) as copy:
                    copy.write(rows_)

    def insert_scan(self, scan: Scan) -> None:
        """Write one row, and commit."""
        self.plain.execute(
            "INSERT INTO vm_import.scans SELECT -1, %s, %s, true, NULL, %s, %s, %s",
            (scan.observed_at, scan.finished_at, len(scan.tasks), scan.digest, scan.source),
        )

    def copy_scans(self, scans: Sequence[Scan]) -> None:
        """Write a row for each, of targets that are not there."""
        with self.plain.transaction(), self.plain.cursor().copy(_SCANS) as copy:
            copy.set_types(_SCAN_TYPES)
            for number, scan in enumerate(scans, 1):
                row = (-number, scan.observed_at, scan.finished_at, True, len(scan.tasks))
                copy.write_row((*row, scan.digest, scan.source))

    def close(self) -> None:
        """Leave the database."""
        self.plain.close()
        self._observer.close()
        self.engine.dispose()
        self._asking.dispose()

    def _cpu(self) -> float:
        with self.engine.connect() as connection:
            driver = connection.connection.driver_connection
            assert isinstance(driver, psycopg.Connection)  # noqa: S101 - for the type checker
            servers = (driver.info.backend_pid, self.plain.info.backend_pid)
        return thread_time() + sum(map(_server_cpu, servers))


def wal_of(connection: psycopg.Connection[Any]) -> float:
    """Return how many bytes the server has ever written to its log."""
    row = connection.execute("SELECT pg_current_wal_insert_lsn() - '0/0'").fetchone()
    assert row is not None  # noqa: S101 - there is a position
    return float(row[0])


@contextmanager
def database(server_url: str, name: str = "collector_benchmark") -> Iterator[str]:
    """Make an empty database for a benchmark; it is gone afterwards."""
    drop = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(drop)
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            yield f"{server_url.rpartition('/')[0]}/{name}"
        finally:
            connection.execute(drop)


def rows(server_url: str) -> Iterator[Row]:
    """Measure in a database of this benchmark's own."""
    wires = all_wires()
    with _without_page_images(server_url), database(server_url) as url:
        bench = Bench(url)
        try:
            yield from _first_load(bench, wires)
            yield from _unchanged(bench, wires)
            yield from _changed(bench, wires)
            yield from _cycle(bench)
        finally:
            bench.close()


def _first_load(bench: Bench, wires: Wire) -> Iterator[Row]:
    alone, included, limit = [], [], []
    scan = scan_at(0, wires)
    for _ in range(REPEATS):
        bench.empty()
        alone.append(bench.cost(bench.store, scan))
        copies = bench.copied_out()
        bench.empty()
        limit.append(bench.cost(bench.copy_in, copies))
        bench.empty()
        included.append(bench.cost(lambda: bench.store(scan_at(0, wires))))
    question = f"first load of {TASKS} tasks"
    yield from _both(f"{question} / binary COPY", alone, limit)
    yield from _both(f"{question}, all included / binary COPY", included, limit)


def _unchanged(bench: Bench, wires: Wire) -> Iterator[Row]:
    ours, limit = [], []
    first = scan_at(0, wires)
    bench.empty()
    bench.store(first)
    for turn in range(1, 10 * REPEATS):
        scan = _again(turn, first)
        ours.append(bench.cost(bench.store, scan))
        limit.append(bench.cost(bench.insert_scan, scan))
    question = f"unchanged poll of {TASKS} tasks / insert of one row"
    yield from _both(question, ours, limit)
    yield Row(f"WAL of an {question}", Cost.median(ours).wal, Cost.median(limit).wal, " B")


def _changed(bench: Bench, wires: Wire) -> Iterator[Row]:
    """Change every twentieth task, in order and late: before the last scan, after a middle one."""
    order, late, limit = [], [], []
    first = scan_at(0, wires)
    changed = scan_at(2, changed_wires(wires))
    for _ in range(REPEATS):
        bench.empty()
        limit.append(bench.cost(bench.store, first))
        order.append(bench.cost(bench.store, changed))
        bench.empty()
        bench.store(first)
        bench.store(_again(3, first))
        late.append(bench.cost(bench.store, changed))
    yield from _both(f"5 % of {TASKS} tasks changed / their first load", order, limit)
    yield Row("its WAL without page images / 16 MB", Cost.median(order).wal / 2**20, 16, " MB")
    yield from _both("late scan, 5 % differ / the same in order", late, order)


def _cycle(bench: Bench) -> Iterator[Row]:
    """Look at many small targets in which nothing has changed."""
    targets = [Target(f"{a:012}", f"region-{r}") for a in range(ACCOUNTS) for r in range(REGIONS)]
    tasks = scan_at(0, [wire(number) for number in range(20)]).tasks
    bench.empty()
    bench.store(*(Scan(target, START, START, True, "api", tasks) for target in targets))
    ours, asked, limit = [], [], []
    for turn in range(1, REPEATS + 1):
        at = START + timedelta(hours=turn)
        scans = [Scan(target, at, at, True, "api", tasks) for target in targets]
        asked.append(bench.cost(bench.missing, scans))
        ours.append(bench.cost(bench.store, *scans))
        limit.append(bench.cost(bench.copy_scans, scans))
    question = f"unchanged cycle of {len(targets)} targets"
    yield from _both(f"{question} / COPY of as many scans", ours, limit)
    yield from _both(f"what its looks ask, one after the other, {question} / the same", asked, limit)


def _both(question: str, ours: Sequence[Cost], limit: Sequence[Cost]) -> Iterator[Row]:
    mine, other = Cost.median(ours), Cost.median(limit)
    yield Row(question, mine.wall, other.wall)
    yield Row(f"{question}, CPU", mine.cpu, other.cpu)


def scan_at(hours: int, wires: Wire) -> Scan:
    """Canonicalise and hash what boto3 parsed."""
    at = START + timedelta(hours=hours)
    return Scan(TARGET, at, at, True, "api", Tasks(map(import_task, wires)))


def changed_wires(wires: Wire) -> Wire:
    """Change every twentieth task."""
    return [{**task, "Progress": "31"} if n % 20 == 0 else task for n, task in enumerate(wires)]


def _again(hours: int, scan: Scan) -> Scan:
    at = START + timedelta(hours=hours)
    return Scan(TARGET, at, at, True, "api", scan.tasks)


@contextmanager
def _without_page_images(server_url: str) -> Iterator[None]:
    """Keep whole pages out of the log: how many there are is a matter of the last checkpoint."""
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET full_page_writes = off")
        connection.execute("SELECT pg_reload_conf()")
        try:
            yield
        finally:
            connection.execute("ALTER SYSTEM RESET full_page_writes")
            connection.execute("SELECT pg_reload_conf()")


def _server_cpu(pid: int) -> float:
    """Return the seconds that a server's process has computed, 0 where that cannot be seen."""
    statistics = Path(f"/proc/{pid}/schedstat")
    return int(statistics.read_text().split()[0]) / 1e9 if statistics.exists() else 0.0


def _name(table: str) -> sql.Identifier:
    return sql.Identifier("vm_import", table)


def all_wires() -> Wire:
    """Return the tasks of one target."""
    return [wire(number) for number in range(TASKS)]


def wire(number: int) -> dict[str, Any]:
    """Return a task with two disks and three tags, as boto3 parses it."""
    return {
        "ImportTaskId": f"import-ami-{number:017x}",
        "Status": "active",
        "StatusMessage": "converting",
        "Progress": "30",
        "Platform": "Linux",
        "SnapshotDetails": [
            {
                "DeviceName": f"/dev/sd{disk}",
                "DiskImageSize": 1e10 + number,
                "Format": "VMDK",
                "Status": "active",
            }
            for disk in "ab"
        ],
        "Tags": [{"Key": key, "Value": f"{key} {number}"} for key in ("Name", "Owner", "Wave")],
    }
