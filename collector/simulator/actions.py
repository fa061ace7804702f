"""The actions of EC2: what it answers, given who asks and with which parameters.

Results are dicts in boto3's form; how they look on the wire is ``protocol``'s business.
"""

from collections.abc import Callable
from typing import Any

from collector.simulator.faults import AlteredListing, ErrorAnswer
from collector.simulator.fleet import FinishedTaskError, Shown
from collector.simulator.images import image_of, select
from collector.simulator.lives import Task
from collector.simulator.paging import Listing, Token
from collector.simulator.place import UnknownTaskError
from collector.simulator.protocol import ApiError
from collector.simulator.request import Request, Result, World

TASK_STATES = ("active", "completed", "deleting", "deleted")


def describe_import_image_tasks(world: World, request: Request) -> Result:
    """List the account's imports in a Region, or look some up by id."""
    ids = request.items("ImportTaskId", "ImportTaskIds") or None
    token, limit = request.token(), request.page_limit(world.page_size)
    states = _states(request.filters())
    one_more = None if limit is None else limit + 1
    try:
        now, found = world.fleet.listing(
            request.account, request.region, ids=ids, states=states, after=token.after, limit=one_more
        )
    except UnknownTaskError as error:
        raise _unknown_task(error) from error
    page = found[:limit]
    listing = Listing(
        tasks=[task for _, task in page],
        page=token.page,
        lookup=ids is not None,
        next_token=Token(page[-1][0], token.page + 1) if len(found) > len(page) else None,
        first=lambda: _first(world, request),
    )
    for fault in request.faults:
        if isinstance(fault, AlteredListing):
            fault.alter(listing)
    if not request.spoiled:
        more = listing.next_token is not None
        where = (request.account, request.region)
        world.fleet.record(Shown(*where, now, listing.page, listing.lookup, more, listing.tasks))
    return listing.as_result(request.scope)


def _first(world: World, request: Request) -> Task | None:
    _, found = world.fleet.listing(request.account, request.region, limit=1)
    return found[0][1] if found else None


def _states(filters: dict[str, list[str]]) -> frozenset[str] | None:
    for name, values in filters.items():
        if name != "task-state":
            raise ApiError("InvalidParameterValue", f"The filter '{name}' is invalid")
        for value in values:
            if value not in TASK_STATES:
                raise ApiError(
                    "InvalidParameterValue", f"The value '{value}' of the filter '{name}' is invalid"
                )
        return frozenset(values)
    return None


def import_image(world: World, request: Request) -> Result:
    """Begin an import."""
    containers = [_container(item) for item in request.items("DiskContainer", "DiskContainers")]
    if not containers:
        raise ApiError("MissingParameter", "The request must contain the parameter DiskContainers")
    names = (
        "Architecture",
        "BootMode",
        "Description",
        "Hypervisor",
        "KmsKeyId",
        "LicenseType",
        "Platform",
        "RoleName",
    )
    wanted: Result = {name: request.text(name) for name in (*names, "UsageOperation") if request.text(name)}
    if request.flag("Encrypted"):
        wanted["Encrypted"] = True
    if licences := request.items("LicenseSpecifications", "LicenseSpecification"):
        wanted["LicenseSpecifications"] = licences
    wanted["TagSpecifications"] = [
        {"ResourceType": item.get("ResourceType"), "Tags": item.get("Tag", item.get("Tags", []))}
        for item in request.items("TagSpecification", "TagSpecifications")
    ]
    task_id = world.fleet.import_image(request.account, request.region, DiskContainers=containers, **wanted)
    return world.fleet.tasks(request.account, request.region, [task_id])[0]


def _container(item: Any) -> Result:
    bucket = item.get("UserBucket") if isinstance(item, dict) else None
    if not isinstance(item, dict) or not (item.get("Url") or item.get("SnapshotId") or bucket):
        raise ApiError("InvalidParameter", "A disk container needs one of UserBucket, Url and SnapshotId")
    return item


