"""What a daemon asks the warehouse when it starts."""

from datetime import timedelta

import pytest
from sqlalchemy import Engine

from collector.domain import Target
from collector.errors import WarehouseError
from collector.warehouse.engine import connect_to_url, make_engine
from collector.warehouse.reading import last_good_looks, targets_seen, tasks_in_flight
from tests.factories import TARGET, at, scan, store, task

OTHER = Target(TARGET.account_id, "us-east-1")


def test_the_last_good_look_is_the_newest_whole_one_from_the_api(engine: Engine) -> None:
    """Neither a partial look nor a saved file counts, however new; each target has its own."""
    store(engine, scan(1), scan(3, task("a")), scan(2), scan(4, task("a"), complete=False))
    store(engine, scan(5, task("a"), source="file"), scan(9, target=OTHER))

    assert last_good_looks(engine) == {TARGET: at(3), OTHER: at(9)}


def test_a_target_without_a_good_look_has_none(engine: Engine) -> None:
    """It is left out: nothing is known of it."""
    store(engine, scan(1, source="file"), scan(2, target=OTHER, complete=False))

    assert last_good_looks(engine) == {}


def test_instants_are_utc_whatever_the_session_says(database_url: str) -> None:
    """PostgreSQL answers in its session's time zone, which the server's administrator chose."""
    engine = make_engine(connect_to_url(f"{database_url}?options=-ctimezone%3DAsia/Tokyo"))
    store(engine, scan(1, task("a")))
    (target,), (in_flight,) = targets_seen(engine), tasks_in_flight(engine)
    (looked_at,) = last_good_looks(engine).values()
    engine.dispose()

    assert target.last_complete_scan is not None
    instants = [target.last_complete_scan, in_flight.first_seen_at, in_flight.last_observed_at, looked_at]
    assert {instant.utcoffset() for instant in instants} == {timedelta(0)}


def test_a_database_that_cannot_be_reached_is_said_so() -> None:
    """The driver's error stays behind the border."""
    nowhere = make_engine(connect_to_url("postgresql://user:hunter2@127.0.0.1:1/aws"))

    with pytest.raises(WarehouseError, match="cannot be reached"):
        last_good_looks(nowhere)
