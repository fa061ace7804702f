"""Leases: one look at a target at a time, across processes.

A lease is a session advisory lock on one direct connection of this process, in a key space of its own. It
writes nothing, and it is gone when the connection is: with the process, or seconds after its network.
"""

import threading
from contextlib import suppress
from time import monotonic
from typing import Any

import psycopg

from collector.domain import Target
from collector.errors import WarehouseError
from collector.warehouse.engine import Connect, translated_errors

_LEASES = 0x766D6903
"""Key space of leases; the targets' merge locks have another."""


class Leases:
    """The leases of this process; for any number of threads."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._lock = threading.Lock()
        self._connection: psycopg.Connection[Any] | None = None
        self._held: set[Target] = set()
        self._failure: WarehouseError | None = None
        self._failed_at = 0.0

    def acquire(self, target: Target) -> bool:
        """Take a target's lease if nobody has it, in this process or in another.

        Raises:
            WarehouseError: the database cannot be asked.
        """
        asked_at = monotonic()
        with self._lock:
            if self._failure and asked_at < self._failed_at:
                # Others failed while we queued: waiting for a dead network once more, one after the other,
                # would take minutes.
                raise WarehouseError(str(self._failure)) from self._failure
            if target in self._held:
                return False
            try:
                with translated_errors():
                    taken = self._try_lock(target)
            except WarehouseError as error:
                self._failure, self._failed_at = error, monotonic()
                raise
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
                self._ask("SELECT pg_advisory_unlock(%s, hashtext(%s))", target)
            except psycopg.Error:
                self._drop()

    def close(self) -> None:
        """Give everything back."""
        with self._lock:
            self._drop()

    def _try_lock(self, target: Target) -> bool:
        """Ask for the lock; once more on a new connection when the one at hand turns out to be dead."""
        statement = "SELECT pg_try_advisory_lock(%s, hashtext(%s))"
        connected = self._connection is not None
        try:
            return self._ask(statement, target)
        except psycopg.OperationalError:
            self._drop()
            if not connected:
                raise
        try:
            return self._ask(statement, target)
        except psycopg.OperationalError:
            self._drop()
            raise

    def _ask(self, statement: str, target: Target) -> bool:
        if self._connection is None:
            self._connection = self._connect()
            self._connection.autocommit = True
            self._notice_loss(self._connection)
        key = f"{target.account_id} {target.region}"
        row = self._connection.execute(statement, (_LEASES, key)).fetchone()
        return bool(row and row[0])

    def _notice_loss(self, connection: psycopg.Connection[Any]) -> None:
        """Make the server notice within seconds that our network is gone, so that the lease is free."""
        for setting in (
            "tcp_keepalives_idle = 10",
            "tcp_keepalives_interval = 5",
            "tcp_keepalives_count = 3",
            "tcp_user_timeout = 20000",
        ):
            connection.execute(f"SET {setting}")

    def _drop(self) -> None:
        if self._connection is not None:
            with suppress(psycopg.Error):
                self._connection.close()
        self._connection = None
