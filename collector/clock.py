"""The instants of scans: UTC, and never the same twice, because an instant names a scan of its target."""

import threading
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

_REMEMBERED = 10_000
"""Instants; far more than a clock can show within one reading."""


def utc_now() -> datetime:
    """Return the wall clock's time, in UTC."""
    return datetime.now(UTC)


def never_the_same_twice(now: Callable[[], datetime]) -> Callable[[], datetime]:
    """Wrap a clock so that readings less than a microsecond apart, from any thread, still differ.

    A clock that was set back is followed: what it then shows is late, not wrong.
    """
    lock = threading.Lock()
    given: set[datetime] = set()
    oldest_first: deque[datetime] = deque()
    tick = timedelta(microseconds=1)

    def read() -> datetime:
        with lock:
            instant = now()
            while instant in given:
                instant += tick
            given.add(instant)
            oldest_first.append(instant)
            if len(given) > _REMEMBERED:
                given.remove(oldest_first.popleft())
            return instant

    return read
