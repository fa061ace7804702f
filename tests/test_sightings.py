"""What each target showed this process last: doubts while the database is away, and states."""

from collections.abc import Iterable

import pytest

from collector.domain import Failure, Target
from collector.sightings import NeverSeenError, Sightings
from collector.state import TargetState
from tests.factories import TARGET, at, scan, task

OTHER = Target(TARGET.account_id, "us-east-1")
ELSEWHERE = Target("444455556666", TARGET.region)


def failed(minutes: float, code: str = "AuthFailure") -> Failure:
    """Return a look that failed."""
    return Failure(TARGET.account_id, TARGET.region, at(minutes), code, "no")


def state_of(sightings: Sightings, target: Target = TARGET) -> TargetState:
    """Return what is known of one target."""
    (state,) = sightings.states([target])
    return state


def names(ids: Iterable[str]) -> set[str]:
    """Return the short names of tasks."""
    return {import_task_id.removeprefix("import-ami-") for import_task_id in ids}


def test_what_was_never_seen_cannot_be_judged() -> None:
    """Neither a target that is new to this process, nor one that only ever failed in it."""
    sightings = Sightings({TARGET: at(0)})
    sightings.saw(TARGET, failed(1))
    for target in (TARGET, OTHER):
        with pytest.raises(NeverSeenError, match=target.region):
            sightings.missing(scan(2, target=target))


def test_what_was_listed_last_and_is_not_now_is_missing() -> None:
    """Finished tasks too: this process does not count the days. New ones are nobody's doubt."""
    sightings = Sightings()
    sightings.saw(TARGET, scan(0, task("a"), task("b"), task("c", Status="completed")))
    assert names(sightings.missing(scan(1, task("a"), task("new")))) == {"b", "c"}


def test_a_complete_scan_settles_every_doubt_before_it() -> None:
    """What it does not list is gone."""
    sightings = Sightings()
    sightings.saw(TARGET, scan(0, task("a"), task("b")))
    sightings.saw(TARGET, scan(1, task("a")))
    assert sightings.missing(scan(2)) == {"import-ami-a"}


def test_a_partial_scan_keeps_earlier_ids() -> None:
    """What it did not see may still be there; what it did see counts."""
    sightings = Sightings()
    sightings.saw(TARGET, scan(0, task("a"), task("b")))
    sightings.saw(TARGET, scan(1, task("c"), complete=False))
    assert names(sightings.missing(scan(2, task("b")))) == {"a", "c"}


def test_a_partial_scan_alone_is_nothing_to_go_by() -> None:
    """As when this process began while the database was away: the next listing may lie as this one did."""
    sightings = Sightings()
    sightings.saw(TARGET, scan(0, task("a"), complete=False))
    with pytest.raises(NeverSeenError):
        sightings.missing(scan(1, task("a")))


def test_a_failure_forgets_nothing() -> None:
    """It says nothing about any task."""
    sightings = Sightings()
    sightings.saw(TARGET, scan(0, task("a")))
    sightings.saw(TARGET, failed(1))
    assert sightings.missing(scan(2)) == {"import-ami-a"}


def test_targets_are_judged_apart() -> None:
    """By account and by Region."""
    sightings = Sightings()
    for target in (TARGET, OTHER, ELSEWHERE):
        sightings.saw(target, scan(0, task(target.region + target.account_id), target=target))
    assert len(sightings.missing(scan(1, target=OTHER))) == 1


def test_states_tell_of_unknown_targets_too() -> None:
    """With the last good looks of earlier times; targets that are not asked for are left out."""
    sightings = Sightings({OTHER: at(5), ELSEWHERE: at(6)})
    assert sightings.states([OTHER, TARGET]) == (TargetState(OTHER, at(5)), TargetState(TARGET))


def test_a_good_look_is_told_by_status_and_by_what_is_in_flight() -> None:
    """A task without a status is counted, and is not finished."""
    sightings = Sightings()
    busy, odd, done = task("a"), task("b", Status=""), task("c", Status="completed")
    sightings.saw(TARGET, scan(1, busy, odd, done))
    assert state_of(sightings) == TargetState(
        TARGET, at(1), {"active": 1, "none": 1, "completed": 1}, in_flight=(busy, odd)
    )


def test_a_series_of_failures_is_told_by_its_first_its_last_and_its_length() -> None:
    """What was seen before it stays."""
    sightings = Sightings()
    sightings.saw(TARGET, scan(0, task("a")))
    for look in (failed(1), failed(2), failed(3, "Blocked")):
        sightings.saw(TARGET, look)
    state = state_of(sightings)
    assert (state.failing, state.failing_since, state.failures) == (failed(3, "Blocked"), at(1), 3)
    assert (state.last_good_at, state.in_flight) == (at(0), (task("a"),))


def test_a_look_that_succeeds_ends_the_series_and_is_told_what_was_before() -> None:
    """Whoever logs the recovery reads there how long it lasted."""
    sightings = Sightings()
    sightings.saw(TARGET, failed(1))
    sightings.saw(TARGET, failed(2))
    before = sightings.saw(TARGET, scan(3))
    assert (before.failing, before.failures) == (failed(2), 2)
    assert state_of(sightings) == TargetState(TARGET, at(3))


def test_a_partial_look_is_no_good_look() -> None:
    """It shows tasks and ends failures, but tasks may be lost meanwhile."""
    sightings = Sightings({TARGET: at(0)})
    sightings.saw(TARGET, failed(1))
    sightings.saw(TARGET, scan(2, task("a"), complete=False))
    assert state_of(sightings) == TargetState(TARGET, at(0), {"active": 1}, in_flight=(task("a"),))
