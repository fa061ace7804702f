"""A token bucket: how fast requests to one account and Region may follow each other.

AWS refills about 20 tokens a second per account and Region for everybody who asks there, and gives 100 on
credit (EC2's documentation of request throttling); others need theirs, too.
"""

from time import monotonic

PER_SECOND = 10.0
BURST = 20.0


class TokenBucket:
    """For one thread at a time: a target is looked at by one."""

    def __init__(self, per_second: float = PER_SECOND, burst: float = BURST) -> None:
        self._per_second = per_second
        self._burst = burst
        self._tokens = burst
        self._counted_at = monotonic()

    def take(self) -> float:
        """Take a token, on credit if there is none; return how many seconds to wait before using it."""
        now = monotonic()
        refilled = self._tokens + (now - self._counted_at) * self._per_second
        self._tokens = min(self._burst, refilled) - 1
        self._counted_at = now
        return max(0.0, -self._tokens / self._per_second)
