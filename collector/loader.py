"""Hands looks to the warehouse in a thread of its own, and to the spool while the warehouse is away.

Nothing that was seen is dropped: it is in the queue, in hand, on disk, or stored. New looks are stored at
once when the warehouse is back; what waits on disk follows, the oldest first, in small batches.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from time import monotonic

import structlog

from collector.domain import Look
from collector.errors import CollectorError, SpoolError, WarehouseAwayError
from collector.outcomes import Tally
from collector.spool import Spool, Spooled

_BATCH = 200
"""Spooled looks that are stored at a time."""

_RETRY = 2.0
"""Seconds between two tries of a warehouse that is away."""

_PAUSE = 0.2
_HARDLY = 3
"""Targets in a row of which nothing can be stored, before the rest of a batch is not tried."""

_PUT_OFF, _LONGEST_PUT_OFF = 60.0, 3600.0
"""Seconds before a look on disk that could not be stored is tried again; doubled each time."""

log = structlog.stdlib.get_logger(__name__)


class Loader:
    """Stores what is ``put``, in the order in which it comes.

    ``store`` stores looks whole or raises, ``reach`` raises while the warehouse cannot be used, ``repair``
    mends it if it is ours to mend, ``give_up`` makes a ``store`` under way raise soon. ``owes``: there is
    something to store even without any look.
    """

    def __init__(
        self,
        *,
        store: Callable[[Sequence[Look]], Tally],
        reach: Callable[[], None],
        repair: Callable[[], None],
        give_up: Callable[[], None],
        spool: Spool,
        told: Callable[[Tally, float], None],
        owes: Callable[[], bool] = lambda: False,
    ) -> None:
        self._store = store
        self._reach = reach
        self._repair = repair
        self._give_up = give_up
        self._spool = spool
        self._told = told
        self._owes = owes
        self._wake = threading.Condition()
        self._rescuing = threading.Lock()
        self._queue: list[Look] = []
        self._in_hand: list[Look] = []
        self._since: float | None = None
        self._closing = False
        self._unwritten = False
        self._retry_at = 0.0
        self._drain_at = 0.0
        self._put_off: dict[Path, tuple[float, float]] = {}
        self._draining: Iterator[list[Spooled]] = iter(())
        self._choking: set[int] = set()
        self._thread = threading.Thread(target=self._run, name="loader", daemon=True)
        self.trouble: str | None = None

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def put(self, looks: Iterable[Look]) -> None:
        """Take looks over; they are safe when they are stored or on disk."""
        with self._wake:
            self._queue.extend(looks)
            self._wake.notify()

    @property
    def blocked(self) -> bool:
        """Whether no more may be looked at, because there is no room for what would be seen."""
        return self._spool.full or self._unwritten

    @property
    def waiting(self) -> int:
        """How many looks are in memory, neither stored nor on disk."""
        return len(self._queue) + len(self._in_hand)

    @property
    def busy_for(self) -> float:
        """How long (seconds) the batch in hand has been in hand."""
        since = self._since
        return 0.0 if since is None else monotonic() - since

    def close(self, patience: float) -> None:
        """Store what is left, within so many seconds, or leave it on disk; and end the thread."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(patience / 2)
        if self._thread.is_alive():
            self._give_up()
            self._thread.join(patience / 2)
        self.rescue()

    def rescue(self) -> None:
        """Write whatever is neither stored nor on disk to disk; what is stored after all is known twice."""
        with self._rescuing:  # whoever comes second may end the process: not before the first is through
            with self._wake:
                left = [*self._in_hand, *self._queue]
                self._queue, self._in_hand = [], []
            if left:
                self._write(left)

    def _run(self) -> None:
        while True:
            with self._wake:
                if not self._closing and (self._unwritten or not self._queue):
                    self._wake.wait(_PAUSE)
                batch, self._queue = self._queue, []
                self._in_hand = batch
                if self._closing and not batch:
                    return
            self._since = monotonic()
            try:
                self._work(batch)
            except Exception:  # the thread must outlive any fault: what it had in hand goes to disk
                log.exception("loader failed")
                self._drain_at = monotonic() + _RETRY
                self._write(self._in_hand)
            self._since = None
            if self._closing and self._unwritten:
                return  # there is no place for it

    def _work(self, batch: list[Look]) -> None:
        if self.trouble is not None and (monotonic() >= self._retry_at or self._closing):
            self._try_again()
        if batch or (self.trouble is None and self._owes()):
            left = batch if self.trouble is not None else self._store_all(batch)
            self._in_hand = left
            if left:
                self._write(left)
            else:
                self._unwritten = False
            self._in_hand = []
        if self._spool.full and not self._closing:
            self._spool.make_room()
        # After each batch, and not only when there is none: looks may come without a pause for years.
        if self.trouble is None and self._spool.files and monotonic() >= self._drain_at and not self._closing:
            self._drain()

    def _store_all(self, batch: list[Look]) -> list[Look]:
        """Store a batch, and return what of it is not stored."""
        try:
            self._store_batch(batch)
        except CollectorError as error:
            if not self._is_away(error):
                return self._store_singly(batch, error)
            return batch
        return []

    def _store_batch(self, batch: Sequence[Look]) -> None:
        began = self._since = monotonic()
        try:
            tally = self._store(batch)
        except CollectorError:
            raise
        except Exception as error:  # whatever it is: a look that cannot be stored must not hold up the others
            raise CollectorError(f"unexpected: {error!r}") from error
        self._told(tally, monotonic() - began)

    def _store_singly(self, batch: list[Look], error: CollectorError) -> list[Look]:
        """Store what can be stored: one look that the database chokes on must not hold up the others."""
        left: list[Look] = []
        in_a_row: set[tuple[str, str | None]] = set()
        for number, look in enumerate(batch):
            try:
                self._store_batch([look])
            except CollectorError as refusal:
                left.append(look)
                self._choking.add(id(look))
                log.error("look cannot be stored, and waits on disk", look=str(look), error=str(refusal))
                in_a_row.add(look.place)
                if len(in_a_row) >= _HARDLY or isinstance(refusal, WarehouseAwayError):
                    self._note_trouble(error)
                    return left + batch[number + 1 :]
            else:
                in_a_row.clear()
        return left

    def _is_away(self, error: CollectorError) -> bool:
        """Whether nothing can be stored just now, rather than not this."""
        try:
            self._reach()
        except CollectorError as away:
            self._note_trouble(away)
            return True
        if self._closing:
            self._note_trouble(error)
        return self._closing

    def _note_trouble(self, error: CollectorError) -> None:
        self._retry_at = monotonic() + _RETRY
        if self.trouble is None:
            log.error("the database is away: what is seen waits on disk", error=str(error))
        self.trouble = str(error)

    def _try_again(self) -> None:
        try:
            self._repair()
            self._reach()
            self._try_one()
        except CollectorError as error:
            self._note_trouble(error)
            return
        self.trouble = None
        self._put_off.clear()
        self._draining = iter(())
        log.info("the database is back", waiting_on_disk=self._spool.files)

    def _try_one(self) -> None:
        """Store one look that waits: a database that answers may still be full, or locked.

        Raises:
            WarehouseAwayError: it cannot be stored. The next time it is another one's turn.
        """
        for spooled in next(self._waiting(1), []):
            try:
                self._store_batch([spooled.look])
            except WarehouseAwayError:
                self._choking = {id(spooled.look)}
                self._put_off_if_choking(spooled)
                raise
            except CollectorError:
                return  # this one alone is at fault, which is for the draining to find out

    def _waiting(self, size: int) -> Iterator[list[Spooled]]:
        now = monotonic()
        return self._spool.batches(
            size, besides={path for path, (until, _) in self._put_off.items() if until > now}
        )

    def _drain(self) -> None:
        waiting = next(self._draining, [])
        if not waiting:
            self._draining = self._waiting(_BATCH)
            waiting = next(self._draining, [])
        if not waiting:
            self._drain_at = monotonic() + _RETRY
            return
        self._choking.clear()
        left = {id(look) for look in self._store_all([spooled.look for spooled in waiting])}
        for spooled in waiting:
            self._put_off_if_choking(spooled)
        try:
            self._spool.remove(spooled for spooled in waiting if id(spooled.look) not in left)
        except SpoolError as error:
            self._drain_at = monotonic() + _RETRY
            log.error("what was stored cannot be removed from the disk", error=str(error))
        if not self._spool.files:
            log.info("nothing waits on disk any more")
        elif len(left) == len(waiting):
            self._drain_at = monotonic() + _RETRY

    def _put_off_if_choking(self, spooled: Spooled) -> None:
        """Let the others that wait on disk pass a look that the database chokes on."""
        _, pause = self._put_off.pop(spooled.path, (0.0, _PUT_OFF))
        if id(spooled.look) in self._choking:
            self._put_off[spooled.path] = (monotonic() + pause, min(2 * pause, _LONGEST_PUT_OFF))

    def _write(self, looks: list[Look]) -> None:
        """Put looks on disk; where even that fails they stay in the queue, and polling stops."""
        try:
            self._spool.append(looks)
        except SpoolError as error:
            if not self._unwritten:
                log.error(
                    "polling stops: neither the database nor the disk takes what was seen", error=str(error)
                )
            with self._wake:
                self._queue[:0] = looks
                self._unwritten = True
        else:
            self._unwritten = False
