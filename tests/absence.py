"""Ways in which a database is of no use for a while: nobody gets in, nobody answers, a table is locked."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import psycopg
from psycopg import sql
from sqlalchemy import make_url

_ALLOW = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")


@contextmanager
def shut(server_url: str, database_url: str) -> Iterator[None]:
    """Take a database away: nobody is in, nobody gets in."""
    name = str(make_url(database_url).database)
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(_ALLOW.format(sql.Identifier(name), False))
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s", [name]
        )
        try:
            yield
        finally:
            connection.execute(_ALLOW.format(sql.Identifier(name), True))


@contextmanager
def locked(database_url: str, table: str = "vm_import.scans") -> Iterator[None]:
    """Let nobody else use a table."""
    with psycopg.connect(database_url) as connection:
        connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE".encode())
        yield


@contextmanager
def frozen(folder: Path) -> Iterator[None]:
    """Stop the embedded server in a folder as a machine that hangs does: it is there, and never answers."""
    (pid_file,) = folder.rglob("postmaster.pid")
    postmaster = psutil.Process(int(pid_file.read_text().split()[0]))
    stopped: list[psutil.Process] = []
    for process in (postmaster, *postmaster.children(recursive=True)):  # it forks no more
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGSTOP)
            stopped.append(process)
    try:
        yield
    finally:
        for process in stopped:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)
