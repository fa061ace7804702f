"""Backfill: what EC2 has forgotten is back, once, from the real command against a simulated AWS."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from sqlalchemy import Engine, text

from collector.aws.transform import wire_task
from collector.domain import ImportTask, Scan
from collector.simulator import Fleet, SimulatedClock, Simulator
from collector.simulator.faults import Denied, Latency
from collector.warehouse import history
from tests.commands import Shell, row_counts
from tests.daemons import running
from tests.factories import numbered, stored
from tests.simulation import (
    ACCOUNT,
    OTHER_REGION,
    REGION,
    eventually,
    lead_here,
    make_simulator,
    rows,
    settings,
    wire,
)

IMPORTS = 40
ENDED = timedelta(days=9)
"""How long before now the last import of the past began."""


@pytest.fixture(scope="module")
def past() -> Iterator[Simulator]:
    """An EC2 that has forgotten all its tasks, and an account's AMIs and CloudTrail that have not."""
    fleet = Fleet(SimulatedClock(datetime.now(UTC)))
    for region in (REGION, OTHER_REGION):
        fleet.populate(ACCOUNT, region, IMPORTS, since=timedelta(days=60), until=-ENDED, recent=0)
        fleet.refuse(ACCOUNT, region, "Client.UnauthorizedOperation", "no", at=fleet.clock.now() - ENDED)
    with Simulator(fleet, regions=[REGION, OTHER_REGION], default_account=ACCOUNT) as simulator:
        simulator.cloudtrail_rate = None
        yield simulator


@pytest.fixture
def shell(tmp_path: Path, past: Simulator, database_url: str) -> Shell:
    """The command, with the past and a warehouse that knows nothing of it."""
    return Shell(tmp_path, COLLECTOR_DATABASE_URL=database_url, **past.environment)


def plans(past: Simulator) -> dict[str, Any]:
    """Return every finished import that there was, by its id."""
    found = (past.fleet.finished_plans(ACCOUNT, region)[1] for region in (REGION, OTHER_REGION))
    return {plan.import_task_id: plan for region in found for plan in region}


def test_every_finished_import_is_back_with_its_times_and_its_requester(
    shell: Shell, past: Simulator, engine: Engine
) -> None:
    """From evidence alone; the same command again writes nothing."""
    assert past.fleet.tasks(ACCOUNT, REGION) == []
    ended = shell("backfill", "--json")
    summary = json.loads(ended.out)
    assert (ended.code, summary["failures"], summary["scans"]) == (0, [], 2)
    finished = plans(past)
    assert len(finished) > IMPORTS
    found = {
        row.import_task_id: row
        for row in rows(engine, "SELECT * FROM vm_import.latest_tasks WHERE outcome = 'completed'")
    }
    assert found.keys() == finished.keys()
    for name, plan in finished.items():
        row = found[name]
        assert row.requested_at == plan.requested_at.replace(microsecond=0)
        assert row.finished_after == row.finished_before == plan.ended_at.replace(microsecond=0)
        assert row.duration == row.finished_before - row.requested_at
        assert (row.requested_by or "").strip()
        assert (row.evidence_only, row.image_id, row.contradiction) == (True, plan.image_id, None)
    assert rows(engine, "SELECT count(*) FROM vm_import.task_events WHERE error_code IS NOT NULL")[0][0] >= 2

    before = row_counts(shell.environment["COLLECTOR_DATABASE_URL"])
    again = json.loads(shell("backfill", "--source", "images", "--source", "cloudtrail", "--json").out)
    assert (again["events"], again["new_tasks"]) == (0, 0)
    assert row_counts(shell.environment["COLLECTOR_DATABASE_URL"]) == before


def test_the_second_run_asks_cloudtrail_for_the_last_day_only(shell: Shell, past: Simulator) -> None:
    """The rest is settled and read."""
    shell("backfill", "--source", "cloudtrail")
    first = past.count(action="LookupEvents")
    shell("backfill", "--source", "cloudtrail")
    assert past.count(action="LookupEvents") - first <= 2 * 2 * 2


