"""What the warehouse knows of targets and of imports that go on: for people and for a daemon that starts.

One statement each. A word means here what it means in the views; every instant is UTC.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Engine, Row, text

from collector.domain import Target
from collector.warehouse.engine import translated_errors


@dataclass(frozen=True, slots=True)
class Outage:
    """A series of failures that lasts; ``error_code`` and ``message`` are those of the last one."""

    first_failed_at: datetime
    last_failed_at: datetime
    failures: int
    error_code: str
    message: str


@dataclass(frozen=True, slots=True)
class TargetSeen:
    """How well a target is watched; without a Region, an account that fails before its Regions are known.

    ``longest_gap`` and ``gaps_over_7_days`` are between its complete scans; ``outage`` is one that lasts.
    """

    account_id: str
    region: str | None
    last_complete_scan: datetime | None
    longest_gap: timedelta | None
    gaps_over_7_days: int
    outage: Outage | None


@dataclass(frozen=True, slots=True)
class TaskInFlight:
    """An unfinished task that was listed when its target was last seen.

    ``name`` is its tag ``Name``. It was seen unchanged from ``unchanged_since`` until ``last_observed_at``.
    """

    target: Target
    import_task_id: str
    name: str | None
    phase: str
    progress_percent: float | None
    first_seen_at: datetime
    unchanged_since: datetime
    last_observed_at: datetime

    @property
    def unchanged_for(self) -> timedelta:
        """How long it was seen unchanged; what nobody looked at may have changed."""
        return self.last_observed_at - self.unchanged_since


def targets_seen(engine: Engine) -> list[TargetSeen]:
    """Return every target that was ever looked at, those that only ever failed too, and failing accounts.

    Raises:
        WarehouseError: the database failed.
    """
    return [_target_seen(row) for row in _rows(engine, _SELECT_TARGETS_SEEN)]


def tasks_in_flight(engine: Engine) -> list[TaskInFlight]:
    """Return the tasks that were unfinished when last seen.

    Raises:
        WarehouseError: the database failed.
    """
    return [_task_in_flight(row) for row in _rows(engine, _SELECT_TASKS_IN_FLIGHT)]


def last_good_looks(engine: Engine) -> dict[Target, datetime]:
    """Return when each target was last seen whole by a collector; saved files do not count.

    Raises:
        WarehouseError: the database failed.
    """
    rows = _rows(engine, _SELECT_LAST_GOOD_LOOKS)
    return {Target(row.account_id, row.region): row.observed_at.astimezone(UTC) for row in rows}


def _rows(engine: Engine, statement: Any) -> list[Row[Any]]:
    with translated_errors(), engine.connect() as connection:
        return list(connection.execute(statement))


def _target_seen(row: Row[Any]) -> TargetSeen:
    return TargetSeen(
        account_id=row.account_id,
        region=row.region,
        last_complete_scan=row.last_complete_scan and row.last_complete_scan.astimezone(UTC),
        longest_gap=row.longest_gap,
        gaps_over_7_days=row.gaps_over_7_days or 0,
        outage=None if row.failures is None else _outage(row),
    )


def _outage(row: Row[Any]) -> Outage:
    return Outage(
        first_failed_at=row.first_failed_at.astimezone(UTC),
        last_failed_at=row.last_failed_at.astimezone(UTC),
        failures=row.failures,
        error_code=row.error_code,
        message=row.message,
    )


def _task_in_flight(row: Row[Any]) -> TaskInFlight:
    return TaskInFlight(
        target=Target(row.account_id, row.region),
        import_task_id=row.import_task_id,
        name=row.name,
        phase=row.phase,
        progress_percent=None if row.progress_percent is None else float(row.progress_percent),
        first_seen_at=row.first_seen_at.astimezone(UTC),
        unchanged_since=row.valid_from.astimezone(UTC),
        last_observed_at=row.last_observed_at.astimezone(UTC),
    )


# The view has to read every scan for the gaps, so its last complete scan costs nothing more. An outage
# without a Region equals no target, and an outage may be all that is known of one.
_SELECT_TARGETS_SEEN = text("""
    SELECT account_id, region, c.last_complete_scan, c.longest_gap, c.gaps_over_7_days,
        o.first_failed_at, o.last_failed_at, o.failures, o.error_code, o.message
    FROM vm_import.coverage c
    FULL JOIN (SELECT * FROM vm_import.outages WHERE recovered_at IS NULL) o USING (account_id, region)
    ORDER BY account_id, region NULLS FIRST
""")

# Not through current_tasks: PostgreSQL takes open versions of tasks that are gone for listed ones, expects
# hundreds of times too many, and reads all of history. OFFSET 0 keeps it to the index, target by target, and
# subqueries keep it to a few look-ups for each task in flight.
_SELECT_TASKS_IN_FLIGHT = text("""
    SELECT t.account_id, t.region, v.phase, v.valid_from,
        CASE WHEN v.progress ~ '^[0-9]{1,3}([.][0-9]+)?$' THEN v.progress::numeric END AS progress_percent, (
            SELECT k.import_task_id FROM vm_import.tasks k WHERE k.task_id = v.task_id) AS import_task_id, (
            SELECT g.value FROM vm_import.tags g
            WHERE g.task_id = v.task_id AND g.set_id = v.tags_set AND g.key = 'Name') AS name, (
            SELECT min(w.valid_from) FROM vm_import.task_versions w
            WHERE w.task_id = v.task_id) AS first_seen_at, (
            SELECT s.observed_at FROM vm_import.scans s
            WHERE s.target_id = t.target_id AND (s.complete OR v.task_id = ANY (s.seen))
            ORDER BY s.observed_at DESC LIMIT 1) AS last_observed_at
    FROM vm_import.targets t
    CROSS JOIN LATERAL (
        SELECT w.*, vm_import.phase(w.listed, w.status, w.status_message) AS phase
        FROM vm_import.task_versions w
        WHERE w.target_id = t.target_id AND w.listed AND w.valid_to IS NULL
        OFFSET 0) v
    WHERE v.phase IS NOT NULL
    ORDER BY t.account_id, t.region, import_task_id
""")

_SELECT_LAST_GOOD_LOOKS = text("""
    SELECT t.account_id, t.region, s.observed_at
    FROM vm_import.targets t
    CROSS JOIN LATERAL (
        SELECT c.observed_at FROM vm_import.scans c
        WHERE c.target_id = t.target_id AND c.complete AND c.source = 'api'
        ORDER BY c.observed_at DESC LIMIT 1) s
""")
