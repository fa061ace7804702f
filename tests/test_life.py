"""The life of ``collector run`` as a process: its beginning, its configuration, its watching and its end."""

import signal
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from time import monotonic, monotonic_ns

import psutil
import pytest
from sqlalchemy import Engine

from collector.clock import utc_now
from collector.domain import Scan, Target, Tasks
from collector.simulator import Simulator
from collector.simulator.faults import Denied, Stall
from collector.warehouse import history, schema
from collector.warehouse.embedded import EmbeddedPostgres
from collector.warehouse.engine import connect_to_parameters, make_engine
from tests.absence import frozen, locked, shut
from tests.daemons import running, start_daemon
from tests.simulation import (
    ACCOUNT,
    OTHER_REGION,
    REGION,
    eventually,
    rows,
    settings,
    simulated,
    wire,
)

WELL_BELOW_15 = 12.0


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    """A simulated EC2 with a task under way in each of its two Regions."""
    with simulated() as simulator:
        for region in (REGION, OTHER_REGION):
            simulator.fleet.put(ACCOUNT, region, wire("a", Progress="10"))
        yield simulator


class Command:
    """``collector run`` as a process, and its log as far as it has been written."""

    def __init__(self, database_url: str, **variables: str) -> None:
        self.process = start_daemon(database_url, **variables)
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as log:
            self.lines.extend(iter(log.readline, ""))

    @property
    def log(self) -> str:
        """What it has said."""
        return "".join(self.lines)

    def says(self, *words: str) -> str:
        """Wait for a line with these words, and return it."""

        def find() -> str | None:
            return next((line for line in list(self.lines) if all(word in line for word in words)), None)

        return eventually(find, timeout=40) or ""

    def ready(self) -> tuple[int, str]:
        """Return what ``/readyz`` answers."""
        url = self.says("listening").split("url=")[1].strip()
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=10) as answer:  # noqa: S310 - its own http address
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def signal(self, *numbers: int) -> float:
        """Send signals one after the other, and return how many seconds the end then took."""
        for number in numbers:
            self.process.send_signal(number)
        return self.end()

    def end(self) -> float:
        """Wait for its end, without a traceback; returns how many seconds that took."""
        began = monotonic()
        self.process.wait(timeout=30)
        seconds = monotonic() - began
        self._reader.join(timeout=10)
        assert "Traceback" not in self.log, self.log
        return seconds

    def kill(self) -> None:
        """Leave nothing running."""
        self.process.kill()
        self.process.wait()
        self._reader.join(timeout=10)


Start = Callable[..., Command]


@pytest.fixture
def start(simulator: Simulator, database_url: str, tmp_path: Path) -> Iterator[Start]:
    """Start the command on this test's database, in a data folder of its own."""
    assert simulator
    started: list[Command] = []

    def begin(url: str = database_url, **variables: str) -> Command:
        folder = {"COLLECTOR_DATA_DIR": str(tmp_path / "data")}
        started.append(Command(url, **(folder | variables)))
        return started[-1]

    yield begin
    for command in started:
        command.kill()


@pytest.fixture
def spooled(tmp_path: Path) -> Callable[[], int]:
    """Count the looks that wait on disk."""
    return lambda: len(list((tmp_path / "data").rglob("*.look")))


def scans(engine: Engine, region: str = REGION) -> int:
    """Return how many scans of a Region are stored."""
    query = (
        "SELECT count(*) FROM vm_import.scans JOIN vm_import.targets USING (target_id) WHERE region = :region"
    )
    return int(rows(engine, query, region=region)[0][0])


def polls(engine: Engine) -> None:
    """Wait until both Regions have been looked at, and one of them twice."""
    eventually(lambda: scans(engine) > 1 and scans(engine, OTHER_REGION), timeout=40)


def shown(simulator: Simulator) -> int:
    """Return how many good listings EC2 has answered with."""
    assert simulator.fleet.ledger is not None
    return len(simulator.fleet.ledger)


