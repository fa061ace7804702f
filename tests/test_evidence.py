"""Evidence from AMIs and CloudTrail: what becomes of one, and how they are gathered over a real socket."""

import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from time import monotonic
from typing import Any

import pytest

from collector.aws.accounts import Accounts
from collector.aws.clients import Clients
from collector.aws.evidence import LOOKUPS_PER_SECOND, Gatherer, evidence_of_event, evidence_of_image
from collector.domain import Evidence, Failure, Target
from collector.simulator import Fleet, Simulator
from collector.simulator.faults import (
    Denied,
    ErrorAnswer,
    Fault,
    HtmlPage,
    RepeatedToken,
    Stall,
    Throttle,
    TruncatedXml,
)
from tests.simulation import ACCOUNT, PLENTY, PRESIGNED, REGION, asking_of, eventually

TARGET = Target(ACCOUNT, REGION)
AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
DISK = {"Format": "VMDK", "UserBucket": {"S3Bucket": "wave-7", "S3Key": "erp.vmdk"}}

Json = dict[str, Any]


# An AMI

IMAGE = {
    "ImageId": "ami-1",
    "Name": "import-ami-a",
    "CreationDate": "2026-03-01T12:00:00.000Z",
    "Architecture": "x86_64",
    "BootMode": "uefi",
    "PlatformDetails": "Linux/UNIX",
    "UsageOperation": "RunInstances",
}


def mapping(device: str, **ebs: Any) -> Json:
    """Return one disk of an AMI."""
    return {"DeviceName": device, "Ebs": {"DeleteOnTermination": True, "VolumeType": "gp2", **ebs}}


def from_image(**members: Any) -> Evidence:
    """Return what becomes of an AMI."""
    evidence = evidence_of_image(TARGET, IMAGE | members)
    assert evidence is not None
    return evidence


