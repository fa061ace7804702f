"""The daemon put together: polling, the loader with its spool, and what they are told of each other."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import datetime, timedelta

import structlog

from collector.clock import utc_now
from collector.commands.composition import spool_of
from collector.commands.doubts import Doubts
from collector.commands.wiring import polling_of
from collector.config import Settings
from collector.daemon import TICK, Daemon, Observer, Work
from collector.domain import Discovered, Look, Scan, Target
from collector.loader import Loader
from collector.notify import notify
from collector.outcomes import Tally
from collector.polling import Cadence
from collector.sightings import Sightings
from collector.warehouse import outages, schema
from collector.warehouse.access import Warehouse
from collector.warehouse.recording import record

_LAST_ANSWER = 1.0
"""Seconds that the database may take to answer when the daemon ends."""

log = structlog.stdlib.get_logger(__name__)


class _Answers:
    """Stores looks, and which accounts answered last: it ends their outages, even those stored later."""

    def __init__(self, warehouse: Warehouse) -> None:
        self._engine = warehouse.engine
        self._recorded: Discovered | None = None
        self.newest: Discovered | None = None

    @property
    def owed(self) -> bool:
        """Whether there is an answer that is not stored yet."""
        return self.newest is not self._recorded

    def store(self, looks: Sequence[Look]) -> Tally:
        """Store looks, and then the newest answer if it is owed or may end what they began."""
        tally = record(self._engine, looks)
        newest = self.newest
        if newest and (self.owed or any(failure.region is None for failure in tally.failures)):
            outages.record_answers(self._engine, newest.answered, newest.asked_at)
            self._recorded = newest
        return tally


@contextmanager
def daemon_of(
    settings: Settings,
    warehouse: Warehouse,
    *,
    accounts: Sequence[str],
    known: Mapping[Target, datetime],
    observer: Observer,
    now: Callable[[], datetime] = utc_now,
    tick: timedelta = TICK,
) -> Iterator[Daemon]:
    """Put a daemon together; ``known`` are targets of earlier times, with their last good looks."""
    sightings = Sightings(known)
    doubts = Doubts(warehouse.connect, sightings)
    spool = spool_of(settings)

    def missing(scan: Scan) -> set[str]:
        return doubts.missing(scan) if loader.trouble is None else sightings.missing(scan)

    def give_up() -> None:
        warehouse.patience.seconds = _LAST_ANSWER

    def told(tally: Tally, seconds: float) -> None:
        observer.recorded(tally, seconds)
        _log_tally(tally)

    answers = _Answers(warehouse)
    loader = Loader(
        store=answers.store,
        owes=lambda: answers.owed,
        reach=lambda: schema.require_current(warehouse.engine),
        repair=warehouse.repair,
        give_up=give_up,
        spool=spool,
        told=told,
    )
    with (
        closing(doubts),
        polling_of(
            settings,
            warehouse,
            accounts=accounts,
            patience=timedelta(0),
            missing=missing,
            known=known,
            now=now,
        ) as polling,
    ):

        def discover() -> Discovered:
            found = answers.newest = polling.discover()
            return found

        work = Work(
            discover=discover,
            look=polling.look,
            cancel=polling.cancel,
            lead=polling.lead,
            now=now,
            progress=lambda: notify("READY=1", "WATCHDOG=1"),
        )
        cadence = Cadence(
            interval=settings.interval,
            idle_interval=settings.idle_interval,
            concurrency=settings.concurrency,
        )
        yield Daemon(
            work,
            cadence,
            loader,
            spool,
            sightings,
            observer,
            concurrency=settings.concurrency,
            tick=tick,
        )


def _log_tally(tally: Tally) -> None:
    """Log what a batch of looks brought, at INFO only if it is news."""
    for refusal in tally.refused:
        log.error("scan refused", reason=refusal)
    news = {
        name: number
        for name in ("new_tasks", "inserted", "closed", "expired", "vanished")
        if (number := getattr(tally, name))
    }
    say = log.info if news else log.debug
    say("history changed" if news else "nothing new", scans=tally.scans, failures=len(tally.failures), **news)
