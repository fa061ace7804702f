"""Runs daemons: in this process with the very parts of ``collector run``, or as the command itself."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from collector.clock import utc_now
from collector.commands.composition import warehouse_of
from collector.commands.daemon import daemon_of
from collector.config import Settings
from collector.daemon import Daemon, Result
from collector.domain import Target
from collector.outcomes import Tally
from collector.warehouse.access import Warehouse

TICK = timedelta(seconds=0.02)


@dataclass
class Watched:
    """An observer that keeps what it is told."""

    looks: list[tuple[Target, Result]] = field(default_factory=list)
    tallies: list[Tally] = field(default_factory=list)

    def looked(self, target: Target, result: Result, seconds: float) -> None:  # noqa: ARG002 - not of interest
        """Keep a look."""
        self.looks.append((target, result))

    def recorded(self, tally: Tally, seconds: float) -> None:  # noqa: ARG002 - not of interest
        """Keep a tally."""
        self.tallies.append(tally)


@dataclass(frozen=True)
class Running:
    """A daemon that runs in a thread, what it tells, and the warehouse that it has."""

    daemon: Daemon
    seen: Watched
    warehouse: Warehouse


@contextmanager
def running(
    configuration: Settings,
    *,
    now: Callable[[], datetime] = utc_now,
    answer: float | None = 5.0,
) -> Iterator[Running]:
    """Run a daemon; it must end within seconds, and without an error.

    ``answer`` is how many seconds its database may take for one answer.
    """
    seen = Watched()
    errors: list[BaseException] = []
    with warehouse_of(configuration) as warehouse:
        warehouse.patience.seconds = answer
        with daemon_of(
            configuration, warehouse, accounts=(), known={}, observer=seen, now=now, tick=TICK
        ) as daemon:

            def run() -> None:
                try:
                    daemon.run()
                except BaseException as error:  # noqa: BLE001 - handed to the test, which lies in another thread
                    errors.append(error)

            thread = threading.Thread(target=run, name="daemon under test")
            thread.start()
            try:
                yield Running(daemon, seen, warehouse)
            finally:
                daemon.stop()
                thread.join(timeout=20)
    assert not thread.is_alive()
    assert errors == []


def start_daemon(database_url: str, **variables: str) -> subprocess.Popen[str]:
    """Start ``collector run`` as a process; the caller ends it. Its log is its standard error."""
    return subprocess.Popen(
        [sys.executable, "-m", "collector", "run"],
        env={
            **os.environ,
            "COLLECTOR_DATABASE_URL": database_url,
            "COLLECTOR_INTERVAL": "1s",
            "COLLECTOR_LISTEN": "127.0.0.1:0",
            **variables,
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
