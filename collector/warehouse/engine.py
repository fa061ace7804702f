"""How the warehouse is reached: one description of the server, engines on it, and its errors as ours."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import Engine, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from collector.errors import UsageError, WarehouseError

OLDEST_SERVER = 15

_PARAMETERS: dict[str, Any] = {
    "application_name": "vm-import-collector",
    # Else a database in SQL_ASCII answers in bytes, before anybody can say what is wrong with it.
    "client_encoding": "UTF8",
    "connect_timeout": 10,
    # A dead network is noticed within seconds, not after the kernel's two hours.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
    # Server-side prepared statements do not survive a transaction pooler.
    "prepare_threshold": None,
}

Connect = Callable[[], psycopg.Connection[Any]]


def connect_to_url(url: str) -> Connect:
    """Return a connector for a ``postgresql://`` URL; libpq reads it, so all of its parameters work.

    Raises:
        UsageError: the URL cannot be read, or its password spills over. libpq's own words would quote it.
    """
    try:
        parameters = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        parameters = {"host": "@"}
    host, port = str(parameters.get("host", "")), str(parameters.get("port", ""))
    if "@" in host or not re.fullmatch(r"[\d,]*", port):
        raise UsageError(
            "database_url: cannot be read: write special characters of user name and password"
            " percent-encoded, such as %40 for @ and %25 for %"
        )
    return connect_to_parameters(lambda: dict(parameters))


def connect_to_parameters(parameters: Callable[[], dict[str, Any]]) -> Connect:
    """Return a connector that asks for host, port and the like each time: they may change."""
    return lambda: psycopg.connect(**(_PARAMETERS | parameters()))


def make_engine(connect: Connect) -> Engine:
    """Return an engine at READ COMMITTED, which the merge needs: a snapshot must not predate its lock."""
    return create_engine(
        "postgresql+psycopg://", creator=connect, isolation_level="READ COMMITTED", pool_pre_ping=True
    )


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn the driver's errors into ``WarehouseError``, with a sentence that says the mend."""
    try:
        yield
    except DBAPIError as error:
        raise WarehouseError(_sentence(error.orig)) from error
    except psycopg.Error as error:
        raise WarehouseError(_sentence(error)) from error
    except PoolTimeoutError as error:
        raise WarehouseError("the database is busy: no connection became free in time") from error


def _sentence(error: object) -> str:
    reason = str(error).strip().split("\n")[0] if error else "unknown reason"
    match error:
        case psycopg.errors.ReadOnlySqlTransaction():
            return f"the database is read-only ({reason}): point database_url at the primary"
        case psycopg.errors.InsufficientPrivilege():
            return f"the database role may not do this ({reason})"
        case (
            psycopg.errors.UndefinedTable()
            | psycopg.errors.UndefinedColumn()
            | psycopg.errors.UndefinedFunction()
        ):
            return f"the database is behind in migrations ({reason}): run `collector migrate`"
        case psycopg.errors.LockNotAvailable():
            return f"the database is busy ({reason}): try again"
        case psycopg.OperationalError() if not error.sqlstate:
            return f"the database cannot be reached: {reason}"
        case _:
            return f"the database failed: {reason}"
