"""The tasks of one account in one Region: planned ones live by the clock, placed ones stand still."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import islice
from operator import attrgetter
from typing import Any

from collector.simulator.lives import Plan, Task
from collector.simulator.trail import Recorded


class UnknownTaskError(LookupError):
    """The account has no such task in that Region, or EC2 has forgotten it; the argument is its id."""


@dataclass(slots=True)
class Entry:
    """One task: a life, or something that somebody placed. ``number`` is its place in listings."""

    number: int
    life: Plan | Task

    def state(self, now: datetime) -> str:
        """Its ``Status``."""
        return self.life.state(now) if isinstance(self.life, Plan) else str(self.life.get("Status"))

    def visible(self, now: datetime) -> bool:
        """Whether EC2 knows it."""
        return not isinstance(self.life, Plan) or self.life.visible(now)


@dataclass(slots=True)
class Stream:
    """Imports that keep coming, one ``every`` so often on average."""

    every: timedelta
    due: datetime


@dataclass(slots=True)
class Place:
    """What one account has in one Region. ``entries`` are sorted by number."""

    entries: list[Entry] = field(default_factory=list)
    by_id: dict[str, Entry] = field(default_factory=dict)
    images: dict[str, dict[str, Any]] = field(default_factory=dict)
    stream: Stream | None = None
    recorded: list[Recorded] = field(default_factory=list)

    def enter(self, number: int, task_id: str, life: Plan | Task) -> None:
        """Add a task, or replace one, which keeps its number."""
        if (entry := self.by_id.get(task_id)) is not None:
            entry.life = life
            return
        entry = Entry(number, life)
        self.entries.append(entry)
        self.by_id[task_id] = entry

    def write_down(
        self,
        at: datetime,
        action: str,
        request: Mapping[str, Any],
        task_id: str | None = None,
        error: tuple[str, str] | None = None,
    ) -> None:
        """Keep a request for CloudTrail; one whose time has not come is not found before it."""
        self.recorded.append(Recorded(len(self.recorded), at, action, request, task_id, error))

    def foil_cancellations(self, task_id: str) -> None:
        """Let whoever would have cancelled a task later be refused: somebody was faster."""
        error = ("Client.IncorrectState", f"The task {task_id} cannot be cancelled.")
        for number, recorded in enumerate(self.recorded):
            if recorded.action == "CancelImportTask" and recorded.task_id == task_id:
                self.recorded[number] = replace(recorded, task_id=None, error=error)

    def leave(self, task_id: str) -> None:
        """Remove a task."""
        entry = self.by_id.pop(task_id, None)
        if entry is None:
            raise UnknownTaskError(task_id)
        self.entries.remove(entry)

    def find(self, task_id: str, now: datetime) -> Entry:
        """A task that EC2 knows at that moment."""
        entry = self.by_id.get(task_id)
        if entry is None or not entry.visible(now):
            raise UnknownTaskError(task_id)
        return entry

    def visible(self, now: datetime, after: int, ids: Iterable[str] | None) -> Iterator[Entry]:
        """The tasks that EC2 knows at that moment, behind a number: all of them, or those with these ids."""
        entries = self.entries
        if ids is not None:
            entries = sorted((self.find(task_id, now) for task_id in set(ids)), key=attrgetter("number"))
        begin = bisect_right(entries, after, key=attrgetter("number"))
        return (entry for entry in islice(entries, begin, None) if entry.visible(now))
