"""The simulated CloudTrail, seen through unmodified boto3 over a real socket."""

import json
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from collector.simulator import Fleet, SimulatedClock, Simulator
from collector.simulator.faults import Denied

ACCOUNT, OTHER_ACCOUNT = "111122223333", "444455556666"
REGION, OTHER_REGION = "us-east-1", "eu-central-1"
START = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
DISK = {"Format": "VMDK", "UserBucket": {"S3Bucket": "wave-7", "S3Key": "erp-db-02.vmdk"}}

Event = dict[str, Any]
Connect = Callable[..., Any]


@pytest.fixture(scope="module")
def session() -> Iterator[boto3.Session]:
    """One session for all clients, without this machine's AWS configuration and proxies."""
    with pytest.MonkeyPatch.context() as environment:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            environment.delenv(name)
        environment.setenv("AWS_CONFIG_FILE", os.devnull)
        environment.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        environment.setenv("NO_PROXY", "127.0.0.1")
        yield boto3.Session()


@pytest.fixture
def fleet() -> Fleet:
    """A fleet whose clock stands still."""
    return Fleet(SimulatedClock(START))


@pytest.fixture
def simulator(fleet: Fleet) -> Iterator[Simulator]:
    """A running simulator with two accounts, that never throttles."""
    with Simulator(fleet, accounts={"AKIAOTHER": OTHER_ACCOUNT}) as simulator:
        simulator.cloudtrail_rate = None
        yield simulator


@pytest.fixture
def connect(session: boto3.Session, simulator: Simulator) -> Iterator[Connect]:
    """Make clients that never retry."""
    clients: list[Any] = []

    def make(service: str = "cloudtrail", *, region: str = REGION, key: str = "AKIA") -> Any:
        config = Config(retries={"total_max_attempts": 1})
        keys = {"aws_access_key_id": key, "aws_secret_access_key": "-"}
        clients.append(session.client(service, region, endpoint_url=simulator.url, config=config, **keys))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def trail(connect: Connect) -> Any:
    """CloudTrail of the first account and Region."""
    return connect()


def looked_up(client: Any, name: str = "ImportImage", **span: datetime) -> list[Event]:
    """Return the events of that name, of all pages."""
    attributes = [{"AttributeKey": "EventName", "AttributeValue": name}]
    pages = client.get_paginator("lookup_events").paginate(LookupAttributes=attributes, **span)
    return [event for page in pages for event in page["Events"]]


def record(event: Event) -> Event:
    """Return what CloudTrail itself wrote down."""
    told: Event = json.loads(event["CloudTrailEvent"])
    return told


def parameters(event: Event) -> Event:
    """Return the parameters of a request, out of either nesting."""
    told = record(event)
    members: Event = told["requestParameters"]
    return dict(members.get(f"{told['eventName']}Request", members))


def names(events: list[Event]) -> list[str]:
    """Return the descriptions that the imports were asked for with."""
    asked = map(parameters, events)
    return [one.get("Description") or one["description"] for one in asked]


def refusal(call: Callable[..., Any], **options: Any) -> tuple[str, int]:
    """Return the code and the status of the error that must come."""
    with pytest.raises(ClientError) as caught:
        call(**options)
    response = caught.value.response
    return response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"]


def test_an_event_as_cloudtrail_gives_it(fleet: Fleet, trail: Any) -> None:
    """Every member is there, and the record inside agrees with what stands beside it."""
    fleet.import_image(ACCOUNT, REGION, DiskContainers=[DISK])
    (event,) = looked_up(trail)
    told = record(event)
    assert UUID(event["EventId"]).version == 4
    assert event["EventTime"] == START
    assert (event["EventSource"], event["ReadOnly"]) == ("ec2.amazonaws.com", "false")
    assert event["Resources"] == []
    assert (told["eventID"], told["eventName"]) == (event["EventId"], event["EventName"])
    assert (told["eventTime"], told["awsRegion"]) == ("2026-03-01T12:00:00Z", REGION)
    assert (told["recipientAccountId"], told["eventSource"]) == (ACCOUNT, "ec2.amazonaws.com")
    assert {"sourceIPAddress", "userAgent", "requestID", "userIdentity"} <= told.keys()
    assert "errorCode" not in told


def test_an_event_never_changes(fleet: Fleet, trail: Any) -> None:
    """Asked again, later, and after the task is forgotten, it is the same."""
    task_id = fleet.import_image(ACCOUNT, REGION, DiskContainers=[DISK])
    before = looked_up(trail)
    fleet.remove(ACCOUNT, REGION, task_id)
    fleet.clock.advance(30 * DAY)
    assert looked_up(trail) == before


