"""The simulated EC2, seen through unmodified boto3 over a real socket."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from time import monotonic, sleep
from typing import Any
from urllib.request import Request, urlopen

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError, PaginationError, ReadTimeoutError
from botocore.parsers import ResponseParserError

from collector.simulator import Faults, Fleet, SimulatedClock, Simulator
from collector.simulator.callers import FORGET_EVERY, Callers
from collector.simulator.faults import (
    Denied,
    Drip,
    DuplicateOverPages,
    EmptyListing,
    EndlessPages,
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
from collector.simulator.protocol import java_double

ACCOUNT, OTHER_ACCOUNT, THIRD_ACCOUNT = "111122223333", "444455556666", "777788889999"
REGION, OTHER_REGION = "us-east-1", "eu-central-1"
START = datetime(2026, 3, 1, 12, tzinfo=UTC)
SAMPLES = sorted((Path(__file__).parent / "samples").glob("*.json"))
DISK = {"Format": "VMDK", "UserBucket": {"S3Bucket": "wave-7", "S3Key": "erp-db-02.vmdk"}}

Tasks = list[dict[str, Any]]


@pytest.fixture(scope="module", autouse=True)
def _no_environment() -> Iterator[None]:
    """Keep this machine's AWS configuration and proxies out."""
    with pytest.MonkeyPatch.context() as environment:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            environment.delenv(name)
        environment.setenv("AWS_CONFIG_FILE", os.devnull)
        environment.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        environment.setenv("NO_PROXY", "127.0.0.1")
        yield


@pytest.fixture(scope="module")
def session() -> boto3.Session:
    """One session for all clients: it loads EC2's large model once."""
    return boto3.Session()


@pytest.fixture
def fleet() -> Fleet:
    """A fleet whose clock stands still."""
    return Fleet(SimulatedClock(START), record=True)


@pytest.fixture
def simulator(fleet: Fleet) -> Iterator[Simulator]:
    """A running simulator with two accounts."""
    with Simulator(fleet, accounts={"AKIAOTHER": OTHER_ACCOUNT}) as simulator:
        yield simulator


Connect = Callable[..., AbstractContextManager[Any]]


@pytest.fixture
def connect(session: boto3.Session, simulator: Simulator) -> Connect:
    """Make clients that never retry and know nothing of the environment's credentials."""

    def make(
        service: str = "ec2",
        *,
        region: str = REGION,
        key: str = "AKIA",
        token: str | None = None,
        read_timeout: float = 5,
        url: str | None = None,
    ) -> AbstractContextManager[Any]:
        config = Config(retries={"total_max_attempts": 1}, max_pool_connections=32, read_timeout=read_timeout)
        credentials = {"aws_access_key_id": key, "aws_secret_access_key": "-", "aws_session_token": token}
        endpoint = url or simulator.url
        return closing(session.client(service, region, endpoint_url=endpoint, config=config, **credentials))

    return make


@pytest.fixture
def ec2(connect: Connect) -> Iterator[Any]:
    """EC2 of the first account and Region."""
    with connect() as client:
        yield client


def task(number: int, **members: Any) -> dict[str, Any]:
    """One task as the CLI shows it."""
    return {"ImportTaskId": f"import-ami-{number:017x}", "Status": "active", "Tags": [], **members}


def put(fleet: Fleet, number: int, account: str = ACCOUNT, region: str = REGION) -> list[str]:
    """Place some tasks, and name them."""
    tasks = [task(n) for n in range(number)]
    for one in tasks:
        fleet.put(account, region, one)
    return [one["ImportTaskId"] for one in tasks]


def listed(ec2: Any, **parameters: Any) -> Tasks:
    """What one page, or a look-up, shows."""
    return list(ec2.describe_import_image_tasks(**parameters)["ImportImageTasks"])


def ids(tasks: Tasks) -> list[str]:
    """The tasks' ids in their order."""
    return [one["ImportTaskId"] for one in tasks]


def refusal(call: Callable[..., Any], **parameters: Any) -> tuple[str, int]:
    """The code and HTTP status that a call is refused with."""
    with pytest.raises(ClientError) as caught:
        call(**parameters)
    response = caught.value.response
    assert response["ResponseMetadata"]["RequestId"]
    return response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"]


# What is placed comes back


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_sample_comes_back_as_it_is(fleet: Fleet, ec2: Any, sample: Path) -> None:
    """Every published oddity survives the wire, absent and empty included."""
    content = json.loads(sample.read_text("utf-8"))
    tasks = content.get("ImportImageTasks", [content])
    for one in tasks:
        fleet.put(ACCOUNT, REGION, one)
    assert listed(ec2) == tasks


def test_placed_task_is_replaced_in_place_and_removed(fleet: Fleet, ec2: Any) -> None:
    """A placed task stays as it is until somebody says otherwise."""
    first, second = put(fleet, 2)
    fleet.put(ACCOUNT, REGION, task(0, Status="completed"))
    assert [one["Status"] for one in listed(ec2)] == ["completed", "active"]
    fleet.remove(ACCOUNT, REGION, first)
    assert ids(listed(ec2)) == [second]


def test_text_survives_the_wire(fleet: Fleet, ec2: Any) -> None:
    """Markup, line ends and other scripts come back as they went."""
    value = "<&\"'> équipe \r\n\t 🚀 田中 ]]>"
    fleet.put(ACCOUNT, REGION, task(1, Description=value, Tags=[{"Key": value, "Value": ""}]))
    (one,) = listed(ec2)
    assert one["Description"] == value
    assert one["Tags"] == [{"Key": value, "Value": ""}]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.0"),
        (723968.0, "723968.0"),
        (9999999.0, "9999999.0"),
        (1e7, "1.0E7"),
        (1073741824.0 * 10, "1.073741824E10"),
        (22724793856.0, "2.2724793856E10"),
        (0.5, "0.5"),
    ],
)
def test_doubles_are_written_as_java_does(value: float, text: str) -> None:
    """Sizes come in scientific form from ten million on."""
    assert java_double(value) == text


def test_order_of_tags_and_disks_may_differ(fleet: Fleet, ec2: Any) -> None:
    """Only if asked to, the fleet keeps no order."""
    tags = [{"Key": str(n), "Value": ""} for n in range(20)]
    fleet.put(ACCOUNT, REGION, task(1, Tags=tags))
    assert [listed(ec2)[0]["Tags"] for _ in range(3)] == [tags] * 3
    fleet.shuffle = True
    shuffled = [listed(ec2)[0]["Tags"] for _ in range(3)]
    assert shuffled[0] != shuffled[1] != shuffled[2]
    assert sorted(shuffled[0], key=lambda tag: int(tag["Key"])) == tags


