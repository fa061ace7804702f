"""The files of one embedded server below its folder, and what they and the processes using them tell.

``data`` is PostgreSQL's own; beside it lie ``password``, ``postgresql.conf`` (written anew at every start)
and the locks. Everything appears by a rename, so that a kill at any moment leaves nothing half-made.
"""

import os
import re
import secrets
import shutil
import socket
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from collector.errors import EmbeddedPostgresError
from collector.warehouse.embedded.account import Account
from collector.warehouse.embedded.binaries import Binaries
from collector.warehouse.embedded.locks import give_to_owner_of

USER = "collector"
HOST = "127.0.0.1"
CONFIGURATION = "postgresql.conf"
START_LOG = "data/start.log"

_SETTINGS = """\
# Written by the collector at every start, so changes here are lost; use ALTER SYSTEM.
cluster_name = 'vm-import-collector'
listen_addresses = '{host}'
port = {port}
unix_socket_directories = ''

# Nothing stored may be lost, whatever is killed.
fsync = on
synchronous_commit = on
full_page_writes = on

max_connections = 64
max_locks_per_transaction = 128
jit = off
# Containers often have a tiny /dev/shm, and huge pages that they may not use.
dynamic_shared_memory_type = mmap
huge_pages = off

lc_messages = 'C'
timezone = 'UTC'
log_timezone = 'UTC'

# One file per weekday, overwritten a week later.
logging_collector = on
log_destination = 'stderr'
log_directory = 'log'
log_filename = 'postgresql-%a.log'
log_file_mode = 0600
log_rotation_age = 1d
log_rotation_size = 0
log_truncate_on_rotation = on
log_checkpoints = off
log_line_prefix = '%m [%p] %q%u@%d '
"""
_OLD_LOG = 6 * 24 * 3600
_BIG_LOG = 16 * 1024 * 1024
_TAIL = 20
# Run as the server's account, because in a container root may not look at the processes of others. Somebody's
# shell inside the data folder is not ours to count.
_PROCESSES = """\
for process in /proc/[0-9]*; do
    { read -r name <"$process/comm"; } 2>/dev/null || continue
    if [ "$name" = postgres ] && [ "$process/cwd" -ef "$1" ]; then echo "${process#/proc/}"; fi
done
"""


@dataclass(frozen=True, slots=True)
class Postmaster:
    """What ``postmaster.pid`` says; true only while that process really is our server."""

    pid: int
    port: int
    ready: bool


