"""``collector backfill --spool``: what waits on disk because the database was away."""

from collector.commands.composition import spool_of, warehouse_of
from collector.commands.reporting import Report, progress
from collector.config import Settings
from collector.warehouse import schema
from collector.warehouse.recording import record

_BATCH_LOOKS = 200
"""Looks that are stored at a time."""


def from_spool(settings: Settings, *, dry_run: bool, as_json: bool) -> int:
    """Store what waits on disk, the oldest first, and return the exit code."""
    report = Report(dry_run=dry_run, as_json=as_json)
    with report.reported(), warehouse_of(settings) as warehouse:
        schema.require_current(warehouse.engine)
        spool = spool_of(settings)
        with progress(spool.files, "looks stored from disk") as advance:
            if dry_run:
                looks = [spooled.look for spooled in spool.waiting(spool.files)]
                record(warehouse.engine, looks, report.tally, dry_run=True, tell=report.tell)
            while not dry_run and (waiting := spool.waiting(_BATCH_LOOKS)):
                record(warehouse.engine, [spooled.look for spooled in waiting], report.tally)
                spool.remove(waiting)
                advance(len(waiting))
    return 3 if report.tally.refused else 0