# Listing


def test_accounts_and_regions_are_apart(connect: Connect, fleet: Fleet, simulator: Simulator) -> None:
    """The access key says which account, the credential scope which Region."""
    put(fleet, 1, OTHER_ACCOUNT, OTHER_REGION)
    seen = {}
    for key in ("AKIA", "AKIAOTHER"):
        for region in (REGION, OTHER_REGION):
            with connect(region=region, key=key) as client:
                seen[key, region] = len(listed(client))
    assert {where for where, number in seen.items() if number} == {("AKIAOTHER", OTHER_REGION)}
    assert simulator.count(account=OTHER_ACCOUNT, region=OTHER_REGION) == 1
    assert simulator.requests["DescribeImportImageTasks", ACCOUNT, REGION] == 1


def test_pages(fleet: Fleet, ec2: Any) -> None:
    """``MaxResults`` makes pages; without it there is one."""
    expected = put(fleet, 25)
    assert ids(listed(ec2)) == expected
    paginator = ec2.get_paginator("describe_import_image_tasks")
    pages = [ids(page["ImportImageTasks"]) for page in paginator.paginate(PaginationConfig={"PageSize": 10})]
    assert [len(page) for page in pages] == [10, 10, 5]
    assert [task_id for page in pages for task_id in page] == expected


def test_full_last_page_has_no_token(fleet: Fleet, ec2: Any) -> None:
    """A listing that ends with a full page ends there."""
    put(fleet, 4)
    page = ec2.describe_import_image_tasks(MaxResults=2)
    assert "NextToken" not in ec2.describe_import_image_tasks(MaxResults=2, NextToken=page["NextToken"])


def test_page_size_forces_pages(fleet: Fleet, simulator: Simulator, ec2: Any) -> None:
    """A server may make smaller pages than asked for."""
    put(fleet, 5)
    simulator.page_size = 2
    pages = list(ec2.get_paginator("describe_import_image_tasks").paginate())
    assert [len(page["ImportImageTasks"]) for page in pages] == [2, 2, 1]


def test_foreign_tokens_are_refused(connect: Connect, fleet: Fleet, ec2: Any) -> None:
    """A token is good for one account and Region."""
    put(fleet, 2)
    token = ec2.describe_import_image_tasks(MaxResults=1)["NextToken"]
    call = ec2.describe_import_image_tasks
    assert refusal(call, NextToken="nonsense") == ("InvalidNextToken", 400)
    with connect(region=OTHER_REGION) as other:
        assert refusal(other.describe_import_image_tasks, NextToken=token) == ("InvalidNextToken", 400)


@pytest.mark.parametrize("name", ["Filter", "Filters"])
def test_both_names_of_filters_are_read(fleet: Fleet, simulator: Simulator, name: str) -> None:
    """Old clients write ``Filter.N``, boto3 writes ``Filters.N``."""
    fleet.put(ACCOUNT, REGION, task(1))
    fleet.put(ACCOUNT, REGION, task(2, Status="completed"))
    form = f"Action=DescribeImportImageTasks&{name}.1.Name=task-state&{name}.1.Value.1=completed"
    _, body, _ = post(simulator, form)
    assert re.findall("<status>(.*?)</status>", body) == ["completed"]


def test_filters(fleet: Fleet, ec2: Any) -> None:
    """``task-state`` is the only filter there is."""
    for number, state in enumerate(["active", "completed", "deleted", "deleting"]):
        fleet.put(ACCOUNT, REGION, task(number, Status=state))
    wanted = {"Name": "task-state", "Values": ["completed", "deleting"]}
    assert [one["Status"] for one in listed(ec2, Filters=[wanted])] == ["completed", "deleting"]
    call = ec2.describe_import_image_tasks
    assert refusal(call, Filters=[{"Name": "tag:x", "Values": ["y"]}]) == ("InvalidParameterValue", 400)
    assert refusal(call, Filters=[{"Name": "task-state", "Values": ["y"]}]) == ("InvalidParameterValue", 400)
    assert refusal(call, MaxResults=0) == ("InvalidParameterValue", 400)


def test_look_ups(fleet: Fleet, ec2: Any) -> None:
    """One unknown id spoils the whole look-up."""
    first, _, third = put(fleet, 3)
    assert ids(listed(ec2, ImportTaskIds=[third, first])) == [first, third]
    call = ec2.describe_import_image_tasks
    assert refusal(call, ImportTaskIds=[first, "import-ami-x"]) == ("InvalidConversionTaskId.Malformed", 400)


# Lives


def life(fleet: Fleet, ec2: Any, task_id: str, duration: timedelta) -> Tasks:
    """Look at a task a hundred times from its beginning to its end."""
    seen = [listed(ec2, ImportTaskIds=[task_id])[0]]
    for _ in range(100):
        fleet.clock.advance(duration / 100)
        seen.append(listed(ec2, ImportTaskIds=[task_id])[0])
    return seen


def test_successful_life(fleet: Fleet, ec2: Any) -> None:
    """A task goes through all phases, ends with an image, and is forgotten after seven days."""
    hour = timedelta(hours=1)
    (container, tags) = ([DISK], [{"Key": "Name", "Value": "erp-db-02"}, {"Key": "CostCenter", "Value": ""}])
    task_id = fleet.import_image(
        ACCOUNT,
        REGION,
        duration=hour,
        Description="erp-db-02 wave 7",
        DiskContainers=container,
        TagSpecifications=[{"ResourceType": "import-image-task", "Tags": tags}],
    )
    seen = life(fleet, ec2, task_id, hour)
    messages = list(dict.fromkeys(one.get("StatusMessage") for one in seen))
    phases = "pending validating validated converting updating updated booting booted preparing ami"
    assert " ".join(filter(None, messages)) == phases
    assert messages[-1] is None
    progress = [int(one["Progress"]) for one in seen[:-1]]
    assert progress == sorted(progress)
    assert len(set(progress)) > 30
    assert seen[0]["SnapshotDetails"] == []
    sizes = [disk["DiskImageSize"] for one in seen for disk in one["SnapshotDetails"]]
    assert sizes[0] == 0.0
    assert sizes == sorted(sizes)
    assert all("SnapshotId" not in disk for one in seen[:70] for disk in one["SnapshotDetails"])
    assert all(one["Tags"] == tags for one in seen)
    end = seen[-1]
    assert end["Status"] == "completed"
    assert end["ImageId"].startswith("ami-0")
    assert "Progress" not in end
    assert {disk["Status"] for disk in end["SnapshotDetails"]} == {"completed"}
    assert {"Architecture", "Platform", "LicenseType"} <= end.keys()
    fleet.clock.advance(timedelta(days=7, seconds=-1))
    assert ids(listed(ec2)) == [task_id]
    fleet.clock.advance(timedelta(seconds=1))
    assert listed(ec2) == []
    call = ec2.describe_import_image_tasks
    assert refusal(call, ImportTaskIds=[task_id])[0] == "InvalidConversionTaskId.Malformed"


