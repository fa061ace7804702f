"""What does a question about millions of versions cost, against the same rows fetched by their keys?

The history is made in SQL: targets of 1,000 tasks with 30 versions each, a scan for every change. One task in
fifty is still listed. Set ``BENCH_FULL=1`` for three million versions instead of 300,000.
"""

import os
from collections.abc import Iterator
from statistics import median
from time import perf_counter
from typing import Any, LiteralString

import psycopg

from benchmarks.load import Row, database
from collector.warehouse import schema
from collector.warehouse.engine import connect_to_url, make_engine

VERSIONS = 3_000_000 if os.environ.get("BENCH_FULL") else 300_000
REPEATS = 7

_VERSIONS_OF_A_TASK = 30
_TASKS_OF_A_TARGET = 1000

_FILL: tuple[LiteralString, ...] = (
    """
    INSERT INTO vm_import.targets (account_id, region)
    SELECT lpad((n / 35)::text, 12, '0'), 'region-' || n %% 35 FROM generate_series(0, %(targets)s - 1) AS n
    """,
    """
    INSERT INTO vm_import.tasks (target_id, import_task_id)
    SELECT target_id, 'import-ami-' || target_id || '-' || n
    FROM vm_import.targets, generate_series(1, %(tasks)s) AS n ORDER BY target_id, n
    """,
    # An instant for each version of a target's tasks, and two looks later the list without most of them.
    """
    INSERT INTO vm_import.scans (target_id, observed_at, finished_at, complete, task_count, digest, source)
    SELECT target_id, timestamptz '2026-01-01Z' + n * interval '1 minute', now(), true, 0, '', 'api'
    FROM vm_import.targets, generate_series(0, %(versions)s + 1) AS n
    """,
    """
    INSERT INTO vm_import.task_versions
        (task_id, valid_from, valid_to, target_id, listed, content_hash, status, status_message, progress)
    SELECT k.task_id, timestamptz '2026-01-01Z' + n * interval '1 minute',
        CASE WHEN n < %(versions)s - 1 OR NOT stays
            THEN timestamptz '2026-01-01Z' + (n + 1) * interval '1 minute' END,
        k.target_id, true, n, CASE WHEN n < %(versions)s - 1 OR stays THEN 'active' ELSE 'completed' END,
        CASE WHEN n < %(versions)s - 1 OR stays THEN 'converting' END, n::text
    FROM (SELECT *, task_id %% 50 = 0 AS stays FROM vm_import.tasks) k,
        generate_series(0, %(versions)s - 1) AS n
    """,
    """
    INSERT INTO vm_import.task_versions (task_id, valid_from, target_id, listed)
    SELECT task_id, timestamptz '2026-01-01Z' + %(versions)s * interval '1 minute', target_id, false
    FROM vm_import.tasks WHERE task_id %% 50 <> 0
    """,
)

_OPEN = "SELECT * FROM vm_import.task_versions WHERE valid_to IS NULL AND task_id = ANY (%(listed)s)"
_OPEN_ONE = "SELECT * FROM vm_import.task_versions WHERE valid_to IS NULL AND task_id = %(task)s"
_THEN = """SELECT * FROM vm_import.task_versions
    WHERE valid_from = timestamptz '2026-01-01T00:07Z' AND task_id = ANY (%(tasks)s)"""
_THEN_ONE = """SELECT * FROM vm_import.task_versions
    WHERE valid_from = timestamptz '2026-01-01T00:07Z' AND task_id = %(task)s"""
_ALL_OF_ONE = "SELECT * FROM vm_import.task_versions WHERE task_id = %(task)s"
_LAST = """SELECT v.* FROM unnest(%(tasks)s::bigint[]) AS i (task_id), LATERAL (
    SELECT * FROM vm_import.task_versions w WHERE w.task_id = i.task_id AND w.listed
    ORDER BY w.valid_from DESC LIMIT 1) v"""
_LAST_ONE = """SELECT * FROM vm_import.task_versions WHERE task_id = %(task)s AND listed
    ORDER BY valid_from DESC LIMIT 1"""

