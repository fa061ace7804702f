"""What people read: every view and function on small histories whose answers are plain to see."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, make_url, text

from collector.aws.transform import import_task
from collector.domain import ImportTask, Scan, Target
from collector.warehouse import schema
from collector.warehouse.engine import connect_to_url, make_engine
from tests.conftest import create_database, drop_database
from tests.factories import TARGET, at, scan, store, task

_DAY = 24 * 60
_SAMPLES = Path(__file__).parent / "samples"
_WIRE_NAMES = """
    description architecture bootMode encrypted hypervisor imageId importTaskId kmsKeyId licenseSpecifications
    licenseType platform progress snapshotDetailSet status statusMessage tagSet usageOperation
""".split()  # noqa: SIM905 - a list literal of one name per line says no more


def _rows(engine: Engine, query: str, **parameters: Any) -> list[tuple[Any, ...]]:
    """Return what a query answers."""
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(query), parameters)]


def _row(engine: Engine, query: str, **parameters: Any) -> tuple[Any, ...]:
    """Return the one row that a query answers with."""
    (row,) = _rows(engine, query, **parameters)
    return row


def _days(day: float, *tasks: ImportTask, complete: bool = True) -> Scan:
    return scan(day * _DAY, *tasks, complete=complete)


_ACTIVE = task("x", StatusMessage="converting")
_OTHER = task("y")
_DONE = task("x", Status="completed")


def _deleted(message: str | None) -> ImportTask:
    return task("x", Status="deleted", StatusMessage=message)


# current_tasks and latest_tasks


def test_current_tasks_are_those_listed_at_the_last_look(engine: Engine) -> None:
    """A task that is gone is not current; one that only a partial scan saw is."""
    store(engine, scan(1, task("x"), task("y")), scan(2, task("x")), scan(4, task("x"), complete=False))
    store(engine, scan(3, task("z", Progress="7"), complete=False))
    query = """SELECT account_id, region, import_task_id, last_observed_at, valid_from, progress_percent
        FROM vm_import.current_tasks ORDER BY import_task_id"""
    assert _rows(engine, query) == [
        ("111122223333", "eu-west-1", "import-ami-x", at(4), at(1), None),
        ("111122223333", "eu-west-1", "import-ami-z", at(3), at(3), 7),
    ]


_LIVES: dict[str, tuple[list[Scan], bool, str]] = {
    "active": ([_days(0, _ACTIVE)], True, "in progress"),
    "deleting": ([_days(0, task("x", Status="deleting"))], True, "in progress"),
    "no status": ([_days(0, task("x", Status=None))], True, "in progress"),
    "completed": ([_days(0, _ACTIVE), _days(1, _DONE)], True, "completed"),
    "completed and expired": ([_days(0, _DONE), _days(9)], False, "completed"),
    "failed": ([_days(0, _ACTIVE), _days(1, _deleted("ClientError: no"))], True, "failed"),
    "failed and expired": ([_days(0, _deleted(None)), _days(8)], False, "failed"),
    "cancelled": ([_days(0, _deleted("User initiated task cancelation"))], True, "cancelled"),
    "spelt properly": ([_days(0, _deleted("user initiated task cancellation"))], True, "cancelled"),
    "vanished": ([_days(0, _ACTIVE), _days(1, _ACTIVE), _days(7.99)], False, "vanished"),
    "gone in a gap of a week": ([_days(0, _ACTIVE), _days(1, _ACTIVE), _days(8)], False, "unknown"),
    "a partial look shortens the gap": (
        [_days(0, _ACTIVE), _days(2, _ACTIVE, complete=False), _days(8)],
        False,
        "vanished",
    ),
    "a partial look at another task does not": (
        [_days(0, _ACTIVE), _days(2, _OTHER, complete=False), _days(8)],
        False,
        "unknown",
    ),
    "back from the end": ([_days(0, _DONE), _days(1, _ACTIVE)], True, "in progress"),
    "back from nowhere": ([_days(0, _ACTIVE), _days(1), _days(2, _ACTIVE)], True, "in progress"),
}


@pytest.mark.parametrize(("scans", "listed", "outcome"), _LIVES.values(), ids=_LIVES)
def test_the_outcome_of_a_life(engine: Engine, scans: list[Scan], listed: bool, outcome: str) -> None:
    """What latest_tasks says of a task after some looks."""
    store(engine, *scans)
    query = "SELECT listed, outcome FROM vm_import.latest_tasks WHERE import_task_id = 'import-ami-x'"
    assert _rows(engine, query) == [(listed, outcome)]


@pytest.mark.parametrize(
    ("last", "error_class"),
    [
        (_ACTIVE, None),
        (_DONE, None),
        (_deleted("ClientError: Unsupported kernel"), "client error"),
        (_deleted("CLIENT_ERROR : ClientError: Disk validation failed"), "client error"),
        (_deleted("ServerError: an internal error"), "server error"),
        (_deleted("FirstBootFailure: timed out"), "first boot failure"),
        (_deleted("ClientError: First Boot Failure"), "first boot failure"),
        (_deleted("User initiated task cancelation"), "cancelled by user"),
        (_deleted("odd"), "unknown"),
        (_deleted(None), "unknown"),
    ],
)
def test_the_error_class(engine: Engine, last: ImportTask, error_class: str | None) -> None:
    """A failed task's message tells whose fault it was."""
    store(engine, scan(1, last))
    assert _rows(engine, "SELECT error_class FROM vm_import.latest_tasks") == [(error_class,)]