def test_failed_life(fleet: Fleet, ec2: Any) -> None:
    """A failure is ``deleted`` with a message; the disks may say otherwise."""
    message = "ClientError: No valid partitions. Not a valid volume."
    hour = timedelta(hours=1)
    task_id = fleet.import_image(ACCOUNT, REGION, duration=hour, failure=message, DiskContainers=[DISK])
    seen = life(fleet, ec2, task_id, hour)
    assert [one["StatusMessage"] for one in seen if one["Status"] == "active"][-1] == "updating"
    end = seen[-1]
    assert (end["Status"], end["StatusMessage"]) == ("deleted", message)
    assert end["SnapshotDetails"][0]["Status"] == "completed"
    assert not end.get("ImageId")
    assert "Progress" not in end


def test_snapshot_id_may_change_before_the_end(fleet: Fleet, ec2: Any) -> None:
    """Some of many imports show one snapshot id and end with another."""
    hour = timedelta(hours=1)
    for _ in range(20):
        fleet.import_image(ACCOUNT, REGION, duration=hour, DiskContainers=[DISK])
    fleet.clock.advance(hour * 0.8)
    early = [one["SnapshotDetails"][0]["SnapshotId"] for one in listed(ec2)]
    fleet.clock.advance(hour * 0.2)
    late = [one["SnapshotDetails"][0]["SnapshotId"] for one in listed(ec2)]
    changed = sum(one != other for one, other in zip(early, late, strict=True))
    assert 0 < changed < 20


def test_presigned_url_is_signed_anew_in_every_answer(fleet: Fleet, ec2: Any) -> None:
    """Equal tasks do not mean equal bytes; only the query differs."""
    url = "https://b.s3.amazonaws.com/k.vhdx"
    fleet.import_image(ACCOUNT, REGION, duration=timedelta(hours=1), DiskContainers=[{"Url": url}])
    fleet.clock.advance(timedelta(minutes=30))
    urls = [listed(ec2)[0]["SnapshotDetails"][0]["Url"] for _ in range(3)]
    assert len(set(urls)) == 3
    assert {text.partition("?")[0] for text in urls} == {url}
    assert all("X-Amz-Signature=" in text for text in urls)


def test_populated_fleet_is_varied_and_repeatable(fleet: Fleet, ec2: Any) -> None:
    """Random imports have every state and the three forms of id; the same seed gives the same ones."""
    task_ids = fleet.populate(ACCOUNT, REGION, 400)
    assert Fleet(SimulatedClock(START)).populate(ACCOUNT, REGION, 400) == task_ids
    tasks = listed(ec2)
    assert {one["Status"] for one in tasks} >= {"active", "completed", "deleted"}
    forms = (r"import-ami-[0-9a-f]{17}", r"import-ami-[0-9a-f]{16}t", r"import-ami-[0-9a-z]{8}")
    assert all(any(re.fullmatch(form, task_id) for task_id in task_ids) for form in forms)
    assert any(one.get("ImageId") == "" for one in tasks)
    assert {"BootMode", "Encrypted", "KmsKeyId", "LicenseSpecifications", "UsageOperation"} <= {
        member for one in tasks for member in one
    }
    assert any(tag["Value"] == "" for one in tasks for tag in one["Tags"])
    assert any(not tag["Value"].isascii() for one in tasks for tag in one["Tags"])
    assert len(tasks) < 400  # some are forgotten, some have not begun


def test_imports_keep_coming(fleet: Fleet, ec2: Any) -> None:
    """A stream brings new imports as time passes."""
    fleet.keep_importing(ACCOUNT, REGION, every=timedelta(minutes=10))
    fleet.clock.advance(timedelta(days=1))
    assert 100 < len(listed(ec2)) < 200


# Writing


def test_import_image(fleet: Fleet, ec2: Any) -> None:
    """An import asked for over the wire is the task that is listed."""
    tags = [{"Key": "Name", "Value": "erp"}, {"Key": "Empty", "Value": ""}]
    arn = "arn:aws:license-manager:us-east-1:111122223333:license-configuration:lic-1"
    answer = ec2.import_image(
        Description="two disks",
        DiskContainers=[DISK | {"Description": "root"}, DISK | {"DeviceName": "/dev/xvdz", "Format": "raw"}],
        TagSpecifications=[{"ResourceType": "import-image-task", "Tags": tags}],
        LicenseSpecifications=[{"LicenseConfigurationArn": arn}],
        Encrypted=True,
        KmsKeyId="alias/x",
        Platform="Windows",
        BootMode="uefi",
    )
    answer.pop("ResponseMetadata")
    (one,) = listed(ec2)
    # The model of ImportImage's answer has no boot mode, though that of the listing has.
    assert one == answer | {"BootMode": "uefi"}
    assert (one["Status"], one["StatusMessage"], one["Tags"]) == ("active", "pending", tags)
    assert one["LicenseSpecifications"] == [{"LicenseConfigurationArn": arn}]
    assert (one["Encrypted"], one["KmsKeyId"], one["Platform"]) == (True, "alias/x", "Windows")
    fleet.clock.advance(timedelta(days=1))
    disks = listed(ec2)[0]["SnapshotDetails"]
    assert [disk["DeviceName"] for disk in disks] == ["/dev/sda1", "/dev/xvdz"]
    assert [disk["Format"] for disk in disks] == ["VMDK", "RAW"]


def test_import_image_needs_disks(ec2: Any) -> None:
    """What EC2 refuses is refused."""
    assert refusal(ec2.import_image, Description="nothing") == ("MissingParameter", 400)
    assert refusal(ec2.import_image, DiskContainers=[{"Format": "RAW"}]) == ("InvalidParameter", 400)


DRY_RUNS = ["describe_images", "describe_import_image_tasks", "describe_regions", "import_image"]


