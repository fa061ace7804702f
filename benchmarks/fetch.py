"""What does it cost to fetch from EC2, against the plainest client that asks for the same bytes?

The server of these benchmarks answers after 80 ms. The limit of a cycle is a bare HTTP client with as many
connections, which neither signs nor parses. Set ``BENCH_FULL=1`` for 3,500 targets instead of 700.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from http.client import HTTPConnection
from multiprocessing import get_context
from statistics import median
from time import perf_counter, process_time, thread_time
from typing import NamedTuple

import boto3
import psutil

from benchmarks.load import Row
from benchmarks.page_server import serving
from collector.aws.accounts import RenewableCredentials
from collector.aws.clients import Clients, new_session
from collector.aws.listing import PAGE_SIZE, Lister
from collector.clock import never_the_same_twice, utc_now
from collector.domain import Failure, Scan, Target
from collector.polling import look_at_all

ALL_ACCOUNTS, REGIONS = 100, 35
ACCOUNTS = ALL_ACCOUNTS if os.environ.get("BENCH_FULL") else 20
CONNECTIONS, LATENCY, PAGE = 64, 0.08, 1000
REPEATS, PAGE_REPEATS = 5, 15
PAIRS = 300
"""How many clients are made to tell what one for each account and Region would take."""

_REQUEST = f"Action=DescribeImportImageTasks&Version=2016-11-15&MaxResults={PAGE_SIZE}".encode()
_PATIENCE = timedelta(seconds=60)


class Cost(NamedTuple):
    """Seconds of CPU, and MB of memory."""

    seconds: float
    megabytes: float


def rows() -> Iterator[Row]:
    """Measure cycles, a page, and clients."""
    yield _cycle(tasks=0)
    yield _cycle(tasks=20)
    yield _page()
    yield from _clients()


def _cycle(*, tasks: int) -> Row:
    names = [f"region-{number}" for number in range(REGIONS)]
    targets = [Target(f"{account:012}", name) for account in range(ACCOUNTS) for name in names]
    ours, limit = [], []
    with serving(tasks=tasks, latency=LATENCY) as port, _listing() as lister:
        _look_at(targets, lister)
        for _ in range(REPEATS):
            ours.append(_timed(perf_counter, _look_at, targets, lister))
            limit.append(_timed(perf_counter, _ask_barely, port, len(targets)))
    question = f"{len(targets)} targets of {tasks} tasks, unchanged / bare HTTP client"
    return Row(question, median(ours), median(limit))


def _page() -> Row:
    """Compare the CPU time of a whole look with that of boto3's call alone."""
    target = Target("111122223333", "us-east-1")
    ours, limit = [], []
    with serving(tasks=PAGE, latency=0) as _, _listing() as lister:
        client = boto3.Session().client("ec2", region_name=target.region)
        for _ in range(PAGE_REPEATS):
            limit.append(_timed(thread_time, client.describe_import_image_tasks))
            ours.append(_timed(thread_time, _look_at_one, target, lister))
    return Row(f"page of {PAGE} tasks, unchanged, CPU / boto3's parse", median(ours), median(limit))


def _clients() -> Iterator[Row]:
    """Compare in fresh processes; the time and memory of the many is a straight line through two points."""
    ours = _in_a_process(_one_for_each_region)[-1]
    some, more = _in_a_process(_one_for_each_pair)
    steps = (ALL_ACCOUNTS * REGIONS - PAIRS) / (PAIRS / 2)
    seconds, megabytes = (last + (last - first) * steps for first, last in zip(some, more, strict=True))
    question = f"clients for {ALL_ACCOUNTS * REGIONS} targets / one for each, told from {PAIRS}"
    yield Row(f"{question}, CPU", ours.seconds, seconds)
    yield Row(f"{question}, memory", ours.megabytes, megabytes, " MB")


@contextmanager
def _listing() -> Iterator[Lister]:
    clients = Clients(connections=CONNECTIONS, patience=_PATIENCE)
    own = RenewableCredentials(lambda: new_session().get_credentials())
    now = never_the_same_twice(utc_now)
    try:
        yield Lister(clients, lambda _: own, now=now, limit=_PATIENCE, missing=lambda _: ())
    finally:
        clients.close()


def _look_at(targets: Sequence[Target], lister: Lister) -> None:
    for _, result in look_at_all(targets, lister.look, concurrency=CONNECTIONS):
        _require(result)


def _look_at_one(target: Target, lister: Lister) -> None:
    _require(lister.look(target))


def _require(result: Scan | Failure) -> None:
    if isinstance(result, Failure):
        raise RuntimeError(str(result))  # noqa: TRY004 - a look that failed, not a type


def _ask_barely(port: int, requests: int) -> None:
    left = iter(range(requests))  # one thread's step at a time, whatever the number of threads
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        for done in [pool.submit(_ask_while, port, left) for _ in range(CONNECTIONS)]:
            done.result()


def _ask_while(port: int, left: Iterator[int]) -> None:
    connection = HTTPConnection("127.0.0.1", port)
    for _ in left:
        connection.request("POST", "/", _REQUEST)
        connection.getresponse().read()
    connection.close()


def _in_a_process(make: Callable[[], list[Cost]]) -> list[Cost]:
    with serving(tasks=0, latency=0), ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(make).result()


def _one_for_each_region() -> list[Cost]:
    cost = _costs()
    clients = Clients(connections=CONNECTIONS, patience=_PATIENCE)
    for number in range(REGIONS):
        clients.ec2(f"region-{number}")
    return [cost()]


def _one_for_each_pair() -> list[Cost]:
    cost = _costs()
    session, clients, costs = boto3.Session(), [], []
    for number in range(PAIRS):
        keys = {"aws_access_key_id": f"AKIA{number // REGIONS}", "aws_secret_access_key": "secret"}
        clients.append(session.client("ec2", region_name=f"region-{number % REGIONS}", **keys))
        if len(clients) in {PAIRS // 2, PAIRS}:
            costs.append(cost())
    return costs


def _costs() -> Callable[[], Cost]:
    """Return what tells the cost since now."""
    process = psutil.Process()
    began, before = process_time(), process.memory_info().rss
    return lambda: Cost(process_time() - began, (process.memory_info().rss - before) / 1e6)


def _timed(clock: Callable[[], float], work: Callable[..., object], *arguments: object) -> float:
    started = clock()
    work(*arguments)
    return clock() - started
