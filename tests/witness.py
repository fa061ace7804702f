"""Holds the warehouse against what was observed: what daemons saw, and what EC2 says that it showed."""

import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from itertools import count
from random import Random
from typing import Any

from sqlalchemy import Engine

from collector.aws.transform import import_task
from collector.commands.composition import spool_of
from collector.config import Settings
from collector.domain import Look, Scan, Target, Tasks
from collector.simulator import Simulator
from collector.warehouse import history
from tests.daemons import Running
from tests.factories import stored
from tests.simulation import ACCOUNT, eventually, rows, wire

Row = tuple[Target, datetime, bytes, bool]
"""What identifies a scan: target, instant, digest, and whether it is complete."""


@contextmanager
def changing(simulator: Simulator, *regions: str, every: float = 0.05, text: int = 0) -> Iterator[None]:
    """Let tasks come, change and go in these Regions; ``text`` is how long their descriptions are."""
    ended = threading.Event()

    def change() -> None:
        rng, numbers = Random(7), count()
        listed: dict[str, list[str]] = {region: [] for region in regions}
        while not ended.wait(every):
            for region, names in listed.items():
                if len(names) == 5 and rng.random() < 0.1:
                    simulator.fleet.remove(ACCOUNT, region, f"import-ami-{names.pop(0)}")
                if grows := len(names) < 5:
                    names.append(f"{next(numbers):08}")
                name = names[-1] if grows else rng.choice(names)
                members = {"Progress": str(rng.randrange(100)), "Description": rng.randbytes(text).hex()}
                disk = {"Format": "VMDK", "DiskImageSize": float(rng.randrange(3))}
                simulator.fleet.put(ACCOUNT, region, wire(name, SnapshotDetails=[disk], **members))

    thread = threading.Thread(target=change, name="changing")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=10)


def seen_by(*daemons: Running) -> list[Look]:
    """Return what daemons saw, in the order of the instants."""
    looks = [look for daemon in daemons for _, look in daemon.seen.looks if look is not None]
    return sorted(looks, key=lambda look: look.instant)


def assert_nothing_is_lost(engine: Engine, simulator: Simulator, looks: Sequence[Look]) -> None:
    """Every good answer was seen, every look is stored and nothing else, and the history is the right one."""
    scans = [look for look in looks if isinstance(look, Scan)]
    assert Counter(map(_content, scans)) == Counter(map(_content, shown(simulator)))
    assert sorted(scan_rows(engine)) == sorted(map(row_of, scans))
    assert_right_history(engine, scans)
    assert outages(engine) == series(looks)


def assert_right_history(engine: Engine, scans: Iterable[Scan]) -> None:
    """The versions are those that the same scans make when they come in order, undisturbed.

    They are stored once more under an account that nobody else has: a history of its own from the beginning.
    """
    for target, of_target in _by_target(scans).items():
        twin = Target("999999999999", target.region)
        in_order = sorted(of_target, key=lambda look: look.instant)
        for scan in in_order:
            list(history.store(engine, [replace(scan, target=twin)]))
        assert stored(engine, target) == stored(engine, twin)


def shown(simulator: Simulator) -> Iterator[Scan]:
    """Return what EC2 showed whoever listed: one scan per listing, at the instant of the simulated clock."""
    pages: dict[Target, list[dict[str, Any]]] = defaultdict(list)
    for answer in simulator.fleet.ledger or ():
        target = Target(answer.account_id, answer.region)
        if not answer.lookup:
            pages[target] += answer.tasks
            if not answer.more:
                tasks = Tasks(map(import_task, pages.pop(target)))
                yield Scan(target, answer.at, answer.at, True, "api", tasks)


def recorded(engine: Engine, simulator: Simulator) -> list[Scan]:
    """Return the scans that are stored, with the tasks that EC2 showed: nobody keeps what processes see."""
    contents = {_content(scan): scan for scan in shown(simulator)}
    return [
        replace(contents[target, digest], observed_at=at, finished_at=at, complete=complete)
        for target, at, digest, complete in scan_rows(engine)
    ]


def scan_rows(engine: Engine) -> list[Row]:
    """Return what identifies the scans that are stored."""
    query = """
        SELECT account_id, region, observed_at, digest, complete
        FROM vm_import.scans JOIN vm_import.targets USING (target_id)"""
    return [
        (Target(row.account_id, row.region), row.observed_at, bytes(row.digest), row.complete)
        for row in rows(engine, query)
    ]


def row_of(scan: Scan) -> Row:
    """Return what identifies a scan."""
    return scan.target, scan.observed_at, scan.digest, scan.complete


def outages(engine: Engine) -> list[tuple[Any, ...]]:
    """Return the outages that are stored."""
    query = """
        SELECT region, first_failed_at, last_failed_at, failures, error_code, recovered_at
        FROM vm_import.outages ORDER BY region, first_failed_at"""
    return [tuple(row) for row in rows(engine, query)]


def series(looks: Sequence[Look]) -> list[tuple[Any, ...]]:
    """Say what outages there must be: each unbroken series of a target's failures, ended by the next scan."""
    found: list[list[Any]] = []
    lasting: dict[str | None, list[Any]] = {}
    for look in sorted(looks, key=lambda look: look.instant):
        if isinstance(look, Scan):
            if series := lasting.pop(look.target.region, None):
                series[-1] = look.observed_at
        elif series := lasting.get(look.region):
            series[2:5] = look.failed_at, series[3] + 1, look.code
        else:
            lasting[look.region] = [look.region, look.failed_at, look.failed_at, 1, look.code, None]
            found.append(lasting[look.region])
    return sorted(map(tuple, found))


def spooled(configuration: Settings) -> list[Look]:
    """Return what waits on disk; nothing may be damaged."""
    spool = spool_of(configuration)
    assert spool.damaged == 0
    return [waiting.look for waiting in spool.waiting(10_000)]


def stores(daemon: Running, number: int = 3) -> None:
    """Wait until a daemon has stored that many more batches."""
    had = len(daemon.seen.tallies)
    eventually(lambda: len(daemon.seen.tallies) >= had + number)


def spools(daemon: Running, number: int = 6) -> None:
    """Wait until a daemon has put that many more looks on disk."""
    had = daemon.daemon.state().spool_files
    eventually(lambda: daemon.daemon.state().spool_files >= had + number, timeout=40)


def recovers(daemon: Running) -> None:
    """Wait until a daemon stores what it sees, leads, and has nothing left on disk."""

    def well() -> bool:
        state = daemon.daemon.state()
        return state.database is None and state.spool_files == 0 and state.leading is True

    eventually(well, timeout=60)
    stores(daemon)


def sessions(engine: Engine) -> int:
    """Return how many sessions other than that of the one who asks are in the database."""
    query = """
        SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
          AND pid <> pg_backend_pid() AND backend_type = 'client backend'"""
    return int(rows(engine, query)[0][0])


def _by_target(scans: Iterable[Scan]) -> dict[Target, list[Scan]]:
    found: dict[Target, list[Scan]] = defaultdict(list)
    for scan in scans:
        found[scan.target].append(scan)
    return found


def _content(scan: Scan) -> tuple[Target, bytes]:
    return scan.target, scan.digest
