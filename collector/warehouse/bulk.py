"""Rows in bulk: ``COPY … (FORMAT BINARY)`` of versions and of their child rows."""

import json
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from typing import Any

import psycopg
from psycopg import sql
from sqlalchemy import Connection, Table, text

from collector.domain import ImportTask
from collector.warehouse.tables import (
    SCHEMA,
    STATE,
    license_specifications,
    snapshot_details,
    tags,
    task_versions,
)
from collector.warehouse.tiles import Interval

_STATE_NAMES = tuple(column.name for column in STATE if column.name != "extra")
_NOT_LISTED = (False,) + (None,) * (4 + len(STATE))

_CHILDREN: Mapping[Table, tuple[str, str, tuple[str, ...]]] = {
    snapshot_details: (
        "details_set",
        "snapshot_details",
        tuple(column.name for column in snapshot_details.columns)[2:],
    ),
    tags: ("tags_set", "tags", ("key", "value")),
    license_specifications: (
        "licenses_set",
        "license_specifications",
        ("position", "license_configuration_arn", "extra"),
    ),
}
"""For each child table: the task's hash of the list, the list, and the columns of an item."""


def copy_versions(
    connection: Connection,
    target_id: int,
    intervals: Iterable[tuple[Interval, ImportTask | None]],
) -> None:
    """Insert tiles; ``None`` in place of a task is a period in which it was not listed."""
    rows = (
        (i.task_id, i.valid_from, i.valid_to, target_id, *(_NOT_LISTED if task is None else _version(task)))
        for i, task in intervals
    )
    _copy(connection, task_versions, rows)


def copy_children(connection: Connection, observed: Mapping[int, ImportTask], new: Collection[int]) -> None:
    """Insert the disks, tags and licences of tasks, by task_id, that are not there yet.

    ``new`` are the task_ids among them that cannot have any: they were made in this transaction.
    """
    for table, (set_name, items, columns) in _CHILDREN.items():
        sets = {
            (task_id, set_id): task
            for task_id, task in observed.items()
            if (set_id := getattr(task, set_name)) is not None
        }
        for known in _known_sets(connection, table, [key for key in sets if key[0] not in new]):
            del sets[known]
        rows = (
            (*key, *(_value(item, column) for column in columns))
            for key, task in sets.items()
            for item in getattr(task, items)
        )
        if sets:
            _copy(connection, table, rows)


def _version(task: ImportTask) -> tuple[Any, ...]:
    state = (getattr(task, name) for name in _STATE_NAMES)
    hashes = (task.content_hash, task.details_set, task.tags_set, task.licenses_set)
    return (True, *hashes, *state, _value(task, "extra"))


def _value(record: object, column: str) -> Any:
    """Return a member; canonical JSON text is parsed, because the driver writes jsonb from values."""
    value = getattr(record, column)
    return json.loads(value) if column == "extra" and value is not None else value


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
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)  # noqa: S101 - for the type checker
    names = sql.SQL(", ").join(sql.Identifier(column.name) for column in table.columns)
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(
        sql.Identifier(SCHEMA, table.name), names
    )
    with driver.cursor() as cursor, cursor.copy(statement) as copy:
        copy.set_types([_copy_type(column.type.python_type, str(column.type)) for column in table.columns])
        for row in rows:
            copy.write_row(row)


def _copy_type(kind: type, name: str) -> str:
    return {bool: "bool", datetime: "timestamptz", str: "text", float: "float8"}.get(
        kind, {"BIGINT": "int8", "INTEGER": "int4"}.get(name, "jsonb")
    )
