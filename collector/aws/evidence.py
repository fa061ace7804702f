"""What is left of imports that EC2 has forgotten: the AMIs they made, and CloudTrail's record of who asked.

Fetching is the ``Gatherer``'s, failures are values, and half an answer is none. ``evidence_of_image`` and
``evidence_of_event`` are pure. ``details`` is canonical JSON (see ``collector.aws.transform``) with AWS's
names: of an AMI ``description``, ``disks`` (``deviceName``, ``snapshotId``, ``volumeSize`` in GiB,
``encrypted``), ``state`` and ``tags``; of a request its parameters, whichever way CloudTrail nests them,
with ``disks`` (``s3Bucket``, ``s3Key``, ``url``, …), ``licenseConfigurationArns`` and ``tags`` in one form.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from collector.aws.asking import Asker, Asking, Json
from collector.aws.clients import Clients
from collector.aws.failures import UnusableAnswerError
from collector.aws.pace import TokenBucket
from collector.aws.transform import LONGEST_KEY, canonical_json, storable
from collector.domain import Evidence, Failure, Target
from collector.errors import MalformedTaskError

EVENT_NAMES = ("ImportImage", "CancelImportTask")
LOOKUPS_PER_SECOND = 2.0
"""What AWS allows for ``LookupEvents`` per account and Region."""

IMAGES_ON_A_PAGE, EVENTS_ON_A_PAGE = 500, 50

_NAME_OF_IMPORTS = "import-ami-"
_NAME_OF_SNAPSHOT_IMPORTS = "import-snap-"


# Fetching


class Gatherer:
    """Asks targets for evidence, from any number of threads, but a target from one at a time.

    ``asking`` says in whose name and for how long; an answer that is not complete by then is a failure as a
    whole.
    """

    def __init__(self, clients: Clients, asking: Asking) -> None:
        self._clients = clients
        self.asking = asking
        self._paces: defaultdict[Target, TokenBucket] = defaultdict(TokenBucket)
        self._lookup_paces: defaultdict[Target, TokenBucket] = defaultdict(_pace_of_lookups)

    def images(self, target: Target) -> list[Evidence] | Failure:
        """Return one record for each AMI that an import has left, the oldest first."""

        def images(asker: Asker) -> list[Evidence]:
            describe = self._clients.client("ec2").describe_images
            options = {**_OWN_IMPORTS, "MaxResults": IMAGES_ON_A_PAGE}
            found = _read(asker, describe, "Images", options)
            return _in_order(evidence_of_image(target, image) for image in found)

        return self.asking.ask(target, self._paces[target], images, action="ec2:DescribeImages")

    def requests(self, target: Target, since: datetime, until: datetime) -> list[Evidence] | Failure:
        """Return who asked for imports, or for their end, between two instants (both included).

        CloudTrail tells whole seconds, forgets after 90 days, and shows a request some minutes after it.
        """
        span = {
            "StartTime": since.astimezone(UTC).replace(microsecond=0),
            "EndTime": until.astimezone(UTC),
            "MaxResults": EVENTS_ON_A_PAGE,
        }

        def requests(asker: Asker) -> list[Evidence]:
            look_up = self._clients.client("cloudtrail").lookup_events
            found: list[Json] = []
            for name in EVENT_NAMES:
                attribute = {"AttributeKey": "EventName", "AttributeValue": name}
                found += _read(asker, look_up, "Events", {**span, "LookupAttributes": [attribute]})
            return _in_order(evidence_of_event(target, event) for event in found)

        return self.asking.ask(target, self._lookup_paces[target], requests, action="cloudtrail:LookupEvents")


_OWN_IMPORTS = {
    "Owners": ["self"],
    "Filters": [{"Name": "name", "Values": [f"{_NAME_OF_IMPORTS}*"]}],
    "IncludeDisabled": True,
}
"""An AMI that nobody may start any more is a trace like every other."""


def _pace_of_lookups() -> TokenBucket:
    return TokenBucket(per_second=LOOKUPS_PER_SECOND, burst=1.0)


def _read(asker: Asker, request: Callable[..., Json], member: str, options: Json) -> list[Json]:
    """Return what the lists called ``member`` hold, of all pages; a page counts only if the list is in it."""

    def understand(answer: Json) -> tuple[list[Json], str | None]:
        if not isinstance(answer.get(member), list):
            raise UnusableAnswerError(f"the answer has no {member}; did a proxy answer for AWS?")
        return answer[member], answer.get("NextToken")

    return asker.whole(
        lambda: [item for page in asker.pages(request, understand, **options) for item in page]
    )


def _in_order(pieces: Iterable[Evidence | None]) -> list[Evidence]:
    """Return evidence by its time, each piece once: it may come twice while a listing moves between pages."""
    found = {piece.event_id: piece for piece in pieces if piece is not None}
    return sorted(found.values(), key=lambda piece: (piece.occurred_at, piece.event_id))


# An AMI


def evidence_of_image(target: Target, image: Mapping[str, Any]) -> Evidence | None:
    """Turn an AMI into evidence of the import that made it.

    ``None`` for one that no import made, whatever its name: a copy keeps it, and its date is the copy's.
    """
    image_id, name = _id(image.get("ImageId")), _id(image.get("Name"))
    created_at = _instant(image.get("CreationDate"))
    if image_id is None or created_at is None or _is_copy(image):
        return None
    if name is None or not name.startswith(_NAME_OF_IMPORTS):
        return None
    mappings = _objects(image.get("BlockDeviceMappings"))
    disks = [_disk_of_image(mapping, mapping["Ebs"]) for mapping in mappings if mapping.get("Ebs")]
    encryptions = [disk["encrypted"] for disk in disks if isinstance(disk.get("encrypted"), bool)]
    return Evidence(
        target=target,
        source="images",
        event_id=image_id,
        event_name="image",
        occurred_at=created_at,
        import_task_id=name,
        image_id=image_id,
        architecture=_text(image.get("Architecture")),
        boot_mode=_text(image.get("BootMode")),
        platform=_platform(image),
        usage_operation=_text(image.get("UsageOperation")),
        encrypted=any(encryptions) if encryptions else None,
        details=_details(
            {
                "description": image.get("Description"),
                "disks": disks,
                "state": image.get("State"),
                "tags": _sorted_tags(_objects(image.get("Tags"))),
            }
        ),
    )


def _is_copy(image: Mapping[str, Any]) -> bool:
    """Say whether an AMI was made from another one, or from an instance; old copies tell by their text."""
    description = _text(image.get("Description")) or ""
    return bool(
        image.get("SourceImageId") or image.get("SourceInstanceId") or description.startswith("[Copied ami-")
    )


def _platform(image: Mapping[str, Any]) -> str | None:
    told = f"{image.get('Platform') or ''} {image.get('PlatformDetails') or ''}".lower()
    return next((name for name in ("Windows", "Linux") if name.lower() in told), None)


def _disk_of_image(mapping: Json, ebs: Json) -> Json:
    """Return a disk; other mappings lead to nothing, or to a disk of the host."""
    return {
        "deviceName": mapping.get("DeviceName"),
        "encrypted": ebs.get("Encrypted"),
        "snapshotId": ebs.get("SnapshotId"),
        "volumeSize": ebs.get("VolumeSize"),
    }


# A request


def evidence_of_event(target: Target, event: Mapping[str, Any]) -> Evidence | None:
    """Turn an event of CloudTrail into evidence of what was asked for.

    Where CloudTrail's own record of it cannot be understood, it is what ``LookupEvents`` says beside it.
    ``None`` for an event without id or time, and for what is no request about an import of an image.
    """
    event_id, occurred_at = _id(event.get("EventId")), _instant(event.get("EventTime"))
    if event_id is None or occurred_at is None:
        return None
    if event.get("EventSource") not in (None, "ec2.amazonaws.com"):
        return None
    known = Evidence(
        target=target,
        source="cloudtrail",
        event_id=event_id,
        event_name=_text(event.get("EventName")) or "",
        occurred_at=occurred_at,
        import_task_id=None,
        requested_by=_text(event.get("Username")),
    )
    try:
        return _with_record(known, _record(event.get("CloudTrailEvent")))
    except (RecursionError, ValueError):
        return known


def _record(text: object) -> Json:
    """Read CloudTrail's record of an event; ``ValueError`` when it is none."""
    record = json.loads(text) if isinstance(text, str) else None
    if not isinstance(record, dict):
        raise ValueError("no JSON object")  # noqa: TRY004 - to the caller it is one with malformed JSON
    return record


