"""One deadline over everything that a look at a target does: pages, retries, look-ups.

A read timeout starts anew with every byte, so a server that drips outlives it. After the deadline the socket
that the look is reading from is shut down, which ends the read at once and leaves no thread behind.
"""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from time import monotonic

_GLANCE = 0.1
"""Seconds between two looks for deadlines that are over."""

_current: ContextVar["Deadline"] = ContextVar("deadline")


class DeadlineExceededError(Exception):
    """The time for a look at a target is over."""


class Deadline:
    """A span of time for what one thread does; made by ``Deadlines``. Cancelling ends it at once."""

    def __init__(self, seconds: float) -> None:
        self.cancelled = False
        self._ends = monotonic() + seconds
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None

    @property
    def remaining(self) -> float:
        """Seconds left; 0 when over."""
        return 0.0 if self.cancelled else max(0.0, self._ends - monotonic())

    def check(self) -> None:
        """Raise ``DeadlineExceededError`` when the time is over."""
        if not self.remaining:
            raise DeadlineExceededError

    def cancel(self) -> None:
        """End the time now, from any thread."""
        self.cancelled = True
        self.enforce()

    def enforce(self) -> None:
        """Shut the socket down if the time is over."""
        if not self.remaining:
            with self._lock:
                if self._socket is not None:
                    with suppress(OSError):  # closed already, which is what was wanted
                        self._socket.shutdown(socket.SHUT_RDWR)

    def guard(self, connected: socket.socket) -> None:
        """Shut this socket down when the time is over, unless released before."""
        with self._lock:
            self._socket = connected
        self.enforce()

    def release(self) -> None:
        """Forget the socket: it goes back to the pool, and another look may use it next."""
        with self._lock:
            self._socket = None


class Deadlines:
    """Deadlines that can all be ended at once, from any thread, now and from now on.

    One thread enforces all of them. It is there only while there are any.
    """

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._running: set[Deadline] = set()
        self._enforced = False

    @contextmanager
    def limit(self, seconds: float) -> Iterator[Deadline]:
        """Limit what runs in this thread inside ``with``."""
        deadline = Deadline(seconds)
        token = _current.set(deadline)
        self._add(deadline)
        try:
            yield deadline
        finally:
            with self._lock:
                self._running.discard(deadline)
            _current.reset(token)
            deadline.release()

    def pause(self, seconds: float) -> None:
        """Wait for so many seconds, or until the end."""
        self._ended.wait(seconds)

    def end(self) -> None:
        """End them all."""
        self._ended.set()
        with self._lock:
            running = list(self._running)
        for deadline in running:
            deadline.cancel()

    def _add(self, deadline: Deadline) -> None:
        with self._lock:
            self._running.add(deadline)
            if not self._enforced:
                self._enforced = True
                threading.Thread(target=self._enforce, name="deadlines", daemon=True).start()
        if self._ended.is_set():
            deadline.cancel()

    def _enforce(self) -> None:
        while True:
            self._ended.wait(_GLANCE)
            with self._lock:
                running = list(self._running)
                if self._ended.is_set() or not running:
                    self._enforced = False
                    return
            for deadline in running:
                deadline.enforce()


def current() -> Deadline | None:
    """Return the deadline that this thread has, if any."""
    return _current.get(None)


@contextmanager
def lent() -> Iterator[None]:
    """Make a request inside another one, under its deadline; forget the socket of the inner one then."""
    try:
        yield
    finally:
        if limit := current():
            limit.release()
