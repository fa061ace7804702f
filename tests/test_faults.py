"""A failed, partial or nonsense answer closes nothing.

One story is told for all faults at once, each in a Region of its own: a good poll with tasks under way, a
poll in which everything goes wrong that can, and a good one that shows how the tasks went on. The tests then
look at what each Region's part in it was.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest

from collector.commands.wiring import Polling
from collector.domain import Failure, Scan
from collector.outcomes import Tally
from collector.polling import look_at_all
from collector.simulator import Simulator
from collector.simulator.faults import (
    Denied,
    Drip,
    DuplicateOverPages,
    EmptyListing,
    EndlessPages,
    ErrorAnswer,
    Fault,
    HtmlPage,
    Latency,
    MissingTask,
    RepeatedToken,
    Reset,
    ServerError,
    Stall,
    Throttle,
    TokenCycle,
    TruncatedXml,
)
from collector.warehouse.access import Warehouse
from collector.warehouse.outages import record_answers
from collector.warehouse.recording import record
from tests.conftest import create_database, drop_database
from tests.simulation import (
    ACCOUNT,
    OTHER_REGION,
    REGION,
    eventually,
    polled,
    rows,
    settings,
    simulated,
    wire,
)

LIMIT = timedelta(seconds=2)
TASKS = ("a", "b")

Row = tuple[Any, ...]


@dataclass(frozen=True)
class Case:
    """One fault, where it hits, and which codes the failure may have; none when the look survives it."""

    fault: Fault
    codes: tuple[str, ...] = ()
    hits: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Say what it is, for people."""
        return f"{self.fault} {dict(self.hits) or ''}"


LATE = "DeadlineExceeded"
CLOSED = ("ConnectionClosed", "HTTPClient", "ResponseStreaming", LATE)
NONSENSE = ("UnusableAnswer", LATE)
PAGE_2: Mapping[str, Any] = {"page": 2}
TWICE: Mapping[str, Any] = {"times": 2}

FAILING = [
    Case(Throttle(), ("RequestLimitExceeded", LATE)),
    Case(Throttle(), ("RequestLimitExceeded", LATE), PAGE_2),
    Case(ServerError(), ("InternalError", LATE)),
    Case(ServerError("Unavailable"), ("Unavailable", LATE), PAGE_2),
    Case(Denied(), ("UnauthorizedOperation",)),
    Case(Denied(), ("UnauthorizedOperation",), PAGE_2),
    Case(Denied("AuthFailure"), ("AuthFailure",)),
    Case(ErrorAnswer("Blocked"), ("Blocked",)),
    Case(ErrorAnswer("OptInRequired"), ("OptInRequired",)),
    Case(ErrorAnswer("ExpiredToken"), ("ExpiredToken",)),
    Case(ErrorAnswer("InvalidClientTokenId"), ("InvalidClientTokenId",)),
    Case(ErrorAnswer("RequestExpired"), ("RequestExpired", LATE)),
    Case(ErrorAnswer("InvalidNextToken"), ("InvalidNextToken", LATE), PAGE_2),
    Case(Reset(), CLOSED),
    Case(Reset(after_half=True), CLOSED, PAGE_2),
    Case(Stall(), (LATE,)),
    Case(Stall(), (LATE,), PAGE_2),
    Case(Drip(), (LATE,)),
    Case(Latency(60), (LATE,)),
    Case(TruncatedXml(), NONSENSE),
    Case(TruncatedXml(), NONSENSE, PAGE_2),
    Case(HtmlPage(), NONSENSE),
    Case(HtmlPage(), NONSENSE, PAGE_2),
    Case(HtmlPage(well_formed=False), NONSENSE),
    Case(TokenCycle(), ("EndlessListing",)),
    Case(RepeatedToken(), ("EndlessListing",)),
    Case(EndlessPages(), ("EndlessListing", LATE)),
]
SURVIVED = [
    Case(Throttle(), hits=TWICE),
    Case(ServerError(), hits={"times": 1, "page": 2}),
    Case(Reset(), hits=TWICE),
    Case(Reset(after_half=True), hits={"times": 1}),
    Case(TruncatedXml(), hits={"times": 1, "page": 2}),
    Case(HtmlPage(), hits={"times": 1}),
    Case(ErrorAnswer("RequestExpired"), hits={"times": 1, "page": 2}),
    Case(ErrorAnswer("InvalidNextToken"), hits={"times": 1, "page": 2}),
    Case(Latency(0.05)),
    Case(DuplicateOverPages()),
    Case(MissingTask(ids=("import-ami-b",))),
    Case(EmptyListing(), hits={"only_listing": True}),
]
DOUBTFUL = [
    Case(Denied(), hits={"only_lookups": True}),
    Case(Throttle(), hits={"only_lookups": True}),
    Case(HtmlPage(), hits={"only_lookups": True}),
    Case(Stall(), hits={"only_lookups": True}),
    Case(EmptyListing()),
]
"""Nothing is listed, and the look-ups fail as well, or find nothing."""
ALL = [*FAILING, *SURVIVED, *DOUBTFUL]
REGIONS = {case.name: f"eu-fault-{number}" for number, case in enumerate(ALL)}
HEALTHY = ("eu-healthy-1", "us-healthy-1")

