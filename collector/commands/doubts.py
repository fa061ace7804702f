"""Names the tasks that make a listing doubtful: by the warehouse, and by what this process saw last.

A look must not wait for a database that hangs, so the warehouse has few seconds to answer, on connections
that the loader does not need.
"""

from contextlib import suppress
from time import monotonic

from collector.domain import Scan
from collector.errors import WarehouseError
from collector.sightings import NeverSeenError, Sightings
from collector.warehouse import history
from collector.warehouse.engine import Connect, make_asking_engine

_ANSWER = 3.0
_SILENCE_HOLDS = 10.0
"""Seconds in which a warehouse that did not answer is not asked again."""


class Doubts:
    """For any number of threads."""

    def __init__(self, connect: Connect, sightings: Sightings) -> None:
        self._engine = make_asking_engine(connect, patience=_ANSWER)
        self._sightings = sightings
        self._ask_again = 0.0

    def missing(self, scan: Scan) -> set[str]:
        """Return the ids that make a listing doubtful; what was seen last may not be stored yet.

        Raises:
            NeverSeenError: neither the warehouse nor this process can say.
        """
        if monotonic() < self._ask_again:
            return self._sightings.missing(scan)
        try:
            stored = history.missing_from(self._engine, scan)
        except WarehouseError:
            self._ask_again = monotonic() + _SILENCE_HOLDS
            return self._sightings.missing(scan)
        with suppress(NeverSeenError):
            return stored | self._sightings.missing(scan)
        return stored

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()
