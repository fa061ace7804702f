"""The simulator's time: it stands still for tests, or runs faster than ours for the demo."""

from datetime import datetime, timedelta
from threading import Lock
from time import monotonic


class SimulatedClock:
    """A clock that runs at ``rate`` simulated seconds per real one; 0 stands still.

    Thread-safe. It never runs backwards.
    """

    def __init__(self, start: datetime, rate: float = 0.0) -> None:
        if start.utcoffset() != timedelta(0):
            raise ValueError(f"the simulated clock starts at a UTC instant, not at {start}")
        self._lock = Lock()
        self._base = start
        self._since = monotonic()
        self._rate = self._checked(rate)

    def now(self) -> datetime:
        """The simulated instant, UTC."""
        with self._lock:
            return self._now()

    @property
    def rate(self) -> float:
        """Simulated seconds per real second."""
        return self._rate

    def advance(self, by: timedelta) -> datetime:
        """Jump ahead, and return the new instant."""
        if by < timedelta(0):
            raise ValueError("the simulated clock cannot run backwards")
        with self._lock:
            self._base += by
            return self._now()

    def set_rate(self, rate: float) -> None:
        """Run at another rate from this moment on."""
        rate = self._checked(rate)
        with self._lock:
            self._base, self._since, self._rate = self._now(), monotonic(), rate

    def _now(self) -> datetime:
        return self._base + timedelta(seconds=(monotonic() - self._since) * self._rate)

    @staticmethod
    def _checked(rate: float) -> float:
        if rate < 0:
            raise ValueError("the simulated clock cannot run backwards")
        return rate
