"""Rows in bulk: ``COPY … (FORMAT BINARY)`` of versions and of their child rows."""

from collections.abc import Collection, Iterable, Mapping
from operator import attrgetter
from typing import Any

import psycopg
from psycopg import sql
from psycopg.types.json import set_json_dumps
from sqlalchemy import Connection, Table, text

from collector.domain import ImportTask, Scan
from collector.warehouse.tables import (
    SCHEMA,
    STATE,
    license_specifications,
    scans,
    snapshot_details,
    tags,
    task_versions,
)
from collector.warehouse.tiles import Interval

_NOT_LISTED = (False,) + (None,) * (4 + len(STATE))

_VERSION = attrgetter(
    "content_hash", "details_set", "tags_set", "licenses_set", *(column.name for column in STATE)
)

_KEYS = frozenset({"task_id", "set_id"})

_CHILDREN: Mapping[Table, tuple[str, str]] = {
    snapshot_details: ("details_set", "snapshot_details"),
    tags: ("tags_set", "tags"),
    license_specifications: ("licenses_set", "license_specifications"),
}
"""For each child table: the task's hash of the list, and the list; an item is named as the columns are."""


def copy_versions(
    connection: Connection,
    target_id: int,
    intervals: Iterable[tuple[Interval, ImportTask | None]],
) -> None:
    """Insert tiles; ``None`` in place of a task is a period in which it was not listed."""
    rows = (
        (*interval, target_id, *(_NOT_LISTED if task is None else (True, *_VERSION(task))))
        for interval, task in intervals
    )
    _copy(connection, task_versions, rows)


def copy_children(connection: Connection, observed: Mapping[int, ImportTask], new: Collection[int]) -> None:
    """Insert the disks, tags and licences of tasks, by task_id, that are not there yet.

    ``new`` are the task_ids among them that cannot have any: they were made in this transaction.
    """
    for table, names in _CHILDREN.items():
        set_and_items = attrgetter(*names)
        sets = {
            (task_id, set_id): items
            for task_id, task in observed.items()
            for set_id, items in (set_and_items(task),)
            if items
        }
        for known in _known_sets(connection, table, [key for key in sets if key[0] not in new]):
            del sets[known]
        values = attrgetter(*(column.name for column in table.columns if column.name not in _KEYS))
        if sets:
            _copy(connection, table, ((*key, *values(item)) for key, items in sets.items() for item in items))


def copy_scans(connection: Connection, observed: Mapping[int, Scan], seen: list[int] | None = None) -> None:
    """Insert scans, by target_id; ``seen`` are the tasks, by task_id, that a partial one covered."""
    rows = (
        (i, s.observed_at, s.finished_at, s.complete, seen, len(s.tasks), s.digest, s.source)
        for i, s in observed.items()
    )
    _copy(connection, scans, rows)


def _known_sets(connection: Connection, table: Table, keys: list[tuple[int, int]]) -> list[tuple[int, int]]:
    if not keys:
        return []
    statement = text(f"""
        SELECT i.task_id, i.set_id
        FROM unnest(CAST(:task_ids AS bigint[]), CAST(:set_ids AS bigint[])) AS i (task_id, set_id)
        WHERE EXISTS (SELECT FROM {table.fullname} c WHERE c.task_id = i.task_id AND c.set_id = i.set_id)
    """)  # noqa: S608 - our own table's name
    task_ids, set_ids = zip(*keys, strict=True)
    rows = connection.execute(statement, {"task_ids": list(task_ids), "set_ids": list(set_ids)})
    return [(row.task_id, row.set_id) for row in rows]


def _copy(connection: Connection, table: Table, rows: Iterable[tuple[Any, ...]]) -> None:
    """Insert rows of all columns but those that the database fills."""
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)  # noqa: S101 - for the type checker
    columns = [column for column in table.columns if column.server_default is None]
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(
        sql.Identifier(SCHEMA, table.name),
        sql.SQL(", ").join(sql.Identifier(column.name) for column in columns),
    )
    with driver.cursor() as cursor, cursor.copy(statement) as copy:
        set_json_dumps(str, cursor)  # jsonb comes as canonical text, ready to be sent
        copy.set_types([column.type.compile(dialect=connection.dialect).lower() for column in columns])
        for row in rows:
            copy.write_row(row)
