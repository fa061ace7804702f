"""The merge: how scans become versions, so that history is a pure function of the set of scans.

One transaction per batch. Under each target's lock a scan is recorded once: a retry is recognised, a scan
equal to the one just before it adds one narrow row, and any other is compared with the state in effect at
its instant, whenever it arrives (``merge``).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import groupby

import psycopg
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DataError

from collector.domain import FINISHED_STATUSES, FORGOTTEN_AFTER, Scan, Target
from collector.outcomes import Effect, Outcome
from collector.warehouse.engine import translated_errors
from collector.warehouse.merge import merge
from collector.warehouse.targets import lock, register

TARGETS_PER_TRANSACTION = 500
"""Every target costs an entry of PostgreSQL's shared lock table, which holds some thousands."""

# COPY goes past SQLAlchemy, which would wrap the driver's errors in its own.
_REFUSED = (DataError, psycopg.DataError, psycopg.errors.ProgramLimitExceeded)


def store(engine: Engine, scans: Iterable[Scan], *, dry_run: bool = False) -> Iterator[Outcome]:
    """Record scans, each whole or not at all, and yield what became of each, batch by batch.

    A refused scan costs only itself. A batch is committed before its outcomes are yielded; with
    ``dry_run`` it is rolled back instead, so the outcomes say what would have happened.

    Raises:
        WarehouseError: the database failed; the batches yielded so far are stored, the rest is not.
    """
    by_target = [list(group) for _, group in groupby(sorted(scans, key=_place), key=lambda scan: scan.target)]
    for start in range(0, len(by_target), TARGETS_PER_TRANSACTION):
        batch = by_target[start : start + TARGETS_PER_TRANSACTION]
        with translated_errors(), engine.connect() as connection:
            ids = register(connection, [group[0].target for group in batch], commit=not dry_run)
            outcomes = _store_batch(connection, batch, ids)
            if dry_run:
                connection.rollback()
            else:
                connection.commit()
        yield from outcomes


def missing_from(engine: Engine, scan: Scan) -> set[str]:
    """Return the ids that make a listing of now doubtful: listed before, not in it, and perhaps not gone.

    Only a finished task that nobody has seen for seven days has certainly left the list by itself; whatever
    else is missing has to be looked up.
    """
    parameters = {
        "account_id": scan.target.account_id,
        "region": scan.target.region,
        "digest": scan.digest,
        "observed_at": scan.observed_at,
        "finished": sorted(FINISHED_STATUSES),
        "forgotten_since": scan.observed_at - FORGOTTEN_AFTER,
    }
    with translated_errors(), engine.connect() as connection:
        if connection.scalar(_SELECT_SAME_AS_LAST, parameters):
            return set()
        listed = set(connection.scalars(_SELECT_PERHAPS_LISTED, parameters))
    return listed - {task.import_task_id for task in scan.tasks}


def _place(scan: Scan) -> tuple[Target, datetime]:
    return scan.target, scan.observed_at


def _store_batch(
    connection: Connection, batch: Sequence[Sequence[Scan]], ids: Mapping[Target, int]
) -> list[Outcome]:
    """Record the scans of a batch in rounds: the first of each target, then the second, and so on."""
    lock(connection, [ids[group[0].target] for group in batch])
    outcomes: list[Outcome] = []
    for turn in range(max(map(len, batch))):
        outcomes += _store_round(connection, [group[turn] for group in batch if turn < len(group)], ids)
    return outcomes


def _store_round(connection: Connection, scans: list[Scan], ids: Mapping[Target, int]) -> Iterator[Outcome]:
    """Record at most one scan of each target; retries and unchanged scans take one statement each."""
    recorded = _recorded(connection, scans, ids)
    fresh = [scan for scan in scans if scan.target not in recorded]
    unchanged = _insert_unchanged(connection, [scan for scan in fresh if scan.complete], ids)
    for scan in scans:
        if scan.target in recorded:
            yield _repeated(scan, *recorded[scan.target])
        elif scan.target in unchanged:
            yield Outcome(scan, Effect.UNCHANGED)
        else:
            yield _store_changed(connection, ids[scan.target], scan)


def _recorded(
    connection: Connection, scans: list[Scan], ids: Mapping[Target, int]
) -> dict[Target, tuple[bytes, bool]]:
    """Return digest and completeness of those scans whose target and instant are stored already."""
    targets = {ids[scan.target]: scan.target for scan in scans}
    parameters = {
        "target_ids": list(targets),
        "observed_at": [scan.observed_at for scan in scans],
    }
    rows = connection.execute(_SELECT_RECORDED, parameters)
    return {targets[row.target_id]: (bytes(row.digest), row.complete) for row in rows}


