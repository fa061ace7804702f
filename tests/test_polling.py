"""Which targets are due, looks side by side, leases around them, and instants that never repeat."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from itertools import chain
from time import monotonic

import pytest

from collector.clock import never_the_same_twice, utc_now
from collector.domain import Failure, Scan, Target
from collector.polling import Cadence, leased, look_at_all
from tests.factories import START, TARGET, at, scan, task

OTHER = Target("111122223333", "us-east-1")
FAILED = Failure(TARGET.account_id, TARGET.region, START, "AuthFailure", "no")
BUSY = scan(0, task("a"))
IDLE = scan(0, task("a", Status="completed"))


class Booked:
    """Leases of which some are taken; counts who asks and who gives back."""

    def __init__(self, *taken: Target) -> None:
        self.taken = set(taken)
        self.asked = threading.Semaphore(0)

    def acquire(self, target: Target) -> bool:
        """Take it if it is free."""
        self.asked.release()
        if target in self.taken:
            return False
        self.taken.add(target)
        return True

    def release(self, target: Target) -> None:
        """Give it back."""
        self.taken.remove(target)


@pytest.fixture
def cadence() -> Cadence:
    """Busy targets every minute, idle ones every quarter of an hour; two of them."""
    cadence = Cadence(interval=timedelta(seconds=60), idle_interval=timedelta(seconds=900))
    cadence.set_targets([TARGET, OTHER])
    return cadence


def due_after(cadence: Cadence, result: Scan | Failure | None) -> float:
    """Say after how many seconds a target is due again whose look had this result."""
    cadence.set_targets([TARGET])
    assert cadence.take_due(1000) == [TARGET]
    cadence.done(TARGET, result)
    return next(seconds for seconds in range(2000) if cadence.take_due(1000 + seconds))


def test_new_targets_are_due_at_once_and_only_once(cadence: Cadence) -> None:
    """Nobody looks at a target that is being looked at."""
    assert cadence.take_due(1000) == [TARGET, OTHER]
    assert cadence.take_due(1e9) == []


@pytest.mark.parametrize(
    ("result", "seconds"),
    [
        pytest.param(BUSY, 60, id="unfinished tasks"),
        pytest.param(IDLE, 900, id="finished tasks"),
        pytest.param(scan(0), 900, id="no tasks"),
        pytest.param(FAILED, 60, id="failed"),
        pytest.param(None, 60, id="another collector was at it"),
    ],
)
def test_the_result_says_when_a_target_is_due_again(
    cadence: Cadence, result: Scan | Failure | None, seconds: float
) -> None:
    """Only a target that is known to be idle waits for long."""
    assert due_after(cadence, result) == seconds


def test_an_idle_target_that_shows_a_new_task_becomes_active(cadence: Cadence) -> None:
    """It is promoted by the first look that sees the task."""
    assert due_after(cadence, IDLE) == 900
    cadence.done(TARGET, BUSY)
    assert cadence.take_due(1900 + 59) == []
    assert cadence.take_due(1900 + 60) == [TARGET]


def test_an_idle_interval_below_the_interval_is_the_interval() -> None:
    """Idle targets are never looked at more often than busy ones."""
    cadence = Cadence(interval=timedelta(seconds=60), idle_interval=timedelta(seconds=1))
    assert due_after(cadence, IDLE) == 60


def test_the_longest_due_target_comes_first(cadence: Cadence) -> None:
    """A crowd of new targets does not starve the others."""
    cadence.take_due(1000)
    cadence.done(OTHER, BUSY)
    cadence.take_due(1100)
    cadence.done(TARGET, BUSY)
    cadence.done(OTHER, BUSY)
    assert cadence.take_due(5000) == [TARGET, OTHER]


def test_a_target_that_is_taken_away_is_not_due(cadence: Cadence) -> None:
    """A Region that was disabled is left alone."""
    cadence.set_targets([OTHER])
    assert cadence.take_due(1000) == [OTHER]


def test_a_target_taken_away_in_flight_does_not_come_back(cadence: Cadence) -> None:
    """Its last look may end; there is no next one."""
    cadence.take_due(1000)
    cadence.set_targets([OTHER])
    cadence.done(TARGET, BUSY)
    assert cadence.take_due(1e9) == []


def test_a_target_that_stays_in_flight_over_a_discovery_is_not_looked_at_twice(cadence: Cadence) -> None:
    """It is due again only after its look."""
    cadence.take_due(1000)
    cadence.set_targets([])
    cadence.set_targets([TARGET, OTHER])
    assert cadence.take_due(1e9) == []
    cadence.done(TARGET, BUSY)
    assert cadence.take_due(1060) == [TARGET]


def test_all_targets_are_looked_at_side_by_side_but_no_more_than_allowed() -> None:
    """Two of three looks meet at a barrier that a third would break."""
    targets = [Target("111122223333", region) for region in ("a", "b", "c", "d")]
    meeting = threading.Barrier(2)
    running = threading.Semaphore(2)

    def look(target: Target) -> Scan:
        assert running.acquire(blocking=False)
        meeting.wait(timeout=10)
        running.release()
        return scan(0, target=target)

    looks = dict(look_at_all(targets, look, concurrency=2))
    assert looks == {target: scan(0, target=target) for target in targets}


def test_a_look_that_raises_ends_the_rest_and_is_raised() -> None:
    """Looks return their failures; what they raise is nobody's to swallow."""

    def look(_: Target) -> None:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        list(look_at_all([TARGET, OTHER], look, concurrency=1))