def _with_record(known: Evidence, record: Json) -> Evidence | None:
    parameters = _parameters(record.get("requestParameters"))
    answer = _unwrapped(_plain(record.get("responseElements")), "Response")
    task_id = _id(answer.get("importTaskId"))
    if known.event_name == "CancelImportTask":
        task_id = task_id or _id(parameters.get("importTaskId"))
    if task_id is not None and task_id.startswith(_NAME_OF_SNAPSHOT_IMPORTS):
        return None  # CancelImportTask ends imports of single snapshots as well.
    error_code, error_message = _text(record.get("errorCode")), _text(record.get("errorMessage"))
    return replace(
        known,
        import_task_id=None if error_code or error_message else task_id,
        requested_by=_requester(record.get("userIdentity")) or known.requested_by,
        source_address=_text(record.get("sourceIPAddress")),
        user_agent=_text(record.get("userAgent")),
        error_code=error_code,
        error_message=error_message,
        details=_details(parameters),
    )


def _requester(identity: object) -> str | None:
    """Say who asked, by the most telling of what there is: a service has no ARN."""
    members = identity if isinstance(identity, dict) else {}
    named = (_text(members.get(name)) for name in ("arn", "invokedBy", "principalId", "type"))
    return next((name for name in named if name), None)


def _parameters(parameters: object) -> Json:
    """Return a request's parameters by name, with disks, licences and tags as lists of one form."""
    members = _unwrapped(_plain(parameters), "Request")
    disks = _taken(members, "diskContainer", "diskContainers", "diskContainerSet")
    licences = _taken(members, "licenseSpecifications", "licenseSpecification", "licenseSpecificationSet")
    specifications = _taken(members, "tagSpecification", "tagSpecifications", "tagSpecificationSet")
    tags = [tag for one in specifications for tag in _taken(dict(one), "tag", "tags", "tagSet")]
    arns = sorted(str(one["licenseConfigurationArn"]) for one in licences if "licenseConfigurationArn" in one)
    return {
        **members,
        "disks": [_disk_of_request(disk) for disk in disks],
        "licenseConfigurationArns": arns,
        "tags": _sorted_tags(tags),
    }


