"""The server as its users see it: started by the first, shared by all, stopped by the last one out.

Two locks count them, because the kernel frees those at any death: ``users.lock`` is held, shared, by every
user, and ``start.lock`` by whoever starts, repairs or stops the server just now.
"""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psycopg

from collector.errors import EmbeddedPostgresError
from collector.warehouse.embedded.account import choose_account, make_folder
from collector.warehouse.embedded.binaries import choose_binaries, find_binaries
from collector.warehouse.embedded.cluster import Cluster, data_folder
from collector.warehouse.embedded.locks import Lock, try_lock, wait_lock
from collector.warehouse.embedded.server import START_TIMEOUT, Server

# Seconds
_ENTER = 10
_LEAVE = 60


class EmbeddedPostgres:
    """A PostgreSQL server in a folder that is ours alone, shared by all processes that name the folder.

    Safe to use from several threads, and several times in one process.

    Args:
        folder: Where the server lives; made, with its parents, at the first start.
        database: The database to connect to, made when it is missing.
        binaries: The folder that holds PostgreSQL's ``bin``; the newest of the wheel by default.
    """

    def __init__(self, folder: Path, *, database: str = "aws", binaries: Path | None = None) -> None:
        self._folder = Path(folder).absolute()
        self._database = database
        self._binaries = binaries
        self._server: Server | None = None
        self._user: Lock | None = None
        self._user_pid = 0
        self._threads = threading.RLock()

    def start(self) -> None:
        """Start the server or share the running one, and count as a user of it."""
        if sys.platform == "win32":
            raise EmbeddedPostgresError(
                "The embedded PostgreSQL does not run on Windows: configure database_url, or use WSL."
            )
        with self._threads, self._explained():
            if self._is_user():
                self.ensure_running()
                return
            server = self._prepare()
            with wait_lock(self._folder / "start.lock", START_TIMEOUT):
                # Never waits: only the last one out takes it exclusively, and holds start.lock meanwhile.
                user = wait_lock(self._folder / "users.lock", _ENTER, shared=True)
                try:
                    server.bring_up()
                except BaseException:
                    self._abandon(server, user)
                    raise
                self._server, self._user, self._user_pid = server, user, os.getpid()

    def stop(self) -> None:
        """Leave, and stop the server if nobody else uses it; does nothing when it was not started."""
        with self._threads, self._explained():
            if not self._is_user() or self._user is None or self._server is None:
                return
            user, self._user = self._user, None
            try:
                turn = wait_lock(self._folder / "start.lock", _LEAVE)
            except OSError:  # whoever starts or repairs it for so long is a user, and will stop it
                user.close()
                return
            with turn:
                if self._was_last(user):
                    self._server.shut_down()

    def abandon(self) -> None:
        """Leave without waiting for anything, because the process is about to end by force.

        The server ends at once if nobody else uses it; what it has committed is safe.
        """
        user, server = self._user, self._server
        if user is not None and server is not None and self._was_last(user):
            server.quit()

    def ensure_running(self) -> None:
        """Start the server again if it was killed; cheap when it runs."""
        with self._threads, self._explained():
            server = self._started()
            if not server.answers():
                with wait_lock(self._folder / "start.lock", START_TIMEOUT):
                    server.bring_up()

    def conninfo(self) -> dict[str, Any]:
        """How to connect just now, for ``psycopg.connect(**conninfo)``; a restart may change the port."""
        with self._threads, self._explained():
            return self._started().conninfo()

    @property
    def psql(self) -> Path:
        """The psql program that fits the server, or the newest before it was started."""
        if self._server is None:
            return choose_binaries(find_binaries(self._binaries), None).program("psql")
        return self._server.program("psql")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _prepare(self) -> Server:
        """Learn what can be learnt before anything is made, then make the folder."""
        if "\n" in str(self._folder):
            raise EmbeddedPostgresError(f"PostgreSQL cannot live in a path with a line break: {self._folder}")
        installed = find_binaries(self._binaries)
        account = choose_account(self._folder, data_folder(self._folder))
        make_folder(self._folder, account)
        return Server(Cluster(self._folder, account), installed, self._database)

    def _is_user(self) -> bool:
        if self._user and self._user_pid != os.getpid():  # we are a fork of the user, and none ourselves
            self._user.close()
            self._user = None
        return self._user is not None

    def _started(self) -> Server:
        if not self._is_user() or self._server is None:
            raise EmbeddedPostgresError("The embedded PostgreSQL was not started.")
        return self._server

    def _was_last(self, user: Lock) -> bool:
        """Leave; whether no user is left. Nobody can come in meanwhile, because we hold ``start.lock``."""
        user.close()
        everyone = try_lock(self._folder / "users.lock")
        if everyone is None:
            return False
        everyone.close()
        return True

    def _abandon(self, server: Server, user: Lock) -> None:
        """Undo a start that failed; a server that still recovers goes on, for the next start to share."""
        if self._was_last(user) and server.is_ready():
            with suppress(EmbeddedPostgresError, OSError):
                server.shut_down()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Say what failed in words of ours, whichever system call or statement it was."""
        try:
            yield
        except (OSError, psycopg.Error) as error:
            raise EmbeddedPostgresError(
                f"The embedded PostgreSQL in {self._folder} failed: {str(error).strip()}\n"
                "Mend that, choose another data_dir (COLLECTOR_DATA_DIR), or configure database_url."
            ) from error