cases = pytest.mark.parametrize


@dataclass(frozen=True)
class Poll:
    """What one poll brought, and what the warehouse held afterwards, by Region."""

    looks: dict[str, Scan | Failure]
    versions: dict[str, list[Row]]
    outages: dict[str, list[Any]]


def look_once(warehouse: Warehouse, polling: Polling) -> Tally:
    """Do what ``collector backfill`` does."""
    return record(warehouse.engine, [result for _, result in _looks(polling)])


def _looks(polling: Polling) -> list[tuple[str, Scan | Failure]]:
    looks = look_at_all(polling.discover().targets, polling.look, concurrency=64)
    return [(target.region, result) for target, result in looks if result is not None]


def poll(warehouse: Warehouse, polling: Polling) -> Poll:
    """Look at all targets, record it, and read the warehouse."""
    looks = dict(_looks(polling))
    record(warehouse.engine, looks.values())
    versions: dict[str, list[Row]] = {region: [] for region in looks}
    for row in rows(
        warehouse.engine,
        "SELECT t.region, v.* FROM vm_import.task_versions v JOIN vm_import.targets t USING (target_id)"
        " ORDER BY v.task_id, v.valid_from",
    ):
        versions[row.region].append(tuple(row))
    outages: dict[str, list[Any]] = {region: [] for region in looks}
    for row in rows(warehouse.engine, "SELECT * FROM vm_import.outages ORDER BY outage_id"):
        outages[row.region].append(row)
    return Poll(looks, versions, outages)


def add_fault(simulator: Simulator, case: Case, region: str) -> None:
    """Let a case begin in its Region."""
    if case in DOUBTFUL:
        simulator.faults.add(EmptyListing(), region=region, only_listing=True)
    simulator.faults.add(case.fault, region=region, **case.hits)


@dataclass(frozen=True)
class Story:
    """The three polls, told apart by what AWS did."""

    before: Poll
    during: Poll
    after: Poll


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    """Every Region has two tasks under way, on two pages."""
    with simulated(REGION, OTHER_REGION, *REGIONS.values(), *HEALTHY) as simulator:
        simulator.page_size = 1
        yield simulator


@pytest.fixture(scope="module")
def url(server_url: str, migrated: str) -> Iterator[str]:
    """A migrated database for this module."""
    yield create_database(server_url, "faults", migrated)
    drop_database(server_url, "faults")


@pytest.fixture(scope="module")
def parts(simulator: Simulator, url: str) -> Iterator[tuple[Warehouse, Polling]]:
    """What ``collector backfill --source api`` is put together from."""
    assert simulator
    with polled(settings(url, concurrency=64, target_deadline=LIMIT)) as parts:
        yield parts


@pytest.fixture(scope="module")
def story(simulator: Simulator, parts: tuple[Warehouse, Polling]) -> Story:
    """Tell the story."""
    warehouse, polling = parts
    progress(simulator, REGIONS.values(), "10")
    progress(simulator, HEALTHY, "10")
    # The first clients of so many Regions take longer to make than a look may last.
    eventually(lambda: not look_once(warehouse, polling).failures, timeout=60)
    with warehouse.engine.begin() as connection:
        connection.exec_driver_sql("TRUNCATE vm_import.outages")
    before = poll(warehouse, polling)
    assert all(isinstance(look, Scan) and look.complete for look in before.looks.values())
    for case in ALL:
        add_fault(simulator, case, REGIONS[case.name])
    progress(simulator, HEALTHY, "50")
    progress(simulator, [REGIONS[case.name] for case in FAILING], "50")
    during = poll(warehouse, polling)
    simulator.faults.clear()
    progress(simulator, REGIONS.values(), "90")
    after = poll(warehouse, polling)
    return Story(before, during, after)


