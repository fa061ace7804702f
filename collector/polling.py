"""Which targets are due, and looks at many of them at once. Knows neither AWS nor the database.

What looks and what leases is handed in.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from datetime import timedelta
from heapq import heappop, heappush
from random import Random
from time import monotonic, sleep
from typing import Protocol, TypeVar

from collector.domain import Failure, Look, Scan, Target
from collector.errors import WarehouseError

T = TypeVar("T")

LookAt = Callable[[Target], Look]


class Leases(Protocol):
    """The right to look at a target, which one process at a time has."""

    def acquire(self, target: Target) -> bool:
        """Take it if it is free."""

    def release(self, target: Target) -> None:
        """Give it back."""


def leased(look: LookAt, leases: Leases, *, patience: timedelta) -> Callable[[Target], Look | None]:
    """Wrap a look so that it holds the target's lease; ``None`` when that was not free in time.

    Where nobody can be asked for a lease, because the database is away, nobody else is known to look.
    """

    def look_with_lease(target: Target) -> Look | None:
        give_up = monotonic() + patience.total_seconds()
        try:
            while not leases.acquire(target):
                if monotonic() >= give_up:
                    return None
                sleep(0.2)
        except WarehouseError:
            return look(target)
        try:
            return look(target)
        finally:
            leases.release(target)

    return look_with_lease


def look_at_all(
    targets: Iterable[Target],
    look: Callable[[Target], T],
    *,
    concurrency: int,
    cancel: Callable[[], None] = lambda: None,
) -> Iterator[tuple[Target, T]]:
    """Look at every target, ``concurrency`` at a time, and yield what came of each as it comes.

    ``cancel`` ends looks in flight; it is called when the caller, or a signal, wants no more.
    """
    with ThreadPoolExecutor(concurrency, thread_name_prefix="look") as pool:
        looks = {pool.submit(look, target): target for target in targets}
        try:
            for done in as_completed(looks):
                yield looks[done], done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            cancel()
            raise


UNANSWERED = frozenset(
    {"ConnectTimeout", "ConnectionClosed", "DeadlineExceeded", "EndpointConnection", "ReadTimeout"}
)
"""Codes of looks that nobody answered: the sign of a Region that hangs, whichever the account."""

_TRIPS_AFTER = 3
"""Looks in a row that a Region does not answer before it gets no more than one at a time."""

_LONGEST_REST = 300.0
"""Seconds between two tries of a Region that does not answer."""

_SHARES = 4
"""A Region has at most this fraction of all looks at once, where there are so many Regions."""


@dataclass(slots=True)
class _Region:
    """The queue of one Region, and its breaker: a Region that hangs must not fill the pool for others."""

    queue: list[tuple[float, Target]] = field(default_factory=list)
    in_flight: int = 0
    unanswered: int = 0
    resting_until: float = 0.0

    @property
    def tripped(self) -> bool:
        return self.unanswered >= _TRIPS_AFTER

    def takes(self, now: float, share: int) -> bool:
        """Whether a look may start here."""
        return now >= self.resting_until and self.in_flight < (1 if self.tripped else share)

    def answered(self, now: float, code: str | None, interval: float) -> None:
        """Count what came of a look: nothing but silence trips the breaker, and any answer closes it."""
        if code not in UNANSWERED:
            self.unanswered, self.resting_until = 0, 0.0
            return
        self.unanswered += 1
        if self.tripped:
            rest = interval * 2.0 ** min(self.unanswered - _TRIPS_AFTER, 20)
            self.resting_until = now + min(rest, _LONGEST_REST)


class Cadence:
    """When each target is due: at ``interval`` with unfinished tasks, at ``idle_interval`` without.

    Targets are spread over their interval by chance, and never further apart than it. A failing target is
    asked less and less often, down to ``idle_interval``. For any number of threads. Times are of a monotonic
    clock, in seconds: the wall clock may jump.
    """

    def __init__(
        self,
        *,
        interval: timedelta,
        idle_interval: timedelta,
        concurrency: int,
        chance: Random | None = None,
    ) -> None:
        self._interval = interval.total_seconds()
        self._idle_interval = max(idle_interval, interval).total_seconds()
        self._concurrency = concurrency
        self._chance = chance or Random()  # noqa: S311 - spreads looks over time, keeps no secret
        self._lock = threading.Lock()
        self._due: dict[Target, float] = {}
        self._failures: dict[Target, int] = {}
        self._in_flight: dict[Target, float] = {}
        self._spread: set[Target] = set()
        self._targets: frozenset[Target] = frozenset()
        self._regions: dict[str, _Region] = {}

    @property
    def targets(self) -> frozenset[Target]:
        """The targets that there are."""
        return self._targets

    def set_targets(self, targets: Iterable[Target]) -> None:
        """Say which targets there are; new ones are due at once, accounts outside and Regions inside."""
        with self._lock:
            self._targets = frozenset(targets)
            for target in self._due.keys() - self._targets:
                del self._due[target]
            self._spread &= self._targets
            self._failures = {t: number for t, number in self._failures.items() if t in self._targets}
            for target in sorted(self._targets - self._due.keys() - self._in_flight.keys()):
                self._plan(target, 0.0)

    def take(self, now: float) -> Target | None:
        """Return the target that has been due for longest, or none; it is not due again until ``done``."""
        with self._lock:
            best: _Region | None = None
            share = self._share()
            for region in self._regions.values():
                self._drop_stale(region)
                if not region.queue or region.queue[0][0] > now or not region.takes(now, share):
                    continue
                if best is None or region.queue[0] < best.queue[0]:
                    best = region
            if best is None:
                return None
            _, target = heappop(best.queue)
            del self._due[target]
            self._in_flight[target] = now
            best.in_flight += 1
            return target

    def done(self, target: Target, result: Look | None, now: float) -> None:
        """Say what came of a look; ``None``: another process is at it."""
        with self._lock:
            started = self._in_flight.pop(target)
            region = self._regions[target.region]
            region.in_flight -= 1
            if result is not None:
                code = result.code if isinstance(result, Failure) else None
                region.answered(now, code, self._interval)
            if target in self._targets:  # it may have been taken away meanwhile
                self._plan(target, started + self._pause(target, result))

    def lag(self, now: float) -> float:
        """Return how long (seconds) the longest-due target has been waiting, Regions that rest left out."""
        with self._lock:
            waiting = [
                now - region.queue[0][0]
                for region in self._regions.values()
                if region.queue and not region.tripped and region.queue[0][0] > 0
            ]
        return max(0.0, *waiting) if waiting else 0.0

    def _share(self) -> int:
        return max(1, self._concurrency // max(1, min(_SHARES, len(self._regions))))

    def _plan(self, target: Target, due: float) -> None:
        self._due[target] = due
        heappush(self._regions.setdefault(target.region, _Region()).queue, (due, target))

    def _drop_stale(self, region: _Region) -> None:
        """Forget what was planned for targets that are no longer there."""
        while region.queue and self._due.get(region.queue[0][1]) != region.queue[0][0]:
            heappop(region.queue)

    def _pause(self, target: Target, result: Look | None) -> float:
        if isinstance(result, Failure):
            failures = self._failures[target] = self._failures.get(target, 0) + 1
            longest = min(self._interval * 2.0 ** min(failures - 1, 20), self._idle_interval)
        else:
            if result is not None:
                self._failures.pop(target, None)
            longest = self._idle_interval if _is_idle(result) else self._interval
        if target in self._spread:
            return longest * self._chance.uniform(0.9, 1.0)
        self._spread.add(target)  # all began at once; from now on each has a time of its own
        return longest * self._chance.uniform(0.1, 1.0)


def _is_idle(result: Look | None) -> bool:
    """Whether a look saw everything, and nothing that will change."""
    return isinstance(result, Scan) and result.complete and not result.tasks.unfinished
