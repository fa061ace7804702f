"""What do the clients for 100 accounts x 35 Regions cost, against a client for each pair?

Ours is one; the others come from one session, which is the cheapest way to make them. Each way is tried in a
process of its own, which says how much memory and CPU it took. Of the pairs only some are made: each costs
the same.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from time import process_time

import boto3
import psutil

from benchmarks.load import ACCOUNTS, REGIONS, Row
from collector.aws.clients import Clients

MADE = 70


def rows() -> Iterator[Row]:
    """Make them, each way in its own process."""
    (our_memory, our_seconds), (memory, seconds) = (_measured(way) for way in ("one", "pairs"))
    pairs = ACCOUNTS * REGIONS
    question = f"clients for {ACCOUNTS} accounts x {REGIONS} Regions / a client for each pair"
    yield Row(f"memory: {question}", our_memory, memory / MADE * pairs, " MB")
    yield Row(f"CPU: {question}", our_seconds, seconds / MADE * pairs)


def _measured(way: str) -> tuple[float, float]:
    command = [sys.executable, "-m", "benchmarks.clients", way]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout  # noqa: S603 - ours
    memory, seconds = json.loads(output)
    return memory, seconds


def _one() -> tuple[float, float]:
    """Make ours."""
    before, began = psutil.Process().memory_info().rss, process_time()
    Clients(connections=64, patience=timedelta(minutes=1)).client("ec2")
    return (psutil.Process().memory_info().rss - before) / 2**20, process_time() - began


def _pairs() -> tuple[float, float]:
    """Make clients for pairs; the first, which reads what all of them share, does not count."""
    session = boto3.Session()
    kept = []
    for number in range(MADE + 1):
        if number == 1:
            before, began = psutil.Process().memory_info().rss, process_time()
        keys = {"aws_access_key_id": f"AKIA{number}", "aws_secret_access_key": "x" * 40}
        kept.append(session.client("ec2", region_name=f"eu-west-{number % REGIONS}", **keys))
    return (psutil.Process().memory_info().rss - before) / 2**20, process_time() - began


if __name__ == "__main__":
    print(json.dumps(_one() if sys.argv[1] == "one" else _pairs()))
