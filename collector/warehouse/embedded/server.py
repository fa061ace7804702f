"""One server on one cluster: brought up from whatever state it or its remains are in, and shut down.

Whoever changes something here holds ``start.lock`` (see ``shared``). The lock ``server.lock`` is inherited by
the server's own processes alone, so it is free only when none is left, whatever became of their numbers.
"""

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from collector.errors import EmbeddedPostgresError
from collector.warehouse.embedded.binaries import (
    Binaries,
    choose_binaries,
    prune_copies,
    reachable_binaries,
)
from collector.warehouse.embedded.cluster import CONFIGURATION, HOST, START_LOG, USER, Cluster, port_is_free
from collector.warehouse.embedded.locks import Lock, try_lock

START_TIMEOUT = 600
"""Seconds for a start; recovery after a crash may take long."""

# Seconds too. Leaving must not take long.
_FAST_STOP = 4
_IMMEDIATE_STOP = 2
_CONNECT = 10
_PAUSE = 0.05
# What outlived a killed server is left alone, asked to end, killed, and at last reported.
_QUIT_AFTER, _KILL_AFTER, _GIVE_UP_AFTER = 1, 5, 30
_PORT_ATTEMPTS = 5
_REQUIRE_AUTH_SINCE = 160000
_GOING_DOWN = "57"  # the class of SQLSTATEs that a server gives while it stops or crashes


