"""What does it cost to ask EC2, against the plainest client that asks the same server?

The limit is urllib3, on which botocore sits, sending ready-made requests from as many threads: it neither
signs nor parses. The server is ``canned``, 80 ms away. Ours are the looks of the daemon, from credentials to
``Scan``; what boto3 alone takes is shown beside them.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import timedelta
from statistics import median
from time import perf_counter
from typing import Any

import urllib3
from botocore.credentials import Credentials

from benchmarks.canned import serving
from benchmarks.load import Row
from collector.aws.asking import Asking
from collector.aws.clients import Clients, acting_as
from collector.aws.deadline import Deadlines
from collector.aws.listing import Lister
from collector.clock import never_the_same_twice, utc_now
from collector.domain import Scan, Target

ACCOUNTS, REGIONS = 100, 35
CONNECTIONS, LATENCY = 64, 0.08
REPEATS = 3
TASKS = (0, 20)

_BODY = "Action=DescribeImportImageTasks&Version=2016-11-15&MaxResults=500"


class StaticCredentials(Credentials):  # type: ignore[misc] # botocore has no types
    """Keys that nobody need renew."""

    def renew(self) -> None:
        """Leave them as they are."""


def targets() -> list[Target]:
    """Return the targets, accounts outside and Regions inside."""
    return [Target(f"{a:012}", f"xx-bench-{r}") for a in range(ACCOUNTS) for r in range(REGIONS)]


def credentials_of(account_id: str) -> StaticCredentials:
    """Return an account's keys."""
    return _CREDENTIALS.setdefault(account_id, StaticCredentials(f"AKIA{account_id}", "x" * 40, None))


_CREDENTIALS: dict[str, StaticCredentials] = {}


@contextmanager
def led_to(port: int) -> Iterator[None]:
    """Lead boto3 to a server of this machine."""
    before = dict(os.environ)
    os.environ |= {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_CONFIG_FILE": os.devnull}
    os.environ |= {"AWS_SHARED_CREDENTIALS_FILE": os.devnull, "NO_PROXY": "127.0.0.1"}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before


@contextmanager
def listing(clients: Clients) -> Iterator[Lister]:
    """Look as the daemon does; nothing is ever missing."""
    now = never_the_same_twice(utc_now)
    asking = Asking(credentials_of, deadlines=Deadlines(), now=now, limit=timedelta(minutes=5))
    yield Lister(clients, asking, now=now, missing=lambda _: ())


def rows() -> Iterator[Row]:
    """Ask every target once a round, everybody in turn."""
    for tasks in TASKS:
        with serving(tasks, LATENCY) as port, led_to(port):
            yield from _cycles(port, tasks)


def _cycles(port: int, tasks: int) -> Iterator[Row]:
    ours, theirs, bare = [], [], []
    clients = Clients(connections=CONNECTIONS, patience=timedelta(minutes=1))
    with closing(clients), listing(clients) as lister, urllib3.PoolManager(maxsize=CONNECTIONS) as pool:
        ask = asking_bare(pool, port)
        _timed_looks(lister, tasks)  # connections are open, and unchanged means unchanged, from here on
        for _ in range(REPEATS):
            ours.append(_timed_looks(lister, tasks))
            bare.append(timed(ask))
            theirs.append(timed(lambda target: ask_boto3(clients, target)))
    question = f"{len(targets())} targets of {tasks} tasks, {CONNECTIONS} connections"
    yield Row(f"{question} / a bare HTTP client", median(ours), median(bare))
    yield Row(f"boto3's calls alone, parsed: {question} / a bare HTTP client", median(theirs), median(bare))


def _timed_looks(lister: Lister, tasks: int) -> float:
    def look(target: Target) -> None:
        seen = lister.look(target)
        if not isinstance(seen, Scan) or len(seen.tasks) != tasks:
            raise RuntimeError(f"{target}: {seen}")

    return timed(look)


def timed(ask: Callable[[Target], object]) -> float:
    """Return the seconds that it takes to ask every target, as many at once as there are connections."""
    began = perf_counter()
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        list(pool.map(ask, targets()))
    return perf_counter() - began


def ask_boto3(clients: Clients, target: Target) -> Any:
    """Ask as anybody would, with the collector's client."""
    with acting_as(credentials_of(target.account_id), target.region):
        return clients.client("ec2").describe_import_image_tasks(MaxResults=500)


def asking_bare(pool: urllib3.PoolManager, port: int) -> Callable[[Target], bytes]:
    """Return what asks without signing and parsing."""
    url = f"http://127.0.0.1:{port}/"
    headers = {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}

    def ask(_: Target) -> bytes:
        return pool.request("POST", url, body=_BODY, headers=headers).data

    return ask
