"""``kill -9`` of the command or of the server at random moments, then a rerun: as if nothing had happened."""

import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import psutil
import psycopg
import pytest

from collector.simulator import Fleet, SimulatedClock, Simulator
from collector.warehouse.embedded import EmbeddedPostgres
from tests.commands import Shell
from tests.conftest import create_database, drop_database

ACCOUNT = "111122223333"
ROUNDS = 4
TASKS = 1500
HISTORY = {
    "scans": """
        SELECT DISTINCT t.account_id, t.region,
            to_jsonb(s) - '{target_id,seen,recorded_at}'::text[] - %(unlike)s::text[], (
            SELECT array_agg(k.import_task_id ORDER BY k.import_task_id)
            FROM vm_import.tasks k WHERE k.task_id = ANY (s.seen))
        FROM vm_import.scans s JOIN vm_import.targets t USING (target_id)""",
    "versions": """
        SELECT t.account_id, t.region, k.import_task_id,
            to_jsonb(v) - '{task_id,target_id}'::text[] - %(unlike)s::text[]
        FROM vm_import.tasks k JOIN vm_import.targets t USING (target_id)
        LEFT JOIN vm_import.task_versions v USING (task_id)""",
    **{
        table: f"""
        SELECT k.import_task_id, to_jsonb(c) - 'task_id'
        FROM vm_import.{table} c JOIN vm_import.tasks k USING (task_id)"""
        for table in ("snapshot_details", "tags", "license_specifications")
    },
    "outages": "SELECT to_jsonb(o) - 'outage_id' FROM vm_import.outages o",
}
"""Everything that is remembered, but for numbers of our own and the time of recording."""

History = dict[str, list[str]]
Running = subprocess.Popen[str]
Kill = Callable[[Running], None]


def history(connection: psycopg.Connection, *unlike: str) -> History:
    """Read everything that is remembered, without members that are ``unlike`` in any two runs."""
    return {
        name: sorted(map(repr, connection.execute(query.encode(), {"unlike": list(unlike)}).fetchall()))
        for name, query in HISTORY.items()
    }


def listing(turn: int) -> str:
    """Return what the CLI prints in a round: tasks change, come and go."""
    rng = Random(turn)
    tasks = [
        {
            "ImportTaskId": f"import-ami-{number:05}",
            "Status": "active",
            "Progress": str(turn * 20 + rng.randrange(5)),
            "SnapshotDetails": [{"DiskImageSize": 1.5e9 * (number % 7), "Format": "VMDK"}] * (1 + number % 2),
            "Tags": [
                {"Key": "Name", "Value": f"vm-{number}"},
                {"Key": "Turn", "Value": str(rng.randrange(2))},
            ],
        }
        for number in range(turn * 100, TASKS)
    ]
    return json.dumps({"ImportImageTasks": tasks})


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, ...]]:
    """The arguments of one ``backfill`` per round."""
    folder = tmp_path_factory.mktemp("files")
    for turn in range(ROUNDS):
        (folder / f"{turn}.json").write_text(listing(turn), encoding="utf-8")
    place = ("--account", ACCOUNT, "--region", "eu-west-1", "--complete", "--observed-at")
    return [
        ("backfill", str(folder / f"{turn}.json"), *place, f"2026-03-01T1{turn}:00:00Z")
        for turn in range(ROUNDS)
    ]


@dataclass(frozen=True, slots=True)
class Undisturbed:
    """What there is after undisturbed runs, and how many seconds one took."""

    history: History
    seconds: float


