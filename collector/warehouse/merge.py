"""One scan against one target's chains: what differs from the state in effect at its instant, and the mend.

The caller holds the target's lock and owns the transaction. Cost follows what changed, but for one read of
the ids and hashes that were listed at the instant.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import datetime
from itertools import islice
from typing import NamedTuple

from sqlalchemy import Connection, TextClause, text

from collector.domain import FINISHED_STATUSES, ImportTask, Scan
from collector.outcomes import Effect, Outcome
from collector.warehouse.bulk import copy_children, copy_scans, copy_versions
from collector.warehouse.tables import STATE
from collector.warehouse.tiles import Changes, Surroundings

_EXAMPLES = 3


class _Known(NamedTuple):
    """A task as the warehouse had it at the scan's instant; no content is not listed."""

    task_id: int
    content_hash: int | None
    status: str | None


def merge(connection: Connection, target_id: int, scan: Scan) -> Outcome:
    """Record a scan that is neither stored yet nor equal to the one before it."""
    known, new = _known_tasks(connection, target_id, scan)
    observed = {known[task.import_task_id].task_id: task for task in scan.tasks}
    changed: dict[int, ImportTask | None] = {
        before.task_id: task
        for task in scan.tasks
        if (before := known[task.import_task_id]).content_hash != task.content_hash
    }
    gone = [k for k in known.values() if k.content_hash is not None and k.task_id not in observed]
    changed |= dict.fromkeys(k.task_id for k in gone)
    changes = Changes()
    for around in _surroundings(connection, target_id, scan, changed, new):
        task = changed[around.task_id]
        changes.observe(around, scan.observed_at, None if task is None else task.content_hash)
    _apply(connection, target_id, scan, changes, changed)
    copy_children(connection, {i: task for i, task in changed.items() if task is not None}, new)
    copy_scans(connection, {target_id: scan}, None if scan.complete else sorted(observed))
    expired = sum(k.status in FINISHED_STATUSES for k in gone)
    cut = sum(source is not None for _, source in changes.restore)
    return Outcome(
        scan,
        Effect.CHANGED,
        new_tasks=len(new),
        inserted=len(changes.insert),
        cut=cut,
        closed=len(changes.shrink) - cut,
        expired=expired,
        vanished=len(gone) - expired,
        examples=tuple(islice(_examples(scan, known, gone, changed), _EXAMPLES)),
    )


def _examples(
    scan: Scan, known: Mapping[str, _Known], gone: Iterable[_Known], changed: Mapping[int, ImportTask | None]
) -> Iterator[str]:
    """Spell changes out: what a task was, and what it is now."""
    for task in scan.tasks:
        before = known[task.import_task_id]
        if before.task_id in changed:
            was = "new" if before.content_hash is None else f"was {before.status}"
            yield f"{task.import_task_id}: {task.status}, {task.status_message or 'no message'} ({was})"
    missing = {k.task_id for k in gone}
    for name, before in known.items():
        if before.task_id in missing:
            yield f"{name}: gone (was {before.status})"


def _known_tasks(connection: Connection, target_id: int, scan: Scan) -> tuple[dict[str, _Known], set[int]]:
    """Return, by AWS's id, the scan's tasks and, if it is complete, whatever else was listed then.

    Tasks that nobody knew are made; the second answer is their task_ids.
    """
    parameters: dict[str, object] = {"target_id": target_id, "observed_at": scan.observed_at}
    rows = connection.execute(_SELECT_LISTED, parameters) if scan.complete else ()
    known = {name: _Known(*state) for name, *state in rows}
    names = [task.import_task_id for task in scan.tasks if task.import_task_id not in known]
    new: set[int] = set()
    if names:
        for name, made, *state in connection.execute(_IDENTIFY, parameters | {"names": json.dumps(names)}):
            known[name] = _Known(*state)
            if made:
                new.add(known[name].task_id)
    return known, new


def _surroundings(
    connection: Connection,
    target_id: int,
    scan: Scan,
    changed: Collection[int],
    new: Collection[int],
) -> Iterator[Surroundings]:
    """Yield each changed task's chain around the scan; a new task has none."""
    next_complete = connection.scalar(
        _SELECT_NEXT_COMPLETE, {"target_id": target_id, "observed_at": scan.observed_at}
    )
    yield from (Surroundings(task_id, next_scan=next_complete) for task_id in changed if task_id in new)
    parameters = {
        "target_id": target_id,
        "observed_at": scan.observed_at,
        "next_complete": next_complete,
        "task_ids": [task_id for task_id in changed if task_id not in new],
    }
    if not parameters["task_ids"]:
        return
    partial: Mapping[int, datetime] = {
        row.task_id: row.observed_at for row in connection.execute(_SELECT_NEXT_PARTIAL, parameters)
    }
    for row in connection.execute(_SELECT_SURROUNDINGS, parameters):
        next_scan = partial.get(row.task_id, next_complete)
        yield Surroundings(row.task_id, row.valid_from, row.valid_to, row.following, next_scan)


def _apply(
    connection: Connection,
    target_id: int,
    scan: Scan,
    changes: Changes,
    observed: Mapping[int, ImportTask | None],
) -> None:
    """Shrink, restore, extend, insert: in this order no constraint fails half-way."""
    if changes.shrink:
        task_ids, starts = zip(*changes.shrink, strict=True)
        _move(connection, _SHRINK, scan, task_ids, starts)
    if copies := [(interval, source) for interval, source in changes.restore if source is not None]:
        parameters = {
            "task_ids": [interval.task_id for interval, _ in copies],
            "sources": [source for _, source in copies],
            "valid_from": [interval.valid_from for interval, _ in copies],
            "valid_to": [interval.valid_to for interval, _ in copies],
        }
        connection.execute(_RESTORE, parameters)
    if changes.extend:
        task_ids, starts = zip(*changes.extend, strict=True)
        _move(connection, _EXTEND, scan, task_ids, starts)
    absences = [(interval, None) for interval, source in changes.restore if source is None]
    inserts = [(interval, observed[interval.task_id]) for interval in changes.insert]
    if absences or inserts:
        copy_versions(connection, target_id, [*absences, *inserts])


