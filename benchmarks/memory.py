"""How much memory does the daemon keep, and does it keep more with every cycle?

In a process of its own, against a server and a database in others. The first figure is what the daemon of
3,500 targets with 20 tasks each has after two cycles, beyond an interpreter that has imported the same
libraries and made one client. The second is what it has after 100 cycles more, of 100 targets.
"""

import gc
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import timedelta

import psutil

from benchmarks import cycle
from benchmarks.canned import canned
from benchmarks.load import Row
from collector import daemon
from collector.aws.clients import Clients
from collector.web import app, metrics, server

ALLOWED = 150.0
SIZES = {"all": (100, 35, 2), "few": (10, 10, 10, 110)}
"""Accounts, Regions, and the cycles after which memory is looked at."""

_PARTS_OF_RUN = (app, daemon, metrics, server)
"""Imported because ``collector run`` imports them, too."""


def rows(server_url: str) -> Iterator[Row]:
    """Run the daemons one after the other."""
    bare = _in_a_process("bare", "", {})[0]
    *_, all_of_it = _daemon(server_url, "all")
    yield Row("memory of 3500 targets beyond the libraries / allowed", all_of_it - bare, ALLOWED, " MB")
    before, after = _daemon(server_url, "few")
    yield Row("memory after 110 cycles of 100 targets / after 10", after, before, " MB")


def _daemon(server_url: str, name: str) -> list[float]:
    accounts, regions, *_ = SIZES[name]
    with cycle.database(server_url) as url, canned(tasks=cycle.TASKS, latency=0) as variables:
        with cycle.configured(url, variables, accounts=accounts, regions=regions) as settings:
            cycle.store_all(settings)
        return _in_a_process(name, url, variables)


def _in_a_process(name: str, url: str, variables: Mapping[str, str]) -> list[float]:
    command = [sys.executable, "-m", "benchmarks.memory", name, url]
    ended = subprocess.run(  # noqa: S603 - ourselves
        command, env={**os.environ, **variables}, stdout=subprocess.PIPE, text=True, check=True
    )
    return [float(size) for size in ended.stdout.split()]


def _resident() -> float:
    gc.collect()
    return float(psutil.Process().memory_info().rss) / 1e6


def _polling(name: str, url: str) -> Iterator[float]:
    accounts, regions, *cycles = SIZES[name]
    stored = cycle.Stored(accounts * regions)
    with (
        cycle.configured(url, {}, accounts=accounts, regions=regions) as settings,
        cycle.polling(settings, stored),
    ):
        for number in cycles:
            stored.wait_for(number)
            yield _resident()


def _main(name: str, url: str) -> None:
    if name == "bare":
        Clients(connections=cycle.CONNECTIONS, patience=timedelta(seconds=60)).ec2("us-east-1")
        print(_resident())
    else:
        print(*_polling(name, url))


if __name__ == "__main__":
    _main(*sys.argv[1:3])
