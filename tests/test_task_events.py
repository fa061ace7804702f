"""Evidence in the warehouse: stored once, never in a version, and combined with what was seen."""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine

from collector.domain import Evidence, Stretch
from collector.warehouse.evidence import store, stretches_read
from tests.commands import row_counts
from tests.factories import TARGET, at, scan, task
from tests.factories import store as store_scans
from tests.simulation import eventually, rows

ARN = "arn:aws:iam::111122223333:user/ann"
ID = "import-ami-x"


def requested(minutes: float, *, event_id: str = "r", **members: Any) -> Evidence:
    """Return CloudTrail's word of a request."""
    known = {"import_task_id": ID, "requested_by": ARN, "source_address": "198.51.100.7"}
    return Evidence(TARGET, "cloudtrail", event_id, "ImportImage", at(minutes), **(known | members))


def cancelled(minutes: float) -> Evidence:
    """Return CloudTrail's word of a cancellation."""
    return Evidence(TARGET, "cloudtrail", "c", "CancelImportTask", at(minutes), ID)


def image(minutes: float) -> Evidence:
    """Return the AMI of an import that ended then."""
    return Evidence(
        TARGET,
        "images",
        "ami-1",
        "image",
        at(minutes),
        ID,
        image_id="ami-1",
        platform="Linux",
        encrypted=True,
    )


def latest(engine: Engine, *columns: str) -> Any:
    """Return columns of the one task."""
    (row,) = rows(engine, f"SELECT {', '.join(columns)} FROM vm_import.latest_tasks")
    return row


def done(minutes: float, **members: Any) -> Any:
    """Return a scan that saw the task finished."""
    return scan(minutes, task("x", Status="completed", **members))


def failed(minutes: float, message: str = "ClientError: no") -> Any:
    """Return a scan that saw the task failed."""
    return scan(minutes, task("x", Status="deleted", StatusMessage=message))


def test_the_same_evidence_twice_writes_nothing(engine: Engine, database_url: str) -> None:
    """Neither a row nor a byte of WAL, and it says so."""
    evidence = [requested(1), image(9), requested(2, event_id="f", import_task_id=None, error_code="Denied")]
    new, tasks = store(engine, TARGET, evidence, read=Stretch(at(0), at(10)))
    assert (len(new), len(tasks)) == (3, 1)
    before = row_counts(database_url)

    def written() -> int:
        position = "SELECT pg_current_wal_insert_lsn() - '0/0'"
        started = rows(engine, position)[0][0]
        assert store(engine, TARGET, [*evidence, *evidence], read=Stretch(at(0), at(10))) == ([], set())
        return int(rows(engine, position)[0][0] - started)

    eventually(lambda: written() < 50)  # at some time no other database of the server writes, either
    assert row_counts(database_url) == before
    assert stretches_read(engine, TARGET) == [Stretch(at(0), at(10))]


def test_a_dry_run_stores_nothing(engine: Engine, database_url: str) -> None:
    """It says what would be new."""
    before = row_counts(database_url)
    new, tasks = store(engine, TARGET, [image(9)], dry_run=True)
    assert (len(new), len(tasks)) == (1, 1)
    assert row_counts(database_url) == before


def test_evidence_writes_no_version(engine: Engine, database_url: str) -> None:
    """A task known from it alone has a row in tasks, and none of its own history."""
    store(engine, TARGET, [requested(1), image(9)])
    assert row_counts(database_url)["task_versions"] == 0
    assert latest(engine, "evidence_only", "listed", "image_id", "platform", "encrypted", "status") == (
        True,
        False,
        "ami-1",
        "Linux",
        True,
        None,
    )


def test_a_task_that_evidence_named_first_is_seen_later(engine: Engine) -> None:
    """It is the same task then."""
    store(engine, TARGET, [requested(1)])
    store_scans(engine, scan(2, task("x")))
    assert latest(engine, "evidence_only", "outcome", "first_seen_at", "requested_at", "requested_by") == (
        False,
        "in progress",
        at(2),
        at(1),
        ARN,
    )


def test_a_request_that_failed_is_in_no_view_of_tasks(engine: Engine) -> None:
    """It has no task; it is kept all the same."""
    store(engine, TARGET, [requested(1, import_task_id=None, error_code="UnauthorizedOperation")])
    assert rows(engine, "SELECT * FROM vm_import.latest_tasks") == []
    assert rows(engine, "SELECT error_code, requested_by FROM vm_import.task_events") == [
        ("UnauthorizedOperation", ARN)
    ]


RUNNING = [scan(2, task("x")), scan(5, task("x"))]