def _disk_of_request(container: Json) -> Json:
    bucket = container.get("userBucket")
    rest = {name: value for name, value in container.items() if name != "userBucket"}
    return rest | (bucket if isinstance(bucket, dict) else {})


def _plain(value: Any) -> Any:
    """Undo what EC2's events do to lists (``items``, or a number called ``tag``) and to names.

    One item of a numbered list stays the item, because nothing tells it from an object.
    """
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"items"}:
        return _plain(value["items"])
    members = {
        name: member for name, member in value.items() if name != "tag" or isinstance(member, dict | list)
    }
    if "tag" in value and members.keys() == {"content"}:
        return _plain(members["content"])
    return {name[:1].lower() + name[1:]: _plain(member) for name, member in members.items()}


def _unwrapped(members: Any, kind: str) -> Json:
    """Return an object's members, or those of the only ``…Request`` or ``…Response`` in it."""
    if not isinstance(members, dict):
        return {}
    inner = [value for name, value in members.items() if name.endswith(kind) and isinstance(value, dict)]
    return inner[0] if len(inner) == 1 else members


def _taken(members: Json, *names: str) -> list[Json]:
    """Take a list of objects out, by whichever of its names it has."""
    return [item for name in names for item in _objects(members.pop(name, None))]


# Both


def _details(members: Json) -> str | None:
    """Write the members that hold something; ``None`` also for what JSON does not have, such as NaN."""
    try:
        return canonical_json(members)
    except MalformedTaskError:
        return None


def _sorted_tags(tags: Iterable[Json]) -> list[Json]:
    pairs = [{name[:1].lower() + name[1:]: value for name, value in tag.items()} for tag in tags]
    return sorted(pairs, key=lambda pair: (str(pair.get("key")), str(pair.get("value"))))


def _objects(value: object) -> list[Json]:
    """Return the objects in a list; an object is a list of one."""
    items = value if isinstance(value, list) else [value]
    return [item for item in items if isinstance(item, dict)]


def _text(value: object) -> str | None:
    return storable(value) if isinstance(value, str) else None


def _id(value: object) -> str | None:
    text = _text(value)
    return text if text is not None and len(text) <= LONGEST_KEY else None


def _instant(value: object) -> datetime | None:
    """Read an instant; without a time zone it is UTC, as AWS's are."""
    try:
        instant = datetime.fromisoformat(value) if isinstance(value, str) else value
        if not isinstance(instant, datetime):
            return None
        return instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant.astimezone(UTC)
    except (OverflowError, ValueError):
        return None