def details(evidence: Evidence) -> Json:
    """Return the details, which must be in canonical form."""
    assert evidence.details is not None
    members: Json = json.loads(evidence.details)
    canonical = json.dumps(members, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert evidence.details == canonical
    return members


def test_an_ami_tells_of_its_import() -> None:
    """Its name is the task's id, its date the import's end; without disks and tags there are no details."""
    assert from_image() == Evidence(
        target=TARGET,
        source="images",
        event_id="ami-1",
        event_name="image",
        occurred_at=AT,
        import_task_id="import-ami-a",
        image_id="ami-1",
        architecture="x86_64",
        boot_mode="uefi",
        platform="Linux",
        usage_operation="RunInstances",
    )


def test_details_of_an_ami() -> None:
    """Disks with their snapshots and sizes, tags by key, description and state."""
    evidence = from_image(
        Description="AWS-VMImport service: Linux",
        State="available",
        Tags=[{"Key": "name", "Value": "erp"}, {"Key": "Name", "Value": ""}],
        BlockDeviceMappings=[
            mapping("/dev/sda1", SnapshotId="snap-1", VolumeSize=8, Encrypted=False),
            mapping("/dev/sdb", SnapshotId="snap-2", VolumeSize=100, Encrypted=True),
            {"DeviceName": "/dev/sdc", "VirtualName": "ephemeral0"},
        ],
    )
    assert details(evidence) == {
        "description": "AWS-VMImport service: Linux",
        "state": "available",
        "tags": [{"key": "Name"}, {"key": "name", "value": "erp"}],
        "disks": [
            {"deviceName": "/dev/sda1", "snapshotId": "snap-1", "volumeSize": 8, "encrypted": False},
            {"deviceName": "/dev/sdb", "snapshotId": "snap-2", "volumeSize": 100, "encrypted": True},
        ],
    }


@pytest.mark.parametrize(
    ("disks", "encrypted"), [([], None), ([None], None), ([False], False), ([False, True], True)]
)
def test_an_ami_is_encrypted_when_a_disk_is(disks: list[bool | None], encrypted: bool | None) -> None:
    """It is unknown where no disk says."""
    mappings = [mapping("/dev/sda1", **({} if one is None else {"Encrypted": one})) for one in disks]
    assert from_image(BlockDeviceMappings=mappings).encrypted is encrypted


@pytest.mark.parametrize(
    ("members", "platform"),
    [
        ({"Platform": "windows", "PlatformDetails": "Windows"}, "Windows"),
        ({"PlatformDetails": "Windows BYOL"}, "Windows"),
        ({"PlatformDetails": "Red Hat Enterprise Linux"}, "Linux"),
        ({"PlatformDetails": "something new"}, None),
        ({"PlatformDetails": None}, None),
    ],
)
def test_platform_of_an_ami(members: Json, platform: str | None) -> None:
    """In the words that tasks have."""
    assert from_image(**members).platform == platform


@pytest.mark.parametrize(
    "members",
    [
        {"SourceImageId": "ami-0", "SourceImageRegion": "us-east-1"},
        {"SourceInstanceId": "i-0"},
        {"Description": "[Copied ami-0 from us-east-1] AWS-VMImport service: Linux"},
        {"Name": "golden-import-ami-a"},
        {"Name": None},
        {"CreationDate": "yesterday"},
        {"ImageId": None},
    ],
)
def test_an_ami_that_tells_of_no_import(members: Json) -> None:
    """A copy keeps the name, but no import made it here, or then."""
    assert evidence_of_image(TARGET, IMAGE | members) is None


# A request

RECORD = {
    "userIdentity": {"type": "IAMUser", "arn": f"arn:aws:iam::{ACCOUNT}:user/amara", "principalId": "AIDA"},
    "sourceIPAddress": "203.0.113.7",
    "userAgent": "aws-cli/2.22.0",
    "requestParameters": {"description": "erp", "roleName": "vmimport", "licenseType": "BYOL"},
    "responseElements": {"importTaskId": "import-ami-a"},
}


def from_event(*, name: str = "ImportImage", record: object = None, **members: Any) -> Evidence | None:
    """Return what becomes of an event whose record has these members."""
    told = record if record is not None else json.dumps(RECORD | members)
    event = {
        "EventId": "e-1",
        "EventName": name,
        "EventTime": AT,
        "EventSource": "ec2.amazonaws.com",
        "Username": "amara",
        "CloudTrailEvent": told,
    }
    return evidence_of_event(TARGET, event)


def told(**members: Any) -> Evidence:
    """Return the evidence that an event must be."""
    evidence = from_event(**members)
    assert evidence is not None
    return evidence


def test_a_request_tells_who_asked() -> None:
    """And when, from where, for what, and which task it became."""
    assert told() == Evidence(
        target=TARGET,
        source="cloudtrail",
        event_id="e-1",
        event_name="ImportImage",
        occurred_at=AT,
        import_task_id="import-ami-a",
        requested_by=f"arn:aws:iam::{ACCOUNT}:user/amara",
        source_address="203.0.113.7",
        user_agent="aws-cli/2.22.0",
        details='{"description":"erp","licenseType":"BYOL","roleName":"vmimport"}',
    )


def test_the_answer_may_be_nested() -> None:
    """Below a response object, whose name nobody needs to know."""
    answer = {"SomeResponse": {"xmlns": "http://ec2.amazonaws.com/", "importTaskId": "import-ami-b"}}
    assert told(responseElements=answer).import_task_id == "import-ami-b"


@pytest.mark.parametrize(
    "members",
    [
        {"responseElements": {"importTaskId": "import-ami-c"}, "requestParameters": None},
        {"responseElements": None, "requestParameters": {"importTaskId": "import-ami-c"}},
        {
            "responseElements": {"_return": True},
            "requestParameters": {"CancelImportTaskRequest": {"ImportTaskId": "import-ami-c"}},
        },
    ],
)
def test_a_cancellation_names_its_task(members: Json) -> None:
    """In the answer, or in the request in either nesting."""
    assert told(name="CancelImportTask", **members).import_task_id == "import-ami-c"


def test_both_nestings_of_a_request_are_one() -> None:
    """Disks, licences and tags have one form, however many there are."""
    nested = {
        "ImportImageRequest": {
            "Description": "erp",
            "DiskContainer": [{"tag": 1, **DISK}, {"tag": 2, "SnapshotId": "snap-1"}],
            "LicenseSpecifications": {"tag": 1, "LicenseConfigurationArn": "arn:1"},
            "TagSpecification": {
                "tag": 1,
                "ResourceType": "import-image-task",
                "Tag": [{"tag": 1, "Key": "b", "Value": "2"}, {"tag": 2, "Key": "a", "Value": "1"}],
            },
        }
    }
    flat = {
        "description": "erp",
        "diskContainerSet": {
            "items": [
                {"format": "VMDK", "userBucket": {"s3Bucket": "wave-7", "s3Key": "erp.vmdk"}},
                {"snapshotId": "snap-1"},
            ]
        },
        "licenseSpecificationSet": {"items": [{"licenseConfigurationArn": "arn:1"}]},
        "tagSpecificationSet": {
            "items": [
                {
                    "resourceType": "import-image-task",
                    "tags": [{"key": "a", "value": "1"}, {"key": "b", "value": "2"}],
                }
            ]
        },
    }
    evidence = told(requestParameters=nested)
    assert details(evidence) == {
        "description": "erp",
        "disks": [
            {"format": "VMDK", "s3Bucket": "wave-7", "s3Key": "erp.vmdk"},
            {"snapshotId": "snap-1"},
        ],
        "licenseConfigurationArns": ["arn:1"],
        "tags": [{"key": "a", "value": "1"}, {"key": "b", "value": "2"}],
    }
    assert evidence.details == told(requestParameters=flat).details


def test_credentials_and_unstorable_text_go() -> None:
    """A presigned URL loses its signature, and a NUL is written as JSON escapes it."""
    disk = {"diskContainerSet": {"items": [{"url": PRESIGNED}]}, "description": f"a\0 {PRESIGNED}"}
    evidence = told(requestParameters=disk, userAgent="curl\0\ud800")
    assert details(evidence) == {
        "description": "a\\u0000 https://images.s3.amazonaws.com/erp.ova",
        "disks": [{"url": "https://images.s3.amazonaws.com/erp.ova"}],
    }
    assert evidence.user_agent == "curl\\u0000\\ud800"


def test_a_failed_request_has_no_task() -> None:
    """But AWS's code and message, even where an id was asked for."""
    error = {"errorCode": "Client.IncorrectState", "errorMessage": "No.", "responseElements": None}
    asked = {"importTaskId": "import-ami-a"}
    evidence = told(name="CancelImportTask", requestParameters=asked, **error)
    assert (evidence.error_code, evidence.error_message) == ("Client.IncorrectState", "No.")
    assert evidence.import_task_id is None
    assert details(evidence) == asked


@pytest.mark.parametrize(
    ("identity", "requester"),
    [
        ({"type": "AWSService", "invokedBy": "mgn.amazonaws.com"}, "mgn.amazonaws.com"),
        ({"type": "AWSAccount", "principalId": "AIDA"}, "AIDA"),
        ({"type": "Unknown", "arn": ""}, "Unknown"),
        ({}, "amara"),
        (["odd"], "amara"),
    ],
)
def test_who_asked_without_an_arn(identity: object, requester: str) -> None:
    """The next best name; last, the one that LookupEvents gives."""
    assert told(userIdentity=identity).requested_by == requester


@pytest.mark.parametrize(
    "record",
    [
        "{",
        "[]",
        "",
        7,
        '{"requestParameters":{"a":' + "[" * 100_000 + "]" * 100_000 + "}}",
    ],
    ids=["cut", "a list", "empty", "a number", "deep"],
)
def test_a_record_that_cannot_be_read(record: object) -> None:
    """The event stays, as LookupEvents tells of it."""
    evidence = from_event(record=record)
    assert evidence is not None
    assert (evidence.event_name, evidence.occurred_at, evidence.requested_by) == ("ImportImage", AT, "amara")
    assert evidence.details is evidence.import_task_id is None


def test_parameters_that_cannot_be_kept() -> None:
    """Only they are missing then."""
    evidence = told(requestParameters={"description": "erp", "size": float("nan")})
    assert (evidence.details, evidence.import_task_id) == (None, "import-ami-a")


def test_a_request_about_something_else() -> None:
    """CancelImportTask ends imports of snapshots, too, and other services have names of their own."""
    answer = {"importTaskId": "import-snap-1"}
    assert from_event(name="CancelImportTask", responseElements=answer) is None
    assert evidence_of_event(TARGET, {"EventId": "e", "EventTime": AT, "EventSource": "other"}) is None


def test_an_event_without_id_or_time() -> None:
    """There is nothing to know it by."""
    assert evidence_of_event(TARGET, {"EventTime": AT}) is None
    assert evidence_of_event(TARGET, {"EventId": "e-1", "EventTime": None}) is None


def test_times_are_utc() -> None:
    """Boto3 gives them in the zone of the machine."""
    local = AT.astimezone(timezone(timedelta(hours=5)))
    evidence = evidence_of_event(TARGET, {"EventId": "e-1", "EventTime": local})
    assert evidence is not None
    assert (evidence.occurred_at, evidence.occurred_at.utcoffset()) == (AT, timedelta(0))


# Gathering


@pytest.fixture
def make_gatherer(clients: Clients, simulator: Simulator) -> Callable[..., Gatherer]:
    """Make a gatherer that has ``limit`` seconds for an answer, after its clients were made."""
    assert simulator
    accounts = Accounts(clients)
    accounts.current()
    clients.client("ec2")
    clients.client("cloudtrail")

    def make(limit: float = PLENTY.total_seconds()) -> Gatherer:
        return Gatherer(clients, asking_of(accounts, limit=timedelta(seconds=limit)))

    return make


@pytest.fixture
def gatherer(make_gatherer: Callable[..., Gatherer]) -> Gatherer:
    """A gatherer that has time."""
    return make_gatherer()


def found(result: list[Evidence] | Failure) -> list[Evidence]:
    """Return what must not be a failure."""
    assert not isinstance(result, Failure), result
    return result


def failed(result: list[Evidence] | Failure, action: str) -> Failure:
    """Return what must be a failure of this action and target, as a whole."""
    assert isinstance(result, Failure), result
    assert (result.account_id, result.region) == (ACCOUNT, REGION)
    assert result.message.startswith(f"{action}: ")
    return result


def put_images(fleet: Fleet, number: int) -> list[str]:
    """Place AMIs, the oldest first, and return the ids of their tasks."""
    ids = [f"import-ami-{index}" for index in range(number)]
    for index, name in enumerate(ids):
        created_at = f"{AT + index * DAY:%Y-%m-%dT%H:%M:%S}.000Z"
        image = IMAGE | {"ImageId": f"ami-{index}", "Name": name, "CreationDate": created_at}
        fleet.put_image(ACCOUNT, REGION, image)
    return ids


def lookups(gatherer: Gatherer, fleet: Fleet, days: float = 90) -> list[Evidence] | Failure:
    """Look the last days up."""
    now = fleet.clock.now()
    return gatherer.requests(TARGET, now - days * DAY, now)


def test_forgotten_imports_are_found_by_their_amis(fleet: Fleet, gatherer: Gatherer) -> None:
    """Every finished one, with its end; AMIs that are called otherwise are not asked for."""
    fleet.populate(ACCOUNT, REGION, 30, until=timedelta(0))
    fleet.clock.advance(30 * DAY)
    fleet.put_image(ACCOUNT, REGION, IMAGE | {"ImageId": "ami-golden", "Name": "golden"})
    _, plans = fleet.finished_plans(ACCOUNT, REGION)
    evidence = found(gatherer.images(TARGET))
    expected = {(plan.import_task_id, plan.image_id, plan.ended_at.replace(microsecond=0)) for plan in plans}
    assert {(one.import_task_id, one.image_id, one.occurred_at) for one in evidence} == expected
    assert len(expected) > 15
    assert all(details(one)["disks"] for one in evidence)
    assert fleet.tasks(ACCOUNT, REGION) == []


def test_every_page_of_amis(fleet: Fleet, gatherer: Gatherer, simulator: Simulator) -> None:
    """The oldest first; no AMI is no failure."""
    assert gatherer.images(TARGET) == []
    ids = put_images(fleet, 5)
    simulator.page_size = 2
    assert [one.import_task_id for one in found(gatherer.images(TARGET))] == ids
    assert simulator.count(action="DescribeImages") == 1 + 3


def test_forgotten_requests_are_found(fleet: Fleet, gatherer: Gatherer, simulator: Simulator) -> None:
    """Every import and every cancellation, with who asked, from several pages, at AWS's own rate limit."""
    ids = fleet.populate(ACCOUNT, REGION, 60, until=timedelta(0), cancellations=0.3)
    fleet.clock.advance(30 * DAY)
    evidence = found(lookups(gatherer, fleet))
    asked = [one for one in evidence if one.event_name == "ImportImage"]
    cancelled = [one for one in evidence if one.event_name == "CancelImportTask"]
    assert sorted(str(one.import_task_id) for one in asked) == sorted(ids)
    assert 0 < len(cancelled) < 60
    assert {one.import_task_id for one in cancelled} <= set(ids)
    assert all(one.requested_by and one.source_address and one.user_agent for one in evidence)
    assert all(details(one)["disks"] for one in asked)
    assert [one.occurred_at for one in evidence] == sorted(one.occurred_at for one in evidence)
    assert simulator.count(action="LookupEvents") == 3


def test_two_lookups_a_second(fleet: Fleet, gatherer: Gatherer, simulator: Simulator) -> None:
    """Pages of both names, and of several questions, share one pace, and none is throttled."""
    simulator.page_size = 1
    for hours in range(1, 4):
        fleet.import_image(ACCOUNT, REGION, at=fleet.clock.now() - timedelta(hours=hours))
    began = monotonic()
    assert len(found(lookups(gatherer, fleet))) == 3
    assert found(lookups(gatherer, fleet, 1 / 48)) == []
    assert simulator.count(action="LookupEvents") == 4 + 2
    assert monotonic() - began >= 0.95 * (6 - 1) / LOOKUPS_PER_SECOND


def test_the_span_of_requests(fleet: Fleet, gatherer: Gatherer) -> None:
    """Both ends belong to it, whatever part of a second they fall into."""
    now = fleet.clock.now().replace(microsecond=500_000)
    ids = [fleet.import_image(ACCOUNT, REGION, at=now - days * DAY) for days in (4, 3, 2, 1)]
    evidence = found(gatherer.requests(TARGET, now - 3 * DAY + timedelta(microseconds=9), now - 2 * DAY))
    assert [one.import_task_id for one in evidence] == ids[1:3]


def test_a_request_that_ec2_refused(fleet: Fleet, gatherer: Gatherer) -> None:
    """It is evidence without a task."""
    fleet.refuse(ACCOUNT, REGION, "Client.UnauthorizedOperation", "No.", DiskContainers=[DISK])
    (one,) = found(lookups(gatherer, fleet))
    assert (one.import_task_id, one.error_code) == (None, "Client.UnauthorizedOperation")
    assert details(one)["disks"] == [{"format": "VMDK", "s3Bucket": "wave-7", "s3Key": "erp.vmdk"}]


@pytest.mark.parametrize(
    "fault",
    [ErrorAnswer("ThrottlingException"), ErrorAnswer("InvalidNextTokenException"), TruncatedXml()],
    ids=str,
)
def test_a_lookup_is_tried_again(
    fault: Fault, fleet: Fleet, gatherer: Gatherer, simulator: Simulator
) -> None:
    """After what passes, on a later page, from which nothing is missing then."""
    simulator.page_size = 1
    ids = [fleet.import_image(ACCOUNT, REGION, at=fleet.clock.now() - days * DAY) for days in (2, 1)]
    rule = simulator.faults.add(fault, action="LookupEvents", page=2, times=1)
    assert [one.import_task_id for one in found(lookups(gatherer, fleet))] == ids
    assert rule.hits == 1


@pytest.mark.parametrize("fault", [Throttle(), HtmlPage(), TruncatedXml()], ids=str)
def test_amis_are_asked_for_again(
    fault: Fault, fleet: Fleet, gatherer: Gatherer, simulator: Simulator
) -> None:
    """After what passes, from the first page where the list was broken."""
    ids = put_images(fleet, 3)
    simulator.page_size = 2
    rule = simulator.faults.add(fault, action="DescribeImages", page=2, times=1)
    assert [one.import_task_id for one in found(gatherer.images(TARGET))] == ids
    assert rule.hits == 1


def test_refusals_name_the_action(fleet: Fleet, gatherer: Gatherer, simulator: Simulator) -> None:
    """With AWS's own code."""
    simulator.faults.add(Denied(), action="DescribeImages")
    simulator.faults.add(Denied("AccessDeniedException"), action="LookupEvents")
    assert failed(gatherer.images(TARGET), "ec2:DescribeImages").code == "UnauthorizedOperation"
    assert failed(lookups(gatherer, fleet), "cloudtrail:LookupEvents").code == "AccessDeniedException"


def test_half_an_answer_is_a_failure(make_gatherer: Callable[..., Gatherer], simulator: Simulator) -> None:
    """When the time is over after some pages, nothing of them is told."""
    simulator.page_size = 1
    for days in (1, 2, 3, 4):
        simulator.fleet.import_image(ACCOUNT, REGION, at=simulator.fleet.clock.now() - days * DAY)
    failure = failed(lookups(make_gatherer(limit=0.8), simulator.fleet), "cloudtrail:LookupEvents")
    assert failure.code == "DeadlineExceeded"
    assert simulator.count(action="LookupEvents") in {1, 2}


def test_a_page_without_the_list_is_no_page(
    make_gatherer: Callable[..., Gatherer], simulator: Simulator
) -> None:
    """A proxy's page with status 200 never reads as nothing found."""
    for action in ("DescribeImages", "LookupEvents"):
        simulator.faults.add(HtmlPage(), action=action)
    gatherer = make_gatherer(limit=1)
    assert failed(gatherer.images(TARGET), "ec2:DescribeImages").code == "UnusableAnswer"
    assert failed(lookups(gatherer, simulator.fleet), "cloudtrail:LookupEvents").code == "UnusableAnswer"


def test_pages_without_end(fleet: Fleet, gatherer: Gatherer, simulator: Simulator) -> None:
    """A token that comes twice ends the listing as a failure."""
    fleet.import_image(ACCOUNT, REGION)
    simulator.faults.add(RepeatedToken(), action="LookupEvents")
    assert failed(lookups(gatherer, fleet), "cloudtrail:LookupEvents").code == "EndlessListing"


def test_an_account_that_nobody_knows(gatherer: Gatherer) -> None:
    """It is a failure as well, and nothing is raised."""
    result = gatherer.images(Target("999999999999", REGION))
    assert isinstance(result, Failure)
    assert (result.account_id, result.code) == ("999999999999", "Key")


def test_cancelling_ends_what_hangs(gatherer: Gatherer, simulator: Simulator) -> None:
    """At once, and also what is asked afterwards."""
    rule = simulator.faults.add(Stall(), action="DescribeImages")
    results: list[list[Evidence] | Failure] = []
    thread = threading.Thread(target=lambda: results.append(gatherer.images(TARGET)))
    thread.start()
    eventually(lambda: rule.hits)
    gatherer.asking.deadlines.end()
    thread.join(10)
    results.append(lookups(gatherer, simulator.fleet))
    assert [one.code for one in results if isinstance(one, Failure)] == ["Cancelled", "Cancelled"]