# The end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_ends_it(start: Start, engine: Engine, number: signal.Signals) -> None:
    """At once when nothing hangs, with code 0."""
    command = start()
    polls(engine)
    assert command.signal(number) < WELL_BELOW_15
    assert command.process.returncode == 0, command.log


def test_a_signal_ends_it_while_a_region_stalls(start: Start, simulator: Simulator, engine: Engine) -> None:
    """The look is cut short, and is no failure."""
    command = start()
    polls(engine)
    stall = simulator.faults.add(Stall(), region=OTHER_REGION)
    eventually(lambda: stall.hits)
    assert command.signal(signal.SIGTERM) < WELL_BELOW_15
    assert command.process.returncode == 0, command.log
    assert rows(engine, "SELECT * FROM vm_import.outages") == []


def test_a_signal_ends_it_while_its_first_discovery_stalls(start: Start, simulator: Simulator) -> None:
    """Before there is anything to look at."""
    stall = simulator.faults.add(Stall(), action="DescribeRegions")
    command = start()
    eventually(lambda: stall.hits, timeout=40)
    assert command.signal(signal.SIGTERM) < WELL_BELOW_15
    assert command.process.returncode == 0, command.log


def test_a_signal_ends_it_while_a_table_is_locked(
    start: Start, simulator: Simulator, engine: Engine, database_url: str, spooled: Callable[[], int]
) -> None:
    """What was in hand is on disk then."""
    command = start()
    polls(engine)
    with locked(database_url):
        asked = simulator.count(region=REGION)
        eventually(lambda: simulator.count(region=REGION) > asked + 2, timeout=40)
        assert command.signal(signal.SIGTERM) < WELL_BELOW_15
    assert command.process.returncode == 0, command.log
    assert spooled()
    assert _seen_by_anybody(engine, spooled) >= shown(simulator)


def _seen_by_anybody(engine: Engine, spooled: Callable[[], int]) -> int:
    """Return how many good looks are stored or wait; no more than one in flight may be cut short."""
    return scans(engine) + scans(engine, OTHER_REGION) + spooled()


@pytest.fixture
def own_server(public_folder: Path) -> Iterator[tuple[Path, str]]:
    """A server process of this test's own with a migrated database: its folder and URL."""
    folder = public_folder / "of-a-life"
    with EmbeddedPostgres(folder) as server:
        engine = make_engine(connect_to_parameters(server.conninfo))
        schema.upgrade(engine)
        engine.dispose()
        yield folder, "postgresql://{user}:{password}@{host}:{port}/{dbname}".format(**server.conninfo())


def test_a_signal_ends_it_while_its_server_hangs(
    start: Start, own_server: tuple[Path, str], simulator: Simulator, spooled: Callable[[], int]
) -> None:
    """A server that neither answers nor refuses holds nobody up."""
    folder, url = own_server
    command = start(url)
    eventually(lambda: simulator.count(region=REGION) > 2, timeout=40)
    command.says("history changed")
    with frozen(folder):
        asked = simulator.count()
        eventually(lambda: simulator.count() > asked, timeout=40)
        assert command.signal(signal.SIGTERM) < WELL_BELOW_15
        assert command.process.returncode == 0, command.log
        assert spooled()


def test_a_second_signal_ends_it_at_once(start: Start, simulator: Simulator, public_folder: Path) -> None:
    """With code 1; the embedded server goes with it, and what was seen is stored or on disk."""
    folder = public_folder / "ended-twice"
    command = start("", COLLECTOR_DATA_DIR=str(folder))
    command.says("history changed")
    eventually(lambda: simulator.count(region=REGION) > 1)
    stall = simulator.faults.add(Stall(), region=OTHER_REGION)
    eventually(lambda: stall.hits)
    (pid_file,) = folder.rglob("postmaster.pid")
    postmaster = psutil.Process(int(pid_file.read_text().split()[0]))
    assert command.signal(signal.SIGTERM, signal.SIGINT) < 5
    assert command.process.returncode == 1
    command.says("ended by force", "a second signal")
    with suppress(psutil.NoSuchProcess):
        postmaster.wait(timeout=10)
    answers = shown(simulator)
    with EmbeddedPostgres(folder / "postgres") as server:
        engine = make_engine(connect_to_parameters(server.conninfo))
        kept = scans(engine) + scans(engine, OTHER_REGION) + len(list(folder.rglob("*.look")))
        engine.dispose()
    assert kept >= answers - 1  # an answer may have been on its way


