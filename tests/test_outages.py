"""Outages: one row per unbroken series of failed looks, and none that a late answer could end wrongly."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

from sqlalchemy import Engine, text

from collector.domain import Failure, Scan, Target
from collector.warehouse.outages import record_answers
from collector.warehouse.recording import record
from tests.factories import TARGET, at, scan, task
from tests.simulation import eventually, rows

OTHER = Target(TARGET.account_id, "us-east-1")
ELSEWHERE = Target("444455556666", "eu-west-1")


def failed(minutes: float, code: str = "AuthFailure", target: Target = TARGET) -> Failure:
    """Return a look that failed."""
    return Failure(target.account_id, target.region, at(minutes), code, f"{code} happened")


def account_failed(minutes: float) -> Failure:
    """Return a discovery that failed, before any Region was known."""
    return Failure(TARGET.account_id, None, at(minutes), "AwsUnavailableError", "no Regions")


def record_one_by_one(engine: Engine, *looks: Scan | Failure) -> None:
    """Record looks as they come."""
    for look in looks:
        record(engine, [look])


def outages(engine: Engine) -> list[tuple[Any, ...]]:
    """Return region, first and last failure, their number, code and recovery."""
    found = rows(
        engine,
        "SELECT region, first_failed_at, last_failed_at, failures, error_code, recovered_at"
        " FROM vm_import.outages ORDER BY first_failed_at, account_id, region",
    )
    return [tuple(row) for row in found]


def outage(
    instants: Iterable[float],
    *,
    recovered: float | None = None,
    code: str = "AuthFailure",
    region: str | None = TARGET.region,
) -> tuple[Any, ...]:
    """Return the row of an outage with failures at these minutes."""
    failures = [at(minutes) for minutes in instants]
    recovered_at: datetime | None = None if recovered is None else at(recovered)
    return region, min(failures), max(failures), len(failures), code, recovered_at


def test_a_series_of_failures_is_one_row(engine: Engine) -> None:
    """First, last, how many, and the last one's cause."""
    record_one_by_one(engine, failed(1, "RequestLimitExceeded"), failed(2), failed(3))
    assert outages(engine) == [outage([1, 2, 3])]


def test_one_batch_holds_several_failures_of_one_target(engine: Engine) -> None:
    """As when the database was away for a while."""
    record(engine, [failed(3), failed(1, "RequestLimitExceeded"), failed(2, "RequestLimitExceeded")])
    assert outages(engine) == [outage([1, 2, 3])]


def test_a_late_failure_counts_but_does_not_become_the_last(engine: Engine) -> None:
    """Two collectors record in any order; the cause stays that of the last failure."""
    record_one_by_one(engine, failed(5), failed(2, "RequestLimitExceeded"))
    assert outages(engine) == [outage([2, 5])]


def test_a_failure_that_comes_twice_counts_once(engine: Engine) -> None:
    """As when a process ended between storing it and forgetting it; also after the recovery."""
    record(engine, [failed(1), failed(2)])
    record(engine, [failed(1), failed(2), scan(3)])
    record(engine, [failed(1), failed(2)])
    assert outages(engine) == [outage([1, 2], recovered=3)]


def test_what_waited_on_disk_tells_the_same_after_what_is_new(engine: Engine) -> None:
    """New looks are stored at once when the database is back, and older ones after them."""
    record(engine, [failed(1)])
    record(engine, [scan(9)])
    record_one_by_one(engine, failed(2), scan(4), failed(5), failed(6))
    assert outages(engine) == [outage([1, 2], recovered=4), outage([5, 6], recovered=9)]


def test_a_late_failure_with_a_good_look_after_it_is_a_series_of_its_own(engine: Engine) -> None:
    """It does not prolong the later one backwards over the good look."""
    record_one_by_one(engine, scan(3), failed(5), failed(1))
    assert outages(engine) == [outage([1], recovered=3), outage([5])]


def test_a_good_look_ends_the_series_and_the_next_failure_begins_another(engine: Engine) -> None:
    """Unbroken means that no good look came between."""
    record_one_by_one(engine, failed(1), scan(2, task("a")), scan(3, task("a")), failed(4))
    assert outages(engine) == [outage([1], recovered=2), outage([4])]


def test_the_first_good_look_is_the_recovery(engine: Engine) -> None:
    """Also when several arrive together, in any order."""
    record_one_by_one(engine, failed(1))
    record(engine, [scan(4), scan(3), scan(2)])
    assert outages(engine) == [outage([1], recovered=2)]


def test_a_late_success_from_before_the_failure_ends_nothing(engine: Engine) -> None:
    """It was good before; that does not mean that it is good again."""
    record_one_by_one(engine, failed(5), scan(4))
    assert outages(engine) == [outage([5])]


def test_a_saved_file_ends_nothing(engine: Engine) -> None:
    """It shows that somebody could look, not that the collector can."""
    record_one_by_one(engine, failed(1), scan(2, source="file"))
    assert outages(engine) == [outage([1])]


def test_targets_have_outages_of_their_own(engine: Engine) -> None:
    """Neither another Region nor another account ends an outage."""
    record(engine, [failed(1), failed(1, target=OTHER)])
    record_one_by_one(engine, scan(2, target=OTHER), scan(2, target=ELSEWHERE))
    assert outages(engine) == [outage([1]), outage([1], region=OTHER.region, recovered=2)]


def test_an_account_that_fails_before_its_regions_are_known_has_one_row(engine: Engine) -> None:
    """It has no Region, and no look ends it: only the account's own answer does."""
    record_one_by_one(engine, account_failed(1), account_failed(2), scan(3, target=ELSEWHERE))
    assert outages(engine) == [outage([1, 2], code="AwsUnavailableError", region=None)]
    record_one_by_one(engine, scan(4, target=OTHER), account_failed(5))
    record_answers(engine, [ELSEWHERE.account_id], at(6))
    assert outages(engine) == [outage([1, 2, 5], code="AwsUnavailableError", region=None)]
    record_answers(engine, [TARGET.account_id], at(7))
    record_one_by_one(engine, account_failed(4))
    assert outages(engine) == [outage([1, 2, 5], code="AwsUnavailableError", region=None, recovered=7)]


def test_a_dry_run_writes_no_outage(engine: Engine) -> None:
    """Neither beginning nor end."""
    record(engine, [failed(1)], dry_run=True)
    assert outages(engine) == []


def test_failures_change_no_version(engine: Engine) -> None:
    """Could not look is never found nothing."""
    record_one_by_one(engine, scan(1, task("a")), failed(2), failed(3))
    assert rows(engine, "SELECT listed, valid_from, valid_to FROM vm_import.task_versions") == [
        (True, at(1), None)
    ]


def test_a_failure_that_two_store_at_a_time_counts_once(engine: Engine) -> None:
    """As when one process ends in the middle of it and the next one finds it on the disk."""
    record(engine, [failed(1)])
    waiting = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with ThreadPoolExecutor(2) as pool:
        with engine.begin() as connection:
            connection.execute(text("SELECT FROM vm_import.outages FOR UPDATE"))
            both = [pool.submit(record, engine, [failed(2)]) for _ in range(2)]
            eventually(lambda: len(rows(engine, waiting)) == len(both))
        for one in both:
            one.result(timeout=20)
    assert outages(engine) == [outage([1, 2])]