def _times(engine: Engine) -> tuple[Any, ...]:
    query = """SELECT first_seen_at, finished_after, finished_before, duration, last_observed_at
        FROM vm_import.latest_tasks WHERE import_task_id = 'import-ami-x'"""
    return _row(engine, query)


def test_a_life_that_was_watched_has_its_end_between_two_scans(engine: Engine) -> None:
    """A partial look at another task bounds nothing."""
    store(engine, scan(1), scan(2, _ACTIVE), scan(4, _ACTIVE), scan(5, _OTHER, complete=False))
    store(engine, scan(6, _DONE, _OTHER), scan(8, _DONE, _OTHER), scan(9, _OTHER))
    assert _times(engine) == (at(2), at(4), at(6), timedelta(minutes=4), at(8))


def test_a_task_never_seen_unfinished_has_no_duration(engine: Engine) -> None:
    """It ended after the last complete scan that did not list it."""
    store(engine, scan(1), scan(2, _DONE))
    assert _times(engine) == (at(2), at(1), at(2), None, at(2))


def test_the_end_of_a_task_first_seen_at_the_first_look_is_bounded_on_one_side(engine: Engine) -> None:
    """There is no scan before."""
    store(engine, scan(2, _DONE))
    assert _times(engine) == (at(2), None, at(2), None, at(2))


def test_a_change_after_the_end_does_not_move_the_end(engine: Engine) -> None:
    """A tag of a completed task can still change."""
    tagged = task("x", Status="completed", Tags=[{"Key": "a", "Value": "b"}])
    store(engine, scan(1, _ACTIVE), scan(2, _DONE), scan(3, tagged))
    assert _times(engine) == (at(1), at(1), at(2), timedelta(minutes=1), at(3))


def test_a_regression_moves_the_end_to_the_last_one(engine: Engine) -> None:
    """Completed, active, completed: it was not finished the first time."""
    store(engine, scan(1, _ACTIVE), scan(2, _DONE), scan(3, _ACTIVE))
    assert _times(engine) == (at(1), None, None, None, at(3))
    store(engine, scan(4, _DONE))
    assert _times(engine) == (at(1), at(3), at(4), timedelta(minutes=3), at(4))


def test_a_task_without_any_version_is_unknown(engine: Engine) -> None:
    """Evidence may know a task that no scan saw."""
    store(engine, scan(1))
    with engine.begin() as connection:
        insert = text("""INSERT INTO vm_import.tasks (target_id, import_task_id)
            SELECT target_id, 'import-ami-x' FROM vm_import.targets""")
        connection.execute(insert)
    query = "SELECT listed, outcome, status FROM vm_import.latest_tasks"
    assert _rows(engine, query) == [(False, "unknown", None)]
    assert _times(engine) == (None, None, None, None, None)


# Histories


