"""The daemon: an APScheduler job that ticks, looks that run beside it, signals that end it.

A tick never waits for AWS or for the database. It hands the looks that have come back to the loader and
starts those that are due; a slow target delays nobody else, and neither does a database that is away.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import datetime, timedelta
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, Protocol

import structlog
from apscheduler.events import EVENT_JOB_MAX_INSTANCES, EVENT_JOB_MISSED
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.interval import IntervalTrigger

from collector.domain import Discovered, Failure, Look, Scan, Target
from collector.errors import CollectorError
from collector.loader import Loader
from collector.outcomes import Tally
from collector.polling import Cadence
from collector.sightings import Sightings
from collector.spool import Spool
from collector.state import DaemonState

TICK = timedelta(seconds=1)
DISCOVERY_INTERVAL = timedelta(hours=24)
DISCOVERY_RETRY = timedelta(minutes=5)
_OVERDUE_TICKS = 10
"""Ticks that may be missed before the schedule is made anew."""

_DEAD_AFTER = 30.0
"""Seconds without a tick, after which the daemon is not alive."""

_STUCK_AFTER = 120.0
"""Seconds in which a batch must be stored and, if any target is due, a look end: else no progress."""

# Seconds that the parts of an end may take; with the embedded server's they stay below 15.
_GRACE, _CANCELLING, _STORING = 3.0, 1.5, 3.0

_MOST_WAITING = 1500
"""Looks that wait to be stored before no more start: a database may be slower than AWS, but not away."""

_GLANCE = 0.1
_WARN_AGAIN = 24 * 3600.0
_CHECK_FRESHNESS = 60.0

log = structlog.stdlib.get_logger(__name__)

Result = Look | None


@dataclass(frozen=True, slots=True)
class Work:
    """What the daemon does, handed in.

    ``discover`` names the targets and what could not be asked for them, ``look`` looks at one (``None``:
    another process is at it), ``cancel`` ends all of that at once. ``lead`` says whether this process is the
    one that polls, and raises while nobody can say. ``progress`` is called when something has been done.
    """

    discover: Callable[[], Discovered]
    look: Callable[[Target], Result]
    cancel: Callable[[], None]
    lead: Callable[[], bool]
    now: Callable[[], datetime]
    progress: Callable[[], None] = lambda: None


class Observer(Protocol):
    """Whoever counts what the daemon does."""

    def looked(self, target: Target, result: Result, seconds: float) -> None:
        """A look has ended."""

    def recorded(self, tally: Tally, seconds: float) -> None:
        """A batch has been stored."""


class _NoCatchingUp(IntervalTrigger):  # type: ignore[misc] # APScheduler has no types
    """Every so often from now on: a wall clock set forward by a year makes 31 million ticks overdue."""

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime:
        """Return the next time, which is never in the past, and never later than after one interval."""
        following: datetime = super().get_next_fire_time(previous, now)
        latest: datetime = now + self.interval
        return following if now < following <= latest else latest


class Daemon:
    """Polls until ``stop``."""

    def __init__(
        self,
        work: Work,
        cadence: Cadence,
        loader: Loader,
        spool: Spool,
        sightings: Sightings,
        observer: Observer,
        *,
        concurrency: int,
        tick: timedelta = TICK,
    ) -> None:
        self._work = work
        self._cadence = cadence
        self._loader = loader
        self._spool = spool
        self._sightings = sightings
        self._observer = observer
        self._concurrency = concurrency
        self._tick_interval = tick
        self._pool = ThreadPoolExecutor(concurrency, thread_name_prefix="look")
        self._discoverer = ThreadPoolExecutor(1, thread_name_prefix="discover")
        self._runners: set[Future[None]] = set()
        self._results: SimpleQueue[Look] = SimpleQueue()
        self._discovery: Future[Discovered] | None = None
        self._next_discovery = 0.0
        self._leading: bool | None = None
        self._last_tick = self._last_look = monotonic()
        self._missed_ticks = 0
        self._warned: dict[Target, float] = {}
        self._next_freshness = 0.0
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._reload_wanted = False

    def run(self, *, reload: Callable[[], bool] = lambda: False, stood_by: bool = False) -> None:
        """Poll until ``stop`` is called, then end within seconds.

        ``reload`` reads the configuration again when that is wanted, and says whether it is good: that ends
        it, too. ``stood_by``: this process stood by before, and goes on so while nobody can say who leads.
        """
        self._loader.start()
        leader = threading.Thread(target=self._keep_asking_who_leads, name="leadership", daemon=True)
        scheduler = BackgroundScheduler(timezone="UTC")
        scheduler.add_listener(self._tick_missed, EVENT_JOB_MISSED | EVENT_JOB_MAX_INSTANCES)
        options = {"max_instances": 1, "coalesce": True, "misfire_grace_time": None}
        seconds = self._tick_interval.total_seconds()
        trigger = _NoCatchingUp(seconds=seconds, timezone="UTC")
        try:
            self._leading = False if stood_by else None
            self._ask_who_leads()
            self._first_discovery()
            leader.start()
            job = scheduler.add_job(self.tick, trigger, **options)
            scheduler.start()
            while not self._stopping.is_set():
                self._wake.wait(seconds)
                self._wake.clear()
                if self._reload_wanted:
                    self._reload_wanted = False
                    if reload():
                        break
                # The scheduler goes by the wall clock: set back by an hour, it would sleep for an hour.
                if monotonic() - self._last_tick > _OVERDUE_TICKS * seconds:
                    job.reschedule(trigger)
                    self._last_tick = monotonic()
        finally:
            self._stopping.set()
            if scheduler.running:
                scheduler.shutdown(wait=False)
            self._end()

    def stop(self) -> None:
        """End ``run``; good for a signal handler."""
        self._stopping.set()
        self._wake.set()

    def reload(self) -> None:
        """Read the configuration again, and begin anew with it if it is good."""
        self._reload_wanted = True
        self._wake.set()

    def rescue(self) -> None:
        """Write to disk what was seen and is not stored, because the process is about to end by force."""
        self._collect()
        self._loader.rescue()

    def tick(self) -> None:
        """Hand over what has come back, then start what is due."""
        self._collect()
        self._discover()
        self._start_looks()
        self._watch_freshness()
        self._last_tick = monotonic()
        if self._makes_progress():
            self._work.progress()

    def state(self) -> DaemonState:
        """Return what the daemon knows of itself now."""
        return DaemonState(
            alive=monotonic() - self._last_tick < _DEAD_AFTER,
            leading=self._leading,
            database=self._loader.trouble,
            spool_files=self._spool.files,
            spool_bytes=self._spool.bytes,
            spool_full=self._loader.blocked,
            schedule_lag=self._cadence.lag(monotonic()) if self._polls else 0.0,
            missed_ticks=self._missed_ticks,
            targets=self._sightings.states(self._cadence.targets),
        )

    # Looks

    @property
    def _polls(self) -> bool:
        """Whether this process looks: it leads, or nobody can say who does; and what it sees can be kept."""
        return self._leading is not False and not self._stopping.is_set() and not self._loader.blocked

    @property
    def _may_look(self) -> bool:
        """Whether a look may start now."""
        return self._polls and self._results.qsize() + self._loader.waiting < _MOST_WAITING

    def _start_looks(self) -> None:
        self._runners = {runner for runner in self._runners if not runner.done()}
        while len(self._runners) < self._concurrency and (target := self._next_target()):
            self._runners.add(self._pool.submit(self._run_looks, target))

    def _next_target(self) -> Target | None:
        return self._cadence.take(monotonic()) if self._may_look else None

    def _run_looks(self, first: Target) -> None:
        """Look at one due target after the other until none is left."""
        target: Target | None = first
        while target is not None:
            began = monotonic()
            result: Result = None
            try:
                result = self._work.look(target)
            except Exception as error:  # noqa: BLE001 - the target must not be lost, whatever went wrong
                log.error("look put off", account=target.account_id, region=target.region, error=str(error))
            ended = monotonic()
            self._cadence.done(target, result, ended)
            self._last_look = ended
            if not (isinstance(result, Failure) and result.code == "Cancelled"):
                self._note(target, result, ended - began)
            target = self._next_target()

    def _note(self, target: Target, result: Result, seconds: float) -> None:
        self._observer.looked(target, result, seconds)
        if result is None:
            return
        self._results.put(result)
        before = self._sightings.saw(target, result)
        where = {"account": target.account_id, "region": target.region}
        if isinstance(result, Scan):
            if before.failing:
                log.info("target answers again", **where, failures=before.failures)
        elif before.failing is None or before.failing.code != result.code:
            log.warning("look failed", **where, code=result.code, cause=result.message)

    def _collect(self) -> None:
        looks: list[Look] = []
        while True:
            try:
                looks.append(self._results.get_nowait())
            except Empty:
                break
        if looks:
            self._loader.put(looks)

    # Who leads

    def _keep_asking_who_leads(self) -> None:
        """Ask every second: a standby begins within seconds of the leader's end, a loser stops at once."""
        while not self._stopping.wait(self._tick_interval.total_seconds()):
            self._ask_who_leads()

    def _ask_who_leads(self) -> None:
        try:
            leading = self._work.lead()
        except CollectorError:
            return  # nobody can say: whoever led goes on into the spool, whoever stood by stands by
        if leading != self._leading:
            log.info("leading: this process polls" if leading else "standing by: another process polls")
        self._leading = leading

    # What there is to look at

    def _first_discovery(self) -> None:
        """Ask at once; a fault of the configuration or of the credentials ends the daemon at its start."""
        asked = self._discoverer.submit(self._work.discover)
        while not wait([asked], timeout=_GLANCE).done:
            if self._stopping.is_set():
                return
        try:
            self._follow(asked.result())
        except CollectorError as error:
            if error.exit_code != 1 or getattr(error, "code", None) == "NoCredentials":
                raise
            self._put_off_discovery(error)

    def _discover(self) -> None:
        """Ask for the targets when it is time, beside the looks, and follow the answer when it has come."""
        if self._discovery is None and monotonic() >= self._next_discovery:
            self._discovery = self._discoverer.submit(self._work.discover)
        if self._discovery is None or not self._discovery.done():
            return
        discovery, self._discovery = self._discovery, None
        try:
            self._follow(discovery.result())
        except CollectorError as error:
            self._put_off_discovery(error)

    def _follow(self, discovered: Discovered) -> None:
        targets, failures = discovered.targets, discovered.failures
        before = self._cadence.targets
        self._cadence.set_targets(targets)
        pause = DISCOVERY_RETRY if failures else DISCOVERY_INTERVAL
        self._next_discovery = monotonic() + pause.total_seconds()
        self._loader.put(failures)
        for failure in failures:
            log.warning(
                "targets of an account are kept as they are: discovery failed",
                account=failure.account_id,
                code=failure.code,
                cause=failure.message,
            )
        if self._cadence.targets != before:
            log.info("targets", targets=len(targets), accounts=len({target.account_id for target in targets}))

    def _put_off_discovery(self, error: CollectorError) -> None:
        """Keep the targets; without any there is nothing else to do than to ask again soon."""
        pause = DISCOVERY_RETRY.total_seconds() if self._cadence.targets else 10.0
        self._next_discovery = monotonic() + pause
        log.warning("targets are kept as they are: discovery failed", error=str(error))

    # How it goes

    def _tick_missed(self, _event: Any) -> None:
        self._missed_ticks += 1

    def _makes_progress(self) -> bool:
        """Whether the work goes on, and not just the clock: for whoever restarts a daemon that hangs."""
        now = monotonic()
        # Targets may wait for long because there are too many of them: then looks still end.
        waiting = min(self._cadence.lag(now), now - self._last_look) if self._may_look else 0.0
        return self._loader.busy_for < _STUCK_AFTER and waiting < _STUCK_AFTER

    def _watch_freshness(self) -> None:
        """Shout, once a day, about targets of which tasks may soon be lost for ever."""
        now = monotonic()
        if now < self._next_freshness or self._leading is False:
            return
        self._next_freshness = now + _CHECK_FRESHNESS
        for state in self._sightings.states(self._cadence.targets):
            if not state.nearly_forgotten(self._work.now()):
                self._warned.pop(state.target, None)
            elif now - self._warned.get(state.target, -_WARN_AGAIN) >= _WARN_AGAIN:
                self._warned[state.target] = now
                log.error(
                    "no good look for days: EC2 forgets a task seven days after its end",
                    account=state.target.account_id,
                    region=state.target.region,
                    last_good_at=str(state.last_good_at),
                    cause=state.failing and state.failing.message,
                )

    def _end(self) -> None:
        """Let looks in flight finish for a moment, cut the rest short, and store what came of them."""
        wait(self._runners, timeout=_GRACE)
        self._work.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._discoverer.shutdown(wait=False, cancel_futures=True)
        wait(self._runners, timeout=_CANCELLING)
        self._collect()
        self._loader.close(_STORING)
