"""Which targets are due, looks side by side, leases around them, and instants that never repeat."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from itertools import chain
from random import Random
from time import monotonic

import pytest

from collector.clock import never_the_same_twice, utc_now
from collector.domain import Failure, Scan, Target
from collector.errors import WarehouseError
from collector.polling import Cadence, leased, look_at_all
from tests.factories import START, TARGET, at, scan, task

OTHER = Target("111122223333", "us-east-1")
BUSY = scan(0, task("a"))
IDLE = scan(0, task("a", Status="completed"))
PARTIAL = scan(0, task("a", Status="completed"), complete=False)
INTERVAL, IDLE_INTERVAL = 60.0, 900.0
NOW = 1000.0


def failed(code: str = "AuthFailure") -> Failure:
    """Return a look that failed."""
    return Failure(TARGET.account_id, TARGET.region, START, code, "no")


def cadence_of(
    *targets: Target, concurrency: int = 64, seed: int = 0, idle: float = IDLE_INTERVAL
) -> Cadence:
    """Return when targets are due: busy ones every minute, idle ones every quarter of an hour."""
    cadence = Cadence(
        interval=timedelta(seconds=INTERVAL),
        idle_interval=timedelta(seconds=idle),
        concurrency=concurrency,
        chance=Random(seed),
    )
    cadence.set_targets(targets)
    return cadence


def take_all(cadence: Cadence, now: float) -> list[Target]:
    """Take whatever may be looked at."""
    return list(iter(lambda: cadence.take(now), None))


def due_at(cadence: Cadence, since: float) -> float:
    """Return the second at which something is due; it is taken then."""
    return next(since + seconds for seconds in range(100_000) if cadence.take(since + seconds))


def pauses(cadence: Cadence, *results: Scan | Failure | None, now: float = NOW) -> Iterator[float]:
    """Look at the one target that there is, again and again, and yield the pauses between the looks."""
    assert cadence.take(now)
    for result in results:
        cadence.done(TARGET, result, now)
        before, now = now, due_at(cadence, now)
        yield now - before


def accounts(number: int, region: str = TARGET.region) -> list[Target]:
    """Return one Region of several accounts."""
    return [Target(f"{account:012}", region) for account in range(number)]


# When a target is due


def test_new_targets_are_due_at_once_accounts_outside_and_regions_inside() -> None:
    """So that an account's connections are used again, and no Region is looked at in a burst."""
    targets = [Target(account, region) for account in ("1" * 12, "2" * 12) for region in ("eu", "us")]
    assert take_all(cadence_of(*reversed(targets)), NOW) == targets


def test_a_target_in_flight_is_not_due() -> None:
    """Nobody looks at a target that is being looked at."""
    cadence = cadence_of(TARGET)
    assert cadence.take(NOW) == TARGET
    assert cadence.take(1e9) is None


@pytest.mark.parametrize(
    ("result", "longest"),
    [
        pytest.param(BUSY, INTERVAL, id="unfinished tasks"),
        pytest.param(IDLE, IDLE_INTERVAL, id="finished tasks"),
        pytest.param(scan(0), IDLE_INTERVAL, id="no tasks"),
        pytest.param(PARTIAL, INTERVAL, id="not everything was seen"),
        pytest.param(failed(), INTERVAL, id="failed"),
        pytest.param(None, INTERVAL, id="another collector was at it"),
    ],
)
def test_the_result_says_when_a_target_is_due_again(result: Scan | Failure | None, longest: float) -> None:
    """Only a target that is known to be idle waits for long; none is due much earlier, and never later."""
    for seed in range(20):
        _, pause = pauses(cadence_of(TARGET, seed=seed), BUSY, result)
        assert 0.9 * longest <= pause <= longest + 1


def test_the_pause_counts_from_the_beginning_of_a_look() -> None:
    """A slow look does not stretch the interval, and one that outlasts it is due again at once."""
    cadence = cadence_of(TARGET)
    assert cadence.take(NOW) == TARGET
    cadence.done(TARGET, BUSY, NOW + INTERVAL / 2)
    started = due_at(cadence, NOW)
    assert started <= NOW + INTERVAL + 1
    cadence.done(TARGET, BUSY, started + 10 * INTERVAL)
    assert cadence.take(started + 10 * INTERVAL) == TARGET


def test_targets_that_begin_together_spread_over_the_interval() -> None:
    """Their second looks fall into every tenth of it but the first."""
    targets = accounts(200)
    cadence = cadence_of(*targets, concurrency=200)
    for target in take_all(cadence, NOW):
        cadence.done(target, IDLE, NOW)
    due = Counter(
        int(10 * seconds / IDLE_INTERVAL)
        for seconds in range(int(IDLE_INTERVAL) + 1)
        for _ in take_all(cadence, NOW + seconds)
    )
    assert set(due) - {10} == set(range(1, 10))
    assert sum(due.values()) == len(targets)