@pytest.mark.parametrize("action", DRY_RUNS)
def test_dry_run_is_an_error_that_says_so(fleet: Fleet, ec2: Any, action: str) -> None:
    """Nothing happens in a dry run."""
    assert refusal(getattr(ec2, action), DryRun=True) == ("DryRunOperation", 412)
    assert fleet.tasks(ACCOUNT, REGION) == []


@pytest.mark.parametrize("action", DRY_RUNS)
def test_dry_run_tells_who_is_denied(simulator: Simulator, ec2: Any, action: str) -> None:
    """What would be refused is refused in a dry run too."""
    simulator.faults.add(Denied(), action=None)
    assert refusal(getattr(ec2, action), DryRun=True) == ("UnauthorizedOperation", 403)


def test_cancellation(fleet: Fleet, ec2: Any) -> None:
    """A cancelled task is deleting for a while, then deleted, with AWS's spelling."""
    task_id = fleet.import_image(ACCOUNT, REGION, duration=timedelta(hours=1), DiskContainers=[DISK])
    fleet.clock.advance(timedelta(minutes=20))
    answer = ec2.cancel_import_task(ImportTaskId=task_id, CancelReason="wrong disk")
    assert (answer["PreviousState"], answer["State"]) == ("active", "deleting")
    assert listed(ec2)[0]["Status"] == "deleting"
    assert refusal(ec2.cancel_import_task, ImportTaskId=task_id) == ("IncorrectState", 400)
    fleet.clock.advance(timedelta(minutes=3))
    (one,) = listed(ec2)
    assert (one["Status"], one["StatusMessage"]) == ("deleted", "User initiated task cancelation")
    assert refusal(ec2.cancel_import_task, ImportTaskId=task_id) == ("IncorrectState", 400)
    assert refusal(ec2.cancel_import_task, ImportTaskId="?") == ("InvalidConversionTaskId.Malformed", 400)
    fleet.clock.advance(timedelta(days=7))
    assert listed(ec2) == []


# Regions, images, callers


def test_regions_of_an_account(connect: Connect, fleet: Fleet) -> None:
    """Only enabled Regions are listed, and only they answer."""
    regions = {ACCOUNT: ["us-east-1", "af-south-1"]}
    with Simulator(fleet, regions=regions) as simulator, connect(url=simulator.url) as ec2:
        states = {one["RegionName"]: one["OptInStatus"] for one in ec2.describe_regions()["Regions"]}
        assert states == {"us-east-1": "opt-in-not-required", "af-south-1": "opted-in"}
        everything = ec2.describe_regions(AllRegions=True)["Regions"]
        assert len(everything) == 34
        opted_out = [{"Name": "opt-in-status", "Values": ["not-opted-in"]}]
        assert len(ec2.describe_regions(AllRegions=True, Filters=opted_out)["Regions"]) == 32
        assert refusal(ec2.describe_regions, RegionNames=["moon-1"]) == ("InvalidParameterValue", 400)
        with connect(region="eu-south-2", url=simulator.url) as other:
            assert refusal(other.describe_import_image_tasks) == ("AuthFailure", 401)


def test_images_outlive_their_tasks(fleet: Fleet, ec2: Any) -> None:
    """A finished import leaves an AMI named like its task and dated at its end."""
    hour = timedelta(hours=1)
    tags = [{"Key": "Name", "Value": "erp"}]
    specification = {"ResourceType": "import-image-task", "Tags": tags}
    request: dict[str, Any] = {
        "DiskContainers": [DISK, DISK],
        "TagSpecifications": [specification],
        "Description": "x",
    }
    task_id = fleet.import_image(ACCOUNT, REGION, duration=hour, Platform="Linux", **request)
    fleet.import_image(ACCOUNT, REGION, duration=hour, failure="ServerError: no", **request)
    by_name = [{"Name": "name", "Values": ["import-ami-*"]}]
    assert ec2.describe_images(Owners=["self"], Filters=by_name)["Images"] == []
    fleet.clock.advance(hour)
    (task_shown,) = listed(ec2, ImportTaskIds=[task_id])
    fleet.clock.advance(timedelta(days=30))
    (image,) = ec2.describe_images(Owners=["self"], Filters=by_name)["Images"]
    assert (image["Name"], image["CreationDate"]) == (task_id, "2026-03-01T13:00:00.000Z")
    assert image["ImageId"] == task_shown["ImageId"]
    assert image["Description"] == "AWS-VMImport service: Linux - x"
    assert image["Tags"] == tags
    assert (image["State"], image["OwnerId"], image["Public"]) == ("available", ACCOUNT, False)
    snapshots = [mapping["Ebs"]["SnapshotId"] for mapping in image["BlockDeviceMappings"]]
    assert snapshots == [disk["SnapshotId"] for disk in task_shown["SnapshotDetails"]]
    assert ec2.describe_images(Owners=["amazon"])["Images"] == []
    assert ec2.describe_images(Filters=[{"Name": "name", "Values": ["import-snap-*"]}])["Images"] == []
    assert refusal(ec2.describe_images, ImageIds=["ami-x"]) == ("InvalidAMIID.NotFound", 400)
    assert refusal(ec2.describe_images, Filters=[{"Name": "x", "Values": []}])[0] == "InvalidParameterValue"


def test_images_come_in_pages(fleet: Fleet, ec2: Any) -> None:
    """Placed and grown AMIs are listed alike, page by page."""
    fleet.import_image(ACCOUNT, REGION, duration=timedelta(hours=1), DiskContainers=[DISK])
    fleet.clock.advance(timedelta(hours=1))
    placed = [{"ImageId": f"ami-{n}", "Name": f"import-ami-{n}", "Tags": []} for n in range(4)]
    for image in placed:
        fleet.put_image(ACCOUNT, REGION, image)
    pages = list(ec2.get_paginator("describe_images").paginate(PaginationConfig={"PageSize": 2}))
    assert [len(page["Images"]) for page in pages] == [2, 2, 1]
    assert [image for page in pages for image in page["Images"]][1:] == placed


def test_callers(connect: Connect) -> None:
    """The access key names the account."""
    with connect("sts", key="AKIAOTHER") as sts:
        assert sts.get_caller_identity()["Account"] == OTHER_ACCOUNT
        assert refusal(sts.get_session_token) == ("InvalidAction", 400)


# Roles


@pytest.fixture
def sts(connect: Connect) -> Iterator[Any]:
    """STS, asked by the first account."""
    with connect("sts") as client:
        yield client