def test_every_kind_of_caller_and_nesting_occurs(fleet: Fleet, trail: Any) -> None:
    """Among many events are all that the code must be able to read, each with its task's id."""
    ids = fleet.populate(ACCOUNT, REGION, 100, since=8 * DAY, until=timedelta(0))
    told = [record(event) for event in looked_up(trail)]
    kinds = {one["userIdentity"]["type"] for one in told}
    assert kinds == {"IAMUser", "AssumedRole", "Root", "AWSService"}
    answers = [one["responseElements"] for one in told]
    assert {"ImportImageResponse" in answer for answer in answers} == {True, False}
    assert {"ImportImageRequest" in one["requestParameters"] for one in told} == {True, False}
    found = [answer.get("ImportImageResponse", answer)["importTaskId"] for answer in answers]
    assert sorted(found) == sorted(ids)


def test_both_nestings_say_the_same(fleet: Fleet, trail: Any) -> None:
    """A list of one is the one below a request object, and a set of items without it."""
    for _ in range(20):
        fleet.import_image(ACCOUNT, REGION, DiskContainers=[DISK])
    told = [record(event)["requestParameters"] for event in looked_up(trail)]
    nested = [one["ImportImageRequest"] for one in told if "ImportImageRequest" in one]
    flat = [one for one in told if "ImportImageRequest" not in one]
    bucket = {"s3Bucket": "wave-7", "s3Key": "erp-db-02.vmdk"}
    assert nested[0] == {"DiskContainer": {"tag": 1, **DISK}}
    assert flat[0] == {"diskContainerSet": {"items": [{"format": "VMDK", "userBucket": bucket}]}}
    assert len(nested) + len(flat) == 20


def test_the_newest_comes_first_on_every_page(fleet: Fleet, simulator: Simulator, trail: Any) -> None:
    """In the order of time, whatever the order of placing, and also while new ones come."""
    for hours in (3, 1, 5, 2, 4):
        fleet.import_image(ACCOUNT, REGION, at=START - hours * HOUR, Description=str(hours))
    simulator.page_size = 2
    first = trail.lookup_events()
    assert names(first["Events"]) == ["1", "2"]
    fleet.import_image(ACCOUNT, REGION, Description="new")
    second = trail.lookup_events(NextToken=first["NextToken"])
    assert names(second["Events"]) == ["3", "4"]
    assert names(looked_up(trail)) == ["new", "1", "2", "3", "4", "5"]


def test_pages_have_fifty_events(fleet: Fleet, trail: Any) -> None:
    """At the most, and without being asked."""
    fleet.populate(ACCOUNT, REGION, 60, until=timedelta(0))
    assert len(trail.lookup_events()["Events"]) == 50
    assert len(trail.lookup_events(MaxResults=7)["Events"]) == 7
    assert refusal(trail.lookup_events, MaxResults=51) == ("InvalidMaxResultsException", 400)


def test_the_span_of_time(fleet: Fleet, trail: Any) -> None:
    """Both ends belong to it, in whole seconds."""
    for hours in range(5):
        at = START - hours * HOUR + timedelta(milliseconds=300)
        fleet.import_image(ACCOUNT, REGION, at=at - HOUR, Description=str(hours + 1))
    found = looked_up(trail, StartTime=START - 4 * HOUR, EndTime=START - 2 * HOUR)
    assert names(found) == ["2", "3", "4"]
    wrong = {"StartTime": START, "EndTime": START - HOUR}
    assert refusal(trail.lookup_events, **wrong) == ("InvalidTimeRangeException", 400)


def test_ninety_days_and_no_future(fleet: Fleet, trail: Any) -> None:
    """Older events are forgotten, and those to come are not known."""
    for days in (89, 91, -1):
        fleet.import_image(ACCOUNT, REGION, at=START - days * DAY, Description=str(days))
    assert names(looked_up(trail)) == ["89"]
    fleet.clock.advance(2 * DAY)
    assert names(looked_up(trail)) == ["-1"]


def test_cancellations(fleet: Fleet, connect: Connect) -> None:
    """Those of the API and those that were invented are found under their own name."""
    ids = fleet.populate(ACCOUNT, REGION, 5, since=2 * DAY, until=-DAY, recent=0, cancellations=1, failures=0)
    task_id = fleet.import_image(ACCOUNT, REGION, DiskContainers=[DISK])
    connect("ec2").cancel_import_task(ImportTaskId=task_id)
    asked = [parameters(event) for event in looked_up(connect(), "CancelImportTask")]
    found = [one.get("ImportTaskId") or one["importTaskId"] for one in asked]
    assert found[0] == task_id
    assert sorted(found[1:]) == sorted(ids)