class Server:
    """The server of one cluster, and the only way that we talk to it."""

    def __init__(self, cluster: Cluster, installed: list[Binaries], database: str) -> None:
        self._cluster = cluster
        self._database = database
        self._installed = installed
        self._lock = cluster.folder / "server.lock"
        self._port = 0
        self._password = ""
        self._refusal = ""

    def conninfo(self) -> dict[str, Any]:
        """How to connect just now; a restart may change the port.

        Says more than host and port, because PGHOSTADDR and PGSSLMODE would otherwise have their say.
        """
        if noted := self._cluster.postmaster():
            self._port = noted.port
        self._password = self._password or self._cluster.password()
        return {
            "host": HOST,
            "hostaddr": HOST,
            "port": self._port,
            "user": USER,
            "password": self._password,
            "dbname": self._database,
            "sslmode": "disable",
            "gssencmode": "disable",
        }

    def program(self, name: str) -> Path:
        """A client program that fits, as installed: never a copy, which another account may own."""
        return choose_binaries(self._installed, self._cluster.major()).program(name)

    def answers(self) -> bool:
        """Whether our server lets us in and has our database, which is made if it is missing.

        Nothing less is proof: the noted port may be another's by now.
        """
        self._refusal = ""
        if self._cluster.postmaster() is None:
            return False
        try:
            with self._connect() as connection:
                _create_if_missing(connection, self._database)
        except psycopg.OperationalError as error:
            if error.sqlstate and not error.sqlstate.startswith(_GOING_DOWN):
                raise  # a full disk, say, which no restart mends
            self._refusal = str(error).strip()
            return "too many clients already" in self._refusal and self._cluster.running() is not None
        return True

    def bring_up(self) -> None:
        """Return when the server answers."""
        choose_binaries(
            self._installed, self._cluster.major()
        )  # an unknown major: before anything is touched
        began = remains_since = time.monotonic()
        while not self.answers():
            now = time.monotonic()
            if self._cluster.running():
                remains_since = now
                self._refuse_strangers()
            elif (nobody := try_lock(self._lock)) is not None:
                with nobody:
                    self._launch(nobody)
                continue
            else:
                self._end_remains(now - remains_since)
            if now - began > START_TIMEOUT:
                raise EmbeddedPostgresError(
                    f"The embedded PostgreSQL in {self._cluster.folder} runs, but did not answer for "
                    f"{START_TIMEOUT} s ({self._refusal}). Its log ends:\n{self._cluster.log_tail()}"
                )
            time.sleep(_PAUSE)

    def shut_down(self) -> None:
        """Stop the server, and return when none of its processes is left."""
        for mode, patience in (("fast", _FAST_STOP), ("immediate", _IMMEDIATE_STOP)):
            # pg_ctl signals the noted number, so it must be the server's.
            if self._cluster.running() is None:
                break
            self._pg_ctl("stop", "-m", mode, "-w", "-t", str(patience))
        began = time.monotonic()
        while (nobody := try_lock(self._lock)) is None:
            age = time.monotonic() - began
            if age > _QUIT_AFTER:
                self._cluster.signal("KILL")
            if age > _IMMEDIATE_STOP:
                raise EmbeddedPostgresError(
                    f"The embedded PostgreSQL in {self._cluster.folder} cannot be stopped from here."
                )
            time.sleep(_PAUSE)
        nobody.close()

    def quit(self) -> None:
        """Ask every process of the server to end at once; recovery is the next start's."""
        self._cluster.signal("QUIT")

    def is_ready(self) -> bool:
        """Whether the server notes that it has come up."""
        noted = self._cluster.postmaster()
        return noted is not None and noted.ready

    def _connect(self) -> psycopg.Connection:
        # A stranger on our port must prove that it knows the password before it could ask for it.
        proof = {"require_auth": "scram-sha-256"} if psycopg.pq.version() >= _REQUIRE_AUTH_SINCE else {}
        conninfo = self.conninfo() | {"dbname": "postgres"} | proof
        return psycopg.connect(**conninfo, connect_timeout=_CONNECT, autocommit=True)

    def _refuse_strangers(self) -> None:
        if "password authentication failed" in self._refusal:
            raise EmbeddedPostgresError(
                f"The embedded PostgreSQL refuses the password in {self._cluster.folder / 'password'}: "
                "restore that file, or choose another data_dir."
            )

    def _launch(self, nobody: Lock) -> None:
        """Start the server, which inherits the lock that says whether any of its processes is left."""
        cluster, programs = self._cluster, self._programs()
        prune_copies(cluster.folder, programs)
        cluster.tidy()
        if cluster.major() is None:
            cluster.create(programs)
        for attempts_left in reversed(range(_PORT_ATTEMPTS)):
            port = cluster.free_port()
            cluster.configure(port)
            started, said = self._pg_ctl(
                *("start", "-l", START_LOG, "-w", "-t", str(START_TIMEOUT)),
                *("-o", f"-c config_file={CONFIGURATION}"),
                inherited=[nobody.descriptor],
            )
            if started:
                return
            port_was_taken = cluster.postmaster() is None and not port_is_free(port)
            if not (port_was_taken and attempts_left):
                raise EmbeddedPostgresError(
                    f"The embedded PostgreSQL in {cluster.folder} did not start: {said}\n"
                    f"Its log ends:\n{cluster.log_tail()}"
                )

    def _end_remains(self, age: float) -> None:
        """End processes that outlived a killed server: they hold its memory, so that no new one can start."""
        if age > _GIVE_UP_AFTER:
            raise EmbeddedPostgresError(
                f"{self._cluster.folder} is in use by a PostgreSQL that cannot be reached from here: "
                "stop the container or the processes that run it, or choose another data_dir."
            )
        if age > _QUIT_AFTER:
            self._cluster.signal("KILL" if age > _KILL_AFTER else "QUIT")

    def _programs(self) -> Binaries:
        """The programs that fit; looked up anew, for another release may have replaced a copy of them."""
        cluster = self._cluster
        fitting = choose_binaries(self._installed, cluster.major())
        return reachable_binaries(fitting, cluster.folder, cluster.account)

    def _pg_ctl(self, action: str, *options: str, inherited: list[int] | None = None) -> tuple[bool, str]:
        # A relative path, because pg_ctl hands it to a shell between double quotes.
        done = self._cluster.account.run(
            self._programs().program("pg_ctl"),
            *(action, "-D", "data", *options),
            cwd=self._cluster.folder,
            pass_fds=inherited or [],
        )
        return done.returncode == 0, done.stdout.strip()


def _create_if_missing(connection: psycopg.Connection, database: str) -> None:
    known = connection.execute("SELECT FROM pg_database WHERE datname = %s", [database]).fetchone()
    if known is None:
        with suppress(psycopg.errors.DuplicateDatabase):
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(database)))