def test_the_history_of_a_task(engine: Engine) -> None:
    """How each version ended, and the last scan that still saw the one before, partial ones included."""
    booting = task("x", StatusMessage="booting")
    store(engine, scan(1), scan(2, _ACTIVE), scan(3, _ACTIVE), scan(4, _ACTIVE, complete=False))
    store(engine, scan(5, booting, _OTHER), scan(6, _DONE, _OTHER), scan(7, _OTHER), scan(8), scan(9, _OTHER))
    query = """SELECT import_task_id, valid_from, valid_to, not_before, ended, status_message
        FROM vm_import.task_history ORDER BY import_task_id, valid_from"""
    assert _rows(engine, query) == [
        ("import-ami-x", at(2), at(5), at(1), "superseded", "converting"),
        ("import-ami-x", at(5), at(6), at(4), "superseded", "booting"),
        ("import-ami-x", at(6), at(7), at(5), "expired", None),
        ("import-ami-y", at(5), at(8), at(3), "vanished", None),
        ("import-ami-y", at(9), None, at(8), "open", None),
    ]


def test_a_partial_look_at_other_tasks_is_no_bound(engine: Engine) -> None:
    """``not_before`` is a scan that could see the task."""
    store(engine, scan(1, _ACTIVE), scan(2, _OTHER, complete=False), scan(3, _DONE, _OTHER))
    query = "SELECT not_before FROM vm_import.task_history WHERE status = 'completed'"
    assert _rows(engine, query) == [(at(1),)]


def test_the_first_version_of_all_has_no_bound(engine: Engine) -> None:
    """There is no scan before the first."""
    store(engine, scan(1, _ACTIVE))
    assert _rows(engine, "SELECT not_before FROM vm_import.task_history") == [(None,)]


_DISKS = [
    {"DeviceName": "/dev/sda1", "DiskImageSize": 1024.0, "Progress": "12.5"},
    {"DeviceName": "/dev/sdb", "UserBucket": {"S3Bucket": "b", "S3Key": "k"}},
]
_RICH = {
    "SnapshotDetails": _DISKS,
    "Tags": [{"Key": "a", "Value": "1"}, {"Key": "b", "Value": ""}],
    "LicenseSpecifications": [{"LicenseConfigurationArn": "arn:1"}, {"LicenseConfigurationArn": "arn:2"}],
}


def _keep_children(engine: Engine) -> None:
    """Two versions with the same children, then one without any, then the task is gone."""
    store(engine, scan(1, task("x", **_RICH)), scan(2, task("x", Progress="2", **_RICH)))
    store(engine, scan(3, task("x", Progress="2")), scan(4))


def test_disks_are_told_per_version(engine: Engine) -> None:
    """Also where the version points at a list that is older than itself."""
    _keep_children(engine)
    query = """SELECT valid_from, valid_to, position, device_name, disk_image_size, progress,
        progress_percent, s3_bucket, s3_key FROM vm_import.snapshot_detail_history
        WHERE account_id = '111122223333' AND region = 'eu-west-1' AND import_task_id = 'import-ami-x'
        ORDER BY valid_from, position"""
    first = (0, "/dev/sda1", 1024.0, "12.5", 12.5, None, None)
    second = (1, "/dev/sdb", None, None, None, "b", "k")
    spans = [(at(1), at(2)), (at(2), at(3))]
    assert _rows(engine, query) == [(*span, *disk) for span in spans for disk in (first, second)]


def test_tags_are_told_per_version(engine: Engine) -> None:
    """An empty value is null."""
    _keep_children(engine)
    query = """SELECT account_id, region, import_task_id, valid_from, valid_to, key, value
        FROM vm_import.tag_history ORDER BY valid_from, key"""
    task_key = ("111122223333", "eu-west-1", "import-ami-x")
    spans = [(at(1), at(2)), (at(2), at(3))]
    assert _rows(engine, query) == [
        (*task_key, *span, *tag) for span in spans for tag in [("a", "1"), ("b", None)]
    ]


def test_licences_are_told_per_version(engine: Engine) -> None:
    """In the canonical order."""
    _keep_children(engine)
    query = """SELECT valid_from, valid_to, position, license_configuration_arn
        FROM vm_import.license_specification_history
        WHERE account_id = '111122223333' AND region = 'eu-west-1' AND import_task_id = 'import-ami-x'
        ORDER BY valid_from, position"""
    spans = [(at(1), at(2)), (at(2), at(3))]
    assert _rows(engine, query) == [(*span, *item) for span in spans for item in [(0, "arn:1"), (1, "arn:2")]]