def role_of(account: str) -> dict[str, str]:
    """The parameters that assume an account's role."""
    return {"RoleArn": f"arn:aws:iam::{account}:role/ops/collector", "RoleSessionName": "collector"}


def assume(sts: Any, account: str, **parameters: Any) -> dict[str, Any]:
    """Assume an account's role; get its credentials."""
    return dict(sts.assume_role(**role_of(account), **parameters)["Credentials"])


def signed(credentials: dict[str, Any]) -> dict[str, str]:
    """What ``connect`` needs to sign with a role's credentials."""
    return {"key": credentials["AccessKeyId"], "token": credentials["SessionToken"]}


def test_assumed_roles_see_their_accounts(
    connect: Connect, fleet: Fleet, simulator: Simulator, sts: Any
) -> None:
    """Each of three accounts is shown its own tasks, and its requests are counted as its own."""
    accounts = [ACCOUNT, OTHER_ACCOUNT, THIRD_ACCOUNT]
    expected = {account: put(fleet, number, account) for number, account in enumerate(accounts, start=1)}
    seen = {}
    for account in accounts:
        with connect(**signed(assume(sts, account))) as ec2:
            seen[account] = ids(listed(ec2))
    assert seen == expected
    for action in ("AssumeRole", "DescribeImportImageTasks"):
        assert [simulator.count(action=action, account=account) for account in accounts] == [1, 1, 1]


def test_answer_to_assume_role(sts: Any) -> None:
    """It lasts as long as asked for; the ARN of the session has no path, as in AWS."""
    now = datetime.now(UTC)
    answer = sts.assume_role(**role_of(OTHER_ACCOUNT), DurationSeconds=900)
    assert (
        answer["AssumedRoleUser"]["Arn"] == f"arn:aws:sts::{OTHER_ACCOUNT}:assumed-role/collector/collector"
    )
    lasts = answer["Credentials"]["Expiration"] - now
    assert timedelta(seconds=899) < lasts < timedelta(seconds=930)


def test_nonsense_roles_are_refused(sts: Any) -> None:
    """An ARN that is none, and a duration that AWS does not allow."""
    nonsense = {"RoleArn": "arn:aws:iam::1:role/collector", "RoleSessionName": "collector"}
    assert refusal(sts.assume_role, **nonsense) == ("ValidationError", 400)
    assert refusal(sts.assume_role, **role_of(ACCOUNT), DurationSeconds=50_000) == ("ValidationError", 400)


def test_faults_of_assume_role_go_by_the_account_of_the_role(simulator: Simulator, sts: Any) -> None:
    """Who may not assume one account's role may assume another's."""
    rule = simulator.faults.add(Denied("AccessDenied"), action="AssumeRole", account=OTHER_ACCOUNT)
    assert refusal(sts.assume_role, **role_of(OTHER_ACCOUNT)) == ("AccessDenied", 403)
    assert assume(sts, THIRD_ACCOUNT)
    assert rule.hits == 1


def test_external_id(simulator: Simulator, sts: Any) -> None:
    """An account that wants an external id refuses whoever does not know it, and only that account does."""
    simulator.external_ids[OTHER_ACCOUNT] = "wave-7"
    call, role = sts.assume_role, role_of(OTHER_ACCOUNT)
    assert refusal(call, **role) == ("AccessDenied", 403)
    assert refusal(call, **role, ExternalId="wave-8") == ("AccessDenied", 403)
    assert assume(sts, OTHER_ACCOUNT, ExternalId="wave-7")
    assert assume(sts, THIRD_ACCOUNT)


def test_role_credentials_expire_one_by_one(connect: Connect, simulator: Simulator, sts: Any) -> None:
    """Past their expiration all services refuse them, each in its way; younger ones are good."""
    simulator.role_lifetime = timedelta(seconds=0.3)
    old = assume(sts, OTHER_ACCOUNT)
    assert old["Expiration"] < datetime.now(UTC) + timedelta(seconds=0.3)
    simulator.role_lifetime = None
    young = assume(sts, OTHER_ACCOUNT)
    while datetime.now(UTC) <= old["Expiration"] + timedelta(milliseconds=1):
        sleep(0.02)
    with connect(**signed(old)) as ec2, connect("sts", **signed(old)) as own_sts:
        assert refusal(ec2.describe_import_image_tasks) == ("ExpiredToken", 400)
        simulator.expired_code = "RequestExpired"
        assert refusal(ec2.describe_import_image_tasks) == ("RequestExpired", 400)
        assert refusal(own_sts.get_caller_identity) == ("ExpiredToken", 400)
    with connect("organizations", **signed(old)) as organizations:
        assert refusal(organizations.list_accounts) == ("ExpiredTokenException", 400)
    with connect(**signed(young)) as ec2:
        assert listed(ec2) == []
    assert simulator.count(action="DescribeImportImageTasks", account=OTHER_ACCOUNT) == 3


def test_revoked_role_credentials(connect: Connect, simulator: Simulator, sts: Any) -> None:
    """All of one account end; those of other accounts, and new ones, are good."""
    revoked = [assume(sts, OTHER_ACCOUNT), assume(sts, OTHER_ACCOUNT)]
    other = assume(sts, THIRD_ACCOUNT)
    simulator.revoke(OTHER_ACCOUNT)
    for credentials in revoked:
        with connect(**signed(credentials)) as ec2:
            assert refusal(ec2.describe_regions) == ("ExpiredToken", 400)
    for credentials in (other, assume(sts, OTHER_ACCOUNT)):
        with connect(**signed(credentials)) as ec2:
            assert listed(ec2) == []


def test_forgotten_keys_of_roles_stay_expired() -> None:
    """They are not kept for ever, and do not become another account's."""
    callers = Callers({}, ACCOUNT)
    first, _ = callers.give(OTHER_ACCOUNT, timedelta(0))
    last, _ = callers.give(OTHER_ACCOUNT, timedelta(hours=1))
    keys = {callers.give(OTHER_ACCOUNT, timedelta(0))[0] for _ in range(3 * FORGET_EVERY)}
    assert len(keys) == 3 * FORGET_EVERY
    assert callers.remembered <= FORGET_EVERY + 1
    assert [callers.expired(key) for key in (first, last, "AKIAUNKNOWN")] == [True, False, False]
    assert [callers.account_of(key) for key in (first, "AKIAUNKNOWN")] == [OTHER_ACCOUNT, ACCOUNT]


# Organizations


@pytest.fixture
def organizations(connect: Connect) -> Iterator[Any]:
    """Organizations, asked by the first account."""
    with connect("organizations") as client:
        yield client


