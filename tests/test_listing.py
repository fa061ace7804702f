"""One look at a target, with real boto3 over a real socket against the simulated EC2."""

import json
import threading
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import Any

import psutil
import pytest

from collector.aws.accounts import Accounts
from collector.aws.clients import AwsUnavailableError, Clients
from collector.aws.listing import Lister
from collector.aws.saved import scan_of_files
from collector.clock import never_the_same_twice, utc_now
from collector.domain import Failure, Scan, Target
from collector.errors import WarehouseError
from collector.simulator import Fleet, Simulator
from collector.simulator.faults import (
    Denied,
    Drip,
    DuplicateOverPages,
    EmptyListing,
    EndlessPages,
    ErrorAnswer,
    Fault,
    HtmlPage,
    MissingTask,
    RepeatedToken,
    Reset,
    ServerError,
    Stall,
    Throttle,
    TokenCycle,
    TruncatedXml,
)
from tests.simulation import ACCOUNT, PLENTY, PRESIGNED, REGION, asking_of, eventually, wire

TARGET = Target(ACCOUNT, REGION)
SAMPLES = sorted((Path(__file__).parent / "samples").glob("*.json"))
LISTING = "DescribeImportImageTasks"

Look = Callable[..., Scan | Failure]


@pytest.fixture
def make_lister(clients: Clients, simulator: Simulator) -> Callable[..., Lister]:
    """Make a lister that has ``limit`` seconds, after its client was made, and misses these ids."""
    assert simulator
    accounts = Accounts(clients)
    accounts.current()
    clients.client("ec2")

    def make(*missing: str, limit: float = PLENTY.total_seconds()) -> Lister:
        def still_missing(scan: Scan) -> Collection[str]:
            return {f"import-ami-{name}" for name in missing} - {task.import_task_id for task in scan.tasks}

        now = never_the_same_twice(utc_now)
        asking = asking_of(accounts, now=now, limit=timedelta(seconds=limit))
        return Lister(clients, asking, now=now, missing=still_missing)

    return make


@pytest.fixture
def look(make_lister: Callable[..., Lister]) -> Look:
    """Look once."""
    return lambda *missing, **options: make_lister(*missing, **options).look(TARGET)


def put(fleet: Fleet, *names: str, **members: Any) -> None:
    """Place tasks."""
    for name in names:
        fleet.put(ACCOUNT, REGION, wire(name, **members))


def names(result: Scan | Failure) -> list[str]:
    """Return the names of the tasks that a scan saw."""
    assert isinstance(result, Scan), result
    return [task.import_task_id.removeprefix("import-ami-") for task in result.tasks]


def failure(result: Scan | Failure) -> Failure:
    """Return what must be a failure, of the right target."""
    assert isinstance(result, Failure), result
    assert (result.account_id, result.region) == (ACCOUNT, REGION)
    return result


def test_every_page_is_read(look: Look, fleet: Fleet, simulator: Simulator) -> None:
    """Five tasks on three pages are one complete scan."""
    put(fleet, *"abcde")
    simulator.page_size = 2
    scan = look()
    assert names(scan) == list("abcde")
    assert isinstance(scan, Scan)
    assert scan.complete
    assert simulator.count(action=LISTING) == 3


def test_no_tasks_is_a_complete_scan(look: Look) -> None:
    """An empty list is an answer."""
    scan = look()
    assert isinstance(scan, Scan)
    assert (len(scan.tasks), scan.complete, scan.source) == (0, True, "api")


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_the_api_and_a_saved_file_tell_the_same(look: Look, fleet: Fleet, sample: Path) -> None:
    """All 17 fields, disks, tags and licences: the same records, hashes and digest from both."""
    saved, _ = scan_of_files(
        [(sample.name, sample.read_bytes())], target=TARGET, observed_at=datetime.now(UTC), complete=True
    )
    answer = json.loads(sample.read_bytes())
    for task in answer.get("ImportImageTasks", [answer]):
        fleet.put(ACCOUNT, REGION, task)
    scan = look()
    assert isinstance(scan, Scan)
    assert saved is not None
    assert tuple(scan.tasks) == tuple(saved.tasks)
    assert scan.digest == saved.digest


def test_the_instant_is_taken_before_the_first_request(
    look: Look, fleet: Fleet, simulator: Simulator
) -> None:
    """What changes during the look was not yet so at its instant."""
    put(fleet, *"ab")
    simulator.page_size = 1
    simulator.latency = 0.05
    before = datetime.now(UTC)
    scan = look()
    after = datetime.now(UTC)
    assert isinstance(scan, Scan)
    assert before <= scan.observed_at <= after - timedelta(seconds=0.1)
    assert scan.observed_at + timedelta(seconds=0.1) <= scan.finished_at <= after