def progress(simulator: Simulator, regions: Any, percent: str) -> None:
    """Let all tasks of these Regions go on."""
    for region in regions:
        for name in TASKS:
            simulator.fleet.put(ACCOUNT, region, wire(name, Progress=percent))


def by_name(case: Case) -> str:
    """Name a case in pytest's output."""
    return case.name


@cases("case", ALL, ids=by_name)
def test_nothing_closes(story: Story, case: Case) -> None:
    """Every row of task_versions is what it was, whatever the answer or its absence."""
    region = REGIONS[case.name]
    assert len(story.before.versions[region]) == len(TASKS)
    assert story.during.versions[region] == story.before.versions[region]


@cases("case", FAILING, ids=by_name)
def test_a_failure_is_an_outage_that_names_itself(story: Story, case: Case) -> None:
    """Account, Region and code, of the look and in the warehouse."""
    region = REGIONS[case.name]
    look = story.during.looks[region]
    assert isinstance(look, Failure)
    assert (look.account_id, look.region) == (ACCOUNT, region)
    assert look.code in case.codes
    (outage,) = story.during.outages[region]
    assert (outage.account_id, outage.region, outage.failures) == (ACCOUNT, region, 1)
    assert (outage.error_code, outage.message) == (look.code, look.message)
    assert outage.recovered_at is None


@cases("case", FAILING, ids=by_name)
def test_a_good_poll_ends_the_outage(story: Story, case: Case) -> None:
    """The one row has its end, at the instant of the good look."""
    region = REGIONS[case.name]
    look = story.after.looks[region]
    assert isinstance(look, Scan)
    (outage,) = story.after.outages[region]
    assert outage.recovered_at == look.observed_at


@cases("case", ALL, ids=by_name)
def test_the_truth_is_recorded_when_the_fault_is_over(story: Story, case: Case) -> None:
    """Each task's version of before the fault ends at the look after it, and the new one holds."""
    region = REGIONS[case.name]
    look = story.after.looks[region]
    assert isinstance(look, Scan)
    assert look.complete
    assert [task.progress for task in look.tasks] == ["90", "90"]
    assert len(story.after.versions[region]) == 2 * len(TASKS)
    assert sum(look.observed_at in row for row in story.after.versions[region]) == 2 * len(TASKS)


@cases("case", SURVIVED, ids=by_name)
def test_a_fault_that_is_survived_leaves_no_trace(story: Story, case: Case) -> None:
    """A complete scan, and no outage."""
    region = REGIONS[case.name]
    look = story.during.looks[region]
    assert isinstance(look, Scan)
    assert look.complete
    assert story.after.outages[region] == []


@cases("case", DOUBTFUL, ids=by_name)
def test_a_doubt_makes_the_scan_partial(story: Story, case: Case) -> None:
    """EC2 answered, so there is no outage; what it left out means nothing."""
    region = REGIONS[case.name]
    look = story.during.looks[region]
    assert isinstance(look, Scan)
    assert (look.complete, len(look.tasks)) == (False, 0)
    assert story.after.outages[region] == []


@cases("region", HEALTHY)
def test_other_regions_of_the_poll_are_none_the_worse(story: Story, region: str) -> None:
    """In the midst of all faults, what changed there was recorded."""
    look = story.during.looks[region]
    assert isinstance(look, Scan)
    assert [task.progress for task in look.tasks] == ["50", "50"]
    assert len(story.during.versions[region]) == 2 * len(TASKS)
    assert story.during.outages[region] == []