# The configuration


def configure(folder: Path, **keys: object) -> str:
    """Write a TOML file and return its name."""
    file = folder / "collector.toml"
    file.write_text("".join(f"{key} = {value!r}\n" for key, value in keys.items()), encoding="utf-8")
    return str(file)


def test_sighup_follows_a_changed_file(start: Start, engine: Engine, tmp_path: Path) -> None:
    """Another list of Regions, and another interval."""
    name = configure(tmp_path, regions=[REGION], interval="1h")
    command = start(COLLECTOR_CONFIG=name, COLLECTOR_INTERVAL="")
    eventually(lambda: scans(engine), timeout=40)
    configure(tmp_path, regions=[OTHER_REGION], interval="1s")
    command.process.send_signal(signal.SIGHUP)
    command.says("the configuration was read again")
    eventually(lambda: scans(engine, OTHER_REGION) > 2, timeout=40)
    assert scans(engine) == 1
    assert command.signal(signal.SIGTERM) < WELL_BELOW_15
    assert command.process.returncode == 0, command.log


def test_sighup_does_not_use_a_file_with_faults(start: Start, engine: Engine, tmp_path: Path) -> None:
    """All of them are named, and polling goes on as before."""
    name = configure(tmp_path, regions=[REGION])
    command = start(COLLECTOR_CONFIG=name)
    eventually(lambda: scans(engine), timeout=40)
    configure(tmp_path, regions=["eu-west-111"], concurrency=0)
    command.process.send_signal(signal.SIGHUP)
    command.says("the new configuration is not used", "eu-west-111", "concurrency")
    before = scans(engine)
    eventually(lambda: scans(engine) > before + 1)
    assert command.signal(signal.SIGTERM) < WELL_BELOW_15
    assert command.process.returncode == 0, command.log


def test_a_signal_that_comes_while_the_configuration_is_followed_ends_it(
    start: Start, engine: Engine
) -> None:
    """It is about the daemon that begins, as it would have been about the one that ended."""
    command = start()
    polls(engine)
    assert command.signal(signal.SIGHUP, signal.SIGTERM) < WELL_BELOW_15
    assert command.process.returncode == 0, command.log


# systemd


