"""The daemon: an APScheduler job that ticks, signals that end it, and nothing observed dropped in between.

A tick never waits for AWS. It records the looks that have come back and starts those that are due; a slow
target delays nobody else.
"""

import signal
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import timedelta
from time import monotonic

import structlog
from apscheduler.schedulers.background import BackgroundScheduler

from collector.domain import Failure, Scan, Target
from collector.errors import CollectorError
from collector.outcomes import Tally
from collector.polling import Cadence

TICK = timedelta(seconds=1)
DISCOVERY_INTERVAL = timedelta(hours=24)
DISCOVERY_RETRY = timedelta(minutes=15)
_OVERDUE_TICKS = 10
"""Ticks that may be missed before the schedule is made anew."""

_GRACE = 5.0
"""Seconds that looks in flight have to end by themselves when the daemon stops."""

log = structlog.stdlib.get_logger(__name__)

Result = Scan | Failure | None


@dataclass(frozen=True, slots=True)
class Work:
    """What the daemon does, handed in.

    ``discover`` names the targets, ``look`` looks at one (``None``: another process is at it), ``cancel``
    ends all looks at once, ``record`` stores results, ``repair`` mends the database if it is ours to mend.
    """

    discover: Callable[[], Iterable[Target]]
    look: Callable[[Target], Result]
    cancel: Callable[[], None]
    record: Callable[[list[Scan | Failure]], Tally]
    repair: Callable[[], None]


class Daemon:
    """Polls until ``stop``."""

    def __init__(self, work: Work, cadence: Cadence, *, concurrency: int, tick: timedelta = TICK) -> None:
        self._work = work
        self._cadence = cadence
        self._tick_interval = tick
        self._pool = ThreadPoolExecutor(concurrency, thread_name_prefix="look")
        self._looks: dict[Future[Result], Target] = {}
        self._unrecorded: list[Scan | Failure] = []
        self._failing: dict[Target, str] = {}
        self._trouble = ""
        self._discovery: Future[list[Target]] | None = None
        self._next_discovery = 0.0
        self._last_tick = monotonic()
        self._stopping = threading.Event()

    def run(self) -> None:
        """Poll until ``stop`` is called or a signal comes, then end within seconds."""
        self._next_discovery = monotonic() + DISCOVERY_INTERVAL.total_seconds()
        self._set_targets(list(self._work.discover()))
        scheduler = BackgroundScheduler(timezone="UTC")
        options = {"max_instances": 1, "coalesce": True, "misfire_grace_time": None}
        seconds = self._tick_interval.total_seconds()
        job = scheduler.add_job(self.tick, "interval", seconds=seconds, **options)
        scheduler.start()
        try:
            while not self._stopping.wait(seconds):
                # The scheduler goes by the wall clock: set back by an hour, it would sleep for an hour.
                if monotonic() - self._last_tick > _OVERDUE_TICKS * seconds:
                    job.reschedule("interval", seconds=seconds)
                    self._last_tick = monotonic()
        finally:
            scheduler.shutdown(wait=True)
            self._end()

    def stop(self, *_signal: object) -> None:
        """End ``run``; a signal handler."""
        self._stopping.set()

    def stop_on_signals(self) -> None:
        """Let SIGTERM and SIGINT end the daemon."""
        signal.signal(signal.SIGTERM, self.stop)
        signal.signal(signal.SIGINT, self.stop)

    def tick(self) -> None:
        """Record what has come back, then start what is due."""
        self._last_tick = monotonic()
        self._collect()
        if not self._record():
            return  # Polling waits for the database: what is not recorded must not grow without bound.
        self._discover()
        if not self._stopping.is_set():
            for target in self._cadence.take_due(monotonic()):
                self._looks[self._pool.submit(self._work.look, target)] = target

    def _discover(self) -> None:
        """Ask for the targets when it is time, beside the looks, and follow the answer when it has come."""
        if self._discovery is None and monotonic() >= self._next_discovery:
            self._next_discovery = monotonic() + DISCOVERY_INTERVAL.total_seconds()
            self._discovery = self._pool.submit(lambda: list(self._work.discover()))
        if self._discovery is None or not self._discovery.done():
            return
        discovery, self._discovery = self._discovery, None
        try:
            self._set_targets(discovery.result())
        except CollectorError as error:
            self._next_discovery = min(self._next_discovery, monotonic() + DISCOVERY_RETRY.total_seconds())
            log.warning("targets are kept as they are: discovery failed", error=str(error))

    def _set_targets(self, targets: list[Target]) -> None:
        self._cadence.set_targets(targets)
        log.info("polling", targets=len(targets))

    def _collect(self) -> None:
        put_off: list[Exception] = []
        for future in [future for future in self._looks if future.done()]:
            target = self._looks.pop(future)
            try:
                result = future.result()
            except Exception as error:  # noqa: BLE001 - no lease without the database, say; the target must not be lost
                put_off.append(error)
                result = None
            self._cadence.done(target, result)
            if isinstance(result, Failure) and result.code == "Cancelled":
                continue
            if result is not None:
                self._unrecorded.append(result)
                self._log_failure(target, result)
        if put_off:
            self._log_trouble("looks are put off", put_off[0])
            self._repair()

    def _record(self) -> bool:
        """Store what is not stored yet; say whether nothing is left."""
        if not self._unrecorded:
            return True
        try:
            tally = self._work.record(self._unrecorded)
        except CollectorError as error:
            self._log_trouble("looks are not recorded yet, polling waits", error)
            self._repair()
            return False
        self._unrecorded = []
        if self._trouble:
            self._trouble = ""
            log.info("looks are recorded again")
        for refusal in tally.refused:
            log.error("scan refused", reason=refusal)
        if tally.inserted or tally.closed:
            log.info(
                "history changed",
                scans=tally.scans,
                new_tasks=tally.new_tasks,
                inserted=tally.inserted,
                closed=tally.closed,
                expired=tally.expired,
                vanished=tally.vanished,
            )
        return True

    def _repair(self) -> None:
        try:
            self._work.repair()
        except CollectorError as error:
            self._log_trouble("the embedded database cannot be repaired", error)

    def _log_trouble(self, event: str, error: Exception) -> None:
        """Log trouble with the database when it begins and when its kind changes, not at every tick."""
        if self._trouble != event:
            self._trouble = event
            log.error(event, error=str(error))

    def _log_failure(self, target: Target, result: Scan | Failure) -> None:
        """Log a failure when it begins, when its kind changes, and when it is over."""
        where = {"account": target.account_id, "region": target.region}
        if isinstance(result, Scan):
            if self._failing.pop(target, None):
                log.info("target answers again", **where)
        elif self._failing.get(target) != result.code:
            self._failing[target] = result.code
            log.warning("look failed", **where, code=result.code, cause=result.message)

    def _end(self) -> None:
        """Let looks in flight finish for a moment, cut the rest short, and record what came of them."""
        wait(self._looks, timeout=_GRACE)
        self._work.cancel()
        self._pool.shutdown(wait=True, cancel_futures=True)
        wait(self._looks)
        self._looks = {future: target for future, target in self._looks.items() if not future.cancelled()}
        self._collect()
        if not self._record():
            log.error("stopped with looks not recorded", looks=len(self._unrecorded))
