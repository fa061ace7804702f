"""What does a page of a thousand tasks cost that has not changed, against boto3's parse of it?

CPU of one look at a time, without latency; a call for a page without tasks is taken off both, because it is
the same for both: what is left is what the page costs.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from statistics import median
from time import process_time

from benchmarks.canned import serving
from benchmarks.fetch import ask_boto3, led_to, listing
from benchmarks.load import Row
from collector.aws.clients import Clients
from collector.domain import Target

TASKS = 1000
REPEATS = 15
TARGET = Target("000000000001", "xx-bench-0")


def rows() -> Iterator[Row]:
    """Ask for the page and for an empty one, both ways."""
    (ours, theirs), (our_call, their_call) = (_cost(tasks) for tasks in (TASKS, 0))
    question = f"CPU for an unchanged page of {TASKS} tasks"
    yield Row(f"{question} / boto3's parse", ours - our_call, theirs - their_call)
    yield Row(f"{question}, the whole call / boto3's call", ours, theirs)


def _cost(tasks: int) -> tuple[float, float]:
    """Return the CPU of a look, and that of boto3's call alone."""
    with serving(tasks, 0) as port, led_to(port):
        clients = Clients(connections=1, patience=timedelta(minutes=1))
        with closing(clients), listing(clients) as lister:
            lister.look(TARGET)
            return _median(lambda: lister.look(TARGET)), _median(lambda: ask_boto3(clients, TARGET))


def _median(ask: Callable[[], object]) -> float:
    taken = []
    for _ in range(REPEATS):
        began = process_time()
        ask()
        taken.append(process_time() - began)
    return median(taken)