QUESTIONS: dict[LiteralString, LiteralString] = {
    "current_tasks WHERE region = 'region-3'": _OPEN,
    "current_tasks WHERE region = 'region-3' AND import_task_id = 'import-ami-4-50'": _OPEN_ONE,
    "current_tasks WHERE import_task_id = 'import-ami-4-50'": _OPEN_ONE,
    "tasks_as_of('2026-01-01T00:07:30Z') WHERE region = 'region-3'": _THEN,
    "tasks_as_of('2026-01-01T00:07:30Z') WHERE import_task_id = 'import-ami-4-50'": _THEN_ONE,
    "task_history WHERE region = 'region-3' AND import_task_id = 'import-ami-4-50'": _ALL_OF_ONE,
    "task_history WHERE import_task_id = 'import-ami-4-50'": _ALL_OF_ONE,
    "latest_tasks WHERE region = 'region-3'": _LAST,
    "latest_tasks WHERE region = 'region-3' AND outcome = 'in progress'": _LAST,
    "latest_tasks WHERE import_task_id = 'import-ami-4-50'": _LAST_ONE,
}
"""What people ask of some tasks, and the same versions by their keys."""

WHOLE: tuple[LiteralString, ...] = ("current_tasks", "coverage")
"""What people ask of everything."""

_KEYS: LiteralString = """
    SELECT array_agg(task_id), array_agg(task_id) FILTER (WHERE task_id %% 50 = 0),
        min(task_id) FILTER (WHERE import_task_id = 'import-ami-4-50')
    FROM vm_import.tasks JOIN vm_import.targets USING (target_id)
    WHERE region = 'region-3'
"""


def rows(server_url: str) -> Iterator[Row]:
    """Measure in a database of this benchmark's own."""
    with database(server_url, "collector_reads") as url:
        engine = make_engine(connect_to_url(url))
        schema.upgrade(engine)
        engine.dispose()
        with psycopg.connect(url) as connection:
            fill(connection, VERSIONS)
            keys = _keys(connection)
            for question, by_keys in QUESTIONS.items():
                ours, limit = _seconds(connection, asked(question)), _seconds(connection, by_keys, keys)
                read = sorted(scanned(connection, question) & {"task_versions", "scans"})
                yield Row(f"{question}; scans {read or 'no history'} / by their keys", ours, limit)
            every = _seconds(connection, "SELECT count(*) FROM vm_import.task_versions")
            for question in WHOLE:
                ours = _seconds(connection, asked(question))
                yield Row(f"{question} / counting {VERSIONS} versions", ours, every)


def asked(question: LiteralString) -> LiteralString:
    """Return the query for what is asked."""
    return "SELECT * FROM vm_import." + question  # noqa: S608 - our own literals


def _keys(connection: psycopg.Connection[Any]) -> dict[str, Any]:
    row = connection.execute(_KEYS, {}).fetchone()
    assert row is not None  # noqa: S101 - the target is there
    return dict(zip(("tasks", "listed", "task"), row, strict=True))


def _seconds(
    connection: psycopg.Connection[Any], query: LiteralString, keys: dict[str, Any] | None = None
) -> float:
    """Return how long it takes until all rows are here."""
    times = []
    for _ in range(REPEATS):
        began = perf_counter()
        connection.execute(query, keys).fetchall()
        times.append(perf_counter() - began)
    return median(times)


def fill(connection: psycopg.Connection[Any], versions: int) -> None:
    """Make a history of about so many versions, and let the planner know it."""
    targets = max(5, round(versions / _VERSIONS_OF_A_TASK / _TASKS_OF_A_TARGET))
    size = {
        "targets": targets,
        "tasks": max(1, versions // targets // _VERSIONS_OF_A_TASK),
        "versions": _VERSIONS_OF_A_TASK,
    }
    for statement in _FILL:
        connection.execute(statement, size)
    connection.commit()
    connection.autocommit = True
    connection.execute("VACUUM ANALYZE")


def scanned(connection: psycopg.Connection[Any], question: LiteralString) -> set[str]:
    """Return the relations that a question's plan reads from end to end."""
    explained = connection.execute("EXPLAIN (FORMAT JSON) " + asked(question)).fetchone()
    assert explained is not None  # noqa: S101 - EXPLAIN always answers
    return set(_sequential(explained[0][0]["Plan"]))


def _sequential(plan: dict[str, Any]) -> Iterator[str]:
    if plan["Node Type"] == "Seq Scan":
        yield plan["Relation Name"]
    for part in plan.get("Plans", ()):
        yield from _sequential(part)
