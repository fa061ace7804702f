"""What happened during a soak, kept on disk, and the questions that are asked of it at the end.

Three witnesses must agree: the simulator's ledger of what it showed, the looks that the daemon told its
observer of, and the warehouse.
"""

import json
import pickle
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Engine

from collector.aws.transform import import_task
from collector.daemon import Result
from collector.domain import Failure, ImportTask, Scan, Target, Tasks
from collector.outcomes import Tally
from collector.simulator import Fleet, SimulatedClock
from collector.simulator.fleet import Shown
from collector.warehouse import history
from tests.factories import stored
from tests.simulation import rows

Seen = Mapping[str, int]
"""Content hashes by import task id."""

_REMEMBERED = 4000
"""Wire tasks whose hash is remembered; most are shown again and again."""

_NAMED = 5
"""Differences of a kind that are named; the rest is counted."""


class Tape:
    """A file of records that may be written from any thread, so that a soak's memory is the daemon's."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def write(self, records: Iterable[Any]) -> None:
        """Append."""
        with self._lock, self._path.open("ab") as file:
            for record in records:
                pickle.dump(record, file)

    def __iter__(self) -> Iterator[Any]:
        """Read everything, in the order in which it was written."""
        with self._path.open("rb") as file:
            while file.peek(1):
                yield pickle.load(file)  # noqa: S301 - our own


class Watch:
    """The collector's clock: the simulated one, or ``ahead`` of it. It remembers what time it really was."""

    def __init__(self, clock: SimulatedClock) -> None:
        self._clock = clock
        self._ahead = self.furthest = timedelta(0)
        self._thread = threading.local()

    @property
    def ahead(self) -> timedelta:
        """How wrong it is."""
        return self._ahead

    @ahead.setter
    def ahead(self, ahead: timedelta) -> None:
        self._ahead = ahead
        self.furthest = max(self.furthest, ahead)

    def __call__(self) -> datetime:
        """Tell the time that the collector believes."""
        true = self._clock.now()
        shown = true + self._ahead
        self._readings[shown] = true
        return shown

    def true_times(self, *shown: datetime) -> list[datetime]:
        """Say when this thread really read these times, and forget what it read."""
        readings = dict(self._readings)
        self._readings.clear()
        # A reading that repeats another thread's is a microsecond later in a scan.
        return [readings[min(readings, key=lambda known: abs(known - each))] for each in shown]

    @property
    def _readings(self) -> dict[datetime, datetime]:
        readings: dict[datetime, datetime] = self._thread.__dict__.setdefault("readings", {})
        return readings


class Taped(NamedTuple):
    """A look as it is on tape: the scan without its tasks' contents, and when it really was."""

    scan: Scan
    seen: Seen
    began: datetime
    ended: datetime


class Listed(NamedTuple):
    """An answer of the ledger, without the tasks' contents."""

    target: Target
    at: datetime
    page: int
    lookup: bool
    more: bool
    seen: Seen


class Journal:
    """The daemon's observer, and the reader of the ledger: both go on tape as they come.

    ``whole`` are the targets that were seen whole; whoever starts a daemon clears it.
    """

    def __init__(self, folder: Path, watch: Watch, fleet: Fleet) -> None:
        self._watch = watch
        self._fleet = fleet
        self.looks, self.contents = Tape(folder / "looks"), Tape(folder / "contents")
        self.failures, self.ledger = Tape(folder / "failures"), Tape(folder / "ledger")
        self.whole: set[Target] = set()
        self.refused: list[str] = []
        self.counts: defaultdict[str, int] = defaultdict(int)
        self._lock = threading.Lock()
        self._written: set[int] = set()
        self._hashes: dict[str, int] = {}
        for tape in (self.looks, self.contents, self.failures, self.ledger):
            tape.write(())

    def looked(self, target: Target, result: Result, seconds: float) -> None:  # noqa: ARG002 - as observers are called
        """Keep a look."""
        if isinstance(result, Failure):
            self._count(result.code)
            self.failures.write([result])
            self._watch.true_times()
        elif result is not None:
            self._count("complete" if result.complete else "partial")
            if result.complete:
                self.whole.add(target)
            seen = {task.import_task_id: task.content_hash for task in result.tasks}
            began, ended = self._watch.true_times(result.observed_at, result.finished_at)
            self.contents.write(self._new(result.tasks))
            self.looks.write(
                [(target, result.observed_at, result.finished_at, result.complete, seen, began, ended)]
            )

    def recorded(self, tally: Tally, seconds: float) -> None:  # noqa: ARG002 - as observers are called
        """Keep what was refused, and the failures of accounts, which no look tells of."""
        self.refused += tally.refused
        self.failures.write(failure for failure in tally.failures if failure.region is None)

    def read_ledger(self) -> None:
        """Take what the simulator has shown since."""
        ledger = self._fleet.ledger or []
        shown = ledger[:]
        del ledger[: len(shown)]
        self.ledger.write(self._listed(one) for one in shown)

    def _listed(self, shown: Shown) -> Listed:
        seen = {str(task["ImportTaskId"]): self._hash(task) for task in shown.tasks}
        target = Target(shown.account_id, shown.region)
        return Listed(target, shown.at, shown.page, shown.lookup, shown.more, seen)

    def _hash(self, task: dict[str, Any]) -> int:
        key = json.dumps(task, sort_keys=True)
        if key not in self._hashes:
            if len(self._hashes) >= _REMEMBERED:
                self._hashes.clear()
            self._hashes[key] = import_task(task).content_hash
        return self._hashes[key]

    def _new(self, tasks: Iterable[ImportTask]) -> list[ImportTask]:
        with self._lock:
            new = [task for task in tasks if hash(_key(task)) not in self._written]
            self._written.update(hash(_key(task)) for task in new)
            return new

    def _count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1