def test_an_idle_target_that_shows_an_unfinished_task_becomes_active() -> None:
    """It is promoted by the first look that sees the task, and goes back when that has ended."""
    first, idle, active, idle_again = pauses(cadence_of(TARGET), IDLE, IDLE, BUSY, IDLE)
    assert first < IDLE_INTERVAL + 1
    assert idle > 0.9 * IDLE_INTERVAL - 1
    assert active <= INTERVAL + 1
    assert idle_again > 0.9 * IDLE_INTERVAL - 1


def test_a_failing_target_is_asked_less_and_less_often_down_to_the_idle_interval() -> None:
    """Twice as long each time; one good look ends that."""
    denied = [failed()] * 40
    found = list(pauses(cadence_of(TARGET), BUSY, *denied, BUSY, failed()))[1:]
    for number, pause in enumerate(found[:40]):
        longest = min(INTERVAL * 2.0**number, IDLE_INTERVAL)
        assert 0.9 * longest <= pause <= longest + 1
    assert all(pause <= INTERVAL + 1 for pause in found[40:])


def test_a_target_that_another_collector_looks_at_has_not_recovered() -> None:
    """Only a look of one's own says that it answers again."""
    *_, before, other, after = pauses(cadence_of(TARGET), failed(), failed(), failed(), None, failed())
    assert other <= INTERVAL + 1 < before < after


def test_an_idle_interval_below_the_interval_is_the_interval() -> None:
    """Idle targets are never looked at more often than busy ones."""
    _, pause = pauses(cadence_of(TARGET, idle=1), IDLE, IDLE)
    assert pause >= 0.9 * INTERVAL


def test_the_longest_interval_is_never_exceeded() -> None:
    """A day, whatever chance says and whatever the result: EC2 forgets after seven."""
    day = timedelta(hours=24)
    results = [IDLE, failed(), BUSY, *[failed("ReadTimeout")] * 30, IDLE, None, PARTIAL]
    for seed in range(20):
        cadence = Cadence(interval=day, idle_interval=day, concurrency=8, chance=Random(seed))
        cadence.set_targets([TARGET])
        now = NOW
        for result in results:
            assert cadence.take(now) == TARGET
            cadence.done(TARGET, result, now)
            now += day.total_seconds()


def test_the_longest_due_target_comes_first() -> None:
    """Whatever its account and Region are called."""
    cadence = cadence_of(TARGET, OTHER)
    assert take_all(cadence, NOW) == [TARGET, OTHER]
    cadence.done(OTHER, BUSY, NOW)
    assert due_at(cadence, NOW)
    cadence.done(OTHER, BUSY, NOW + 100)
    cadence.done(TARGET, IDLE, NOW + 100)
    assert take_all(cadence, NOW + 1e6) == [OTHER, TARGET]


# Targets that come and go


def test_targets_that_are_taken_away_are_not_due() -> None:
    """A Region that was disabled is left alone; others keep their times."""
    cadence = cadence_of(TARGET, OTHER)
    assert cadence.take(NOW) == TARGET
    cadence.done(TARGET, BUSY, NOW)
    cadence.set_targets([TARGET])
    assert cadence.targets == {TARGET}
    assert due_at(cadence, NOW) > NOW
    assert take_all(cadence, 1e9) == []


def test_a_target_taken_away_in_flight_does_not_come_back() -> None:
    """Its last look may end; there is no next one."""
    cadence = cadence_of(TARGET, OTHER)
    take_all(cadence, NOW)
    cadence.set_targets([OTHER])
    cadence.done(TARGET, BUSY, NOW)
    assert take_all(cadence, 1e9) == []


def test_a_target_in_flight_over_a_discovery_is_not_looked_at_twice() -> None:
    """Also when it was gone in between; it is due again only after its look."""
    cadence = cadence_of(TARGET)
    assert cadence.take(NOW) == TARGET
    cadence.set_targets([])
    cadence.set_targets([TARGET])
    assert cadence.take(1e9) is None
    cadence.done(TARGET, BUSY, NOW)
    assert take_all(cadence, NOW + INTERVAL) == [TARGET]


def test_a_target_that_comes_back_is_due_at_once_and_once() -> None:
    """What was planned for it before is forgotten, and so are its failures."""
    cadence = cadence_of(TARGET)
    assert list(pauses(cadence, *[failed()] * 9))
    cadence.done(TARGET, failed(), NOW + 1e4)
    cadence.set_targets([])
    cadence.set_targets([TARGET])
    assert take_all(cadence, NOW) == [TARGET]
    cadence.done(TARGET, failed(), NOW)
    assert take_all(cadence, NOW + INTERVAL) == [TARGET]


# Regions that hang


def test_one_region_gets_a_share_of_all_looks() -> None:
    """A Region that hangs must not fill the pool for others."""
    slow = accounts(100, "eu-slow-1")
    cadence = cadence_of(*slow, *accounts(1, "b"), *accounts(1, "c"), *accounts(1, "d"), concurrency=16)
    taken = Counter(target.region for target in take_all(cadence, NOW))
    assert taken == {"eu-slow-1": 4, "b": 1, "c": 1, "d": 1}