@pytest.mark.parametrize(
    ("function", "rows_by_minute"),
    [
        ("tasks_as_of", {0.9: 0, 1: 1, 1.9: 1, 2: 1, 3: 1, 3.9: 1, 4: 0, 9: 0}),
        ("snapshot_details_as_of", {0.9: 0, 1: 2, 1.9: 2, 2: 2, 2.9: 2, 3: 0, 4: 0}),
        ("tags_as_of", {0.9: 0, 1: 2, 1.9: 2, 2: 2, 2.9: 2, 3: 0, 4: 0}),
    ],
)
def test_what_was_valid_at_an_instant(
    engine: Engine, function: str, rows_by_minute: dict[float, int]
) -> None:
    """A version holds from its first instant to just before the next one's."""
    _keep_children(engine)
    query = f"SELECT count(*) FROM vm_import.{function}(:at)"
    counted = {minutes: _row(engine, query, at=at(minutes))[0] for minutes in rows_by_minute}
    assert counted == rows_by_minute


# Phases, stalled tasks, coverage


def test_the_phases_of_a_task(engine: Engine) -> None:
    """Progress leaves no phase; a phase can be entered again; the last one is left by vanishing."""
    pending, booting = task("x", StatusMessage="pending"), task("x", StatusMessage="booting")
    further = task("x", StatusMessage="converting", Progress="50")
    store(engine, scan(1, pending), scan(2, pending), scan(4, _ACTIVE), scan(5, further))
    store(engine, scan(6, further, complete=False), scan(7, booting), scan(8, _ACTIVE), scan(9))
    query = """SELECT phase, entered_after, entered_at, left_after, left_at,
            extract(epoch FROM duration) / 60, extract(epoch FROM duration_min) / 60,
            extract(epoch FROM duration_max) / 60
        FROM vm_import.phases WHERE import_task_id = 'import-ami-x' ORDER BY entered_at"""
    assert _rows(engine, query) == [
        ("pending", None, at(1), at(2), at(4), 3, 1, None),
        ("converting", at(2), at(4), at(6), at(7), 3, 2, 5),
        ("booting", at(6), at(7), at(7), at(8), 1, 0, 2),
        ("converting", at(7), at(8), at(8), at(9), 1, 0, 2),
    ]


def test_the_phase_that_a_task_is_in_is_open(engine: Engine) -> None:
    """Neither left nor bounded."""
    store(engine, scan(1), scan(2, _ACTIVE), scan(3, _ACTIVE))
    query = """SELECT phase, entered_after, entered_at, left_after, left_at, duration,
        duration_min, duration_max FROM vm_import.phases"""
    assert _rows(engine, query) == [("converting", at(1), at(2), None, None, None, None, None)]


def test_a_finished_task_is_in_no_phase(engine: Engine) -> None:
    """Its message is its error. Without a message the phase is the status."""
    store(engine, scan(1, task("x")), scan(2, _deleted("ClientError: no")))
    assert _rows(engine, "SELECT phase, left_at FROM vm_import.phases") == [("active", at(2))]


def test_a_task_that_is_being_deleted_is_in_that_phase(engine: Engine) -> None:
    """Its message is already that of its end."""
    deleting = task("x", Status="deleting", StatusMessage="ClientError: no")
    store(engine, scan(1, task("x")), scan(2, deleting), scan(3, _deleted("ClientError: no")))
    query = "SELECT phase, entered_at, left_at FROM vm_import.phases ORDER BY entered_at"
    assert _rows(engine, query) == [("active", at(1), at(2)), ("deleting", at(2), at(3))]


def test_stalled_tasks_are_unfinished_and_unchanged_for_so_long(engine: Engine) -> None:
    """Measured up to the last look, not to now."""
    store(engine, scan(1, _ACTIVE, task("z", Status="completed")))
    store(engine, scan(5, _ACTIVE, _OTHER, task("z", Status="completed")))
    query = "SELECT import_task_id FROM vm_import.stalled_tasks(:unchanged_for)"
    stalled = {
        minutes: _rows(engine, query, unchanged_for=timedelta(minutes=minutes)) for minutes in (0, 4, 4.1)
    }
    assert stalled == {0: [("import-ami-x",), ("import-ami-y",)], 4: [("import-ami-x",)], 4.1: []}


