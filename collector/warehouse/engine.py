"""How the warehouse is reached: one description of the server, engines on it, and its errors as ours."""

import re
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any, NamedTuple, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.conninfo import conninfo_to_dict
from psycopg.waiting import Ready, Wait
from sqlalchemy import Connection, Engine, ExceptionContext, create_engine, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from collector.errors import UsageError, WarehouseAwayError, WarehouseError

_OLDEST_SERVER = 15

_PARAMETERS: dict[str, Any] = {
    "application_name": "vm-import-collector",
    # Else a database in SQL_ASCII answers in bytes, before anybody can say what is wrong with it.
    "client_encoding": "UTF8",
    "connect_timeout": 5,
    # A dead network is noticed within seconds, not after the kernel's two hours.
    "keepalives_idle": 4,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
    # Server-side prepared statements do not survive a transaction pooler.
    "prepare_threshold": None,
}

# Makes the server notice within seconds that our network or our process is gone, so that its session ends,
# and with it every lock.
_NOTICE_LOSS = """
    SET tcp_keepalives_idle = 3; SET tcp_keepalives_interval = 2; SET tcp_keepalives_count = 3;
    SET tcp_user_timeout = 9000
"""
# Also while a statement waits for a lock; servers on systems that cannot watch a socket refuse it.
_NOTICE_END = "SET client_connection_check_interval = 2000"
_ANSWER = 5.0
"""Seconds for the answer to statements as small as these."""

Connect = Callable[[], "PatientConnection"]

T = TypeVar("T")


@dataclass(slots=True)
class Patience:
    """How many seconds a server may take to answer a statement; ``None``: as long as it likes.

    It can be changed at any time, for waits under way too.
    """

    seconds: float | None = None


class PatientConnection(psycopg.Connection[Any]):
    """A connection that gives up a server which is reachable, but never answers."""

    patience: Patience

    def wait(self, gen: PQGen[T], *arguments: Any, **options: Any) -> T:
        """Wait for an answer as psycopg does, but not for ever.

        Raises:
            OperationalError: patience is at its end; the connection is closed then.
        """
        return super().wait(self._bounded(gen), *arguments, **options)

    def _bounded(self, gen: PQGen[T]) -> Generator[Wait, Ready | int, T]:
        began = monotonic()
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                seconds = self.patience.seconds
                if not ready and seconds is not None and monotonic() - began > seconds:
                    self.pgconn.finish()  # what it still answers is of no use to anybody
                    raise psycopg.OperationalError(f"the server did not answer for {seconds:g} s")
                # After Ctrl-C psycopg goes on with nothing at all, which stands for nothing ready.
                wanted = gen.send(Ready(ready or 0))
        except StopIteration as end:
            answer: T = end.value
            return answer


def connect_to_url(url: str, patience: Patience | None = None) -> Connect:
    """Return a connector for a ``postgresql://`` URL; libpq reads it, so all of its parameters work.

    Raises:
        UsageError: the URL cannot be read, or its password spills over. libpq's own words would quote it.
    """
    try:
        parameters = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        parameters = {"host": "@"}
    host, port, name = (str(parameters.get(key, "")) for key in ("host", "port", "dbname"))
    if "@" in host + name or not re.fullmatch(r"[\d,]*", port):
        raise UsageError(
            "database_url: cannot be read: write special characters of user name and password"
            " percent-encoded, such as %40 for @, %2F for / and %25 for %"
        )
    return connect_to_parameters(lambda: dict(parameters), patience)


def connect_to_parameters(
    parameters: Callable[[], dict[str, Any]], patience: Patience | None = None
) -> Connect:
    """Return a connector that asks for host, port and the like each time: they may change."""
    patience = patience or Patience()

    def connect() -> PatientConnection:
        connection = PatientConnection.connect(**(_PARAMETERS | parameters()), autocommit=True)
        connection.patience = Patience(_ANSWER)
        try:
            connection.execute(_NOTICE_LOSS)
            with suppress(psycopg.errors.InvalidParameterValue):
                connection.execute(_NOTICE_END)
            connection.autocommit = False
        except BaseException:
            connection.close()
            raise
        connection.patience = patience
        return connection

    return connect


def impatient(connect: Connect, seconds: float) -> Connect:
    """Return what connects as ``connect`` does, but waits for an answer no longer than that."""

    def connect_impatiently() -> PatientConnection:
        connection = connect()
        connection.patience = Patience(seconds)
        return connection

    return connect_impatiently


def make_engine(connect: Connect) -> Engine:
    """Return an engine at READ COMMITTED, which the merge needs: a snapshot must not predate its lock."""
    engine = create_engine(
        "postgresql+psycopg://",
        creator=connect,
        isolation_level="READ COMMITTED",
        pool_pre_ping=True,
    )
    event.listen(engine, "handle_error", _part_with_read_only_sessions)
    return engine


def make_asking_engine(connect: Connect, *, patience: float) -> Engine:
    """Return an engine for small questions of very many threads: each costs one round trip and no more.

    Statements are transactions of their own, and nobody tries a connection before it is used. ``patience``
    is how many seconds the server may take to answer, and a thread waits for a connection to become free.
    """
    return create_engine(
        "postgresql+psycopg://",
        creator=impatient(connect, patience),
        isolation_level="AUTOCOMMIT",
        max_overflow=0,  # connections beyond the pool's would be opened and closed all the time
        pool_timeout=patience,
    )


def _part_with_read_only_sessions(context: ExceptionContext) -> None:
    """Begin with new sessions after this error: one may stay read-only when its database no longer is."""
    if isinstance(context.original_exception, psycopg.errors.ReadOnlySqlTransaction):
        context.is_disconnect = True


class Server(NamedTuple):
    """The server that answers, and as whom and how it lets us in."""

    version: str
    major: int
    encoding: str
    role: str
    database: str
    read_only: bool

    @property
    def fault(self) -> str | None:
        """Why this release cannot work with it, not even read, and the mend."""
        if self.major < _OLDEST_SERVER:
            needed = f"it must be {_OLDEST_SERVER} or newer"
            return f"the database is PostgreSQL {self.major}, which is too old: {needed}"
        if self.encoding != "UTF8":
            return f"the database is encoded in {self.encoding}: create one with ENCODING 'UTF8'"
        return None


def server_of(connection: Connection) -> Server:
    """Return what answers."""
    return Server(*connection.execute(_SERVER).one())


_SERVER = text("""
    SELECT current_setting('server_version'), current_setting('server_version_num')::int / 10000,
        current_setting('server_encoding'), current_user::text, current_database()::text,
        current_setting('transaction_read_only')::bool
""")


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn the driver's errors into ``WarehouseError``, with a sentence that says the mend."""
    try:
        yield
    except DBAPIError as error:
        raise _translated(error.orig) from error
    except psycopg.Error as error:
        raise _translated(error) from error
    except PoolTimeoutError as error:
        raise WarehouseAwayError("the database is busy: no connection became free in time") from error


def _translated(error: object) -> WarehouseError:
    away = isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    return (WarehouseAwayError if away else WarehouseError)(_sentence(error))


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
