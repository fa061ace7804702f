"""Pages that have not changed: told by their bytes, and the same tasks as if they had been parsed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from collector.aws.accounts import Accounts
from collector.aws.clients import Clients
from collector.aws.listing import Lister
from collector.clock import never_the_same_twice, utc_now
from collector.domain import Failure, Scan, Target
from collector.simulator import Fleet, Simulator
from collector.simulator.faults import HtmlPage, RepeatedToken, TruncatedXml
from tests.simulation import ACCOUNT, OTHER_REGION, REGION, asking_of, wire

TARGET = Target(ACCOUNT, REGION)
SAMPLES = sorted((Path(__file__).parent / "samples").glob("*.json"))
SHORT = 1000
"""Bytes: more than a page without tasks has, less than one with any."""

Look = Callable[..., Scan | Failure]


@pytest.fixture
def parsed(clients: Clients) -> list[int]:
    """Collect the sizes of the pages that botocore's parser is given."""
    sizes: list[int] = []
    event = "before-parse.ec2.DescribeImportImageTasks"
    clients.client("ec2").meta.events.register(
        event, lambda response_dict, **_: sizes.append(len(response_dict["body"])), unique_id=object()
    )
    return sizes


@pytest.fixture
def look(clients: Clients, simulator: Simulator) -> Look:
    """Look with one lister, which remembers."""
    assert simulator
    accounts = Accounts(clients)
    asking = asking_of(accounts)
    lister = Lister(clients, asking, now=never_the_same_twice(utc_now), missing=lambda _: ())
    return lambda target=TARGET: lister.look(target)


def scan_of(result: Scan | Failure) -> Scan:
    """Return a look that went well."""
    assert isinstance(result, Scan), result
    return result


def put(fleet: Fleet, number: int, **members: Any) -> None:
    """Place tasks of some size."""
    for name in range(number):
        fleet.put(ACCOUNT, REGION, wire(f"{name:04}", Description="x" * SHORT, **members))


def test_an_unchanged_page_is_not_parsed(look: Look, fleet: Fleet, parsed: list[int]) -> None:
    """Its request id differs each time."""
    put(fleet, 3)
    first, second, third = scan_of(look()), scan_of(look()), scan_of(look())
    assert [size > SHORT for size in parsed] == [True, False, False]
    assert first.digest == second.digest == third.digest
    assert first.observed_at < second.observed_at < third.observed_at
    assert tuple(first.tasks) == tuple(second.tasks) == tuple(third.tasks)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_recognised_tasks_are_those_that_were_parsed(look: Look, fleet: Fleet, sample: Path) -> None:
    """All fields, disks, tags and licences, whatever oddities they have."""
    answer = json.loads(sample.read_bytes())
    for task in answer.get("ImportImageTasks", [answer]):
        fleet.put(ACCOUNT, REGION, task)
    parsed, recognised = scan_of(look()).tasks, scan_of(look()).tasks
    assert tuple(recognised) == tuple(parsed)
    assert (recognised.ids, recognised.statuses, recognised.unfinished, len(recognised)) == (
        parsed.ids,
        parsed.statuses,
        parsed.unfinished,
        len(parsed),
    )


def test_whatever_changes_is_seen(look: Look, fleet: Fleet) -> None:
    """And what changes back, too."""
    put(fleet, 3, Progress="30")
    first = scan_of(look())
    put(fleet, 3, Progress="31")
    second = scan_of(look())
    put(fleet, 3, Progress="30")
    third = scan_of(look())
    assert {task.progress for task in second.tasks} == {"31"}
    assert first.digest == third.digest != second.digest


def test_only_the_page_that_changed_is_parsed(look: Look, fleet: Fleet, parsed: list[int]) -> None:
    """However many pages there are."""
    put(fleet, 1200)
    first = scan_of(look())
    parsed.clear()
    fleet.put(ACCOUNT, REGION, wire("0700", Description="x" * SHORT, Progress="99"))
    second = scan_of(look())
    assert [size > SHORT for size in parsed] == [False, True, False]
    assert len(second.tasks) == len(first.tasks) == 1200
    assert [task.progress for task in second.tasks if task.progress] == ["99"]


def test_pages_that_have_not_changed_are_not_read_to_join_them(look: Look, fleet: Fleet) -> None:
    """Two looks alike have the very same tasks; another one is joined anew, from the same ids."""
    put(fleet, 1200)
    first, second, third = scan_of(look()), scan_of(look()), scan_of(look())
    assert second.tasks is third.tasks
    assert tuple(second.tasks) == tuple(first.tasks)
    put(fleet, 1, Progress="99")
    changed = scan_of(look())
    assert changed.digest != first.digest
    assert changed.tasks.ids == first.tasks.ids


def test_targets_are_told_apart(look: Look, fleet: Fleet) -> None:
    """A page says nothing of the Region that it is from."""
    put(fleet, 2)
    assert [len(scan_of(look(Target(ACCOUNT, region))).tasks) for region in (REGION, OTHER_REGION) * 2] == [
        2,
        0,
        2,
        0,
    ]


@pytest.mark.parametrize(
    "fault", [TruncatedXml(), HtmlPage(), RepeatedToken()], ids=lambda f: type(f).__name__
)
def test_what_is_no_listing_is_never_remembered(
    look: Look, fleet: Fleet, simulator: Simulator, parsed: list[int], fault: Any
) -> None:
    """Nor does it make anybody forget the last one."""
    put(fleet, 3)
    before = scan_of(look())
    simulator.faults.add(fault, action="DescribeImportImageTasks", times=1)
    look()
    parsed.clear()
    after = scan_of(look())
    assert after.digest == before.digest
    assert parsed[-1] < SHORT