def test_coverage_knows_gaps_in_which_a_task_can_come_and_go(engine: Engine) -> None:
    """A gap of exactly seven days loses nothing, and a partial scan covers nothing."""
    elsewhere = Target(TARGET.account_id, "us-east-1")
    store(engine, _days(0), _days(1), _days(4, _ACTIVE, complete=False), _days(9), _days(16))
    store(engine, scan(1, _ACTIVE, target=elsewhere, complete=False))
    query = """SELECT account_id, region, first_complete_scan, last_complete_scan, complete_scans,
        longest_gap, gaps_over_7_days FROM vm_import.coverage ORDER BY region"""
    assert _rows(engine, query) == [
        ("111122223333", "eu-west-1", at(0), at(16 * _DAY), 4, timedelta(days=8), 1),
        ("111122223333", "us-east-1", None, None, 0, None, 0),
    ]


# StackQL's shape


def _sample_tasks() -> list[ImportTask]:
    """Return every task of the samples once, the last state of those that occur several times."""
    tasks: dict[str, ImportTask] = {}
    for path in sorted(_SAMPLES.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        for wire in content.get("ImportImageTasks", [content]):
            read = import_task(wire)
            tasks[read.import_task_id] = read
    return list(tasks.values())


def test_import_image_tasks_has_stackqls_columns_and_no_other(engine: Engine) -> None:
    """All 17 fields, region and account_id; unquoted names are folded."""
    with engine.connect() as connection:
        columns = connection.execute(text("SELECT * FROM ec2_api.import_image_tasks")).keys()
    assert sorted(columns) == sorted(name.lower() for name in [*_WIRE_NAMES, "region", "account_id"])


def test_import_image_tasks_gives_back_what_the_api_said(engine: Engine) -> None:
    """A row under its wire names is a task again, with the hash of the one that was stored."""
    odd = task("odd", SnapshotDetails=[{"UserBucket": {"S3Bucket": "b", "Odd": 1}, "Odd": {"a": []}}, {}])
    tasks = [*_sample_tasks(), odd]
    store(engine, scan(1, *tasks))
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT * FROM ec2_api.import_image_tasks")).mappings().all()
    again = [import_task({name: row[name.lower()] for name in _WIRE_NAMES}) for row in rows]
    assert {t.import_task_id: t.content_hash for t in again} == {
        t.import_task_id: t.content_hash for t in tasks
    }


def test_the_arrays_have_wire_names(engine: Engine) -> None:
    """Null members are left out, as in the API's answer; an empty tag value is not."""
    store(engine, scan(1, task("x", **_RICH)), scan(2, task("x", **_RICH), task("y")))
    query = """SELECT snapshotDetailSet, tagSet, licenseSpecifications FROM ec2_api.import_image_tasks
        ORDER BY importTaskId"""
    disks = [
        {"deviceName": "/dev/sda1", "diskImageSize": 1024, "progress": "12.5"},
        {"deviceName": "/dev/sdb", "userBucket": {"s3Bucket": "b", "s3Key": "k"}},
    ]
    tags = [{"key": "a", "value": "1"}, {"key": "b", "value": ""}]
    licences = [{"licenseConfigurationArn": "arn:1"}, {"licenseConfigurationArn": "arn:2"}]
    assert _rows(engine, query) == [(disks, tags, licences), ([], [], [])]


@pytest.fixture
def aws_url(server_url: str, migrated: str) -> Iterator[str]:
    """The URL of a migrated database called ``aws``, as the embedded one is: that one or a new one."""
    if make_url(server_url).database == "aws":
        engine = make_engine(connect_to_url(server_url))
        if schema.current_revision(engine) is not None:
            pytest.skip("TEST_DATABASE_URL names a migrated database, which may be someone's own")
        schema.upgrade(engine)
        yield server_url
        schema.downgrade(engine, "base")
        engine.dispose()
        return
    try:
        url = create_database(server_url, "aws", migrated)
    except psycopg.errors.DuplicateDatabase:
        pytest.skip("this server has a database called aws, which may be someone's own")
    yield url
    drop_database(server_url, "aws")


@pytest.mark.skipif(shutil.which("psql") is None, reason="this machine has no psql")
def test_stackqls_statement_runs_verbatim_in_psql(aws_url: str) -> None:
    """The database's name stands where StackQL has its provider's."""
    statement = (
        "SELECT importTaskId, status, progress, snapshotDetailSet FROM aws.ec2_api.import_image_tasks"
        " WHERE region = 'us-east-1'"
    )
    there = Target(TARGET.account_id, "us-east-1")
    engine = make_engine(connect_to_url(aws_url))
    disk = {"Format": "VMDK"}
    store(engine, scan(1, task("a", Progress="39", SnapshotDetails=[disk]), target=there), scan(1, task("b")))
    engine.dispose()
    command = ["psql", aws_url, "--no-psqlrc", "--csv", "--tuples-only", "--command", statement]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    assert answer.stdout == 'import-ami-a,active,39,"[{""format"": ""VMDK""}]"\n'


# Comments and plans

_OURS = "('vm_import', 'ec2_api')"


def test_everything_carries_a_comment(engine: Engine) -> None:
    """Schemas, tables, views, columns and functions, Alembic's own table included."""
    query = f"""
        SELECT c.relname, a.attname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        WHERE n.nspname IN {_OURS} AND c.relkind IN ('r', 'v', 'p', 'm')
          AND coalesce(col_description(c.oid, a.attnum), '') = ''
        UNION ALL
        SELECT c.relname, NULL FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname IN {_OURS} AND c.relkind IN ('r', 'v', 'p', 'm')
          AND obj_description(c.oid, 'pg_class') IS NULL
        UNION ALL
        SELECT p.proname, NULL FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
        WHERE n.nspname IN {_OURS} AND obj_description(p.oid, 'pg_proc') IS NULL
        UNION ALL
        SELECT nspname, NULL FROM pg_namespace
        WHERE nspname IN {_OURS} AND obj_description(oid, 'pg_namespace') IS NULL
    """
    assert _rows(engine, query) == []


@pytest.fixture(scope="module")
def big_engine(server_url: str, migrated: str) -> Iterator[Engine]:
    """A warehouse of 100 targets with 2,000 tasks in 20,000 versions, analysed."""
    name = f"big_{migrated[-12:]}"
    engine = make_engine(connect_to_url(create_database(server_url, name, migrated)))
    with engine.begin() as connection:
        for statement in _FILL:
            connection.execute(text(statement))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))
    yield engine
    engine.dispose()
    drop_database(server_url, name)


