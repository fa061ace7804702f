"""The nouns: what a scan refuses to be, and what its digest tells apart."""

from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest

from collector.domain import Failure, Target
from tests.factories import TARGET, at, scan, task


def test_a_digest_does_not_depend_on_the_order_of_tasks() -> None:
    """Listings promise none."""
    assert scan(1, task("a"), task("b")).digest == scan(1, task("b"), task("a")).digest


def test_a_digest_tells_tasks_with_equal_contents_apart() -> None:
    """What one task's content hash leaves out, its id, must be in the digest."""
    assert task("a").content_hash == task("b").content_hash
    assert scan(1, task("a")).digest != scan(1, task("b")).digest


def test_a_digest_tells_contents_apart() -> None:
    """A progress tick is a change."""
    assert scan(1, task("a", Progress="1")).digest != scan(1, task("a", Progress="2")).digest


def test_a_scan_names_a_task_once() -> None:
    """Two contents of one task at one instant would make history a matter of luck."""
    with pytest.raises(ValueError, match="import-ami-a occurs twice"):
        scan(1, task("a"), task("a", Progress="2"))


@pytest.mark.parametrize("zone", [None, timezone(timedelta(hours=2))])
def test_a_scan_is_in_utc(zone: timezone | None) -> None:
    """Its instant is a key."""
    observed_at: datetime = at(1).replace(tzinfo=zone)
    with pytest.raises(ValueError, match="is not UTC"):
        replace(scan(1), observed_at=observed_at)


def test_a_failure_reads_well() -> None:
    """Account, Region and cause; an account that failed before its Regions were known has none."""
    denied = Failure(TARGET.account_id, TARGET.region, at(1), "UnauthorizedOperation", "no")
    assert str(denied) == "account 111122223333, Region eu-west-1: UnauthorizedOperation: no"
    assert str(replace(denied, region=None)) == "account 111122223333: UnauthorizedOperation: no"


def test_targets_sort_by_account_then_region() -> None:
    """Locks are taken in this order everywhere."""
    shuffled = [Target("2", "ap"), Target("1", "us"), Target("1", "eu")]
    assert sorted(shuffled) == [Target("1", "eu"), Target("1", "us"), Target("2", "ap")]