def _repeated(scan: Scan, digest: bytes, complete: bool) -> Outcome:
    if (digest, complete) == (scan.digest, scan.complete):
        return Outcome(scan, Effect.REPEATED)
    kinds = {True: "complete", False: "partial"}
    return Outcome(
        scan,
        Effect.REFUSED,
        refusal=f"a {kinds[complete]} scan with other contents is already stored for {scan.target}"
        f" at {scan.observed_at.isoformat()}; this one is {kinds[scan.complete]}",
    )


def _insert_unchanged(connection: Connection, scans: list[Scan], ids: Mapping[Target, int]) -> set[Target]:
    """Insert the complete scans that equal the one just before them; return their targets."""
    if not scans:
        return set()
    targets = {ids[scan.target]: scan.target for scan in scans}
    parameters = {
        "target_ids": list(targets),
        "observed_at": [scan.observed_at for scan in scans],
        "finished_at": [scan.finished_at for scan in scans],
        "task_counts": [len(scan.tasks) for scan in scans],
        "digests": [scan.digest for scan in scans],
        "sources": [scan.source for scan in scans],
    }
    return {targets[target_id] for target_id in connection.scalars(_INSERT_UNCHANGED, parameters)}


def _store_changed(connection: Connection, target_id: int, scan: Scan) -> Outcome:
    """Merge a scan under a savepoint, so that data which PostgreSQL refuses costs only this scan."""
    try:
        with connection.begin_nested():
            merged = merge(connection, target_id, scan)
    except _REFUSED as error:
        reason = str(getattr(error, "orig", error)).split("\n")[0]
        return Outcome(scan, Effect.REFUSED, refusal=f"{scan.target}: PostgreSQL refuses a value: {reason}")
    return Outcome(
        scan,
        Effect.CHANGED,
        new_tasks=merged.new_tasks,
        inserted=merged.inserted,
        cut=merged.cut,
        closed=merged.closed,
        expired=merged.expired,
        vanished=merged.vanished,
        examples=merged.examples,
    )


_SELECT_RECORDED = text("""
    SELECT s.target_id, s.digest, s.complete
    FROM unnest(CAST(:target_ids AS int[]), CAST(:observed_at AS timestamptz[])) AS i (target_id, observed_at)
    JOIN vm_import.scans s USING (target_id, observed_at)
""")

_INSERT_UNCHANGED = text("""
    INSERT INTO vm_import.scans (target_id, observed_at, finished_at, complete, task_count, digest, source)
    SELECT i.target_id, i.observed_at, i.finished_at, true, i.task_count, i.digest, i.source
    FROM unnest(
        CAST(:target_ids AS int[]), CAST(:observed_at AS timestamptz[]), CAST(:finished_at AS timestamptz[]),
        CAST(:task_counts AS int[]), CAST(:digests AS bytea[]), CAST(:sources AS text[])
    ) AS i (target_id, observed_at, finished_at, task_count, digest, source)
    WHERE (
        SELECT s.complete AND s.digest = i.digest FROM vm_import.scans s
        WHERE s.target_id = i.target_id AND s.observed_at < i.observed_at
        ORDER BY s.observed_at DESC LIMIT 1)
    RETURNING target_id
""")

_SELECT_SAME_AS_LAST = text("""
    SELECT (
        SELECT s.complete AND s.digest = :digest FROM vm_import.scans s
        WHERE s.target_id = t.target_id AND s.observed_at < :observed_at
        ORDER BY s.observed_at DESC LIMIT 1)
    FROM vm_import.targets t WHERE t.account_id = :account_id AND t.region = :region
""")

# As of the scan's instant: after the clock was set back, the newest tiles do not know what is new.
_SELECT_PERHAPS_LISTED = text("""
    SELECT k.import_task_id
    FROM vm_import.targets t
    CROSS JOIN LATERAL (
        SELECT task_id, status FROM vm_import.task_versions
        WHERE target_id = t.target_id AND listed AND valid_to IS NULL AND valid_from <= :observed_at
        UNION ALL
        SELECT task_id, status FROM vm_import.task_versions
        WHERE target_id = t.target_id AND listed AND valid_to > :observed_at AND valid_from <= :observed_at
    ) v
    JOIN vm_import.tasks k ON k.task_id = v.task_id
    WHERE t.account_id = :account_id AND t.region = :region
      AND (coalesce(v.status, '') <> ALL (CAST(:finished AS text[])) OR EXISTS (
        SELECT FROM vm_import.scans s
        WHERE s.target_id = t.target_id AND s.observed_at > :forgotten_since
          AND (s.complete OR v.task_id = ANY (s.seen))))
""")
