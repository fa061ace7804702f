"""Which stretches of CloudTrail are read: whole days, each once, and the present again and again."""

from datetime import UTC, datetime, timedelta

from collector.domain import Stretch
from collector.gathering import halves, is_settled, unread_stretches

NOW = datetime(2026, 3, 25, 7, 30, tzinfo=UTC)


def day(number: int) -> datetime:
    """Return a midnight of March."""
    return datetime(2026, 3, number, tzinfo=UTC)


def test_whole_days_and_the_present() -> None:
    """At most ten days at a time; the day that lasts is by itself."""
    assert unread_stretches(datetime(2026, 3, 3, 17, tzinfo=UTC), NOW, []) == [
        Stretch(day(3), day(13)),
        Stretch(day(13), day(23)),
        Stretch(day(23), day(25)),
        Stretch(day(25), NOW),
    ]


def test_what_was_read_is_left_out() -> None:
    """Also in the middle; a day that was read in part is read again."""
    read = [Stretch(day(1), day(10)), Stretch(day(12), day(20)), Stretch(day(24), NOW - timedelta(hours=9))]
    assert unread_stretches(day(5), NOW, read) == [
        Stretch(day(10), day(12)),
        Stretch(day(20), day(25)),
        Stretch(day(25), NOW),
    ]


def test_what_is_too_much_at_once_is_halved() -> None:
    """Down to a day."""
    assert halves(Stretch(day(1), day(4))) == [Stretch(day(1), day(2)), Stretch(day(2), day(4))]
    assert halves(Stretch(day(1), day(2))) == []
    assert halves(Stretch(day(25), NOW)) == []


def test_the_last_hour_is_not_settled() -> None:
    """CloudTrail shows an event some time after it."""
    assert is_settled(Stretch(day(24), day(25)), NOW)
    assert not is_settled(Stretch(day(24), day(25)), day(25) + timedelta(minutes=59))