def _key(task: ImportTask) -> tuple[str, int]:
    return task.import_task_id, task.content_hash


class Audit:
    """What a soak left behind, and what is wrong with it.

    ``fresh`` is an engine on an empty database, which the same scans go into once more, in order.
    """

    def __init__(self, journal: Journal, soaked: Engine, fresh: Engine) -> None:
        self._journal = journal
        self._soaked = soaked
        self._fresh = fresh

    def differences(self) -> dict[str, list[str]]:
        """Return what is wrong, by the question that was asked."""
        asked = {
            "scans the database refused": self._journal.refused,
            "scans that are not stored as they were seen": list(self._scans()),
            "complete scans that show something else than the ledger": list(self._against_ledger()),
            "tasks taken for gone while they were listed": list(self._false_expiries()),
            "instants whose tasks_as_of is not their scan": list(self._as_of()),
            "targets whose versions differ from the reference": list(self._versions()),
            "outages that the failures do not explain": list(self._outages()),
        }
        return {question: _few(found) for question, found in asked.items()}

    @cached_property
    def _looks(self) -> dict[Target, list[Taped]]:
        """The scans by target, in the order in which they really were."""
        contents = {_key(task): task for task in self._journal.contents}
        looks: defaultdict[Target, list[Taped]] = defaultdict(list)
        for target, observed_at, finished_at, complete, seen, began, ended in self._journal.looks:
            tasks = Tasks(contents[key] for key in seen.items())
            scan = Scan(target, observed_at, finished_at, complete, "api", tasks)
            looks[target].append(Taped(scan, seen, began, ended))
        return {target: sorted(taped, key=lambda each: each.began) for target, taped in sorted(looks.items())}

    @cached_property
    def _ledger(self) -> dict[Target, list[Listed]]:
        ledger: defaultdict[Target, list[Listed]] = defaultdict(list)
        for listed in self._journal.ledger:
            ledger[listed.target].append(listed)
        return {target: sorted(shown, key=lambda each: each.at) for target, shown in ledger.items()}

    def _scans(self) -> Iterator[str]:
        found = {
            (Target(row.account_id, row.region), row.observed_at.astimezone(UTC)): (
                row.finished_at.astimezone(UTC),
                row.complete,
                bytes(row.digest),
            )
            for row in rows(
                self._soaked, "SELECT * FROM vm_import.scans JOIN vm_import.targets USING (target_id)"
            )
        }
        for target, looks in self._looks.items():
            for scan in (look.scan for look in looks):
                if (have := found.pop((target, scan.observed_at), None)) is None:
                    yield f"{_name(scan)} is missing"
                elif have != (scan.finished_at, scan.complete, scan.digest):
                    yield f"{_name(scan)} is other"
        yield from (f"{target} at {instant} was not told of" for target, instant in found)

    def _against_ledger(self) -> Iterator[str]:
        for target, looks in self._looks.items():
            ledger, position = self._ledger.get(target, []), 0
            for look in looks:
                while position < len(ledger) and ledger[position].at < look.began:
                    position += 1
                end = position
                while end < len(ledger) and ledger[end].at <= look.ended:
                    end += 1
                if look.scan.complete and look.seen not in list(_listings(ledger[position:end])):
                    yield f"{_name(look.scan)}: {len(look.seen)} tasks"

    def _false_expiries(self) -> Iterator[str]:
        """A task that was seen before a complete scan, by its clock too, and shown after it must be in it."""
        for target, looks in self._looks.items():
            last_shown = {name: shown.at for shown in self._ledger.get(target, []) for name in shown.seen}
            known: dict[str, datetime] = {}
            for look in looks:
                instant = look.scan.observed_at
                known = {name: at for name, at in known.items() if _later(last_shown.get(name), look.ended)}
                if look.scan.complete:
                    lost = sorted(name for name in known.keys() - look.seen.keys() if known[name] < instant)
                    yield from (f"{_name(look.scan)}: {name}" for name in lost)
                known |= {name: min(instant, known.get(name, instant)) for name in look.seen}

    def _as_of(self) -> Iterator[str]:
        wanted = {
            (look.scan.target, look.scan.observed_at): {
                (task.import_task_id, task.status, task.status_message, task.progress, task.image_id)
                for task in look.scan.tasks
            }
            for looks in self._looks.values()
            for look in looks
            if look.scan.complete
        }
        for row in rows(self._soaked, _AS_OF):
            key = (Target(row.account_id, row.region), row.observed_at.astimezone(UTC))
            have = {tuple(task) for task in row.tasks or ()}
            if wanted.get(key) != have:
                yield f"{key[0]} at {key[1].isoformat()}"

    def _versions(self) -> Iterator[str]:
        """Store the same scans once more, in order and without any haste."""
        for target, looks in self._looks.items():
            scans = sorted((look.scan for look in looks), key=lambda scan: scan.observed_at)
            for begin in range(0, len(scans), 1000):
                for outcome in history.store(self._fresh, scans[begin : begin + 1000]):
                    if outcome.refusal:
                        yield outcome.refusal
            if stored(self._soaked, target) != stored(self._fresh, target):
                yield str(target)

    def _outages(self) -> Iterator[str]:
        failed: defaultdict[tuple[str, str | None], dict[datetime, Failure]] = defaultdict(dict)
        for failure in self._journal.failures:
            failed[failure.account_id, failure.region][failure.failed_at] = failure
        found: defaultdict[tuple[str, str | None], list[Any]] = defaultdict(list)
        for row in rows(self._soaked, "SELECT * FROM vm_import.outages ORDER BY first_failed_at"):
            found[row.account_id, row.region].append(row)
        for place in sorted(failed.keys() | found.keys(), key=str):
            for fault in self._faults_of_outages(place, found[place], failed[place]):
                yield f"{place}: {fault}"

    def _faults_of_outages(
        self, place: tuple[str, str | None], outages: Sequence[Any], failed: Mapping[datetime, Failure]
    ) -> Iterator[str]:
        uncovered = set(failed)
        for row in outages:
            first, last = row.first_failed_at.astimezone(UTC), row.last_failed_at.astimezone(UTC)
            within = {instant for instant in failed if first <= instant <= last}
            uncovered -= within
            if row.recovered_at is None:
                yield f"the outage from {first} is open"
            elif not self._may_end(place, last, row.recovered_at):
                yield f"the outage from {first} to {last} did not end at {row.recovered_at}"
            if not {first, last} <= within:
                yield f"nobody saw the outage from {first} to {last}"
            elif failed[last].code != row.error_code:
                yield f"the outage to {last} ended with {failed[last].code}, not {row.error_code}"
            if not min(len(within), 2) <= row.failures <= len(within):
                yield f"the outage from {first} to {last} had {len(within)} failures, not {row.failures}"
        yield from (f"no outage holds the failure at {instant}" for instant in sorted(uncovered))

    def _may_end(self, place: tuple[str, str | None], last: datetime, recovered_at: datetime) -> bool:
        """Whether it ended with the target's next good look, or, for an account, at some time after it."""
        account, region = place
        if region is None:
            return recovered_at > last
        looks = self._looks.get(Target(account, region), ())
        return recovered_at == min(
            (look.scan.observed_at for look in looks if look.scan.observed_at > last), default=None
        )


