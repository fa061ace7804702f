"""Outages: one row per unbroken series of failed looks at a target."""

import json
from collections.abc import Iterable, Sequence
from datetime import datetime

from sqlalchemy import Engine, text

from collector.domain import Failure, Scan
from collector.warehouse.engine import translated_errors


def record_failures(engine: Engine, failures: Iterable[Failure]) -> None:
    """Begin an outage for each failed target, or prolong the one that it belongs to.

    Failures may come late, and twice: one that lies within an outage has been counted.
    """
    ordered = sorted(
        failures, key=lambda failure: (failure.account_id, failure.region or "", failure.failed_at)
    )
    if not ordered:
        return
    with translated_errors(), engine.begin() as connection:
        for failure in ordered:
            row = {
                "account_id": failure.account_id,
                "region": failure.region,
                "failed_at": failure.failed_at,
                "error_code": failure.code,
                "message": failure.message,
            }
            connection.execute(_RECORD, row)


def record_recoveries(engine: Engine, scans: Sequence[Scan]) -> None:
    """End the outages of targets that were looked at again; writes nothing where there is none."""
    _recover(engine, [(*scan.place, scan.instant) for scan in scans])


def record_answers(engine: Engine, account_ids: Iterable[str], answered_at: datetime) -> None:
    """End the outages of accounts that say again which Regions they have; writes nothing where none lasts.

    Looks at Regions known from before do not end them.
    """
    _recover(engine, [(account_id, None, answered_at) for account_id in account_ids])


def _recover(engine: Engine, answers: Sequence[tuple[str, str | None, datetime]]) -> None:
    if answers:
        places = [(account_id, region, instant.isoformat()) for account_id, region, instant in answers]
        with translated_errors(), engine.begin() as connection:
            connection.execute(_RECOVER, {"answers": json.dumps(places)})


# The good looks of a target; a failure that names no Region is its account's, and no look ends that.
_GOOD = """
    SELECT s.observed_at FROM vm_import.targets t JOIN vm_import.scans s USING (target_id)
    WHERE t.account_id = :account_id AND t.region = :region AND s.source = 'api'
"""

# The outage that a failure belongs to: the one that it lies in, the one that lasted until after it, or the
# one that began after it with no good look in between. Concurrent beginnings meet at the unique index, and
# what is counted is asked of the row as it is then: somebody else may have stored the same failure meanwhile.
_RECORD = text(f"""
    WITH belongs AS (
        SELECT o.outage_id FROM vm_import.outages o
        WHERE o.account_id = :account_id AND o.region IS NOT DISTINCT FROM CAST(:region AS text)
          AND CASE
              WHEN o.first_failed_at > :failed_at THEN NOT EXISTS (
                  {_GOOD} AND s.observed_at > :failed_at AND s.observed_at < o.first_failed_at)
              ELSE o.last_failed_at >= :failed_at OR o.recovered_at IS NULL OR o.recovered_at > :failed_at
              END
        ORDER BY o.first_failed_at LIMIT 1
    ), prolonged AS (
        UPDATE vm_import.outages o SET
            first_failed_at = least(o.first_failed_at, :failed_at),
            last_failed_at = greatest(o.last_failed_at, :failed_at),
            failures = o.failures + 1,
            error_code = CASE WHEN :failed_at > o.last_failed_at THEN :error_code ELSE o.error_code END,
            message = CASE WHEN :failed_at > o.last_failed_at THEN :message ELSE o.message END
        FROM belongs b
        WHERE o.outage_id = b.outage_id AND :failed_at NOT BETWEEN o.first_failed_at AND o.last_failed_at
    )
    INSERT INTO vm_import.outages AS o
        (account_id, region, first_failed_at, last_failed_at, failures, error_code, message, recovered_at)
    SELECT :account_id, :region, :failed_at, :failed_at, 1, :error_code, :message,
        (SELECT min(g.observed_at) FROM ({_GOOD} AND s.observed_at > :failed_at) g)
    WHERE NOT EXISTS (SELECT FROM belongs)
    ON CONFLICT (account_id, region) WHERE recovered_at IS NULL DO UPDATE SET
        first_failed_at = least(o.first_failed_at, excluded.first_failed_at),
        last_failed_at = greatest(o.last_failed_at, excluded.last_failed_at), failures = o.failures + 1
        WHERE excluded.last_failed_at NOT BETWEEN o.first_failed_at AND o.last_failed_at
""")  # noqa: S608 - our own fragment

# A success before the failure, arriving late, ends nothing; the first one after it does, whenever it
# arrives. A list is sent as JSON: the driver takes far longer over an array.
_RECOVER = text("""
    UPDATE vm_import.outages o SET recovered_at = i.recovered_at
    FROM (
        SELECT o.outage_id, min(i.recovered_at) AS recovered_at
        FROM vm_import.outages o
        JOIN (
            SELECT answer ->> 0 AS account_id, answer ->> 1 AS region,
                CAST(answer ->> 2 AS timestamptz) AS recovered_at
            FROM json_array_elements(CAST(:answers AS json)) AS j (answer)
        ) i ON o.account_id = i.account_id AND o.region IS NOT DISTINCT FROM i.region
        WHERE i.recovered_at > o.last_failed_at
        GROUP BY o.outage_id
    ) i
    WHERE o.outage_id = i.outage_id AND (o.recovered_at IS NULL OR o.recovered_at > i.recovered_at)
""")
