"""How fast are saved files loaded, against a plain ``json.load`` of the same files?

Ten tasks a file, one file a minute, in random order: every file is late for some other. A second time they
are all known already.
"""

import json
import random
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import perf_counter

from benchmarks.load import Row
from collector.commands.backfill_files import from_files
from collector.commands.saved_files import SavedFile
from collector.config import load
from collector.domain import Target
from collector.warehouse import schema
from collector.warehouse.engine import connect_to_url, make_engine
from tests.conftest import create_database, drop_database

FILES = 10_000
TASKS = 10
TARGET = Target("111122223333", "eu-west-1")
START = datetime(2026, 1, 1, tzinfo=UTC)


def rows(server_url: str) -> Iterator[Row]:
    """Load the files twice into a database of this benchmark's own."""
    with tempfile.TemporaryDirectory() as folder:
        files = _written(Path(folder))
        random.Random(0).shuffle(files)  # noqa: S311 - an order, not a secret
        plain = _timed_plain(files)
        url = create_database(server_url, "collector_files", "template0")
        engine = make_engine(connect_to_url(url))
        schema.upgrade(engine)
        engine.dispose()
        try:
            yield Row(f"{FILES} files in random order / json.load", _timed_load(url, files), plain)
            yield Row(f"{FILES} files that are known already / json.load", _timed_load(url, files), plain)
        finally:
            drop_database(server_url, "collector_files")


def _written(folder: Path) -> list[SavedFile]:
    chance = random.Random(1)  # noqa: S311 - as above
    progress = [0] * TASKS
    files = []
    for minute in range(FILES):
        progress[chance.randrange(TASKS)] += 1
        tasks = [
            {"ImportTaskId": f"import-ami-{number:017x}", "Status": "active", "Progress": str(done)}
            for number, done in enumerate(progress)
        ]
        path = folder / f"{minute}.json"
        path.write_text(json.dumps({"ImportImageTasks": tasks}))
        files.append(SavedFile(str(path), TARGET, START + timedelta(minutes=minute)))
    return files


def _timed_plain(files: list[SavedFile]) -> float:
    started = perf_counter()
    for file in files:
        with Path(file.name).open(encoding="utf-8") as opened:
            json.load(opened)
    return perf_counter() - started


def _timed_load(url: str, files: list[SavedFile]) -> float:
    settings = load({"database_url": url})
    started = perf_counter()
    from_files(settings, files, complete=True, faults=[], dry_run=False, as_json=True)
    return perf_counter() - started