def test_a_lease_is_held_during_the_look_and_given_back() -> None:
    """The lease brackets the look."""
    leases = Booked()
    look = leased(lambda target: BUSY if target in leases.taken else FAILED, leases, patience=timedelta(0))
    assert look(TARGET) == BUSY
    assert leases.taken == set()


def test_a_lease_is_given_back_when_the_look_raises() -> None:
    """Otherwise nobody could look again."""
    leases = Booked()

    def look(_: Target) -> Scan:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        leased(look, leases, patience=timedelta(0))(TARGET)
    assert leases.taken == set()


def test_a_target_whose_lease_is_taken_is_left_alone() -> None:
    """Without patience at once, and the lease stays its holder's."""
    leases = Booked(TARGET)
    assert leased(lambda _: BUSY, leases, patience=timedelta(0))(TARGET) is None
    assert leases.taken == {TARGET}


def test_patience_ends() -> None:
    """A look that waits for a lease gives up in time."""
    began = monotonic()
    assert leased(lambda _: BUSY, Booked(TARGET), patience=timedelta(seconds=0.1))(TARGET) is None
    assert 0.1 <= monotonic() - began < 5


def test_a_lease_is_waited_for() -> None:
    """With patience, a look begins when the other has ended."""
    leases = Booked(TARGET)
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(leased(lambda _: BUSY, leases, patience=timedelta(seconds=30)), TARGET)
        assert leases.asked.acquire(timeout=10)
        leases.release(TARGET)
        assert result.result(timeout=10) == BUSY


@pytest.mark.parametrize("now", [utc_now, lambda: START], ids=["real clock", "clock that stands still"])
def test_no_instant_is_given_twice(now: Callable[[], datetime]) -> None:
    """Eight threads read as fast as they can."""
    read = never_the_same_twice(now)
    with ThreadPoolExecutor(8) as pool:
        readings = list(chain(*pool.map(lambda _: [read() for _ in range(200)], range(8))))
    assert len(set(readings)) == len(readings) == 1600


def test_a_clock_that_is_set_back_is_followed() -> None:
    """What it then shows is late, not wrong."""
    instants = iter([at(60), at(0), at(60)])
    read = never_the_same_twice(lambda: next(instants))
    assert [read(), read(), read()] == [at(60), at(0), at(60) + timedelta(microseconds=1)]


def test_instants_just_given_are_remembered_whatever_came_before() -> None:
    """Forgetting, so as not to grow for ever, is for old instants only."""
    read = never_the_same_twice(lambda: now)
    for number in range(4000):
        now = at(number)
        assert [(read() - now) / timedelta(microseconds=1) for _ in range(3)] == [0, 1, 2]