def test_only_one_cancellation_succeeds(fleet: Fleet, trail: Any) -> None:
    """Whoever was to cancel it later finds it cancelled."""
    (task_id,) = fleet.populate(
        ACCOUNT, REGION, 1, since=timedelta(0), until=timedelta(0), recent=0, cancellations=1, failures=0
    )
    fleet.cancel(ACCOUNT, REGION, task_id)
    fleet.clock.advance(DAY)
    late, done = map(record, looked_up(trail, "CancelImportTask"))
    assert (late["errorCode"], late["responseElements"]) == ("Client.IncorrectState", None)
    assert done["eventTime"] == "2026-03-01T12:00:00Z"
    assert "errorCode" not in done


def test_imports_that_keep_coming(fleet: Fleet, trail: Any) -> None:
    """A stream of imports is a stream of events."""
    fleet.keep_importing(ACCOUNT, REGION, every=HOUR)
    fleet.clock.advance(5 * DAY)
    assert len(looked_up(trail)) == len(fleet.tasks(ACCOUNT, REGION)) > 50


def test_a_request_that_was_placed_as_failed(fleet: Fleet, trail: Any) -> None:
    """It has a code and a message, parameters, and no answer; no task comes of it."""
    fleet.refuse(ACCOUNT, REGION, "Client.InvalidParameter", "No.", at=START - HOUR, Description="erp")
    (event,) = looked_up(trail)
    told = record(event)
    assert (told["errorCode"], told["errorMessage"]) == ("Client.InvalidParameter", "No.")
    assert told["responseElements"] is None
    assert names([event]) == ["erp"]
    assert fleet.tasks(ACCOUNT, REGION) == []


def test_what_ec2_refuses_is_recorded(fleet: Fleet, simulator: Simulator, connect: Connect) -> None:
    """By a rule or by a fault; but nothing of whom EC2 does not know."""
    ec2, trail = connect("ec2"), connect()
    for code in ("UnauthorizedOperation", "AuthFailure"):
        with simulator.faults.add(Denied(code), action="ImportImage"):
            refusal(ec2.import_image, DiskContainers=[DISK])
    refusal(ec2.cancel_import_task, ImportTaskId="import-ami-unknown")
    codes = [record(event)["errorCode"] for event in trail.lookup_events()["Events"]]
    assert codes == ["Client.InvalidConversionTaskId.Malformed", "Client.UnauthorizedOperation"]
    assert fleet.tasks(ACCOUNT, REGION) == []


def test_accounts_and_regions_are_apart(fleet: Fleet, connect: Connect) -> None:
    """Each sees its own."""
    fleet.import_image(ACCOUNT, REGION, Description="one")
    fleet.import_image(OTHER_ACCOUNT, REGION, Description="other account")
    fleet.import_image(ACCOUNT, OTHER_REGION, Description="other Region")
    assert names(looked_up(connect())) == ["one"]
    assert names(looked_up(connect(key="AKIAOTHER"))) == ["other account"]
    assert names(looked_up(connect(region=OTHER_REGION))) == ["other Region"]


def test_refusals(simulator: Simulator, connect: Connect) -> None:
    """Errors have the names that boto3 knows."""
    trail = connect()
    call = trail.lookup_events
    one = {"AttributeKey": "EventName", "AttributeValue": "ImportImage"}
    code = "InvalidLookupAttributesException"
    assert refusal(call, LookupAttributes=[one, one]) == (code, 400)
    assert refusal(call, LookupAttributes=[one | {"AttributeKey": "Username"}]) == (code, 400)
    assert refusal(call, NextToken="nonsense") == ("InvalidNextTokenException", 400)
    assert refusal(trail.list_trails) == ("UnknownOperationException", 400)
    disabled = connect(region="me-south-1").lookup_events
    assert refusal(disabled) == ("UnrecognizedClientException", 400)
    simulator.faults.add(Denied("AccessDeniedException"), action="LookupEvents", account=ACCOUNT)
    assert refusal(call) == ("AccessDeniedException", 400)
    assert simulator.count(action="LookupEvents", region=REGION) == 4


def test_too_many_requests_are_throttled(simulator: Simulator, connect: Connect) -> None:
    """In this Region and for this account alone, until the limit is gone."""
    assert Simulator().cloudtrail_rate == 2
    simulator.cloudtrail_rate = 0.001  # one at once, and no other while this test runs
    trail = connect()
    for client in (trail, connect(region=OTHER_REGION), connect(key="AKIAOTHER")):
        client.lookup_events()
    with pytest.raises(ClientError, match="Rate exceeded"):
        trail.lookup_events()
    assert refusal(trail.lookup_events) == ("ThrottlingException", 400)
    simulator.cloudtrail_rate = None
    trail.lookup_events()