def test_an_id_that_comes_twice_counts_once(look: Look, fleet: Fleet, simulator: Simulator) -> None:
    """Tasks move between pages while they are read."""
    put(fleet, *"abc")
    simulator.page_size = 1
    simulator.faults.add(DuplicateOverPages())
    assert names(look()) == ["a", "b", "c"]


# Doubtful listings


def test_a_missing_task_that_a_look_up_finds_joins_the_scan(
    look: Look, fleet: Fleet, simulator: Simulator
) -> None:
    """The doubt is settled, so the scan is complete."""
    put(fleet, *"abc")
    simulator.faults.add(MissingTask(ids=("import-ami-b", "import-ami-c")))
    scan = look("b", "c")
    assert names(scan) == ["a", "b", "c"]
    assert isinstance(scan, Scan)
    assert scan.complete


def test_an_empty_listing_is_doubtful_too(look: Look, fleet: Fleet, simulator: Simulator) -> None:
    """EC2 answers well, but not truly."""
    put(fleet, *"ab")
    simulator.faults.add(EmptyListing(), only_listing=True)
    assert names(look("a", "b")) == ["a", "b"]


def test_a_task_that_ec2_no_longer_knows_is_gone(look: Look, fleet: Fleet) -> None:
    """``InvalidConversionTaskId`` settles the doubt as well."""
    put(fleet, "a")
    scan = look("b")
    assert names(scan) == ["a"]
    assert isinstance(scan, Scan)
    assert scan.complete


@pytest.mark.parametrize(
    "fault",
    [Throttle(), Denied(), ServerError(), HtmlPage(), TruncatedXml(), Reset(), Stall(), EmptyListing()],
    ids=repr,
)
def test_a_doubt_that_nobody_settles_leaves_the_scan_partial(
    look: Look, fleet: Fleet, simulator: Simulator, fault: Fault
) -> None:
    """What was seen is kept, what was not seen means nothing; the rest of the doubts are still settled."""
    put(fleet, *"abc")
    simulator.faults.add(MissingTask(ids=("import-ami-b",)))
    simulator.faults.add(fault, only_lookups=True)
    scan = look("b", limit=0.7)
    assert names(scan) == ["a", "c"]
    assert isinstance(scan, Scan)
    assert not scan.complete


def test_one_settled_doubt_of_two_joins_a_partial_scan(
    look: Look, fleet: Fleet, simulator: Simulator
) -> None:
    """One look-up is denied, the next one is not."""
    put(fleet, *"abc")
    simulator.faults.add(MissingTask(ids=("import-ami-b", "import-ami-c")))
    simulator.faults.add(Denied(), only_lookups=True, times=1)
    scan = look("b", "c")
    assert names(scan) == ["a", "c"]
    assert isinstance(scan, Scan)
    assert not scan.complete


def test_only_doubts_are_looked_up(look: Look, fleet: Fleet, simulator: Simulator) -> None:
    """A listing with everything in it costs one request."""
    put(fleet, *"ab")
    look("a", "b")
    assert simulator.count(action=LISTING) == 1


def test_a_listing_that_nobody_can_judge_is_partial(clients: Clients, fleet: Fleet) -> None:
    """The database that knows what to expect is away: what was seen is not lost, and says nothing more."""
    put(fleet, "a")

    def away(_: Scan) -> Collection[str]:
        raise WarehouseError("the database cannot be reached")

    lister = Lister(clients, asking_of(Accounts(clients)), now=utc_now, missing=away)
    scan = lister.look(TARGET)
    assert names(scan) == ["a"]
    assert isinstance(scan, Scan)
    assert not scan.complete


# Time


@pytest.mark.parametrize(
    ("fault", "page"),
    [
        pytest.param(Stall(), 1, id="stall"),
        pytest.param(Stall(), 2, id="stall on page 2"),
        pytest.param(Drip(every=0.1), 1, id="drip"),
        pytest.param(Drip(every=0.1), 2, id="drip on page 2"),
    ],
)
def test_one_deadline_is_over_everything(
    look: Look, clients: Clients, fleet: Fleet, simulator: Simulator, port: int, fault: Fault, page: int
) -> None:
    """A failure within about the limit, and neither thread nor socket is left behind."""
    put(fleet, *"ab")
    simulator.page_size = 1
    threads = threading.active_count()
    simulator.faults.add(fault, page=page)
    began = monotonic()
    assert failure(look(limit=0.5)).code == "DeadlineExceeded"
    assert monotonic() - began < 3
    clients.close()
    eventually(lambda: threading.active_count() <= threads)
    eventually(
        lambda: not [c for c in psutil.Process().net_connections("tcp") if c.raddr and c.raddr.port == port]
    )


