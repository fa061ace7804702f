"""What does it cost to load a target, against the plainest write of the same rows?

Hashing is left out: the scans are ready-made. The limit of a first load is a binary COPY of the rows it
made into the same tables; that of an unchanged poll is a committed insert of one row into ``scans``.
"""

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import psycopg
from psycopg import sql
from sqlalchemy import Engine

from collector.aws.transform import import_task
from collector.domain import ImportTask, Scan, Target
from collector.warehouse import history, schema
from collector.warehouse.engine import connect_to_url, make_engine

TASKS = 20_000
REPEATS = 5
TARGET = Target("111122223333", "eu-west-1")
START = datetime(2026, 1, 1, tzinfo=UTC)
TABLES = ("tasks", "task_versions", "snapshot_details", "tags", "scans")


class Row(NamedTuple):
    """A question and its two answers, times in seconds if nothing else is said."""

    question: str
    ours: float
    limit: float
    unit: str = " s"


def rows(server_url: str) -> Iterator[Row]:
    """Measure in a database of this benchmark's own."""
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS collector_benchmark")
        connection.execute("CREATE DATABASE collector_benchmark")
    url = server_url.rpartition("/")[0] + "/collector_benchmark"
    engine = make_engine(connect_to_url(url))
    try:
        schema.upgrade(engine)
        tasks = tuple(import_task(_wire(number)) for number in range(TASKS))
        yield _first_load(engine, url, tasks)
        yield _unchanged(engine, url, tasks)
    finally:
        engine.dispose()
        with psycopg.connect(server_url, autocommit=True) as connection:
            connection.execute("DROP DATABASE collector_benchmark WITH (FORCE)")


def _first_load(engine: Engine, url: str, tasks: tuple[ImportTask, ...]) -> Row:
    ours, limit = [], []
    with psycopg.connect(url, autocommit=True) as connection:
        for _ in range(REPEATS):
            _empty(connection)
            ours.append(_timed(_store, engine, _scan(0, tasks)))
            copies = {table: _copied_out(connection, table) for table in TABLES}
            _empty(connection)
            limit.append(_timed(_copy_in, connection, copies))
    return Row(f"first load of {TASKS} tasks / binary COPY", median(ours), median(limit))


def _unchanged(engine: Engine, url: str, tasks: tuple[ImportTask, ...]) -> Row:
    ours, limit = [], []
    with psycopg.connect(url) as connection:
        _empty(connection)
        connection.commit()
        _store(engine, _scan(0, tasks))
        for turn in range(1, 10 * REPEATS):
            ours.append(_timed(_store, engine, _scan(turn, tasks)))
            limit.append(_timed(_insert_one, connection, turn))
    return Row(f"unchanged poll of {TASKS} tasks / insert of one row", median(ours), median(limit))


def _timed(work: Callable[..., object], *arguments: object) -> float:
    started = perf_counter()
    work(*arguments)
    return perf_counter() - started


def _store(engine: Engine, scan: Scan) -> None:
    list(history.store(engine, [scan]))


def _scan(hours: int, tasks: tuple[ImportTask, ...]) -> Scan:
    at = START + timedelta(hours=hours)
    return Scan(TARGET, at, at, True, "api", tasks)


def _empty(connection: psycopg.Connection[Any]) -> None:
    connection.execute(
        "TRUNCATE vm_import.scans, vm_import.tasks, vm_import.task_versions,"
        " vm_import.snapshot_details, vm_import.tags"
    )


def _copied_out(connection: psycopg.Connection[Any], table: str) -> bytes:
    statement = sql.SQL("COPY {} TO STDOUT (FORMAT BINARY)").format(sql.Identifier("vm_import", table))
    with connection.cursor().copy(statement) as copy:
        return b"".join(bytes(block) for block in copy)


def _copy_in(connection: psycopg.Connection[Any], copies: Mapping[str, bytes]) -> None:
    with connection.transaction():
        for table, rows_ in copies.items():
            statement = sql.SQL("COPY {} FROM STDIN (FORMAT BINARY)").format(
                sql.Identifier("vm_import", table)
            )
            with connection.cursor().copy(statement) as copy:
                copy.write(rows_)


def _insert_one(connection: psycopg.Connection[Any], turn: int) -> None:
    connection.execute(
        "INSERT INTO vm_import.scans SELECT -1, %s, now(), true, NULL, 0, '', 'api'",
        (START + timedelta(hours=turn),),
    )
    connection.commit()


def _wire(number: int) -> dict[str, Any]:
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