@pytest.mark.parametrize(
    ("scans", "evidence", "outcome", "bounds", "minutes"),
    [
        ([], [requested(1)], "unknown", (None, None), None),
        ([], [cancelled(3)], "cancelled", (3, None), None),
        ([], [image(9)], "completed", (9, 9), None),
        ([], [requested(1), image(9)], "completed", (9, 9), 8),
        (RUNNING, [requested(1)], "in progress", (None, None), None),
        ([*RUNNING, scan(12)], [], "vanished", (None, None), None),
        ([*RUNNING, scan(12)], [image(9)], "completed", (9, 9), 7),
        ([*RUNNING, scan(12)], [cancelled(6)], "cancelled", (6, None), None),
        ([*RUNNING, done(12)], [], "completed", (5, 12), 10),
        ([*RUNNING, done(12)], [image(9)], "completed", (9, 9), 7),
        ([*RUNNING, done(12)], [requested(1), image(9)], "completed", (9, 9), 8),
        ([done(12)], [image(9)], "completed", (9, 9), None),
        ([*RUNNING, failed(12)], [requested(1)], "failed", (5, 12), 11),
        ([*RUNNING, failed(12, "User initiated task cancelation")], [cancelled(7)], "cancelled", (7, 12), 10),
    ],
)
def test_scans_and_evidence_together(
    engine: Engine, scans: Any, evidence: Any, outcome: str, bounds: Any, minutes: float | None
) -> None:
    """The outcome, the tightest bounds of the end, and the duration from the request where it is known."""
    store_scans(engine, *scans)
    store(engine, TARGET, evidence)
    ends = tuple(None if bound is None else at(bound) for bound in bounds)
    duration = None if minutes is None else timedelta(minutes=minutes)
    columns = ("outcome", "finished_after", "finished_before", "duration", "contradiction")
    assert latest(engine, *columns) == (outcome, *ends, duration, None)


@pytest.mark.parametrize(
    ("scans", "evidence", "outcome", "bounds", "says"),
    [
        ([*RUNNING, failed(12)], [image(9)], "failed", (5, 12), "seen failed, but there is the AMI ami-1"),
        ([*RUNNING, done(12)], [image(3)], "completed", (5, 12), "but it was seen unfinished at"),
        ([*RUNNING, done(12)], [image(15)], "completed", (5, 12), "but it was seen finished at"),
        ([*RUNNING, done(12)], [cancelled(6)], "completed", (5, 12), "seen completed, but cancelled at"),
        ([], [cancelled(6), image(9)], "completed", (9, 9), "but there is the AMI ami-1"),
        (RUNNING, [requested(4)], "in progress", (None, None), "requested at"),
        ([], [requested(4), requested(5, event_id="s")], "unknown", (None, None), "2 requests"),
    ],
)
def test_contradictions_show_both_and_say_so(
    engine: Engine, scans: Any, evidence: Any, outcome: str, bounds: Any, says: str
) -> None:
    """A seen end outranks evidence, and its bounds are those of the scans."""
    store_scans(engine, *scans)
    store(engine, TARGET, evidence)
    ends = tuple(None if bound is None else at(bound) for bound in bounds)
    found = latest(engine, "outcome", "finished_after", "finished_before", "contradiction")
    assert tuple(found[:3]) == (outcome, *ends)
    assert says in found.contradiction


@pytest.mark.parametrize(
    ("message", "error_class", "kind"),
    [
        ("ClientError: Unknown OS / Missing OS files.", "client error", "operating system"),
        (
            "CLIENT_ERROR : ClientError: Disk validation failed [OVF file parsing failed]",
            "client error",
            "disk",
        ),
        ("ClientError: No valid partitions. Not a valid volume", "client error", "disk"),
        ("ClientError: Unsupported image format.", "client error", "disk"),
        ("ClientError: The service role vmimport is not authorized", "client error", "permission"),
        ("ClientError: We were unable to import", "client error", None),
        ("FirstBootFailure: This import request failed because", "first boot failure", None),
        ("ServerError: An internal error has occurred", "server error", None),
        ("User initiated task cancelation", "cancelled by user", None),
        ("something else", "unknown", None),
    ],
)
def test_failures_are_sorted(engine: Engine, message: str, error_class: str, kind: str | None) -> None:
    """By AWS's classes; the message stays as it was."""
    store_scans(engine, failed(1, message))
    assert latest(engine, "error_class", "error_kind", "status_message") == (error_class, kind, message)


def test_people_add_rules(engine: Engine) -> None:
    """Theirs come where their position puts them."""
    store_scans(engine, scan(1), failed(2, "ClientError: our old hypervisor again"))
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO vm_import.error_classes VALUES (5, 'old hypervisor', 'client error', 'ESX 5')"
        )
    query = "SELECT week::text, error_class, error_kind, platform, failures FROM vm_import.failures_by_week"
    assert rows(engine, query) == [("2025-12-29", "client error", "ESX 5", None, 1)]
