"""Outages: one row per unbroken series of failed looks at a target."""

from collections.abc import Iterable, Sequence
from datetime import datetime

from sqlalchemy import Engine, text

from collector.domain import Failure, Scan, Target
from collector.warehouse.engine import translated_errors


def record_failures(engine: Engine, failures: Iterable[Failure]) -> None:
    """Begin an outage for each failed target, or prolong the one that lasts."""
    rows = [
        {
            "account_id": failure.account_id,
            "region": failure.region,
            "failed_at": failure.failed_at,
            "error_code": failure.code,
            "message": failure.message,
        }
        for failure in sorted(failures, key=lambda f: (f.account_id, f.region or "", f.failed_at))
    ]
    if rows:
        with translated_errors(), engine.begin() as connection:
            connection.execute(_PROLONG, rows)


def record_recoveries(engine: Engine, scans: Sequence[Scan]) -> None:
    """End the outages of targets that were looked at again; writes nothing where there is none."""
    first_good: dict[Target, datetime] = {}
    for scan in sorted(scans, key=lambda scan: (scan.target, scan.observed_at), reverse=True):
        first_good[scan.target] = scan.observed_at
    if first_good:
        parameters = {
            "account_ids": [target.account_id for target in first_good],
            "regions": [target.region for target in first_good],
            "recovered_at": list(first_good.values()),
        }
        with translated_errors(), engine.begin() as connection:
            connection.execute(_RECOVER, parameters)


_PROLONG = text("""
    INSERT INTO vm_import.outages
        (account_id, region, first_failed_at, last_failed_at, failures, error_code, message)
    VALUES (:account_id, :region, :failed_at, :failed_at, 1, :error_code, :message)
    ON CONFLICT (account_id, region) WHERE recovered_at IS NULL DO UPDATE SET
        first_failed_at = least(outages.first_failed_at, excluded.first_failed_at),
        last_failed_at = greatest(outages.last_failed_at, excluded.last_failed_at),
        failures = outages.failures + 1,
        error_code = CASE WHEN excluded.last_failed_at < outages.last_failed_at
            THEN outages.error_code ELSE excluded.error_code END,
        message = CASE WHEN excluded.last_failed_at < outages.last_failed_at
            THEN outages.message ELSE excluded.message END
""")

# A success before the failure, arriving late, ends nothing. A target's first good look also ends an outage
# of its account that began before Regions were known.
_RECOVER = text("""
    UPDATE vm_import.outages o SET recovered_at = i.recovered_at
    FROM unnest(CAST(:account_ids AS text[]), CAST(:regions AS text[]), CAST(:recovered_at AS timestamptz[]))
        AS i (account_id, region, recovered_at)
    WHERE o.recovered_at IS NULL AND o.account_id = i.account_id
      AND (o.region = i.region OR o.region IS NULL) AND i.recovered_at > o.last_failed_at
""")