def test_accounts_of_an_organization(simulator: Simulator, organizations: Any) -> None:
    """All of them are shown, also those that cannot be used."""
    states = {ACCOUNT: "ACTIVE", OTHER_ACCOUNT: "SUSPENDED", THIRD_ACCOUNT: "PENDING_CLOSURE"}
    simulator.organization = states
    accounts = organizations.list_accounts()["Accounts"]
    assert {one["Id"]: one["State"] for one in accounts} == states
    assert [one["Status"] for one in accounts] == list(states.values())
    assert accounts[1]["Arn"] == f"arn:aws:organizations::{ACCOUNT}:account/o-simulated0/{OTHER_ACCOUNT}"
    assert len({one["Name"] for one in accounts} | {one["Email"] for one in accounts}) == 6


def test_account_joins_and_leaves(simulator: Simulator, organizations: Any) -> None:
    """The organization may change at any time."""
    simulator.organization = {ACCOUNT: "ACTIVE"}
    simulator.organization[OTHER_ACCOUNT] = "ACTIVE"
    del simulator.organization[ACCOUNT]
    assert [one["Id"] for one in organizations.list_accounts()["Accounts"]] == [OTHER_ACCOUNT]


def test_accounts_come_in_pages(simulator: Simulator, organizations: Any) -> None:
    """Of twenty unasked, as in AWS, or of fewer."""
    accounts = [f"{number:012}" for number in range(45)]
    simulator.organization = dict.fromkeys(accounts, "ACTIVE")

    def pages(**parameters: Any) -> list[list[str]]:
        pages = organizations.get_paginator("list_accounts").paginate(**parameters)
        return [[one["Id"] for one in page["Accounts"]] for page in pages]

    assert [len(page) for page in pages()] == [20, 20, 5]
    assert [len(page) for page in pages(PaginationConfig={"PageSize": 15})] == [15, 15, 15]
    simulator.page_size = 7
    assert [len(page) for page in pages()] == [7] * 6 + [3]
    assert [account for page in pages() for account in page] == accounts


def test_refusals_of_organizations(simulator: Simulator, organizations: Any) -> None:
    """Errors come as JSON, in the form and with the names that boto3 knows."""
    call = organizations.list_accounts
    assert refusal(call) == ("AWSOrganizationsNotInUseException", 400)
    simulator.organization = {ACCOUNT: "ACTIVE"}
    assert refusal(call, NextToken="nonsense") == ("InvalidInputException", 400)
    assert refusal(call, MaxResults=20 + 1) == ("InvalidInputException", 400)
    assert refusal(organizations.describe_organization) == ("UnknownOperationException", 400)
    simulator.faults.add(Denied("AccessDeniedException"), action="ListAccounts", account=ACCOUNT)
    with pytest.raises(organizations.exceptions.AccessDeniedException, match="don't have permissions"):
        call()


def test_environment_leads_every_service_here(simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """One variable is enough for EC2, STS and Organizations."""
    for name, value in simulator.environment.items():
        monkeypatch.setenv(name, value)
    simulator.organization = {ACCOUNT: "ACTIVE"}
    session = boto3.Session()
    with closing(session.client("organizations")) as client:
        assert client.list_accounts()["Accounts"][0]["Id"] == ACCOUNT
    with closing(session.client("sts")) as client:
        assert client.get_caller_identity()["Account"] == ACCOUNT
    with closing(session.client("ec2")) as client:
        assert listed(client) == []


def test_unknown_actions(ec2: Any) -> None:
    """What is not simulated is refused by name."""
    assert refusal(ec2.describe_vpcs) == ("InvalidAction", 400)


# Raw HTTP


def post(simulator: Simulator, form: str, authorization: str | None = "") -> tuple[int, str, dict[str, str]]:
    """Send a form without boto3; get status, body and headers."""
    scope = f"AWS4-HMAC-SHA256 Credential=AKIA/20260301/{REGION}/ec2/aws4_request, Signature=0"
    headers = {} if authorization is None else {"Authorization": authorization or scope}
    request = Request(simulator.url, form.encode(), headers)  # noqa: S310 - the simulator's own address
    try:
        with urlopen(request, timeout=5) as response:  # noqa: S310 - as above
            return response.status, response.read().decode(), dict(response.headers)
    except OSError as error:
        with closing(error):  # type: ignore[type-var]
            return error.status, error.read().decode(), dict(error.headers)  # type: ignore[attr-defined]


def test_answer_on_the_wire(fleet: Fleet, simulator: Simulator) -> None:
    """The XML is EC2's, with its namespace, names and request id, and the date is the real one."""
    fleet.put(ACCOUNT, REGION, task(1, SnapshotDetails=[{"DiskImageSize": 1e10}]))
    status, body, headers = post(simulator, "Action=DescribeImportImageTasks&Version=2016-11-15")
    assert status == 200
    assert body.startswith('<?xml version="1.0" encoding="UTF-8"?>')
    root = '<DescribeImportImageTasksResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><requestId>'
    assert root in body
    disks = "<snapshotDetailSet><item><diskImageSize>1.0E10</diskImageSize></item></snapshotDetailSet>"
    assert disks in body
    assert "<tagSet/>" in body
    assert abs(parsedate_to_datetime(headers["Date"]) - datetime.now(UTC)) < timedelta(seconds=10)


@pytest.mark.parametrize("skew", [timedelta(minutes=-20), timedelta(0), timedelta(days=400)])
def test_skewed_date(simulator: Simulator, ec2: Any, skew: timedelta) -> None:
    """The servers' clock may be wrong, as seen from here."""
    simulator.date_skew = skew
    headers = ec2.describe_import_image_tasks()["ResponseMetadata"]["HTTPHeaders"]
    ahead = parsedate_to_datetime(headers["date"]) - datetime.now(UTC)
    assert abs(ahead - skew) < timedelta(seconds=10)


def test_callers_without_credentials(simulator: Simulator) -> None:
    """An unsigned request is refused in EC2's form of an error."""
    status, body, _ = post(simulator, "Action=DescribeRegions", authorization=None)
    assert (status, "<Code>MissingAuthenticationToken</Code>" in body) == (403, True)
    status, body, _ = post(simulator, "Action=DescribeRegions", authorization="Basic x")
    assert (status, "<Code>AuthFailure</Code>" in body) == (401, True)
    assert "<Response><Errors><Error>" in body


@pytest.mark.parametrize(
    "form", ["Filters=x&Filters.1.Name=y", "Filters.1.Name=y&Filters.1=x", "MaxResults.1=2"]
)
def test_nonsense_is_refused(simulator: Simulator, form: str) -> None:
    """A form that makes no sense is a client's error, not the simulator's end."""
    assert post(simulator, f"Action=DescribeImportImageTasks&{form}")[0] == 400


@pytest.mark.parametrize("body", ["{", "[]", ""])
def test_nonsense_is_refused_as_json(simulator: Simulator, body: str) -> None:
    """A body that is no object is a client's error, in the form of the service that was asked."""
    scope = f"AWS4-HMAC-SHA256 Credential=AKIA/20260301/{REGION}/organizations/aws4_request, Signature=0"
    status, answer, headers = post(simulator, body, scope)
    assert (status, json.loads(answer)["__type"]) == (400, "SerializationException")
    assert headers["Content-Type"] == "application/x-amz-json-1.1"


# Faults


@pytest.fixture
def faults(simulator: Simulator) -> Faults:
    """The rules of the running simulator."""
    return simulator.faults


@pytest.mark.parametrize(
    ("fault", "code", "status"),
    [
        (Throttle(), "RequestLimitExceeded", 503),
        (ServerError(), "InternalError", 500),
        (ServerError("Unavailable"), "Unavailable", 503),
        (Denied(), "UnauthorizedOperation", 403),
        (Denied("AuthFailure"), "AuthFailure", 401),
        (Denied("OptInRequired"), "OptInRequired", 401),
        (Denied("ExpiredToken"), "ExpiredToken", 400),
        (Denied("RequestExpired"), "RequestExpired", 400),
    ],
)
def test_error_answers(faults: Faults, ec2: Any, fault: Fault, code: str, status: int) -> None:
    """An injected error looks like a real one."""
    faults.add(fault, times=1)
    assert refusal(ec2.describe_import_image_tasks) == (code, status)
    assert listed(ec2) == []


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Reset(), ConnectionClosedError),
        (Reset(after_half=True), ConnectionClosedError),
        (Stall(), ReadTimeoutError),
        (Stall(0.05), ConnectionClosedError),
        (Drip(0.001), None),
        (TruncatedXml(), ResponseParserError),
        (HtmlPage(well_formed=False), ResponseParserError),
        (Latency(1.0), ReadTimeoutError),
    ],
)
def test_misbehaving_connections(connect: Connect, faults: Faults, fault: Fault, error: Any) -> None:
    """Botocore raises what it raises in the wild, and the next request is answered."""
    faults.add(fault, times=1)
    with connect(read_timeout=0.4) as ec2:
        if error is not None:
            with pytest.raises(error):
                ec2.describe_import_image_tasks()
        assert listed(ec2) == []