@pytest.fixture(scope="module")
def undisturbed(
    server_url: str, migrated: str, files: list[tuple[str, ...]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Undisturbed]:
    """The history of all rounds when nothing happens."""
    name = f"undisturbed_{uuid.uuid4().hex}"
    url = create_database(server_url, name, migrated)
    shell = Shell(tmp_path_factory.mktemp("undisturbed"), COLLECTOR_DATABASE_URL=url)
    began = time.monotonic()
    for arguments in files:
        assert shell(*arguments).code == 0
    seconds = (time.monotonic() - began) / len(files)
    with psycopg.connect(url) as connection:
        found = history(connection)
    assert [len(found[name]) for name in ("scans", "versions", "outages")] == [ROUNDS, 5700, 0]
    yield Undisturbed(found, seconds)
    drop_database(server_url, name)


@pytest.fixture
def calm_url(server_url: str, migrated: str) -> Iterator[str]:
    """A second migrated database, where nothing is killed."""
    name = f"undisturbed_{uuid.uuid4().hex}"
    yield create_database(server_url, name, migrated)
    drop_database(server_url, name)


def disturb(shell: Shell, arguments: tuple[str, ...], moment: float, kill: Kill) -> None:
    """Run a command, ``kill`` something at a moment, and run it again until it ends well."""
    with shell.start(*arguments) as running:
        time.sleep(moment)
        kill(running)
        _, err = running.communicate(timeout=60)
    assert "Traceback" not in err
    codes: list[int] = []
    while 0 not in codes:
        codes.append(shell(*arguments).code)
        assert len(codes) < 4, codes


def kill_command(running: Running) -> None:
    """Kill the command alone; its server, if it started one, goes on."""
    running.kill()


def kill_server(folder: Path) -> Kill:
    """Kill the embedded server of a ``data_dir``, as soon as the command has one."""
    noted = folder / "postgres" / "data" / "postmaster.pid"

    def kill(running: Running) -> None:
        while running.poll() is None:
            with suppress(OSError, ValueError, IndexError):
                os.kill(int(noted.read_text(encoding="utf-8").splitlines()[0]), signal.SIGKILL)
                return
            time.sleep(0.01)

    return kill


def left_running(folder: Path) -> list[list[str]]:
    """Return the command lines that name a folder."""
    lines: list[list[str]] = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            lines.append(process.cmdline())
    return [line for line in lines if any(str(folder) in word for word in line)]


def moments(seed: int, seconds: float) -> list[float]:
    """Return one random moment for each quarter of a run."""
    rng = Random(seed)
    return [seconds * (quarter + rng.random()) / ROUNDS for quarter in rng.sample(range(ROUNDS), ROUNDS)]


def test_killed_command(
    tmp_path: Path, database_url: str, files: list[tuple[str, ...]], undisturbed: Undisturbed
) -> None:
    """The command is killed in every round, and repeated."""
    shell = Shell(tmp_path, COLLECTOR_DATABASE_URL=database_url)

    for arguments, moment in zip(files, moments(1, undisturbed.seconds), strict=True):
        disturb(shell, arguments, moment, kill_command)

    with psycopg.connect(database_url) as connection:
        assert history(connection) == undisturbed.history


def test_killed_server(
    tmp_path: Path, public_folder: Path, files: list[tuple[str, ...]], undisturbed: Undisturbed
) -> None:
    """The embedded server is killed under the command, or the command without its server, and repeated."""
    folder = public_folder / "killed"
    shell = Shell(tmp_path, COLLECTOR_DATA_DIR=str(folder))
    kills = [kill_server(folder), kill_command] * 2

    for arguments, moment, kill in zip(files, moments(2, undisturbed.seconds + 0.5), kills, strict=True):
        disturb(shell, arguments, moment, kill)

    with EmbeddedPostgres(folder / "postgres") as server, psycopg.connect(**server.conninfo()) as connection:
        assert history(connection) == undisturbed.history
    assert left_running(folder) == []


def test_killed_poll(tmp_path: Path, calm_url: str, database_url: str) -> None:
    """A look at the API is killed three times: the same imports are known, once each, as after one look."""
    fleet = Fleet(SimulatedClock(datetime.now(UTC)))
    regions = ["eu-west-1", "us-east-1"]
    for region in regions:
        fleet.populate(ACCOUNT, region, 300)
    unlike = ("observed_at", "finished_at", "valid_from")
    with Simulator(fleet, regions=regions, page_size=50, latency=0.03) as simulator:
        shell = Shell(tmp_path, **simulator.environment)
        began = time.monotonic()
        assert shell("backfill", "--source", "api", COLLECTOR_DATABASE_URL=calm_url).code == 0
        seconds = time.monotonic() - began

        for moment in sorted(moments(3, seconds))[1:]:
            with shell.start("backfill", "--source", "api", COLLECTOR_DATABASE_URL=database_url) as running:
                time.sleep(moment)
                kill_command(running)
        assert shell("backfill", "--source", "api", COLLECTOR_DATABASE_URL=database_url).code == 0

    found: list[Any] = []
    for url in (calm_url, database_url):
        with psycopg.connect(url) as connection:
            found.append(history(connection, *unlike))
    assert found[0] == found[1]
    assert len(found[0]["versions"]) > 300
