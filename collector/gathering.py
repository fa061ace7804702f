"""Which stretches of CloudTrail are still to be read, so that a rerun goes on where the last one ended."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, time, timedelta

from collector.domain import Stretch

KEPT_FOR = timedelta(days=90)
"""How long CloudTrail's event history goes back (AWS's documentation)."""

SETTLED_AFTER = timedelta(hours=1)
"""CloudTrail shows an event about 15 minutes after it, on average; after this long it is there."""

_DAY = timedelta(days=1)
_LONGEST = 10 * _DAY


def unread_stretches(since: datetime, now: datetime, read: Sequence[Stretch]) -> list[Stretch]:
    """Return the stretches from ``since`` to ``now`` that are not read, in order.

    They begin and end at midnight (UTC), so that those of two runs fit together; only the last ends now.
    """
    stretches: list[Stretch] = []
    for day in _days(since, now):
        if any(known.begin <= day.begin and day.end <= known.end for known in read):
            continue
        last = stretches[-1] if stretches else None
        if last and last.end == day.begin and day.end - last.begin <= _LONGEST and day.end < now:
            stretches[-1] = Stretch(last.begin, day.end)
        else:
            stretches.append(day)
    return stretches


def halves(stretch: Stretch) -> list[Stretch]:
    """Return both halves of a stretch that is too much at once, none of one that cannot be less.

    The halves of whole days are whole days.
    """
    days = (stretch.end - stretch.begin) // _DAY
    if days > 1:
        middle = stretch.begin + days // 2 * _DAY
        return [Stretch(stretch.begin, middle), Stretch(middle, stretch.end)]
    return []


def is_settled(stretch: Stretch, now: datetime) -> bool:
    """Whether everything that happened in a stretch has come in by now, so that it need not be read again."""
    return stretch.end <= now - SETTLED_AFTER


def _days(since: datetime, now: datetime) -> Iterator[Stretch]:
    begin = datetime.combine(since.astimezone(UTC).date(), time(), UTC)
    while begin < now:
        end = min(begin + _DAY, now)
        yield Stretch(begin, end)
        begin = end