def test_reset_is_a_reset(simulator: Simulator, faults: Faults) -> None:
    """The client's kernel sees RST, not a polite end."""
    faults.add(Reset(), action=None)
    with socket.create_connection(("127.0.0.1", int(simulator.url.rpartition(":")[2])), timeout=5) as client:
        scope = f"Credential=AKIA/20260301/{REGION}/ec2/aws4_request"
        client.sendall(f"GET /?Action=DescribeRegions HTTP/1.1\r\nAuthorization: {scope}\r\n\r\n".encode())
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_drip_outlives_the_read_timeout(connect: Connect, faults: Faults) -> None:
    """Every byte begins the client's timeout anew."""
    faults.add(Drip(0.005))
    with connect(read_timeout=0.3) as ec2:
        begun = monotonic()
        assert listed(ec2) == []
        assert monotonic() - begun > 0.6


def test_html_page_of_a_proxy(fleet: Fleet, faults: Faults, ec2: Any) -> None:
    """Botocore takes XHTML for an answer without tasks; only the missing member tells."""
    put(fleet, 1)
    faults.add(HtmlPage())
    answer = ec2.describe_import_image_tasks()
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 200
    assert "ImportImageTasks" not in answer


def tokens(ec2: Any, number: int) -> list[str]:
    """Follow the tokens of a listing with pages of one task."""
    found: list[str] = []
    for _ in range(number):
        parameters = {"NextToken": found[-1]} if found else {}
        found.append(ec2.describe_import_image_tasks(MaxResults=1, **parameters)["NextToken"])
    return found


def test_tokens_that_never_end(fleet: Fleet, faults: Faults, ec2: Any) -> None:
    """A, A, A, …; A, B, A, B, …; and always another one."""
    put(fleet, 3)
    with faults.add(RepeatedToken()), pytest.raises(PaginationError):
        list(ec2.get_paginator("describe_import_image_tasks").paginate())
    with faults.add(TokenCycle()):
        first, second, *others = tokens(ec2, 6)
        assert others == [first, second] * 2
        assert first != second
    with faults.add(EndlessPages()):
        assert len(set(tokens(ec2, 20))) == 20


def test_listings_that_lie(fleet: Fleet, faults: Faults, ec2: Any) -> None:
    """A task is missing from the listing, but a look-up finds it; or all are missing."""
    first, second, third = put(fleet, 3)
    with faults.add(MissingTask(ids=(second,))):
        assert ids(listed(ec2)) == [first, third]
        assert ids(listed(ec2, ImportTaskIds=[second])) == [second]
    with faults.add(EmptyListing(), only_listing=True):
        assert listed(ec2) == []
        assert len(listed(ec2, ImportTaskIds=[second])) == 1
    assert len(listed(ec2)) == 3


def test_fraction_of_missing_tasks_is_always_the_same(fleet: Fleet, faults: Faults, ec2: Any) -> None:
    """Which tasks are missing does not change from look to look."""
    put(fleet, 200)
    faults.add(MissingTask(fraction=0.25))
    seen = ids(listed(ec2))
    assert 120 < len(seen) < 180
    assert ids(listed(ec2)) == seen


def test_task_that_moves_between_pages(fleet: Fleet, faults: Faults, ec2: Any) -> None:
    """A task of page 1 is seen again on page 2."""
    first, second, third = put(fleet, 3)
    faults.add(DuplicateOverPages())
    paginator = ec2.get_paginator("describe_import_image_tasks")
    pages = [ids(page["ImportImageTasks"]) for page in paginator.paginate(PaginationConfig={"PageSize": 2})]
    assert pages == [[first, second], [first, third]]