def test_a_dry_run_says_what_would_be_new_and_writes_nothing(shell: Shell) -> None:
    """The first few are spelled out."""
    url = shell.environment["COLLECTOR_DATABASE_URL"]
    before = row_counts(url)
    ended = shell("backfill", "--dry-run")
    assert ended.code == 0
    assert f"account {ACCOUNT}, Region {REGION}: would add" in ended.out
    assert "image of import-ami-" in ended.out
    assert "pieces of evidence would be stored" in ended.out.splitlines()[-1]
    assert row_counts(url) == before


def test_a_dry_run_counts_a_task_once(shell: Shell, past: Simulator) -> None:
    """Also one that the API, its AMI and CloudTrail show: it tells what the command itself does then."""
    past.fleet.put(ACCOUNT, REGION, wire("present"))
    for name in list(plans(past))[:3]:
        past.fleet.put(ACCOUNT, REGION, {"ImportTaskId": name, "Status": "completed"})
    dry, real = (json.loads(shell("backfill", "--json", *flags).out) for flags in (["--dry-run"], []))
    assert {**dry, "dry_run": False} == real
    assert real["new_tasks"] > IMPORTS


def test_since_bounds_the_evidence(shell: Shell, engine: Engine) -> None:
    """An instant or a duration; what is older is left out."""
    assert shell("backfill", "--source", "images", "--since", "30d").code == 0
    oldest = rows(engine, "SELECT min(occurred_at) FROM vm_import.task_events")[0][0]
    assert oldest > datetime.now(UTC) - timedelta(days=31)


def test_a_denied_source_is_named_and_the_others_are_stored(shell: Shell, past: Simulator) -> None:
    """With 3, and no outage: it is no look at the present."""
    with past.faults.add(Denied("AccessDeniedException"), action="LookupEvents", region=REGION):
        ended = shell("backfill")
    assert ended.code == 3
    assert f"failed: account {ACCOUNT}, Region {REGION}: AccessDenied" in ended.err
    assert "cloudtrail:LookupEvents" in ended.err
    counts = row_counts(shell.environment["COLLECTOR_DATABASE_URL"])
    assert (counts["outages"], counts["task_events"] > IMPORTS) == (0, True)


def test_interrupted_at_random_moments_and_resumed(shell: Shell, past: Simulator, engine: Engine) -> None:
    """The contents are those of an undisturbed run, and the command says how to go on."""
    chance = random.Random(7)
    words = 0
    with past.faults.add(Latency(0.05), action=None):
        began = monotonic()
        assert shell("backfill", "--region", REGION, "--since", "20d", "--dry-run").code == 0
        whole = monotonic() - began
        for _ in range(10):
            process = shell.start("backfill", "--region", REGION, "--since", "20d")
            try:
                process.wait(whole * chance.uniform(0.4, 1.0))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=30)
            assert "Traceback" not in errors
            words += "run the same command again to go on" in errors
    assert words
    assert shell("backfill", "--region", REGION, "--since", "20d").code == 0
    query = (
        "SELECT source, event_id, event_name, occurred_at, requested_by, details FROM vm_import.task_events"
    )
    interrupted = sorted(map(repr, rows(engine, query)))
    with engine.begin() as connection:
        connection.execute(text("TRUNCATE vm_import.task_events, vm_import.event_scans, vm_import.tasks"))
    assert shell("backfill", "--region", REGION, "--since", "20d").code == 0
    assert sorted(map(repr, rows(engine, query))) == interrupted


# Files


def write_archive(folder: Path, number: int) -> list[Scan]:
    """Write answers that were saved minute by minute, and return the scans that they are."""
    scans = []
    chance = random.Random(3)
    contents = dict.fromkeys("abcde", 0)
    for minute in range(number):
        name = chance.choice("abcde")
        contents[name] += chance.random() < 0.5
        scan = numbered(minute, contents, source="file")
        scans.append(scan)
        path = folder / ACCOUNT / REGION / f"{scan.observed_at:%Y-%m-%dT%H%M%SZ}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"ImportImageTasks": [as_saved(task) for task in scan.tasks]}))
    return scans