_DAYS = "generate_series(timestamptz '2026-01-01Z', '2026-01-10Z', '1 day') AS at"
_FILL = [
    """INSERT INTO vm_import.targets (account_id, region)
        SELECT i::text, 'eu-west-1' FROM generate_series(1, 100) i""",
    f"""INSERT INTO vm_import.scans (target_id, observed_at, finished_at, complete, task_count, digest,
            source)
        SELECT target_id, at, at, true, 20, '', 'api' FROM vm_import.targets, {_DAYS}""",
    """INSERT INTO vm_import.tasks (target_id, import_task_id)
        SELECT target_id, format('import-ami-%s-%s', target_id, i)
        FROM vm_import.targets, generate_series(1, 20) i""",
    f"""INSERT INTO vm_import.task_versions (task_id, valid_from, valid_to, target_id, listed, content_hash,
            details_set, tags_set, status)
        SELECT task_id, at, nullif(at + interval '1 day', '2026-01-11Z'), target_id, true, 1, 1, 1, 'active'
        FROM vm_import.tasks, {_DAYS}""",
    """INSERT INTO vm_import.snapshot_details (task_id, set_id, position)
        SELECT task_id, 1, 0 FROM vm_import.tasks""",
    "INSERT INTO vm_import.tags (task_id, set_id, key) SELECT task_id, 1, 'a' FROM vm_import.tasks",
]


@pytest.mark.parametrize(
    "condition",
    [
        "account_id = '7' AND region = 'eu-west-1'",
        "import_task_id = 'import-ami-7-7'",
        "account_id = '7' AND region = 'eu-west-1' AND import_task_id = 'import-ami-7-7'",
    ],
)
@pytest.mark.parametrize(
    "source",
    [
        "task_history",
        "snapshot_detail_history",
        "tag_history",
        "phases",
        "latest_tasks",
        "tasks_as_of('2026-01-05Z')",
        "snapshot_details_as_of('2026-01-05Z')",
        "tags_as_of('2026-01-05Z')",
    ],
)
def test_a_filtered_question_does_not_read_all_versions(
    big_engine: Engine, source: str, condition: str
) -> None:
    """The condition reaches the tables through view and function, and an index answers it."""
    plan = _rows(big_engine, f"EXPLAIN SELECT * FROM vm_import.{source} WHERE {condition}")
    lines = [line for (line,) in plan]
    assert [line for line in lines if "Seq Scan on task_versions" in line or "Function Scan" in line] == []