def test_a_connection_survives_a_look_that_ran_out_of_time(
    look: Look, fleet: Fleet, simulator: Simulator
) -> None:
    """The next look is none the worse for it."""
    put(fleet, "a")
    with simulator.faults.add(Stall()):
        look(limit=0.3)
    assert names(look()) == ["a"]


@pytest.mark.parametrize("fault", [Throttle(), Reset(), ServerError("Unavailable")], ids=repr)
def test_retries_end_with_the_deadline(look: Look, simulator: Simulator, fault: Fault) -> None:
    """The last error is the cause, unless the time itself was over."""
    simulator.faults.add(fault)
    began = monotonic()
    assert failure(look(limit=0.5)).code in {
        "RequestLimitExceeded",
        "Unavailable",
        "ConnectionClosed",
        "DeadlineExceeded",
    }
    assert monotonic() - began < 3


def test_a_region_where_nobody_listens_is_tried_until_the_deadline(look: Look, simulator: Simulator) -> None:
    """A refused connection may be a moment's; it is a failure of that target when it lasts."""
    simulator.stop()
    began = monotonic()
    assert failure(look(limit=0.5)).code in {"EndpointConnection", "DeadlineExceeded"}
    assert 0.1 < monotonic() - began < 3


@pytest.mark.parametrize("fault", [Stall(), Drip(every=0.1), Throttle()], ids=repr)
def test_cancelling_ends_all_looks_at_once_and_for_ever(
    make_lister: Callable[..., Lister], simulator: Simulator, fault: Fault
) -> None:
    """Those in flight, whether they read or wait for a retry, and those that begin later."""
    lister = make_lister()
    rule = simulator.faults.add(fault)
    with ThreadPoolExecutor(4) as pool:
        looks = [pool.submit(lister.look, TARGET) for _ in range(4)]
        eventually(lambda: rule.hits >= 4)
        began = monotonic()
        lister.asking.deadlines.end()
        assert {failure(future.result(timeout=10)).code for future in looks} == {"Cancelled"}
    assert failure(lister.look(TARGET)).code == "Cancelled"
    assert monotonic() - began < 3


@pytest.mark.parametrize(
    ("fault", "page"),
    [
        (Throttle(), 1),
        (Throttle(), 2),
        (ServerError(), 1),
        (ServerError("Unavailable"), 2),
        (Reset(), 1),
        (Reset(after_half=True), 2),
        (TruncatedXml(), 1),
        (TruncatedXml(), 2),
        (HtmlPage(), 1),
        (HtmlPage(well_formed=False), 2),
        (ErrorAnswer("RequestExpired"), 2),
        (ErrorAnswer("InvalidNextToken"), 2),
    ],
    ids=repr,
)
def test_what_is_over_in_a_moment_is_survived(
    look: Look, fleet: Fleet, simulator: Simulator, fault: Fault, page: int
) -> None:
    """Twice the same fault, then the answer: a complete scan."""
    put(fleet, *"abc")
    simulator.page_size = 1
    rule = simulator.faults.add(fault, page=page, times=2)
    scan = look()
    assert names(scan) == ["a", "b", "c"]
    assert isinstance(scan, Scan)
    assert scan.complete
    assert rule.hits == 2


@pytest.mark.parametrize(
    ("fault", "first_pages"),
    [
        (ErrorAnswer("RequestExpired"), 2),
        (ErrorAnswer("InvalidNextToken"), 2),
        (HtmlPage(), 2),
        (Throttle(), 1),
    ],
    ids=repr,
)
def test_a_broken_listing_is_read_from_its_first_page_again(
    look: Look, fleet: Fleet, simulator: Simulator, fault: Fault, first_pages: int
) -> None:
    """A token of the old listing may be worth nothing; a throttled page is only asked for again."""
    put(fleet, *"ab")
    simulator.page_size = 1
    simulator.faults.add(fault, page=2, times=1)
    look()
    assert fleet.ledger is not None
    assert [shown.page for shown in fleet.ledger].count(1) == first_pages


def test_the_instant_of_a_listing_read_anew_is_the_new_one(look: Look, simulator: Simulator) -> None:
    """What the first attempt saw is not in the scan, so its instant must not be either."""
    simulator.latency = 0.1
    simulator.faults.add(ErrorAnswer("RequestExpired"), times=1)
    before = datetime.now(UTC)
    scan = look()
    assert isinstance(scan, Scan)
    assert scan.observed_at - before >= timedelta(seconds=0.1)


# Failures