def _listings(shown: Sequence[Listed]) -> Iterator[Seen]:
    """Return what these answers amount to: every whole listing among them, with the look-ups after it."""
    for begin, first in enumerate(shown):
        if first.lookup or first.page != 1:
            continue
        seen: dict[str, int] = {}
        page, more = 1, True
        for answer in shown[begin:]:
            if answer.lookup:
                seen |= answer.seen
            elif more and answer.page == page:
                seen |= answer.seen
                page, more = page + 1, answer.more
        if not more:
            yield seen


def _later(instant: datetime | None, than: datetime) -> bool:
    return instant is not None and instant > than


def _few(found: list[str]) -> list[str]:
    rest = len(found) - _NAMED
    return found[:_NAMED] + ([f"and {rest} more"] if rest > 0 else [])


def _name(scan: Scan) -> str:
    return f"{scan.target} at {scan.observed_at.isoformat()}"


_AS_OF = """
    SELECT t.account_id, t.region, s.observed_at, (
        SELECT json_agg(json_build_array(
            a.import_task_id, a.status, a.status_message, a.progress, a.image_id))
        FROM vm_import.tasks_as_of(s.observed_at) a
        WHERE a.account_id = t.account_id AND a.region = t.region) AS tasks
    FROM vm_import.scans s JOIN vm_import.targets t USING (target_id) WHERE s.complete
"""
