"""The merge: how scans become versions, so that history is a pure function of the set of scans.

One transaction per batch. Under each target's lock a scan is recorded once: a retry is recognised, a scan
equal to the one just before it adds one narrow row, and any other is compared with the state in effect at
its instant, whenever it arrives (``merge``).
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import groupby
from typing import NamedTuple

import psycopg
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DataError

from collector.domain import FINISHED_STATUSES, FORGOTTEN_AFTER, Scan, Target
from collector.outcomes import Effect, Outcome
from collector.warehouse.bulk import copy_scans
from collector.warehouse.engine import translated_errors
from collector.warehouse.merge import listed_at_the_instant, merge
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
    return listed - scan.tasks.ids


def _place(scan: Scan) -> tuple[str, str, datetime]:
    return scan.target.account_id, scan.target.region, scan.observed_at


def _store_batch(
    connection: Connection, batch: Sequence[Sequence[Scan]], ids: Mapping[Target, int]
) -> list[Outcome]:
    """Record the scans of a batch in rounds: the first of each target, then the second, and so on."""
    lock(connection, [ids[group[0].target] for group in batch])
    outcomes: list[Outcome] = []
    for turn in range(max(map(len, batch))):
        scans = {ids[group[turn].target]: group[turn] for group in batch if turn < len(group)}
        outcomes += _store_round(connection, scans)
    return outcomes


def _store_round(connection: Connection, scans: Mapping[int, Scan]) -> Iterator[Outcome]:
    """Record at most one scan of each target, by target_id; all that is unchanged takes two statements."""
    stored = _last_stored(connection, scans)
    unchanged = {i for i, scan in scans.items() if i in stored and stored[i].is_repeated_by(scan)}
    if unchanged:
        copy_scans(connection, {i: scans[i] for i in unchanged})
    for target_id, scan in scans.items():
        last = stored.get(target_id)
        if last is not None and last.observed_at == scan.observed_at:
            yield _retried(scan, last)
        elif target_id in unchanged:
            yield Outcome(scan, Effect.UNCHANGED)
        else:
            yield _store_changed(connection, target_id, scan)


class _Stored(NamedTuple):
    """The last scan of a target that is stored at or before an instant."""

    observed_at: datetime
    complete: bool
    digest: bytes

    def is_repeated_by(self, scan: Scan) -> bool:
        """Whether a later scan adds nothing but itself."""
        known = self.observed_at < scan.observed_at and self.complete and scan.complete
        return known and self.digest == scan.digest


def _last_stored(connection: Connection, scans: Mapping[int, Scan]) -> dict[int, _Stored]:
    """Return, by target_id, the scan that is stored at the instant of another one, or else just before it."""
    places = [[target_id, scan.observed_at.isoformat()] for target_id, scan in scans.items()]
    rows = connection.execute(_SELECT_LAST_STORED, {"places": json.dumps(places)}).all()
    return {target_id: _Stored(*last) for target_id, *last in rows}


def _retried(scan: Scan, stored: _Stored) -> Outcome:
    if (stored.digest, stored.complete) == (scan.digest, scan.complete):
        return Outcome(scan, Effect.REPEATED)
    kinds = {True: "complete", False: "partial"}
    return Outcome(
        scan,
        Effect.REFUSED,
        refusal=f"a {kinds[stored.complete]} scan with other contents is already stored for {scan.target}"
        f" at {scan.observed_at.isoformat()}; this one is {kinds[scan.complete]}",
    )


def _store_changed(connection: Connection, target_id: int, scan: Scan) -> Outcome:
    """Merge a scan under a savepoint, so that data which PostgreSQL refuses costs only this scan."""
    try:
        with connection.begin_nested():
            return merge(connection, target_id, scan)
    except _REFUSED as error:
        reason = str(getattr(error, "orig", error)).split("\n")[0]
        return Outcome(scan, Effect.REFUSED, refusal=f"{scan.target}: PostgreSQL refuses a value: {reason}")


# A list is sent as JSON: the driver takes far longer over an array.
_SELECT_LAST_STORED = text("""
    SELECT i.target_id, s.observed_at, s.complete, s.digest
    FROM (
        SELECT CAST(place ->> 0 AS int) AS target_id, CAST(place ->> 1 AS timestamptz) AS observed_at
        FROM json_array_elements(CAST(:places AS json)) AS p (place)) i
    CROSS JOIN LATERAL (
        SELECT s.observed_at, s.complete, s.digest FROM vm_import.scans s
        WHERE s.target_id = i.target_id AND s.observed_at <= i.observed_at
        ORDER BY s.observed_at DESC LIMIT 1) s
""")

_SELECT_SAME_AS_LAST = text("""
    SELECT (
        SELECT s.complete AND s.digest = :digest FROM vm_import.scans s
        WHERE s.target_id = t.target_id AND s.observed_at < :observed_at
        ORDER BY s.observed_at DESC LIMIT 1)
    FROM vm_import.targets t WHERE t.account_id = :account_id AND t.region = :region
""")

# As of the scan's instant: after the clock was set back, the newest tiles do not know what is new.
_SELECT_PERHAPS_LISTED = text(f"""
    SELECT k.import_task_id
    FROM vm_import.targets t
    CROSS JOIN LATERAL ({listed_at_the_instant("t.target_id")}) v
    JOIN vm_import.tasks k ON k.task_id = v.task_id
    WHERE t.account_id = :account_id AND t.region = :region
      AND (coalesce(v.status, '') <> ALL (CAST(:finished AS text[])) OR EXISTS (
        SELECT FROM vm_import.scans s
        WHERE s.target_id = t.target_id AND s.observed_at > :forgotten_since
          AND (s.complete OR v.task_id = ANY (s.seen))))
""")  # noqa: S608 - our own fragment
