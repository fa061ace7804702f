"""Leases: one look at a target at a time across processes, and one process that leads.

Both are session advisory locks on one direct connection of this process, in key spaces of their own. They
write nothing, and they are gone when the connection is: with the process, or seconds after its network.
"""

import threading
from contextlib import suppress
from time import monotonic
from typing import Any

import psycopg

from collector.domain import Target
from collector.errors import WarehouseError
from collector.warehouse.engine import Connect, impatient, translated_errors

_LEASES = 0x766D6903
_LEADERSHIP = 0x766D6904
"""Key spaces; the targets' merge locks have another."""

_ANSWER = 5.0
"""Seconds for the answer to a question as small as these."""

_FAILURE_HOLDS = 2.0
"""Seconds in which nobody asks again: waiting for a dead network once each, one after the other, takes
minutes."""


class Leases:
    """The leases and the leadership of this process; for any number of threads."""

    def __init__(self, connect: Connect) -> None:
        self._connect = impatient(connect, _ANSWER)
        self._lock = threading.Lock()
        self._connection: psycopg.Connection[Any] | None = None
        self._held: set[Target] = set()
        self._leading = self._closed = False
        self._failure: WarehouseError | None = None
        self._failed_at = 0.0

    def acquire(self, target: Target) -> bool:
        """Take a target's lease if nobody has it, in this process or in another.

        Raises:
            WarehouseError: the database cannot be asked.
        """
        with self._lock:
            if target in self._held:
                return False
            taken = self._try_lock(_LEASES, _key(target))
            if taken:
                self._held.add(target)
            return taken

    def release(self, target: Target) -> None:
        """Give a lease back; harmless when the connection, and with it the lease, is lost already."""
        with self._lock:
            self._held.discard(target)
            if self._connection is None:
                return
            try:
                self._ask("SELECT pg_advisory_unlock(%s, hashtext(%s))", (_LEASES, _key(target)))
            except psycopg.Error:
                self._drop()

    def lead(self) -> bool:
        """Whether this process leads: it has the one lock for that, or gets it now, or somebody else has it.

        Raises:
            WarehouseError: the database cannot be asked; a leadership that this process had is lost then.
        """
        with self._lock:
            if self._leading:
                try:
                    return self._ask("SELECT true", ())
                except psycopg.Error:
                    self._drop()
            self._leading = self._try_lock(_LEADERSHIP, "")
            return self._leading

    def close(self) -> None:
        """Give everything back for good: a thread that still asks must not lead from the grave."""
        with self._lock:
            self._closed = True
            self._drop()

    def _try_lock(self, space: int, key: str) -> bool:
        """Ask for a lock; once more on a new connection when the one at hand turns out to be dead."""
        if self._failure and monotonic() - self._failed_at < _FAILURE_HOLDS:
            raise type(self._failure)(str(self._failure)) from self._failure
        connected = self._connection is not None
        statement, parameters = "SELECT pg_try_advisory_lock(%s, hashtext(%s))", (space, key)
        try:
            with translated_errors():
                try:
                    return self._ask(statement, parameters)
                except psycopg.OperationalError:
                    self._drop()
                    if not connected:
                        raise
                return self._ask(statement, parameters)
        except WarehouseError as error:
            self._drop()
            self._failure, self._failed_at = error, monotonic()
            raise

    def _ask(self, statement: str, parameters: tuple[Any, ...]) -> bool:
        if self._closed:
            raise psycopg.InterfaceError("the leases are closed")
        if self._connection is None:
            self._connection = self._connect()
            self._connection.autocommit = True
        row = self._connection.execute(statement, parameters).fetchone()
        self._failure = None
        return bool(row and row[0])

    def _drop(self) -> None:
        """Close the connection: the server then gives every lock to whoever asks next."""
        if self._connection is not None:
            with suppress(psycopg.Error):
                self._connection.close()
        self._connection = None
        self._leading = False


def _key(target: Target) -> str:
    return f"{target.account_id} {target.region}"