def test_the_only_region_gets_all_looks() -> None:
    """Sharing is for those who have somebody to share with."""
    assert len(take_all(cadence_of(*accounts(100), concurrency=64), NOW)) >= 64


def silenced() -> Cadence:
    """Return ten accounts in a Region that has not answered three looks of three accounts."""
    cadence = cadence_of(*accounts(10), OTHER)
    for code in ("DeadlineExceeded", "ConnectTimeout", "EndpointConnection"):
        target = cadence.take(NOW)
        assert target
        cadence.done(target, failed(code), NOW)
    return cadence


def test_a_region_that_does_not_answer_gets_one_look_at_a_time() -> None:
    """Three looks in silence trip the breaker, whichever accounts they were for; others are polled on."""
    cadence = silenced()
    assert take_all(cadence, NOW) == [OTHER]
    (probe,) = take_all(cadence, NOW + INTERVAL)
    assert probe.region == TARGET.region


def test_a_region_is_tried_less_and_less_often_but_within_minutes() -> None:
    """Its silence costs no more than one look in five minutes, and its recovery is noticed soon."""
    cadence, now = silenced(), NOW
    take_all(cadence, now)
    rests: list[float] = []
    for _ in range(10):
        before = now
        while not (probe := cadence.take(now)):
            now += 1
        rests.append(now - before)
        cadence.done(probe, failed("ReadTimeout"), now)
    assert rests == sorted(rests)
    assert rests[0] <= INTERVAL
    assert rests[-1] == 300


@pytest.mark.parametrize("answer", [IDLE, failed("UnauthorizedOperation"), failed("RequestLimitExceeded")])
def test_any_answer_closes_the_breaker(answer: Scan | Failure) -> None:
    """A denial too: the Region is there."""
    cadence = silenced()
    take_all(cadence, NOW)
    (probe,) = take_all(cadence, NOW + INTERVAL)
    cadence.done(probe, answer, NOW + INTERVAL)
    assert len(take_all(cadence, NOW + INTERVAL)) >= 6


@pytest.mark.parametrize("between", [IDLE, failed("AuthFailure")])
def test_silence_must_be_in_a_row(between: Scan | Failure) -> None:
    """A lost look now and then is no sign of a Region that hangs."""
    cadence = cadence_of(*accounts(10))
    for _ in range(2):
        for result in (failed("ReadTimeout"), failed("ReadTimeout"), between):
            target = cadence.take(NOW)
            assert target
            cadence.done(target, result, NOW)
    assert len(take_all(cadence, NOW)) == 4


# How it keeps up


def test_lag_is_how_long_the_longest_due_target_waits() -> None:
    """Neither those in flight nor new ones count, and none that is not due yet."""
    cadence = cadence_of(TARGET, OTHER)
    assert cadence.lag(NOW) == 0
    take_all(cadence, NOW)
    assert cadence.lag(1e9) == 0
    cadence.done(TARGET, BUSY, NOW)
    assert cadence.lag(NOW) == 0
    assert 1000 - INTERVAL <= cadence.lag(NOW + 1000) <= 1000


def test_a_region_that_rests_is_no_lag() -> None:
    """It waits by intent."""
    cadence = silenced()
    take_all(cadence, NOW)
    assert cadence.lag(NOW + 1e6) == 0


def test_many_threads_never_have_one_target_twice() -> None:
    """Eight take and finish as fast as they can, while a ninth discovers; every target gets its turns."""
    targets = [Target(account.account_id, region) for region in ("a", "b", "c") for account in accounts(5)]
    cadence = cadence_of(*targets, concurrency=8)
    clock = iter(range(10**9))
    flying = {target: threading.Lock() for target in targets}
    turns: list[Target] = []

    def look() -> None:
        while len(turns) < 3000:
            target = cadence.take(NOW + 1000 * next(clock))
            if target is not None:
                assert flying[target].acquire(blocking=False)
                turns.append(target)
                flying[target].release()
                cadence.done(target, BUSY, NOW)

    def discover() -> None:
        while len(turns) < 3000:
            cadence.set_targets(targets[:-1])
            cadence.set_targets(targets)

    with ThreadPoolExecutor(9) as pool:
        works = [pool.submit(work) for work in [look] * 8 + [discover]]
        for work in works:
            work.result(timeout=60)
    assert set(turns) == set(targets)


# Looks side by side, and leases around them


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


class Away:
    """Leases that nobody can be asked for."""

    def acquire(self, target: Target) -> bool:
        """Fail."""
        raise WarehouseError(f"nobody can be asked about {target}")

    def release(self, target: Target) -> None:
        """Never happen."""
        raise AssertionError(target)


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
    look = leased(lambda target: BUSY if target in leases.taken else failed(), leases, patience=timedelta(0))
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


def test_where_nobody_can_be_asked_for_a_lease_the_look_goes_on() -> None:
    """The database is away, and so is everybody else who would ask it."""
    assert leased(lambda _: BUSY, Away(), patience=timedelta(0))(TARGET) == BUSY


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
