"""What the daemon knows of itself at a moment: for health, metrics and the status page."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from collector.domain import FORGOTTEN_AFTER, Failure, ImportTask, Target

NEARLY_FORGOTTEN = FORGOTTEN_AFTER - timedelta(days=2)
"""A target without a good look for so long is about to lose tasks for ever."""


def nearly_forgotten(last_good_at: datetime | None, now: datetime) -> bool:
    """Whether tasks may soon be lost unseen, because the last good look is so long ago."""
    return last_good_at is not None and now - last_good_at > NEARLY_FORGOTTEN


@dataclass(frozen=True, slots=True)
class TargetState:
    """One target as this process last saw it.

    ``last_good_at`` is the instant (UTC) of the last complete scan, of this process or, from before it
    started, of the warehouse; ``None``: there is none. ``statuses`` counts the tasks of the last scan by
    status, ``in_flight`` are its unfinished ones. ``failing`` is the newest failure of a series that lasts,
    ``failing_since`` the instant of its first, and ``failures`` its length.
    """

    target: Target
    last_good_at: datetime | None = None
    statuses: Mapping[str, int] = field(default_factory=dict)
    in_flight: tuple[ImportTask, ...] = ()
    failing: Failure | None = None
    failing_since: datetime | None = None
    failures: int = 0

    def nearly_forgotten(self, now: datetime) -> bool:
        """Whether tasks may soon be lost unseen, because the last good look is so long ago."""
        return nearly_forgotten(self.last_good_at, now)


@dataclass(frozen=True, slots=True)
class DaemonState:
    """The daemon at a moment.

    ``alive``: ticks happen. ``leading``: this process polls; ``False``: it stands by for one that does;
    ``None``: it could not ask yet. ``database`` says what is wrong with the database, ``None`` when nothing
    is. ``schedule_lag`` is how long (seconds) the longest-due target has been waiting; ``missed_ticks``
    counts the ticks that the scheduler left out.
    """

    alive: bool
    leading: bool | None
    database: str | None
    spool_files: int = 0
    spool_bytes: int = 0
    spool_full: bool = False
    schedule_lag: float = 0.0
    missed_ticks: int = 0
    targets: tuple[TargetState, ...] = ()

    @property
    def ready(self) -> bool:
        """Whether what is seen can be stored, or will be by the process that leads."""
        return self.alive and self.database is None and self.leading is not None

    @property
    def failing(self) -> int:
        """How many targets' newest look failed."""
        return sum(target.failing is not None for target in self.targets)

    @property
    def unseen(self) -> int:
        """How many targets never had a good look."""
        return sum(target.last_good_at is None for target in self.targets)

    def nearly_forgotten(self, now: datetime) -> int:
        """Return how many targets are about to lose tasks for ever."""
        return sum(target.nearly_forgotten(now) for target in self.targets)
