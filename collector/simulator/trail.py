"""What CloudTrail writes down of one request: its event, in the nestings that EC2's events really have.

Who asked, from where, and which nesting an event has follows from its id, so that it never changes.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from typing import Any
from uuid import UUID

Json = dict[str, Any]

PEOPLE = ("amara", "jose.nunez", "zoe", "kenji")
NAMESPACE = "http://ec2.amazonaws.com/doc/2016-11-15/"
SERVICE = "mgn.amazonaws.com"
"""Who asks where a service does: Application Migration Service."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """One request that CloudTrail keeps. ``number`` is its place among those of its account and Region.

    ``request`` are its parameters as boto3 names them. One that failed has ``error`` (code and message).
    """

    number: int
    at: datetime
    action: str
    request: Mapping[str, Any] = field(default_factory=dict)
    task_id: str | None = None
    error: tuple[str, str] | None = None


def event_of(recorded: Recorded, account: str, region: str) -> Json:
    """The event as ``LookupEvents`` gives it."""
    digest = sha256(f"{account}/{region}/{recorded.number}/{recorded.action}".encode()).digest()
    event_id = str(UUID(bytes=digest[:16], version=4))
    caller = _CALLERS[digest[16] % len(_CALLERS)](account, digest[17])
    error_code, error_message = recorded.error or (None, None)
    told = {
        "eventVersion": "1.11",
        "userIdentity": caller.identity,
        "eventTime": f"{recorded.at:%Y-%m-%dT%H:%M:%SZ}",
        "eventSource": "ec2.amazonaws.com",
        "eventName": recorded.action,
        "awsRegion": region,
        "sourceIPAddress": caller.address,
        "userAgent": caller.agent,
        **({"errorCode": error_code, "errorMessage": error_message} if recorded.error else {}),
        "requestParameters": _parameters(recorded, nested=bool(digest[18] & 1)),
        "responseElements": None if recorded.error else _elements(recorded, nested=bool(digest[19] & 1)),
        "requestID": str(UUID(bytes=digest[16:], version=4)),
        "eventID": event_id,
        "readOnly": False,
        "eventType": "AwsApiCall",
        "managementEvent": True,
        "recipientAccountId": account,
        "eventCategory": "Management",
    }
    event: Json = {
        "EventId": event_id,
        "EventName": recorded.action,
        "ReadOnly": "false",
        "EventTime": int(recorded.at.timestamp()),
        "EventSource": "ec2.amazonaws.com",
        "Resources": [],
        "CloudTrailEvent": json.dumps(told),
    }
    if (key := caller.identity.get("accessKeyId")) is not None:
        event["AccessKeyId"] = key
    return event if caller.name is None else event | {"Username": caller.name}


@dataclass(frozen=True, slots=True)
class _Caller:
    """Who asked. ``name`` is what ``LookupEvents`` calls them."""

    identity: Json
    name: str | None
    address: str
    agent: str = "aws-cli/2.22.0 md/awscrt#0.23.4 ua/2.0 os/linux#6.8 md/arch#x86_64 lang/python#3.12.6"


def _user(account: str, number: int) -> _Caller:
    name = PEOPLE[number % len(PEOPLE)]
    identity = {
        "type": "IAMUser",
        "principalId": f"AIDASIMULATED{name[:3].upper()}",
        "arn": f"arn:aws:iam::{account}:user/{name}",
        "accountId": account,
        "accessKeyId": "AKIASIMULATEDEXAMPLE",
        "userName": name,
    }
    return _Caller(identity, name, f"203.0.113.{number}")


def _role(account: str, number: int) -> _Caller:
    session = f"{PEOPLE[number % len(PEOPLE)]}@example.com"
    issuer = {
        "type": "Role",
        "principalId": "AROASIMULATEDEXAMPLE",
        "arn": f"arn:aws:iam::{account}:role/migration/Migrator",
        "accountId": account,
        "userName": "Migrator",
    }
    identity = {
        "type": "AssumedRole",
        "principalId": f"AROASIMULATEDEXAMPLE:{session}",
        "arn": f"arn:aws:sts::{account}:assumed-role/Migrator/{session}",
        "accountId": account,
        "accessKeyId": "ASIASIMULATEDEXAMPLE",
        "sessionContext": {
            "sessionIssuer": issuer,
            "attributes": {"creationDate": "2026-01-01T00:00:00Z", "mfaAuthenticated": "false"},
        },
    }
    return _Caller(
        identity, session, f"198.51.100.{number}", "Boto3/1.42.0 md/Botocore#1.42.0 Botocore/1.42.0"
    )


def _root(account: str, number: int) -> _Caller:
    identity = {
        "type": "Root",
        "principalId": account,
        "arn": f"arn:aws:iam::{account}:root",
        "accountId": account,
        "accessKeyId": "",
    }
    return _Caller(identity, "root", f"2001:db8::{number:x}", "Mozilla/5.0 (X11; Linux x86_64)")


def _service(_account: str, _number: int) -> _Caller:
    return _Caller({"type": "AWSService", "invokedBy": SERVICE}, None, SERVICE, SERVICE)


_CALLERS: tuple[Callable[[str, int], _Caller], ...] = (
    _user,
    _user,
    _user,
    _role,
    _role,
    _role,
    _root,
    _service,
)


def _parameters(recorded: Recorded, *, nested: bool) -> Json:
    """The request's parameters: as EC2 reads them off the wire, or in the older flat form."""
    if nested:
        return {f"{recorded.action}Request": _wire_form(recorded.request)}
    flat: Json = _flat_form(recorded.request)
    return flat


def _elements(recorded: Recorded, *, nested: bool) -> Json:
    """The answer: directly, or below a ``…Response`` object."""
    if recorded.action == "ImportImage":
        answer = {"importTaskId": recorded.task_id, "status": "active", "progress": "1"}
    else:
        answer = {"importTaskId": recorded.task_id, "previousState": "active", "state": "deleting"}
    return {f"{recorded.action}Response": {"xmlns": NAMESPACE, **answer}} if nested else answer


_SINGULAR = {"DiskContainers": "DiskContainer", "TagSpecifications": "TagSpecification", "Tags": "Tag"}


def _wire_form(value: Any) -> Any:
    """Lists are numbered by a ``tag``, and a list of one is that one; names are the wire's."""
    if isinstance(value, Mapping):
        return {_SINGULAR.get(name, name): _wire_form(member) for name, member in value.items()}
    if not isinstance(value, list | tuple):
        return value
    items = [_numbered(number, _wire_form(item)) for number, item in enumerate(value, 1)]
    return items[0] if len(items) == 1 else items


def _numbered(number: int, item: Any) -> Json:
    return {"tag": number, **item} if isinstance(item, Mapping) else {"tag": number, "content": item}


_SETS = {
    "DiskContainer": "diskContainerSet",
    "DiskContainers": "diskContainerSet",
    "LicenseSpecifications": "licenseSpecificationSet",
    "Tag": "tags",
    "TagSpecification": "tagSpecificationSet",
    "TagSpecifications": "tagSpecificationSet",
}


def _flat_form(value: Any) -> Any:
    """Lists are sets of ``items``, but those of tags; names begin small."""
    if isinstance(value, list | tuple):
        return [_flat_form(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    members: Json = {}
    for name, member in value.items():
        shown = _SETS.get(name) or name[:1].lower() + name[1:]
        members[shown] = {"items": _flat_form(member)} if shown.endswith("Set") else _flat_form(member)
    return members
