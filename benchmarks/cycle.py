"""One cycle of the daemon over very many targets in which nothing has changed: how long, and how much memory?

The real daemon with its loader, leases and doubts looks at a canned EC2, 80 ms away, and stores in a real
database, in a process of its own. The bounds are those of its two sides alone: a bare HTTP client that asks
as often, and one COPY of as many rows of ``scans``; a cycle can hardly be quicker than the slower one. The
memory is that beyond an interpreter that has imported the same libraries and made one client.
Set ``BENCH_FULL=1`` for a hundred cycles instead of ten.
"""

import gc
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from statistics import median
from time import perf_counter, process_time, sleep
from typing import Any

import psutil
import urllib3

from benchmarks.canned import serving
from benchmarks.fetch import CONNECTIONS, LATENCY, asking_bare, credentials_of, led_to, targets, timed
from benchmarks.load import START, Bench, Row, database
from collector.aws.asking import Asking
from collector.aws.clients import Clients
from collector.aws.deadline import Deadlines
from collector.aws.listing import Lister
from collector.aws.transform import import_task, wire_task
from collector.clock import never_the_same_twice, utc_now
from collector.commands.doubts import Doubts
from collector.daemon import Daemon, Work
from collector.domain import Discovered, Failure, Scan, Target, Tasks
from collector.loader import Loader
from collector.outcomes import Tally
from collector.polling import Cadence, leased
from collector.sightings import Sightings
from collector.spool import Spool
from collector.warehouse import schema
from collector.warehouse.engine import connect_to_url, make_engine
from collector.warehouse.leases import Leases
from collector.warehouse.recording import record

TASKS = 20
CYCLES = 100 if os.environ.get("BENCH_FULL") else 10
TICK = timedelta(milliseconds=200)
"""Between two ticks: the daemon's own of a second would be a large part of a cycle without a pause."""

MEMORY = 150.0
"""MB that the daemon may take."""


class _Counter:
    """The daemon's observer: counts looks and what is stored."""

    def __init__(self) -> None:
        self.stored = 0
        self.failed: Failure | None = None

    def looked(self, _target: Target, result: Any, _seconds: float) -> None:
        """Remember a failure: there must be none."""
        if not isinstance(result, Scan) or not result.complete:
            self.failed = result

    def recorded(self, tally: Tally, _seconds: float) -> None:
        """Count."""
        self.stored += tally.scans


def rows(server_url: str) -> Iterator[Row]:
    """Let the daemon go round in a process of its own, and then each side alone."""
    with serving(TASKS, LATENCY) as port, database(server_url) as url:
        command = [sys.executable, "-m", "benchmarks.cycle", url, str(port)]
        output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout  # noqa: S603
        measured = json.loads(output.splitlines()[-1])
        with led_to(port), urllib3.PoolManager(maxsize=CONNECTIONS) as pool:
            bare = median(timed(asking_bare(pool, port)) for _ in range(3))
        with closing(Bench(url)) as bench:
            scans = [Scan(target, START, START, True, "api", Tasks()) for target in targets()]
            copy = bench.cost(bench.copy_scans, scans).wall
    question = f"a cycle of {len(targets())} unchanged targets of {TASKS} tasks"
    yield Row(f"{question}, CPU / wall of the slower bound", measured["cpu"], max(bare, copy))
    yield Row(f"{question} / the slower of fetch and load", measured["wall"], max(bare, copy))
    yield Row(f"memory of the daemon after it / {MEMORY:g} MB", measured["memory"], MEMORY, " MB")
    yield Row(f"memory after {CYCLES} cycles / after 3", measured["last"], measured["third"], " MB")


def _measure(url: str, port: int) -> dict[str, float]:
    """Be the daemon."""
    schema.upgrade(make_engine(connect_to_url(url)))
    connect, engine = connect_to_url(url), make_engine(connect_to_url(url))
    with led_to(port):
        clients = Clients(connections=CONNECTIONS, patience=timedelta(minutes=1))
        clients.client("ec2")
    before = _memory()
    sightings, counter = Sightings(), _Counter()
    now = never_the_same_twice(utc_now)
    asking = Asking(credentials_of, deadlines=Deadlines(), now=now, limit=timedelta(seconds=30))
    cadence = Cadence(
        interval=timedelta(hours=1), idle_interval=timedelta(hours=1), concurrency=CONNECTIONS * 4
    )
    leases = Leases(connect)
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(Doubts(connect, sightings)) as doubts,
        closing(leases),
        closing(clients),
    ):
        lister = Lister(clients, asking, now=now, missing=doubts.missing)
        spool = Spool(Path(folder) / "spool", limit=2**30, to_wire=wire_task, from_wire=import_task)
        loader = Loader(
            store=lambda looks: record(engine, looks),
            reach=lambda: None,
            repair=lambda: None,
            give_up=lambda: None,
            spool=spool,
            told=counter.recorded,
        )
        work = Work(
            discover=lambda: Discovered(tuple(targets()), (), (), now()),
            look=leased(lister.look, leases, patience=timedelta(0)),
            cancel=asking.deadlines.end,
            lead=leases.lead,
            now=now,
        )
        daemon = Daemon(work, cadence, loader, spool, sightings, counter, concurrency=CONNECTIONS, tick=TICK)
        running = threading.Thread(target=daemon.run)
        running.start()
        try:
            walls, cpus, memories = _go_round(cadence, counter, running.is_alive)
        finally:
            daemon.stop()
            running.join()
    return {
        "wall": median(walls[1:]),
        "cpu": median(cpus[1:]),
        "memory": memories[-1] - before,
        "third": memories[2],
        "last": memories[-1],
    }


def _go_round(
    cadence: Cadence, counter: _Counter, alive: Callable[[], bool]
) -> tuple[Sequence[float], Sequence[float], Sequence[float]]:
    """Let everything be due at once, again and again, until it is stored; the first load does not count."""
    walls, cpus, memories = [], [], []
    everything = targets()
    for cycle in range(1, CYCLES + 2):
        began, cpu = perf_counter(), process_time()
        if cycle > 1:  # the first time they are discovered
            cadence.set_targets(())
            cadence.set_targets(everything)
        while counter.stored < cycle * len(everything):
            if counter.failed or not alive():
                raise RuntimeError(counter.failed or "the daemon ended")
            sleep(0.02)
        walls.append(perf_counter() - began)
        cpus.append(process_time() - cpu)
        memories.append(_memory())
        told = f"{walls[-1]:.2f} s, CPU {cpus[-1]:.2f} s, {memories[-1]:.1f} MB"
        print(f"cycle {cycle}: {told}", file=sys.stderr)
    return walls, cpus, memories


def _memory() -> float:
    gc.collect()
    return float(psutil.Process().memory_info().rss) / 2**20


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1], int(sys.argv[2]))))
