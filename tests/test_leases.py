"""Leases: one look at a target at a time, across connections, and none that outlives its holder."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from sqlalchemy import Engine

from collector.domain import Target
from collector.errors import WarehouseError
from collector.warehouse.engine import PatientConnection, connect_to_url
from collector.warehouse.leases import Leases
from tests.factories import TARGET
from tests.simulation import eventually, rows

OTHER = Target(TARGET.account_id, "us-east-1")


@pytest.fixture
def leases(database_url: str) -> Iterator[Callable[[], Leases]]:
    """Make the leases of one more process."""
    made: list[Leases] = []

    def make() -> Leases:
        made.append(Leases(connect_to_url(database_url)))
        return made[-1]

    yield make
    for one in made:
        one.close()


def kill_holders(engine: Engine) -> None:
    """End the sessions that hold or held leases, and wait until they are gone."""
    query = (
        "FROM pg_locks WHERE locktype = 'advisory'"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    assert rows(engine, f"SELECT pg_terminate_backend(pid) {query}")
    eventually(lambda: not rows(engine, f"SELECT pid {query}"))


def test_one_of_two_has_the_lease_until_it_gives_it_back(leases: Callable[[], Leases]) -> None:
    """Between processes."""
    one, other = leases(), leases()
    assert one.acquire(TARGET)
    assert not other.acquire(TARGET)
    one.release(TARGET)
    assert other.acquire(TARGET)


def test_one_process_has_a_lease_once(leases: Callable[[], Leases]) -> None:
    """A session's advisory lock alone would let its own session in twice."""
    one = leases()
    assert one.acquire(TARGET)
    assert not one.acquire(TARGET)
    one.release(TARGET)
    assert one.acquire(TARGET)


def test_targets_have_leases_of_their_own(leases: Callable[[], Leases]) -> None:
    """Neither another Region nor another account is taken."""
    one, other = leases(), leases()
    assert one.acquire(TARGET)
    assert other.acquire(OTHER)
    assert other.acquire(Target("444455556666", TARGET.region))


def test_of_many_threads_one_gets_it(leases: Callable[[], Leases]) -> None:
    """Within processes and between them."""
    both = [leases(), leases()]
    start = threading.Barrier(8)

    def take(number: int) -> bool:
        start.wait(timeout=10)
        return both[number % 2].acquire(TARGET)

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(take, range(8))) == 1


def test_leases_write_nothing(leases: Callable[[], Leases], engine: Engine) -> None:
    """Not even a row for the target."""
    assert leases().acquire(TARGET)
    assert rows(engine, "SELECT * FROM vm_import.targets") == []


def test_closing_gives_everything_back(leases: Callable[[], Leases]) -> None:
    """As the end of the process does."""
    one, other = leases(), leases()
    assert one.acquire(TARGET)
    one.close()
    assert eventually(lambda: other.acquire(TARGET))


def test_a_killed_holder_holds_nothing_and_notices_without_harm(
    leases: Callable[[], Leases], engine: Engine
) -> None:
    """Its lease is free for others at once; giving it back later is harmless to who has it now."""
    one, other = leases(), leases()
    assert one.acquire(TARGET)
    kill_holders(engine)
    assert other.acquire(TARGET)
    one.release(TARGET)
    assert not one.acquire(TARGET)
    other.release(TARGET)
    assert one.acquire(TARGET)


def test_a_connection_that_died_in_between_costs_nothing(
    leases: Callable[[], Leases], engine: Engine
) -> None:
    """The next lease comes over a new connection, without an error."""
    one = leases()
    assert one.acquire(TARGET)
    kill_holders(engine)
    assert one.acquire(OTHER)
    assert not leases().acquire(OTHER)


def test_a_look_in_flight_is_not_doubled_when_the_connection_dies(
    leases: Callable[[], Leases], engine: Engine
) -> None:
    """The process still knows that it is at it, whatever the server forgot."""
    one = leases()
    assert one.acquire(TARGET)
    kill_holders(engine)
    assert not one.acquire(TARGET)


def test_without_the_database_there_is_no_lease() -> None:
    """An error that says why, not a silent yes or no."""
    away = Leases(connect_to_url("postgresql://nobody@127.0.0.1:1/nothing"))
    with pytest.raises(WarehouseError, match="cannot be reached"):
        away.acquire(TARGET)


def test_threads_do_not_wait_for_a_dead_network_one_after_the_other() -> None:
    """Whoever queued behind a failed attempt shares its failure."""
    attempts = 0
    go_on = threading.Event()

    def connect() -> PatientConnection:
        nonlocal attempts
        attempts += 1
        go_on.wait(timeout=10)
        raise psycopg.OperationalError("connection timeout expired")

    away = Leases(connect)
    begun = threading.Semaphore(0)

    def fails(region: str) -> bool:
        begun.release()
        with pytest.raises(WarehouseError, match="timeout"):
            away.acquire(Target(TARGET.account_id, region))
        return True

    with ThreadPoolExecutor(8) as pool:
        failed = [pool.submit(fails, f"region-{number}") for number in range(8)]
        for _ in failed:
            assert begun.acquire(timeout=10)
        eventually(lambda: attempts)
        go_on.set()
        assert all(future.result(timeout=10) for future in failed)
    assert attempts < 8  # a thread that was slow to queue tries itself


def test_closed_leases_ask_nobody(leases: Callable[[], Leases]) -> None:
    """A thread that still asks must not lead from the grave."""
    one = leases()
    assert one.lead()
    one.close()
    with pytest.raises(WarehouseError):
        one.lead()
    assert leases().lead()
