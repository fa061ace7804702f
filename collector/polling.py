"""Which targets are due, and looks at many of them at once. Knows neither AWS nor the database.

What looks and what leases is handed in.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import timedelta
from time import monotonic, sleep
from typing import Protocol

from collector.domain import Failure, Scan, Target

Look = Callable[[Target], Scan | Failure]


class Leases(Protocol):
    """The right to look at a target, which one process at a time has."""

    def acquire(self, target: Target) -> bool:
        """Take it if it is free."""

    def release(self, target: Target) -> None:
        """Give it back."""


def leased(look: Look, leases: Leases, *, patience: timedelta) -> Callable[[Target], Scan | Failure | None]:
    """Wrap a look so that it holds the target's lease; ``None`` when that was not free in time."""

    def look_with_lease(target: Target) -> Scan | Failure | None:
        give_up = monotonic() + patience.total_seconds()
        while not leases.acquire(target):
            if monotonic() >= give_up:
                return None
            sleep(0.2)
        try:
            return look(target)
        finally:
            leases.release(target)

    return look_with_lease


def look_at_all(
    targets: Iterable[Target],
    look: Callable[[Target], Scan | Failure | None],
    *,
    concurrency: int,
    cancel: Callable[[], None] = lambda: None,
) -> Iterator[tuple[Target, Scan | Failure | None]]:
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


class Cadence:
    """When each target is due: at ``interval`` with unfinished tasks, at ``idle_interval`` without.

    Times are of a monotonic clock, in seconds: the wall clock may jump.
    """

    def __init__(self, *, interval: timedelta, idle_interval: timedelta) -> None:
        self._interval = interval.total_seconds()
        self._idle_interval = max(idle_interval, interval).total_seconds()
        self._due: dict[Target, float] = {}
        self._in_flight: dict[Target, float] = {}
        self._targets: set[Target] = set()

    def set_targets(self, targets: Iterable[Target]) -> None:
        """Say which targets there are; new ones are due at once."""
        self._targets = set(targets)
        for target in self._targets - self._in_flight.keys():
            self._due.setdefault(target, 0.0)
        for target in self._due.keys() - self._targets:
            del self._due[target]

    def take_due(self, now: float) -> list[Target]:
        """Return the due targets, the longest due first; each is not due again until ``done``."""
        due = sorted((at, target) for target, at in self._due.items() if at <= now)
        for _, target in due:
            del self._due[target]
            self._in_flight[target] = now
        return [target for _, target in due]

    def done(self, target: Target, result: Scan | Failure | None) -> None:
        """Say what came of a look; a failed one is repeated as if the target had unfinished tasks."""
        idle = isinstance(result, Scan) and all(task.finished for task in result.tasks)
        started = self._in_flight.pop(target)
        if target in self._targets:  # it may have been taken away meanwhile
            self._due[target] = started + (self._idle_interval if idle else self._interval)
