"""``collector backfill --spool``: store what waits on disk."""

from collector.commands.composition import spool_of, warehouse_of
from collector.commands.reporting import Report, progress
from collector.config import Settings
from collector.warehouse import schema

_BATCH_LOOKS = 200


def from_spool(settings: Settings, *, dry_run: bool, as_json: bool) -> int:
    """Store what waits on disk, the oldest first, and return the exit code."""
    report = Report(dry_run=dry_run, as_json=as_json)
    with report.reported(), warehouse_of(settings) as warehouse:
        schema.require_current(warehouse.engine)
        spool = spool_of(settings)
        with progress(spool.files, "looks stored from disk") as advance:
            # A dry run takes all of them together, because each scan changes what the next one does.
            for waiting in spool.batches(max(1, spool.files) if dry_run else _BATCH_LOOKS):
                report.record(warehouse, [spooled.look for spooled in waiting])
                if not dry_run:
                    spool.remove(waiting)
                advance(len(waiting))
    return 3 if report.tally.refused else 0
