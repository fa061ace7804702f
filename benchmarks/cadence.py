"""How many API calls does polling take, against one look at every target each minute, and how fresh is it?

The real ``Cadence`` is driven by virtual time. Imports come to each target by chance and take from 20 to 90
minutes; a look takes a tenth of a second and sees whether one is under way when it begins.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from heapq import heappop, heappush
from random import Random
from typing import NamedTuple

from benchmarks.load import Row
from collector.aws.transform import import_task
from collector.domain import Scan, Target, Tasks
from collector.polling import Cadence

ACCOUNTS, REGIONS, HOURS = 100, 35, 24
ACTIVE = 0.05
"""The share of targets with an unfinished task at any time."""

FIXED = 60.0
"""Seconds between two looks at a target if all were looked at equally often."""

SHORTEST, LONGEST = 20 * 60.0, 90 * 60.0
"""Seconds that an import takes."""

WARM_UP = 3600.0
"""Seconds until looks are spread, and what is active is known to be; they count nothing."""

AT_ONCE, LOOK, TICK = 64, 0.1, 1.0
"""Looks at a time, and seconds for each; seconds between two ticks of the daemon."""

SAMPLE_EVERY = 307.0
"""Seconds between two measurements of all ages: no multiple of an interval."""

_START = datetime(2026, 1, 1, tzinfo=UTC)
_NOTHING = Scan(Target("000000000000", "nowhere"), _START, _START, True, "api", Tasks())
_BUSY = Scan(
    _NOTHING.target,
    _START,
    _START,
    True,
    "api",
    Tasks([import_task({"ImportTaskId": "import-ami-a", "Status": "active"})]),
)


class Spread(NamedTuple):
    """Seconds: the middle, what 95 of 100 stay below, and the most."""

    median: float
    percentile_95: float
    maximum: float

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        """Sort, and read off."""
        values.sort()
        return cls(values[len(values) // 2], values[int(len(values) * 0.95)], values[-1])


@dataclass(frozen=True, slots=True)
class Cost:
    """What polling took, and what came of it.

    ``calls`` are of the time after the warm-up, ``fixed_calls`` what a fixed interval takes in it.
    ``active_age`` and ``idle_age`` are ages of what is known, the former of targets whose import has been
    seen; ``first_seen`` is how long after its beginning that is.
    """

    active_share: float
    calls: int
    fixed_calls: int
    active_age: Spread
    idle_age: Spread
    first_seen: Spread


class _Imports:
    """When a target's imports begin and end, one after the other."""

    def __init__(self, chance: Random, until: float) -> None:
        self._begins: list[float] = []
        self._ends: list[float] = []
        mean = (SHORTEST + LONGEST) / 2
        begin = -chance.uniform(0, mean) if chance.random() < ACTIVE else self._pause(chance, mean)
        while begin < until:
            self._begins.append(begin)
            self._ends.append(begin + chance.uniform(SHORTEST, LONGEST))
            begin = self._ends[-1] + self._pause(chance, mean)

    def under_way(self, now: float) -> bool:
        """Whether there is an unfinished one."""
        number = bisect_right(self._begins, now)
        return number > 0 and now < self._ends[number - 1]

    def begun(self, after: float, until: float) -> Sequence[float]:
        """Return when those began that did so in a span of time."""
        return self._begins[bisect_right(self._begins, after) : bisect_right(self._begins, until)]

    def ended(self, after: float, until: float) -> int:
        """Return how many ended in a span of time."""
        return bisect_right(self._ends, until) - bisect_right(self._ends, after)

    @staticmethod
    def _pause(chance: Random, mean: float) -> float:
        return chance.expovariate(ACTIVE / (1 - ACTIVE) / mean)


class _Day:
    """Virtual time: the daemon's ticks, its looks, and measurements in between."""

    def __init__(self, targets: Sequence[Target], seconds: float, seed: int) -> None:
        chance = Random(seed)  # noqa: S311 - repeatable imports, not secrets
        self.ends = WARM_UP + seconds
        self.imports = {target: _Imports(chance, self.ends) for target in targets}
        self.cadence = Cadence(
            interval=timedelta(seconds=FIXED),
            idle_interval=timedelta(minutes=15),
            concurrency=AT_ONCE,
            chance=chance,
        )
        self.cadence.set_targets(targets)
        self.known = dict.fromkeys(targets, 0.0)
        self.looks = self.active = 0
        self.ages: dict[bool, list[float]] = {True: [], False: []}
        self.first_seen: list[float] = []

    def pass_by(self) -> None:
        """Let the time pass."""
        now, tick, sample = 0.0, 0.0, WARM_UP
        flights: list[tuple[float, Target]] = []
        while now < self.ends:
            while len(flights) < AT_ONCE and (target := self.cadence.take(now)):
                heappush(flights, (now + LOOK, target))
            tick = tick + TICK if now >= tick else tick
            now = min(tick, flights[0][0]) if flights else tick
            while flights and flights[0][0] <= now:
                self._done(heappop(flights)[1], now)
            if now >= sample:
                self._measure(now)
                sample += SAMPLE_EVERY

    def _done(self, target: Target, now: float) -> None:
        began, imports = now - LOOK, self.imports[target]
        self.cadence.done(target, _BUSY if imports.under_way(began) else _NOTHING, now)
        before, self.known[target] = self.known[target], began
        if now >= WARM_UP:
            self.looks += 1
            self.first_seen += (now - begin for begin in imports.begun(before, began))

    def _measure(self, now: float) -> None:
        for target, imports in self.imports.items():
            known = self.known[target]
            active = imports.under_way(now)
            self.active += active
            if not active or imports.under_way(known):
                self.ages[active].append(now - known)


def measure(*, accounts: int = ACCOUNTS, regions: int = REGIONS, hours: float = HOURS, seed: int = 0) -> Cost:
    """Poll so many accounts and Regions for so many virtual hours.

    A finished task costs one call more when EC2 forgets it: it is looked up before it is called gone.
    """
    targets = [
        Target(f"{account:012}", f"region-{region}")
        for account in range(accounts)
        for region in range(regions)
    ]
    day = _Day(targets, hours * 3600, seed)
    day.pass_by()
    forgotten = sum(imports.ended(WARM_UP, day.ends) for imports in day.imports.values())
    active, idle = day.ages[True], day.ages[False]
    return Cost(
        active_share=day.active / (day.active + len(idle)),
        calls=day.looks + forgotten,
        fixed_calls=int(len(targets) * hours * 3600 / FIXED),
        active_age=Spread.of(active),
        idle_age=Spread.of(idle),
        first_seen=Spread.of(day.first_seen),
    )


def rows() -> Iterator[Row]:
    """Measure a day; ages at a fixed interval are spread evenly over it."""
    cost = measure()
    fixed = Spread(FIXED / 2, FIXED * 0.95, FIXED)
    yield Row(
        f"API calls of a day, {ACCOUNTS * REGIONS} targets, {cost.active_share:.1%} active / a look a minute",
        cost.calls,
        cost.fixed_calls,
        "",
    )
    spreads = {
        "age of what is known of active targets": cost.active_age,
        "age of what is known of idle targets": cost.idle_age,
        "time until an import is first seen": cost.first_seen,
    }
    for question, spread in spreads.items():
        for name, ours, limit in zip(Spread._fields, spread, fixed, strict=True):
            yield Row(f"{question}, {name.replace('_', ' ')} / a look a minute", ours, limit)