@cases(
    "fault",
    [Denied(), HtmlPage(), HtmlPage(well_formed=False), Stall()],
    ids=repr,
)
def test_an_account_that_does_not_name_its_regions(
    story: Story, simulator: Simulator, parts: tuple[Warehouse, Polling], fault: Fault
) -> None:
    """There is an outage of the account with AWS's code; nothing closes, and the account's answer ends it."""
    warehouse, polling = parts
    versions = "SELECT * FROM vm_import.task_versions ORDER BY task_id, valid_from"
    outages = "SELECT account_id, failures, recovered_at FROM vm_import.outages WHERE region IS NULL"
    before = rows(warehouse.engine, versions)
    assert story
    with simulator.faults.add(fault, action="DescribeRegions"):
        record(warehouse.engine, polling.discover().failures)
    assert rows(warehouse.engine, versions) == before
    assert rows(warehouse.engine, f"{outages} AND recovered_at IS NULL") == [(ACCOUNT, 1, None)]
    look_once(warehouse, polling)
    assert rows(warehouse.engine, f"{outages} AND recovered_at IS NULL") == [(ACCOUNT, 1, None)]
    found = polling.discover()
    record_answers(warehouse.engine, found.answered, found.asked_at)
    assert rows(warehouse.engine, f"{outages} AND recovered_at IS NULL") == []


@cases("fault", [EmptyListing(), MissingTask(fraction=0.5)], ids=repr)
@cases("lookups_fail", [False, True], ids=["looked up", "not to be looked up"])
def test_a_short_listing_expires_no_task_that_was_first_seen_finished(
    database_url: str, fault: Fault, lookups_fail: bool
) -> None:
    """When it ended nobody knows, so only a look-up can tell that it is gone."""
    with simulated(REGION) as simulator, polled(settings(database_url)) as (warehouse, polling):
        for number in range(28):
            simulator.fleet.put(ACCOUNT, REGION, wire(str(number), Status="completed"))
        before = poll(warehouse, polling).versions[REGION]
        simulator.faults.add(fault, only_listing=True)
        if lookups_fail:
            simulator.faults.add(Denied(), only_lookups=True)
        during = poll(warehouse, polling)
    look = during.looks[REGION]
    assert isinstance(look, Scan)
    assert (look.complete, len(before)) == (not lookups_fail, 28)
    assert during.versions[REGION] == before


def test_look_ups_that_do_not_fit_one_look_go_on_in_the_next(database_url: str) -> None:
    """What EC2 has said to be gone is not asked again, so that the doubt is settled some time."""
    with (
        simulated(REGION) as simulator,
        polled(settings(database_url, target_deadline=timedelta(seconds=1))) as (warehouse, polling),
    ):
        for number in range(28):
            simulator.fleet.put(ACCOUNT, REGION, wire(str(number), Status="completed"))
        poll(warehouse, polling)
        for number in range(28):
            simulator.fleet.remove(ACCOUNT, REGION, f"import-ami-{number}")
        simulator.latency = 0.08
        before = simulator.count(action="DescribeImportImageTasks")
        looks = 0
        complete = False
        while not complete:
            looks += 1
            look = poll(warehouse, polling).looks[REGION]
            complete = isinstance(look, Scan) and look.complete
        asked = simulator.count(action="DescribeImportImageTasks") - before
    assert looks > 1
    assert asked <= 28 + 2 * looks  # a listing each, and the look-up that the deadline cut short


def backfill(url: str) -> subprocess.CompletedProcess[str]:
    """Run the real command on two Regions."""
    return subprocess.run(
        [sys.executable, "-m", "collector", "backfill", "--source", "api", "--json"],
        env={
            **os.environ,
            "COLLECTOR_DATABASE_URL": url,
            "COLLECTOR_REGIONS": f"{REGION},{OTHER_REGION}",
            "COLLECTOR_TARGET_DEADLINE": "2s",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_command_names_the_failed_region_and_ends_with_3(simulator: Simulator, database_url: str) -> None:
    """The other Region is stored."""
    with simulator.faults.add(Denied(), region=REGION):
        done = backfill(database_url)
    assert done.returncode == 3
    assert f"account {ACCOUNT}, Region {REGION}: UnauthorizedOperation" in done.stderr
    summary = json.loads(done.stdout)
    assert (summary["scans"], len(summary["failures"])) == (1, 1)


@cases("fault", [HtmlPage(), HtmlPage(well_formed=False), Denied("InvalidClientTokenId")], ids=repr)
def test_the_command_ends_with_a_sentence_when_nobody_knows_the_account(
    simulator: Simulator, database_url: str, fault: Fault
) -> None:
    """No traceback, and not the proxy's page."""
    with simulator.faults.add(fault, action="GetCallerIdentity"):
        done = backfill(database_url)
    assert done.returncode == 1
    assert done.stderr.startswith("collector: AWS does not say whose credentials these are")
    assert "Traceback" not in done.stderr
    assert "Sign in" not in done.stderr
