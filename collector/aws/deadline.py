"""One deadline over everything that a look at a target does: pages, retries, look-ups.

A read timeout starts anew with every byte, so a server that drips outlives it. At the deadline the socket
that the look is reading from is shut down, which ends the read at once and leaves no thread behind.
"""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from time import monotonic
from types import TracebackType
from typing import Any, Self

from botocore.awsrequest import (
    AWSHTTPConnection,
    AWSHTTPConnectionPool,
    AWSHTTPSConnection,
    AWSHTTPSConnectionPool,
)

_current: ContextVar["Deadline"] = ContextVar("deadline")


class DeadlineExceededError(Exception):
    """The time for a look at a target is over."""


class Deadline:
    """A span of time for what runs in this thread inside ``with``. Cancelling ends it at once."""

    def __init__(self, seconds: float) -> None:
        self.cancelled = False
        self._ends = monotonic() + seconds
        self._timer = threading.Timer(seconds, self._shut_down)
        self._timer.daemon = True
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None

    def __enter__(self) -> Self:
        self._token = _current.set(self)
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _current.reset(self._token)
        self._timer.cancel()
        self.release()

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
        self._shut_down()

    def guard(self, connected: socket.socket) -> None:
        """Shut this socket down when the time is over, unless released before."""
        with self._lock:
            self._socket = connected
        if not self.remaining:
            self._shut_down()

    def release(self) -> None:
        """Forget the socket: it goes back to the pool, and another look may use it next."""
        with self._lock:
            self._socket = None

    def _shut_down(self) -> None:
        with self._lock:
            if self._socket is not None:
                with suppress(OSError):  # closed already, which is what was wanted
                    self._socket.shutdown(socket.SHUT_RDWR)


class Deadlines:
    """Deadlines that can all be ended at once, from any thread, now and from now on."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._running: set[Deadline] = set()

    @contextmanager
    def limit(self, seconds: float) -> Iterator[Deadline]:
        """Limit what runs in this thread inside ``with``."""
        with Deadline(seconds) as deadline:
            self._running.add(deadline)
            try:
                if self._ended.is_set():
                    deadline.cancel()
                yield deadline
            finally:
                self._running.discard(deadline)

    def pause(self, seconds: float) -> None:
        """Wait for so many seconds, or until the end."""
        self._ended.wait(seconds)

    def end(self) -> None:
        """End them all."""
        self._ended.set()
        for deadline in list(self._running):
            deadline.cancel()


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


class _Guarded:
    """Mixin for botocore's connections: each request's socket comes under the thread's deadline."""

    sock: socket.socket

    def request(self, *arguments: Any, **options: Any) -> Any:
        result = super().request(*arguments, **options)  # type: ignore[misc]
        if deadline := current():
            deadline.guard(self.sock)
        return result


class _GuardedHTTPConnection(_Guarded, AWSHTTPConnection):  # type: ignore[misc]
    pass


class _GuardedHTTPSConnection(_Guarded, AWSHTTPSConnection):  # type: ignore[misc]
    pass


def install() -> None:
    """Make botocore's pools open guarded connections; without a deadline they behave as ever."""
    AWSHTTPConnectionPool.ConnectionCls = _GuardedHTTPConnection
    AWSHTTPSConnectionPool.ConnectionCls = _GuardedHTTPSConnection