@pytest.mark.parametrize("fault", [TokenCycle(), RepeatedToken(), EndlessPages()], ids=repr)
def test_pages_without_end_have_one(look: Look, fleet: Fleet, simulator: Simulator, fault: Fault) -> None:
    """Tokens are remembered and pages counted; so many pages may take longer than a look."""
    put(fleet, *"ab")
    simulator.page_size = 1
    simulator.faults.add(fault)
    slow = isinstance(fault, EndlessPages)
    assert failure(look(limit=2)).code == ("DeadlineExceeded" if slow else "EndlessListing")
    assert simulator.count(action=LISTING) <= 1000


@pytest.mark.parametrize("fault", [HtmlPage(), HtmlPage(well_formed=False), TruncatedXml()], ids=repr)
def test_an_answer_that_is_none_is_a_failure_without_its_body(
    look: Look, fleet: Fleet, simulator: Simulator, fault: Fault
) -> None:
    """A proxy's page never says that every task is gone, and nobody's page gets into a log."""
    put(fleet, "a", Description="very private")
    rule = simulator.faults.add(fault)
    failed = failure(look(limit=0.5))
    assert failed.code in {"UnusableAnswer", "DeadlineExceeded"}  # the last attempt may meet the deadline
    assert not any(text in failed.message for text in ("Sign in", "private", "<", "import-ami"))
    assert rule.hits > 1


@pytest.mark.parametrize(
    "code",
    [
        "UnauthorizedOperation",
        "AuthFailure",
        "OptInRequired",
        "ExpiredToken",
        "InvalidClientTokenId",
        "Blocked",
    ],
)
def test_a_refusal_carries_account_region_and_code(look: Look, simulator: Simulator, code: str) -> None:
    """It is not tried again: it would be refused again."""
    simulator.faults.add(ErrorAnswer(code))
    failed = failure(look())
    assert failed.code == code
    assert failed.message == ErrorAnswer.KNOWN[code][1]
    assert str(failed).startswith(f"account {ACCOUNT}, Region {REGION}: {code}: ")
    assert simulator.count(action=LISTING) == 1


@pytest.mark.parametrize("code", ["UnauthorizedOperation", "RequestExpired", "InternalError"])
def test_no_message_holds_a_credential(look: Look, simulator: Simulator, code: str) -> None:
    """Neither a presigned URL's nor our own."""
    simulator.faults.add(ErrorAnswer(code, f"cannot read {PRESIGNED} or https://user:hunter2@example.com/"))
    message = failure(look(limit=0.3)).message
    assert "https://images.s3.amazonaws.com/erp.ova" in message
    secrets = ("0123456789abcdef", "AKIA", "hunter2", simulator.environment["AWS_SECRET_ACCESS_KEY"])
    assert not any(secret in message for secret in secrets)


def test_a_task_that_cannot_be_stored_is_named(look: Look, fleet: Fleet) -> None:
    """The target fails, with the task and the member in the message."""
    put(fleet, "a", Tags=[{"Key": "Wave", "Value": "1"}, {"Key": "Wave", "Value": "2"}])
    failed = failure(look())
    assert failed.code == "MalformedTask"
    assert "import-ami-a" in failed.message
    assert "Wave" in failed.message


# Questions about the account


@pytest.mark.parametrize(
    "fault",
    [Throttle(), HtmlPage(), HtmlPage(well_formed=False), TruncatedXml(), Reset(), Stall(seconds=0.05)],
    ids=repr,
)
def test_questions_about_the_account_survive_a_moments_fault(
    clients: Clients, simulator: Simulator, fault: Fault
) -> None:
    """Whose the credentials are, and which Regions are enabled."""
    accounts = Accounts(clients)
    with simulator.faults.add(fault, action=None, times=1):
        (account,) = accounts.current()
        assert account.account_id == ACCOUNT
    with simulator.faults.add(fault, action=None, times=1):
        assert accounts.enabled_regions(account) == ["eu-west-1", "us-east-1"]


@pytest.mark.parametrize(
    "fault",
    [Denied(), HtmlPage(), TruncatedXml(), Stall(), Drip(every=0.1)],
    ids=repr,
)
def test_questions_about_the_account_end_in_time_with_a_sentence(simulator: Simulator, fault: Fault) -> None:
    """One that names the call, without the body of the answer."""
    clients = Clients(connections=1, patience=timedelta(seconds=0.3))
    accounts = Accounts(clients)
    (account,) = accounts.current()
    simulator.faults.add(fault, action=None)
    began = monotonic()
    with pytest.raises(AwsUnavailableError, match="sts:GetCallerIdentity") as whose:
        Accounts(clients).current()
    with pytest.raises(AwsUnavailableError, match="ec2:DescribeRegions") as which:
        accounts.enabled_regions(account)
    clients.close()
    assert monotonic() - began < 5
    assert "<" not in f"{whose.value} {which.value}"