def as_saved(task: ImportTask) -> dict[str, Any]:
    """Return a task in the CLI's form."""
    return wire_task(task)


PATTERN = "{account}/{region}/{observed_at:%Y-%m-%dT%H%M%SZ}.json"


def test_files_in_random_order_while_a_daemon_polls(
    database_url: str, tmp_path: Path, engine: Engine
) -> None:
    """Three times over: the same history as in order, once, beside what is polled meanwhile."""
    archive = tmp_path / "archive"
    scans = write_archive(archive, 300)
    names = [str(path) for path in archive.rglob("*.json")]
    with make_simulator(REGION) as simulator, pytest.MonkeyPatch.context() as monkeypatch:
        lead_here(monkeypatch, simulator)
        simulator.fleet.put(ACCOUNT, REGION, wire("polled", Progress="1"))
        configuration = settings(database_url).model_copy(
            update={"interval": timedelta(seconds=0.2), "data_dir": tmp_path}
        )
        with running(configuration):
            eventually(lambda: rows(engine, "SELECT 1 FROM vm_import.scans"))
            for seed in range(3):
                random.Random(seed).shuffle(names)
                done = subprocess.run(
                    [
                        sys.executable,
                        "-m",
                        "collector",
                        "backfill",
                        *names,
                        "--path-pattern",
                        PATTERN,
                        "--complete",
                    ],
                    env={**os.environ, "COLLECTOR_DATABASE_URL": database_url},
                    capture_output=True,
                    text=True,
                    timeout=120,
                    check=False,
                )
                assert done.returncode == 0, done.stderr
    polled = rows(engine, "SELECT observed_at FROM vm_import.scans WHERE source = 'api'")
    assert polled
    found = {name: chain for name, chain in stored(engine).items() if name != "import-ami-polled"}
    assert rows(engine, "SELECT count(*) FROM vm_import.scans WHERE source = 'file'") == [(len(scans),)]
    with engine.begin() as connection:
        connection.execute(
            text(
                "TRUNCATE vm_import.scans, vm_import.tasks, vm_import.task_versions,"
                " vm_import.snapshot_details, vm_import.tags, vm_import.license_specifications"
            )
        )
    list(history.store(engine, scans))
    in_order = stored(engine)
    for name, chain in in_order.items():
        assert found[name][: len(chain) - 1] == chain[:-1]


def test_a_bad_file_among_good_ones(tmp_path: Path, database_url: str) -> None:
    """It is named, the others are loaded, and the code says so."""
    archive = tmp_path / "archive"
    write_archive(archive, 5)
    bad = sorted(archive.rglob("*.json"))[2]
    bad.write_text("{")
    (archive / "README").write_text("not one of them")
    shell = Shell(tmp_path, COLLECTOR_DATABASE_URL=database_url)
    ended = shell("backfill", str(archive), "--path-pattern", PATTERN, "--json")
    summary = json.loads(ended.out)
    assert (ended.code, summary["scans"]) == (3, 4)
    assert [line.rpartition("/")[2].split(":")[0] for line in summary["not_loaded"]] == ["README", bad.name]
    assert f"not loaded: {bad}: not JSON" in ended.err


def test_a_dry_run_of_files_counts_as_the_real_one(tmp_path: Path, database_url: str) -> None:
    """Each scan changes what the next one does, also where nothing is written."""
    archive = tmp_path / "archive"
    write_archive(archive, 20)
    shell = Shell(tmp_path, COLLECTOR_DATABASE_URL=database_url)
    arguments = ("backfill", str(archive), "--path-pattern", PATTERN, "--complete", "--json")
    counts = ("scans", "unchanged", "new_tasks", "inserted", "cut", "closed")
    dry = json.loads(shell(*arguments, "--dry-run").out)
    assert row_counts(database_url)["scans"] == 0
    real = json.loads(shell(*arguments).out)
    assert {name: dry[name] for name in counts} == {name: real[name] for name in counts}
    assert real["unchanged"]
