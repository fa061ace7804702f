"""What came of looks goes into the warehouse, good and bad alike, and is added up."""

from collections.abc import Callable, Iterable

from sqlalchemy import Engine

from collector.domain import Failure, Look, Scan
from collector.outcomes import Outcome, Tally
from collector.warehouse import history, outages


def record(
    engine: Engine,
    looks: Iterable[Look],
    tally: Tally | None = None,
    *,
    dry_run: bool = False,
    tell: Callable[[Outcome], object] = lambda _: None,
) -> Tally:
    """Store scans and failures, end and begin outages, ``tell`` each outcome, and add it all to ``tally``.

    Raises:
        WarehouseError: the database failed; doing the same again completes it and doubles no scan.
    """
    tally = tally or Tally()
    looks = list(looks)
    scans = [look for look in looks if isinstance(look, Scan)]
    failures = [look for look in looks if isinstance(look, Failure)]
    for outcome in history.store(engine, scans, dry_run=dry_run):
        tally.add(outcome)
        tell(outcome)
    tally.failures += failures
    if not dry_run:
        outages.record_recoveries(engine, [scan for scan in scans if scan.source == "api"])
        outages.record_failures(engine, failures)
    return tally
