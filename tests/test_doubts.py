"""What a listing is doubted by: what was seen before it, stored or not, and whatever the clock did."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from collector.config import Settings
from collector.domain import Scan
from collector.simulator.faults import MissingTask
from collector.warehouse import history
from tests.daemons import running
from tests.factories import scan, store, task
from tests.simulation import ACCOUNT, REGION, eventually, rows, settings, simulated, wire

OFTEN = timedelta(seconds=0.1)


@pytest.fixture
def configuration(database_url: str, tmp_path: Path) -> Settings:
    """Look ten times a second, into this test's database."""
    configured = settings(database_url, data_dir=tmp_path)
    return configured.model_copy(update={"interval": OFTEN, "idle_interval": OFTEN})


@contextmanager
def storing_nothing(engine: Engine) -> Iterator[None]:
    """Let the warehouse be read, but not written."""
    with engine.begin() as connection:
        connection.execute(text("LOCK TABLE vm_import.scans IN EXCLUSIVE MODE"))
        yield


def test_a_task_that_was_seen_but_is_not_stored_yet_is_missed(
    configuration: Settings, engine: Engine
) -> None:
    """A listing that leaves it out says nothing: it is looked up, and found."""
    with simulated(REGION) as simulator, running(configuration) as daemon:
        looks = daemon.seen.looks
        eventually(lambda: rows(engine, "SELECT FROM vm_import.scans"))
        with storing_nothing(engine):
            simulator.fleet.put(ACCOUNT, REGION, wire("new"))
            eventually(lambda: any(isinstance(look, Scan) and look.tasks for _, look in looks))
            missing = MissingTask(ids=("import-ami-new",))
            with simulator.faults.add(missing, only_listing=True) as rule:
                eventually(lambda: rule.hits >= 3)
        seen = len(looks)
        eventually(lambda: len(looks) >= seen + 2)
    assert rows(engine, "SELECT FROM vm_import.task_versions")
    assert rows(engine, "SELECT FROM vm_import.task_versions WHERE NOT listed") == []


def test_what_is_new_since_the_clock_was_set_back_is_missed_too(engine: Engine) -> None:
    """The newest scan, of a time to come, knows nothing of it."""
    store(engine, scan(60, task("a")))
    store(engine, scan(10, task("a"), task("new")))
    assert history.missing_from(engine, scan(11, task("a"))) == {"import-ami-new"}


def test_what_has_gone_since_the_clock_was_set_back_is_not_missed_again(engine: Engine) -> None:
    """It is still listed as of a time to come, and would be looked up until then."""
    store(engine, scan(60, task("a"), task("gone")))
    store(engine, scan(10, task("a")))
    assert history.missing_from(engine, scan(11, task("a", Progress="2"))) == set()