@contextmanager
def notifications(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Listen as systemd does; the socket's name, and what has been sent to it so far."""
    name = str(folder / f"notify-{monotonic_ns()}")
    sent: list[str] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(name)
        channel.settimeout(0.1)
        closing = threading.Event()

        def read() -> None:
            while not closing.is_set():
                with suppress(TimeoutError):
                    sent.append(channel.recv(4096).decode())

        reader = threading.Thread(target=read)
        reader.start()
        try:
            yield name, sent
        finally:
            closing.set()
            reader.join()


def test_systemd_is_told(start: Start, public_folder: Path) -> None:
    """Ready, alive again and again, reloading since when, ready again, stopping."""
    with notifications(public_folder) as (name, sent):
        command = start(NOTIFY_SOCKET=name)
        eventually(lambda: sent.count("READY=1\nWATCHDOG=1") > 2, timeout=40)
        asked = monotonic_ns() // 1000
        command.process.send_signal(signal.SIGHUP)
        reloading = eventually(lambda: [one for one in sent if one.startswith("RELOADING=1")])
        since = int(reloading[0].split("MONOTONIC_USEC=")[1])
        assert asked <= since <= monotonic_ns() // 1000
        eventually(lambda: sent[-1].startswith("READY=1"))
        command.signal(signal.SIGTERM)
        eventually(lambda: "STOPPING=1" in sent)
    assert sent[: len(sent) - sent[::-1].index(reloading[0]) - 1].count("STOPPING=1") == 0


def test_the_watchdog_is_fed_by_progress(
    simulator: Simulator,
    database_url: str,
    engine: Engine,
    tmp_path: Path,
    public_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not by a clock that ticks: a batch that hangs in the database ends it, and its end brings it back."""
    assert simulator
    monkeypatch.setattr("collector.daemon._STUCK_AFTER", 0.5)  # two minutes, which no test can wait for
    configuration = settings(database_url, data_dir=tmp_path).model_copy(
        update={"interval": timedelta(seconds=0.1)}
    )
    with notifications(public_folder) as (name, sent):
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        with running(configuration, answer=None) as run:
            polls(engine)
            eventually(lambda: sent)
            with locked(database_url, "SHARE"):
                eventually(lambda: run.daemon._loader.busy_for > 1)  # noqa: SLF001 - nobody else knows
                fed = len(sent)
                looks = len(run.seen.looks)
                eventually(lambda: len(run.seen.looks) > looks + 5)
                assert len(sent) == fed
            eventually(lambda: len(sent) > fed + 2)


# The beginning


def test_it_starts_without_its_database_and_stores_everything_later(
    start: Start,
    engine: Engine,
    server_url: str,
    database_url: str,
    simulator: Simulator,
    spooled: Callable[[], int],
) -> None:
    """Not ready until then; what it sees waits on disk."""
    with shut(server_url, database_url):
        command = start()
        command.says("starting without the database")
        eventually(lambda: spooled() > 2, timeout=40)
        code, answer = command.ready()
        assert (code, "not currently accepting connections" in answer) == (503, True), answer
    eventually(lambda: scans(engine) > 2 and not spooled(), timeout=40)
    eventually(lambda: command.ready()[0] == 200)
    assert command.signal(signal.SIGTERM) < WELL_BELOW_15
    assert scans(engine) + scans(engine, OTHER_REGION) + spooled() == shown(simulator)


def test_a_database_that_refuses_holds_nobody_up(
    start: Start, simulator: Simulator, spooled: Callable[[], int]
) -> None:
    """From the beginning to the end: everything that was seen is on disk."""
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    command = start(f"postgresql://nobody@127.0.0.1:{port}/nothing")
    eventually(lambda: spooled() > 2, timeout=40)
    assert command.ready()[0] == 503
    assert command.signal(signal.SIGTERM) < WELL_BELOW_15
    assert command.process.returncode == 0, command.log
    assert spooled() == shown(simulator)


def test_a_database_that_is_behind_is_an_error(start: Start, empty_database_url: str) -> None:
    """Which names the mend."""
    command = start(empty_database_url)
    command.end()
    assert command.process.returncode == 1
    assert "collector migrate" in command.log


def test_without_credentials_it_does_not_begin(start: Start) -> None:
    """And says so in a sentence."""
    command = start(AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="")
    command.end()
    assert command.process.returncode == 1
    assert "no AWS credentials were found; configure them as for the AWS CLI" in command.log


def test_an_address_that_is_taken_is_a_fault_of_the_configuration(start: Start) -> None:
    """Named by its key."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = start(COLLECTOR_LISTEN=f"127.0.0.1:{port}")
        command.end()
    assert command.process.returncode == 2
    assert f"listen: 127.0.0.1:{port} is in use" in command.log


def test_a_target_whose_tasks_may_soon_be_lost_is_shouted_about(
    start: Start, engine: Engine, simulator: Simulator
) -> None:
    """Its last good look, which another process had six days ago, is known from the warehouse."""
    instant = utc_now() - timedelta(days=6)
    for region in (REGION, OTHER_REGION):
        list(history.store(engine, [Scan(Target(ACCOUNT, region), instant, instant, True, "api", Tasks())]))
    simulator.faults.add(Denied(), region=OTHER_REGION)
    command = start()
    line = command.says("no good look for days", OTHER_REGION)
    assert "[error" in line
    assert f"{instant:%Y-%m-%d}" in line
    assert command.signal(signal.SIGTERM) < WELL_BELOW_15