def _move(
    connection: Connection,
    statement: TextClause,
    scan: Scan,
    task_ids: tuple[int, ...],
    starts: tuple[datetime, ...],
) -> None:
    parameters = {"task_ids": list(task_ids), "starts": list(starts), "observed_at": scan.observed_at}
    connection.execute(statement, parameters)


def listed_at_the_instant(target_id: str) -> str:
    """SQL for the versions of a target that were listed at ``:observed_at``.

    Each half has an index of its own: what is listed now, and what was.
    """
    versions = "SELECT task_id, content_hash, status FROM vm_import.task_versions"
    return f"""
        {versions}
        WHERE target_id = {target_id} AND listed AND valid_to IS NULL AND valid_from <= :observed_at
        UNION ALL
        {versions}
        WHERE target_id = {target_id} AND listed AND valid_to > :observed_at AND valid_from <= :observed_at
    """


_SELECT_LISTED = text(f"""
    SELECT k.import_task_id, v.task_id, v.content_hash, v.status
    FROM ({listed_at_the_instant(":target_id")}) v
    JOIN vm_import.tasks k ON k.task_id = v.task_id
""")  # noqa: S608 - our own fragment

# A list is sent as JSON: the driver takes far longer over an array.
_IDENTIFY = text("""
    WITH named AS (
        SELECT i.name, k.task_id
        FROM json_array_elements_text(CAST(:names AS json)) AS i (name)
        LEFT JOIN vm_import.tasks k ON k.target_id = :target_id AND k.import_task_id = i.name
    ), made AS (
        INSERT INTO vm_import.tasks (target_id, import_task_id)
        SELECT :target_id, name FROM named WHERE task_id IS NULL
        RETURNING import_task_id, task_id
    )
    SELECT import_task_id, true AS made, task_id, NULL AS content_hash, NULL AS status FROM made
    UNION ALL
    SELECT n.name, false, n.task_id, v.content_hash, v.status
    FROM named n
    LEFT JOIN vm_import.task_versions v ON v.task_id = n.task_id AND v.valid_from <= :observed_at
        AND (v.valid_to IS NULL OR v.valid_to > :observed_at)
    WHERE n.task_id IS NOT NULL
""")

_SELECT_NEXT_COMPLETE = text("""
    SELECT min(observed_at) FROM vm_import.scans
    WHERE target_id = :target_id AND observed_at > :observed_at AND complete
""")

_SELECT_NEXT_PARTIAL = text("""
    SELECT i.task_id, min(s.observed_at) AS observed_at
    FROM vm_import.scans s, unnest(s.seen) AS i (task_id)
    WHERE s.target_id = :target_id AND s.observed_at > :observed_at AND NOT s.complete
      AND (CAST(:next_complete AS timestamptz) IS NULL OR s.observed_at < :next_complete)
      AND i.task_id = ANY (CAST(:task_ids AS bigint[]))
    GROUP BY i.task_id
""")

# A tile ends where the next one starts, so the next one's start is the end also where no tile is in effect.
_SELECT_SURROUNDINGS = text("""
    SELECT i.task_id, v.valid_from, n.valid_from AS valid_to, n.content_hash AS following
    FROM unnest(CAST(:task_ids AS bigint[])) AS i (task_id)
    LEFT JOIN LATERAL (
        SELECT w.valid_from FROM vm_import.task_versions w
        WHERE w.task_id = i.task_id AND w.valid_from <= :observed_at
        ORDER BY w.valid_from DESC LIMIT 1) v ON true
    LEFT JOIN LATERAL (
        SELECT w.valid_from, w.content_hash FROM vm_import.task_versions w
        WHERE w.task_id = i.task_id AND w.valid_from > :observed_at
        ORDER BY w.valid_from LIMIT 1) n ON true
""")

_SHRINK = text("""
    UPDATE vm_import.task_versions v SET valid_to = :observed_at
    FROM unnest(CAST(:task_ids AS bigint[]), CAST(:starts AS timestamptz[])) AS i (task_id, valid_from)
    WHERE v.task_id = i.task_id AND v.valid_from = i.valid_from
""")

_EXTEND = text("""
    UPDATE vm_import.task_versions v SET valid_from = :observed_at
    FROM unnest(CAST(:task_ids AS bigint[]), CAST(:starts AS timestamptz[])) AS i (task_id, valid_from)
    WHERE v.task_id = i.task_id AND v.valid_from = i.valid_from
""")

_STATE_NAMES = ", ".join(column.name for column in STATE)
_RESTORE = text(f"""
    INSERT INTO vm_import.task_versions
        (task_id, valid_from, valid_to, target_id, listed, content_hash, details_set, tags_set, licenses_set,
         {_STATE_NAMES})
    SELECT v.task_id, i.valid_from, i.valid_to, v.target_id, v.listed, v.content_hash, v.details_set,
         v.tags_set, v.licenses_set, {_STATE_NAMES}
    FROM unnest(CAST(:task_ids AS bigint[]), CAST(:sources AS timestamptz[]),
                CAST(:valid_from AS timestamptz[]), CAST(:valid_to AS timestamptz[]))
        AS i (task_id, source, valid_from, valid_to)
    JOIN vm_import.task_versions v ON v.task_id = i.task_id AND v.valid_from = i.source
""")  # noqa: S608 - our own column names
