"""A rate limit as AWS has them, by the real clock: a bucket of tokens for each account and Region."""

from collections.abc import Hashable
from threading import Lock
from time import monotonic


class Rate:
    """So many requests a second for each caller, and as many at once on credit; ``None`` sets no limit.

    Thread-safe. ``per_second`` may be changed at any time.
    """

    def __init__(self, per_second: float | None) -> None:
        self.per_second = per_second
        self._lock = Lock()
        self._buckets: dict[Hashable, tuple[float, float]] = {}

    def allows(self, caller: Hashable) -> bool:
        """Whether a request may pass; one that may not takes no token."""
        rate = self.per_second
        if rate is None:
            return True
        most, now = max(1.0, rate), monotonic()
        with self._lock:
            tokens, counted_at = self._buckets.get(caller, (most, now))
            tokens = min(most, tokens + (now - counted_at) * rate)
            allowed = tokens >= 1
            self._buckets[caller] = (tokens - 1 if allowed else tokens, now)
        return allowed