@dataclass(frozen=True, slots=True)
class Cluster:
    """A database cluster in a folder of ours, and the account it belongs to."""

    folder: Path
    account: Account

    @property
    def data(self) -> Path:
        """PostgreSQL's data folder."""
        return data_folder(self.folder)

    def major(self) -> int | None:
        """The major that made the cluster; None where there is none yet."""
        try:
            return int((self.data / "PG_VERSION").read_text())
        except FileNotFoundError:
            if not self.data.exists() or not any(self.data.iterdir()):
                return None
            raise EmbeddedPostgresError(
                f"{self.data} holds something that is no PostgreSQL database: "
                "move it away, or choose another data_dir."
            ) from None

    def password(self) -> str:
        """The superuser's password, which was made with the cluster."""
        path = self.folder / "password"
        try:
            return path.read_text(encoding="ascii")
        except FileNotFoundError:
            raise EmbeddedPostgresError(
                f"{path}, the password of the database in {self.data}, is gone: "
                "restore it, or choose another data_dir."
            ) from None

    def create(self, binaries: Binaries) -> None:
        """Make the cluster beside its place and move it there when it is whole."""
        temporary = Path(tempfile.mkdtemp(prefix="initdb-", dir=self.folder))
        password = secrets.token_urlsafe(32)
        self._hand_over(temporary, password)
        try:
            self._initdb(binaries, temporary)
            # The password comes first: without a cluster it counts for nothing, and is made anew.
            self._write("password", password, mode=0o600)
            (temporary / "data").rename(self.data)
            _sync(self.folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def configure(self, port: int) -> None:
        """Write our settings for the next start."""
        self._write(CONFIGURATION, _SETTINGS.format(host=HOST, port=port), mode=0o644)

    def free_port(self) -> int:
        """The port of the last start if it is still free, else one that is free now."""
        for port in (self._previous_port(), 0):
            if bound := _bind(port):
                return bound
        raise EmbeddedPostgresError(f"No port of {HOST} is free for the embedded PostgreSQL.")

    def postmaster(self) -> Postmaster | None:
        """What the server noted about itself; a copied folder brings the note of another, which is none."""
        try:
            lines = (self.data / "postmaster.pid").read_bytes().split(b"\n")
            if not os.path.samefile(lines[1], os.fsencode(self.data)):  # noqa: PTH121 - the path may be no valid text
                return None
            return Postmaster(int(lines[0]), int(lines[3]), ready=b"ready" in b"".join(lines[7:8]))
        except (OSError, ValueError, IndexError):
            return None  # no server, or one that has only begun to write

    def running(self) -> Postmaster | None:
        """The server as it noted itself, if that process is there and not another that got its number."""
        noted = self.postmaster()
        return noted if noted and noted.pid in self._processes(noted) else None

    def signal(self, name: str) -> None:
        """Send a signal to every process of the server that is left."""
        if left := self._processes(self.postmaster()):
            self.account.run_shell('signal="$1"; shift; kill -s "$signal" "$@"', name, *map(str, left))

    def tidy(self) -> None:
        """Before a start, when no server runs: remove what killed commands left, a stale note of a server.

        Old logs too, where rotation did not reach them: a server that is started once a week appends to its
        weekday's log and never overwrites it.
        """
        self._clear_leftovers()
        now = time.time()
        useless = [self.data / "postmaster.pid", self.folder / START_LOG]
        for log in self._logs():
            details = log.stat()
            if details.st_mtime < now - _OLD_LOG or details.st_size > _BIG_LOG:
                useless.append(log)
        self.account.run("rm", "-f", "--", *useless)

    def log_tail(self) -> str:
        """The last lines that the server wrote, for an error's text."""
        newest = sorted(self._logs(), key=lambda log: log.stat().st_mtime)[-1:]
        lines: list[str] = []
        for log in (self.folder / START_LOG, *newest):
            with suppress(OSError):
                lines += log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL:]
        return "\n".join(lines)

    def _logs(self) -> list[Path]:
        return list((self.data / "log").glob("*.log"))

    def _initdb(self, binaries: Binaries, temporary: Path) -> None:
        # Relative paths, so that no character of ours can mean something to the shell that initdb uses.
        made = self.account.run(
            *(binaries.program("initdb"), "--pgdata=data", f"--username={USER}", "--pwfile=password"),
            *(
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--no-locale",
                "--data-checksums",
                "--no-instructions",
            ),
            *("--set", "huge_pages=off"),
            cwd=temporary,
        )
        if made.returncode == 0:
            return
        mend = ""
        if "could not look up effective user ID" in made.stdout:
            mend = (
                "\nPostgreSQL needs an account with a name: add one for this uid, or configure database_url."
            )
        raise EmbeddedPostgresError(
            f"The embedded database could not be made in {self.folder}:\n{made.stdout.strip()}{mend}"
        )

    def _hand_over(self, temporary: Path, password: str) -> None:
        """Put initdb's password into its folder and give both to the server's account, by descriptor."""
        folder = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            file = os.open("password", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=folder)
            with os.fdopen(file, "w", encoding="ascii") as stream:
                stream.write(password)
                if self.account.dropped:
                    os.fchown(file, self.account.uid, self.account.gid)
            if self.account.dropped:
                os.fchown(folder, self.account.uid, self.account.gid)
        finally:
            os.close(folder)

    def _clear_leftovers(self) -> None:
        """Remove half-made things; an initdb may still run there, and stops when its files are gone."""
        for leftover in self.folder.glob("*-making-*"):
            leftover.unlink(missing_ok=True)
        for leftover in self.folder.glob("initdb-*"):
            deadline = time.monotonic() + 5
            while leftover.exists() and time.monotonic() < deadline:
                shutil.rmtree(leftover, ignore_errors=True)

    def _write(self, name: str, text: str, *, mode: int) -> None:
        descriptor, temporary = tempfile.mkstemp(prefix=f"{name}-making-", dir=self.folder)
        with os.fdopen(descriptor, "w", encoding="ascii") as stream:
            stream.write(text)
            stream.flush()
            os.fchmod(descriptor, mode)
            give_to_owner_of(self.folder, descriptor)
            os.fsync(descriptor)
        Path(temporary).rename(self.folder / name)
        _sync(self.folder)

    def _previous_port(self) -> int:
        with suppress(OSError):
            if match := re.search(r"^port = (\d+)$", (self.folder / CONFIGURATION).read_text(), re.MULTILINE):
                return int(match[1])
        return 0

    def _processes(self, noted: Postmaster | None) -> list[int]:
        """The numbers of all processes of our server, also of those that outlived it."""
        if Path("/proc/self").exists():
            found = self.account.run_shell(_PROCESSES, "data", cwd=self.folder).stdout
            return [int(pid) for pid in found.split()]
        if noted is None:
            return []
        # Without /proc (macOS) only the noted process can be told, by its name.
        name = self.account.run("ps", "-p", str(noted.pid), "-o", "ucomm=").stdout
        return [noted.pid] if name.strip() == "postgres" else []


def data_folder(folder: Path) -> Path:
    """Where PostgreSQL's own files lie in a folder of ours."""
    return folder / "data"


def port_is_free(port: int) -> bool:
    """Whether a server could listen there now."""
    return bool(_bind(port))


def _bind(port: int) -> int:
    """The port that can be bound (any for 0), or 0."""
    with socket.socket() as probe, suppress(OSError):
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as PostgreSQL itself does
        probe.bind((HOST, port))
        return int(probe.getsockname()[1])
    return 0


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
