"""What do others take to load the same tasks?

dlt keeps a history too (``scd2``); a hand-written script and a Singer target keep the present only. They are
not dependencies: they run in the virtual environment ``.venv-peers``, made from ``peers.txt``, or in the one
that ``BENCH_PEERS`` names. All begin with tasks as boto3 parses them, in memory, and end with the commit.
Set ``BENCH_FULL=1`` for 100,000 tasks instead of 20,000.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any, NamedTuple

import psutil
import psycopg

from benchmarks.load import TASKS, Bench, Row, Wire, all_wires, changed_wires, database, scan_at, wal_of

REPEATS = 3
PYTHON = Path(os.environ.get("BENCH_PEERS", Path(__file__).parents[1] / ".venv-peers")) / "bin" / "python"
PEERS = {
    "dlt scd2": "peer_dlt.py",
    "a script with ON CONFLICT DO UPDATE (no history)": "peer_upsert.py",
    "Singer's target-postgres (no history)": "peer_singer.py",
}


class _Taken(NamedTuple):
    """What one listing took: seconds, of them at work on both sides, and bytes of the server's log."""

    wall: float
    cpu: float
    wal: float


_Load = Callable[[Wire], tuple[float, float]]
"""Loads a listing; returns the seconds that it took, and the CPU of whoever loads."""

_Opened = Callable[[str], AbstractContextManager[_Load]]
"""Makes ready to load into the database at a URL."""


def rows(server_url: str) -> Iterator[Row]:
    """Load three listings one after the other, everybody in turn; nothing where there are no peers."""
    if not PYTHON.exists():
        print(f"no peers are measured: there is no {PYTHON}, which `make bench-peers` makes", file=sys.stderr)
        return
    wires = all_wires()
    listings = {"first load": wires, "nothing changed": wires, "5 % changed": changed_wires(wires)}
    loaders: dict[str, _Opened] = {
        "ours": _ours,
        **{peer: partial(_theirs, script) for peer, script in PEERS.items()},
    }
    rounds = [
        {name: _round(server_url, listings, opened) for name, opened in loaders.items()}
        for _ in range(REPEATS)
    ]
    for peer in PEERS:
        for number, listing in enumerate(listings):
            ours, theirs = (_median(each[name][number] for each in rounds) for name in ("ours", peer))
            question = f"{listing}, {TASKS} tasks, all included / {peer}"
            yield Row(question, ours.wall, theirs.wall)
            yield Row(f"CPU: {question}", ours.cpu, theirs.cpu)
            yield Row(f"WAL: {question}", ours.wal / 2**20, theirs.wal / 2**20, " MB")


@contextmanager
def _ours(url: str) -> Iterator[_Load]:
    with closing(Bench(url)) as bench:
        hours = count()

        def load(wires: Wire) -> tuple[float, float]:
            began, cpu = perf_counter(), process_time()
            bench.store(scan_at(next(hours), wires))
            return perf_counter() - began, process_time() - cpu

        yield load


@contextmanager
def _theirs(script: str, url: str) -> Iterator[_Load]:
    """Run a peer's script for each listing; its last line is the seconds it took, and its CPU."""
    with tempfile.TemporaryDirectory() as folder:
        tasks = Path(folder) / "tasks.json"
        command = [str(PYTHON), str(Path(__file__).with_name(script)), url, str(tasks), folder]

        def load(wires: Wire) -> tuple[float, float]:
            tasks.write_text(json.dumps(wires))
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603 - ours
            wall, cpu = map(float, done.stdout.split()[-2:])
            return wall, cpu

        yield load


def _round(server_url: str, listings: Mapping[str, Wire], opened: _Opened) -> list[_Taken]:
    """Return what each listing took, beginning with an empty database."""
    taken = []
    with database(server_url) as url, opened(url) as load, psycopg.connect(url, autocommit=True) as observer:
        observer.execute("CHECKPOINT")
        for wires in listings.values():
            wal, server = wal_of(observer), _server_cpu(observer)
            wall, cpu = load(wires)
            taken.append(_Taken(wall, cpu + _server_cpu(observer) - server, wal_of(observer) - wal))
    return taken


def _server_cpu(connection: psycopg.Connection[Any]) -> float:
    """Return the seconds that the server's processes have computed, those that ended included."""
    if not psutil.pid_exists(connection.info.backend_pid):
        return 0.0  # it is elsewhere
    server = psutil.Process(connection.info.backend_pid).parent()
    assert server is not None  # noqa: S101 - every session has one
    ended = server.cpu_times()
    alive = [process.cpu_times() for process in (server, *server.children())]
    return ended.children_user + ended.children_system + sum(times.user + times.system for times in alive)


def _median(taken: Iterable[_Taken]) -> _Taken:
    return _Taken(*map(median, zip(*taken, strict=True)))
