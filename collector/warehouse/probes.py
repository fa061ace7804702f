"""What the database would let us do, found out without writing anything."""

from collections.abc import Iterable
from contextlib import suppress
from secrets import randbits
from typing import Any, NamedTuple

import psycopg
from sqlalchemy import Engine, text

from collector.warehouse.engine import OLDEST_SERVER, Connect, translated_errors

GROUPS = ("collector_writer", "collector_reader")
"""The roles that ``roles.sql`` makes."""

_PROBES = 0x766D6905
"""Key space of advisory locks; leases, leadership and the merge have others."""


class Server(NamedTuple):
    """The server that answers, and as whom and how it lets us in."""

    version: str
    major: int
    role: str
    database: str
    read_only: bool

    @property
    def too_old(self) -> bool:
        """Whether this release cannot work with it."""
        return self.major < OLDEST_SERVER


def server(engine: Engine) -> Server:
    """Return what answers.

    Raises:
        WarehouseError: nothing does, or it lets nobody in.
    """
    with translated_errors(), engine.connect() as connection:
        return Server(*connection.execute(_SERVER).one())


def missing_rights(engine: Engine) -> list[str] | None:
    """Return what the current role may not do, though whoever polls must; ``None``: nothing was migrated yet.

    Raises:
        WarehouseError: the database cannot be asked.
    """
    needed = [(table, *right) for table, rights in _NEEDED.items() for right in _split(rights)]
    tables, privileges, columns = zip(*needed, strict=True)
    parameters = {"tables": [*tables], "privileges": [*privileges], "columns": [*columns]}
    with translated_errors(), engine.connect() as connection:
        usage = connection.execute(_USAGE).scalar_one_or_none()
        if usage is None:
            return None
        missing = [*connection.execute(_MISSING, parameters).scalars()]
    return missing if usage else ["USAGE on schema vm_import", *missing]


def missing_groups(engine: Engine) -> list[str]:
    """Return those of the group roles that the server does not have.

    Raises:
        WarehouseError: the database cannot be asked.
    """
    with translated_errors(), engine.connect() as connection:
        found = set(connection.execute(_FOUND_GROUPS, {"groups": [*GROUPS]}).scalars())
    return [group for group in GROUPS if group not in found]


def keeps_sessions(connect: Connect) -> bool:
    """Whether a connection has a session of its own, whose locks nobody else has.

    Behind a transaction pooler, two connections meet in one session as soon as the first is idle.

    Raises:
        WarehouseError: no connection, or no lock, can be had.
    """
    key = {"space": _PROBES, "key": randbits(31)}
    with translated_errors(), connect() as first, connect() as second:
        first.autocommit = True
        ours = _session(first, _TAKE, key)
        with second.transaction():
            other = _session(second, _TAKE, key)
            again = _session(first, _GIVE_BACK, key)
            _session(second, _GIVE_BACK, key)
        return ours == again and other != ours
