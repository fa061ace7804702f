"""How one observation changes one task's chain of tiles: pure, so that it can be read and tested alone.

A tile is ``[valid_from, valid_to)`` with one content; a period in which the task was not listed is a tile
too, with content ``None``. Before its first tile a task is not listed, without a tile that says so.
"""

from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple


class Surroundings(NamedTuple):
    """A task's chain around the instant of a scan that saw something else than the chain says.

    ``valid_from`` begins the tile in effect (``None``: before the first tile), ``valid_to`` ends it
    (``None``: nothing follows), ``following`` is the content of the tile that begins there. ``next_scan``
    is the next scan that covers the task (``None``: the observation is the newest).
    """

    task_id: int
    valid_from: datetime | None = None
    valid_to: datetime | None = None
    following: int | None = None
    next_scan: datetime | None = None


class Interval(NamedTuple):
    """A tile to be written for a task."""

    task_id: int
    valid_from: datetime
    valid_to: datetime | None


@dataclass(slots=True)
class Changes:
    """What has to happen to tiles, in the order in which no constraint fails half-way.

    ``shrink`` are tiles, by task and start, that end at the scan. ``restore`` are periods in which the old
    content resumes, with the start of the tile to copy it from (``None``: not listed). ``extend`` are
    tiles, by task and start, that begin at the scan already. ``insert`` are the observation's own tiles.
    """

    shrink: list[tuple[int, datetime]] = field(default_factory=list)
    restore: list[tuple[Interval, datetime | None]] = field(default_factory=list)
    extend: list[tuple[int, datetime]] = field(default_factory=list)
    insert: list[Interval] = field(default_factory=list)

    def observe(self, around: Surroundings, observed_at: datetime, content: int | None) -> None:
        """Add what it takes to record that the task had ``content`` at ``observed_at``, which is news."""
        if around.valid_from is not None:
            self.shrink.append((around.task_id, around.valid_from))
        if around.next_scan != around.valid_to:
            # The next scan saw the old content again, and nothing is known in between.
            assert around.next_scan is not None  # noqa: S101 - every tile ends at a scan that covers its task
            self.insert.append(Interval(around.task_id, observed_at, around.next_scan))
            resumed = Interval(around.task_id, around.next_scan, around.valid_to)
            self.restore.append((resumed, around.valid_from))
        elif around.valid_to is not None and around.following == content:
            self.extend.append((around.task_id, around.valid_to))
        else:
            self.insert.append(Interval(around.task_id, observed_at, around.next_scan))