def cancel_import_task(world: World, request: Request) -> Result:
    """Cancel an import that has not ended."""
    task_id = request.text("ImportTaskId")
    if not task_id:
        raise ApiError("MissingParameter", "The request must contain the parameter ImportTaskId")
    try:
        previous = world.fleet.cancel(request.account, request.region, task_id)
    except UnknownTaskError as error:
        raise _unknown_task(error) from error
    except FinishedTaskError as error:
        raise ApiError("IncorrectState", f"The task {task_id} cannot be cancelled: it is {error}.") from error
    return {"ImportTaskId": task_id, "PreviousState": previous, "State": "deleting"}


def describe_regions(world: World, request: Request) -> Result:
    """List the enabled Regions, or all."""
    filters = request.filters()
    if unknown := set(filters) - {"region-name", "opt-in-status", "endpoint"}:
        raise ApiError("InvalidParameterValue", f"The filter '{min(unknown)}' is invalid")
    names = request.items("RegionName", "RegionNames")
    states = world.regions.opt_in_states(request.account)
    if invalid := [name for name in names if name not in states]:
        raise ApiError("InvalidParameterValue", f"Invalid region names: [{', '.join(invalid)}]")
    regions = [
        {"RegionName": name, "Endpoint": f"ec2.{name}.amazonaws.com", "OptInStatus": state}
        for name, state in states.items()
        if (not names or name in names) and (request.flag("AllRegions") or state != "not-opted-in")
    ]
    members = {"region-name": "RegionName", "opt-in-status": "OptInStatus", "endpoint": "Endpoint"}
    for name, values in filters.items():
        regions = [region for region in regions if region[members[name]] in values]
    return {"Regions": regions}


def describe_images(world: World, request: Request) -> Result:
    """List the account's own AMIs: those of finished imports, and those that were placed."""
    owners = request.items("Owner", "Owners")
    token, limit = request.token(), request.page_limit(world.page_size)
    _, plans = world.fleet.finished_plans(request.account, request.region)
    images = [image_of(plan, request.account) for plan in plans]
    images += world.fleet.placed_images(request.account, request.region)
    if ids := request.items("ImageId", "ImageIds"):
        known = {image["ImageId"] for image in images}
        if missing := [image_id for image_id in ids if image_id not in known]:
            raise ApiError("InvalidAMIID.NotFound", f"The image ids '[{', '.join(missing)}]' do not exist")
        images = [image for image in images if image["ImageId"] in ids]
    if owners and not {"self", request.account} & set(owners):
        images = []
    images = select(images, request.filters())
    begin = token.after + 1
    page = images[begin:] if limit is None else images[begin : begin + limit]
    result: Result = {"Images": page}
    if begin + len(page) < len(images):
        result["NextToken"] = Token(token.after + len(page), token.page + 1).encode(request.scope)
    return result


Action = Callable[[World, Request], Result]

ACTIONS: dict[str, Action] = {
    "CancelImportTask": cancel_import_task,
    "DescribeImages": describe_images,
    "DescribeImportImageTasks": describe_import_image_tasks,
    "DescribeRegions": describe_regions,
    "ImportImage": import_image,
}


def answer(world: World, request: Request) -> Result:
    """Answer as EC2, in a Region that the account has enabled; a dry run that would go well is an error."""
    if request.expired:
        raise ErrorAnswer(world.expired_code).error()
    action = ACTIONS.get(request.action)
    if action is None:
        raise ApiError("InvalidAction", f"The action {request.action} is not valid for this web service.")
    if request.region not in world.regions.enabled(request.account):
        message = "AWS was not able to validate the provided access credentials"
        raise ApiError("AuthFailure", message, status=401)
    if request.flag("DryRun"):
        message = "Request would have succeeded, but DryRun flag is set."
        raise ApiError("DryRunOperation", message, status=412)
    return action(world, request)


def _unknown_task(error: UnknownTaskError) -> ApiError:
    return ApiError("InvalidConversionTaskId.Malformed", f"Malformed conversion task id: {error}")
