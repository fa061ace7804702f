"""What a listing is doubted by, while the warehouse is behind what this process has seen."""

from datetime import timedelta
from pathlib import Path

from sqlalchemy import Engine, text

from collector.domain import Scan
from collector.simulator.faults import MissingTask
from tests.daemons import running
from tests.simulation import ACCOUNT, REGION, eventually, rows, settings, simulated, wire

OFTEN = timedelta(seconds=0.1)


def test_a_task_that_was_seen_but_is_not_stored_yet_is_missed(
    database_url: str, engine: Engine, tmp_path: Path
) -> None:
    """A listing that leaves it out says nothing: it is looked up, and found."""
    configuration = settings(database_url, data_dir=tmp_path).model_copy(
        update={"interval": OFTEN, "idle_interval": OFTEN}
    )
    with simulated(REGION) as simulator, running(configuration) as daemon:
        looks = daemon.seen.looks
        eventually(lambda: rows(engine, "SELECT FROM vm_import.scans"))
        with engine.begin() as connection:
            connection.execute(text("LOCK TABLE vm_import.scans IN EXCLUSIVE MODE"))  # nothing can be stored
            simulator.fleet.put(ACCOUNT, REGION, wire("new"))
            eventually(lambda: any(isinstance(look, Scan) and look.tasks for _, look in looks))
            missing = MissingTask(ids=("import-ami-new",))
            with simulator.faults.add(missing, only_listing=True) as rule:
                eventually(lambda: rule.hits >= 3)
        seen = len(looks)
        eventually(lambda: len(looks) >= seen + 2)
    assert rows(engine, "SELECT FROM vm_import.task_versions")
    assert rows(engine, "SELECT FROM vm_import.task_versions WHERE NOT listed") == []