def test_rules_say_which_requests_meet_a_fault(connect: Connect, fleet: Fleet, faults: Faults) -> None:
    """By action, account, Region, page, kind of request, and number."""
    task_id, _ = put(fleet, 2)
    rule = faults.add(Throttle(), account=ACCOUNT, region=REGION, page=2, times=2)
    with connect() as ec2, connect(region=OTHER_REGION) as other:
        token = ec2.describe_import_image_tasks(MaxResults=1)["NextToken"]
        for _ in range(2):
            assert refusal(ec2.describe_import_image_tasks, NextToken=token)[1] == 503
        assert len(listed(ec2, NextToken=token)) == 1
        assert rule.hits == 2
        faults.add(Throttle(), only_lookups=True, region=REGION)
        assert len(listed(ec2)) == 2
        assert refusal(ec2.describe_import_image_tasks, ImportTaskIds=[task_id])[1] == 503
        faults.add(Denied(), action=None, region=OTHER_REGION)
        assert refusal(other.describe_regions)[1] == 403
        faults.clear()
        assert other.describe_regions()["Regions"]


def test_probability_of_a_fault(faults: Faults, simulator: Simulator, ec2: Any) -> None:
    """A fault of probability one half hits about half of the requests."""
    rule = faults.add(EmptyListing(), probability=0.5)
    for _ in range(60):
        listed(ec2)
    assert 15 < rule.hits < 45
    assert simulator.count(action="DescribeImportImageTasks") == 60


def test_faults_of_sts_have_its_form(connect: Connect, faults: Faults) -> None:
    """STS's errors look otherwise, and are understood."""
    faults.add(Denied("ExpiredToken"), action="GetCallerIdentity")
    with connect("sts") as sts:
        assert refusal(sts.get_caller_identity) == ("ExpiredToken", 400)


# The ledger and the counters


def test_ledger_tells_what_was_shown(fleet: Fleet, faults: Faults, ec2: Any) -> None:
    """Every good listing is recorded with its time; answers that did not arrive are not."""
    first, second = put(fleet, 2)
    ec2.describe_import_image_tasks(MaxResults=1)
    fleet.clock.advance(timedelta(minutes=1))
    listed(ec2, ImportTaskIds=[second])
    for fault in (Throttle(), Reset(), TruncatedXml(), HtmlPage(well_formed=False)):
        with faults.add(fault), pytest.raises((ClientError, ConnectionClosedError, ResponseParserError)):
            ec2.describe_import_image_tasks()
    assert fleet.ledger is not None
    assert [(shown.at, ids(shown.tasks), shown.lookup, shown.more) for shown in fleet.ledger] == [
        (START, [first], False, True),
        (START + timedelta(minutes=1), [second], True, False),
    ]


def test_requests_at_once_are_counted(connect: Connect, simulator: Simulator) -> None:
    """One after the other is a peak of one; together is more."""
    with connect() as ec2:
        for _ in range(20):
            listed(ec2)
        assert simulator.peaks == {(ACCOUNT, REGION): 1}
        simulator.latency = 0.2
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: listed(ec2), range(8)))
        assert simulator.peaks[ACCOUNT, REGION] > 4


def test_peaks_are_of_ec2_alone(simulator: Simulator, sts: Any) -> None:
    """Roles assumed beside a listing are no second listing."""
    simulator.latency = 0.05
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: assume(sts, OTHER_ACCOUNT), range(4)))
    assert simulator.count(action="AssumeRole", account=OTHER_ACCOUNT) == 4
    assert simulator.peaks == {}


# The clock, the start and the end


def test_clock() -> None:
    """It stands still, jumps, or runs; it never runs backwards."""
    clock = SimulatedClock(START)
    assert clock.now() == clock.now() == START
    assert clock.advance(timedelta(hours=1)) == START + timedelta(hours=1)
    clock.set_rate(1e6)
    assert clock.now() < clock.now()
    with pytest.raises(ValueError, match="backwards"):
        clock.advance(timedelta(seconds=-1))
    with pytest.raises(ValueError, match="UTC"):
        SimulatedClock(START.replace(tzinfo=None))


def test_stop_ends_every_thread_and_socket(connect: Connect, fleet: Fleet) -> None:
    """Also what stalls, drips or idles ends at once."""
    before = threading.active_count()
    simulator = Simulator(fleet)
    simulator.start()
    url = simulator.url
    with connect(url=url) as idle, connect(url=url) as stalled, ThreadPoolExecutor(1) as pool:
        listed(idle)
        simulator.faults.add(Stall())
        waiting = pool.submit(stalled.describe_import_image_tasks)
        while simulator.count() < 2:
            pass
        begun = monotonic()
        simulator.stop()
        assert monotonic() - begun < 1
        assert isinstance(waiting.exception(timeout=5), ConnectionClosedError)
    simulator.stop()
    assert threading.active_count() <= before
    with pytest.raises(RuntimeError, match="not running"):
        _ = simulator.url


def test_many_connections_at_once(simulator: Simulator, fleet: Fleet) -> None:
    """A hundred clients do not disturb each other."""
    fleet.populate(ACCOUNT, REGION, 50)
    form = "Action=DescribeImportImageTasks"
    with ThreadPoolExecutor(100) as pool:
        statuses = list(pool.map(lambda _: post(simulator, form)[0], range(300)))
    assert set(statuses) == {200}


def test_many_accounts_at_once(connect: Connect, fleet: Fleet, simulator: Simulator) -> None:
    """Sixty-four connections assume roles and list; nobody sees another account's tasks."""
    accounts = [f"{number:012}" for number in range(64)]
    for account in accounts:
        fleet.put(account, REGION, task(int(account)))

    def look(account: str) -> list[str]:
        key = assume(sts, account)["AccessKeyId"]
        scope = f"AWS4-HMAC-SHA256 Credential={key}/20260301/{REGION}/ec2/aws4_request, Signature=0"
        bodies = [post(simulator, "Action=DescribeImportImageTasks", scope)[1] for _ in range(5)]
        return [found for body in bodies for found in re.findall("<importTaskId>(.*?)<", body)]

    with connect("sts") as sts, ThreadPoolExecutor(64) as pool:
        seen = list(pool.map(look, accounts))
    assert seen == [[task(int(account))["ImportTaskId"]] * 5 for account in accounts]
    assert set(simulator.peaks.values()) == {1}


def test_command_line() -> None:
    """``python -m collector.simulator`` says how to reach it, and ends cleanly."""
    command = [sys.executable, "-m", "collector.simulator", "--tasks", "3", "--regions", REGION]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(7)]
        url = lines[1].removeprefix("export AWS_ENDPOINT_URL=").strip()
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=5):
            process.terminate()
        assert process.wait(timeout=10) == 0
