"""What each target showed this process last: for its state, and for doubts while the database is away."""

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from collector.domain import Failure, Look, Scan, Target
from collector.errors import CollectorError
from collector.state import TargetState


class NeverSeenError(CollectorError):
    """This process has not seen the whole target yet."""


@dataclass(frozen=True, slots=True)
class _Last:
    state: TargetState
    listed: frozenset[str] | None = None


class Sightings:
    """For any number of threads; ``last_good`` are instants of complete scans from before this process."""

    def __init__(self, last_good: Mapping[Target, datetime] | None = None) -> None:
        self._lock = threading.Lock()
        self._last = {target: _Last(TargetState(target, at)) for target, at in (last_good or {}).items()}

    def saw(self, target: Target, look: Look) -> TargetState:
        """Remember a look, and return the state that was before it."""
        with self._lock:
            before = self._last.get(target) or _Last(TargetState(target))
            self._last[target] = self._after(before, look)
            return before.state

    def missing(self, scan: Scan) -> set[str]:
        """Return the ids that make a listing doubtful: this process saw them last time, and not in it.

        Raises:
            NeverSeenError: there was no last time, or no whole listing before it.
        """
        with self._lock:
            last = self._last.get(scan.target)
        if last is None or last.listed is None:
            raise NeverSeenError(f"{scan.target} was not seen yet")
        return set(last.listed - scan.tasks.ids)

    def states(self, targets: Iterable[Target]) -> tuple[TargetState, ...]:
        """Return what is known of these targets, in their order."""
        with self._lock:
            return tuple(
                self._last[target].state if target in self._last else TargetState(target)
                for target in targets
            )

    @staticmethod
    def _after(before: _Last, look: Look) -> _Last:
        state = before.state
        if isinstance(look, Failure):
            since = state.failing_since or look.failed_at
            state = replace(state, failing=look, failing_since=since, failures=state.failures + 1)
            return _Last(state, before.listed)
        listed: frozenset[str] | None = look.tasks.ids
        if not look.complete:  # alone it is nothing to go by: the next listing may lie as this one did
            listed = None if before.listed is None else before.listed | look.tasks.ids
        return _Last(
            TargetState(
                state.target,
                last_good_at=look.observed_at if look.complete else state.last_good_at,
                statuses=look.tasks.statuses,
                in_flight=look.tasks.unfinished,
            ),
            listed,
        )
