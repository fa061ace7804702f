"""The actions of STS that tell or change whose credentials a caller has."""

import re
from datetime import timedelta

from collector.simulator.faults import ErrorAnswer
from collector.simulator.protocol import ApiError
from collector.simulator.request import Request, Result, World

ROLE_ARN = re.compile(r"arn:[\w-]+:iam::(\d{12}):role/(?:.*/)?([^/]+)")
SHORTEST, USUAL, LONGEST = 900, 3600, 43200
"""What AWS allows for ``DurationSeconds``, and takes without it."""


def answer(world: World, request: Request) -> Result:
    """Answer as STS."""
    if request.expired:
        raise ErrorAnswer("ExpiredToken").error()
    if request.action == "GetCallerIdentity":
        return _get_caller_identity(request)
    if request.action == "AssumeRole":
        return _assume_role(world, request)
    raise ApiError("InvalidAction", f"Could not find operation {request.action} for version 2011-06-15")


def role_account(request: Request) -> str | None:
    """The account of the role that a request names, if it names one."""
    arn = request.params.get("RoleArn")
    match = ROLE_ARN.fullmatch(arn) if isinstance(arn, str) else None
    return match[1] if match else None


def _get_caller_identity(request: Request) -> Result:
    """Say whose credentials these are."""
    return {
        "Arn": _user_arn(request.account),
        "UserId": "AIDASIMULATEDEXAMPLE",
        "Account": request.account,
    }


def _assume_role(world: World, request: Request) -> Result:
    """Give out credentials of the account that the role's ARN names, if the role trusts the caller."""
    arn, session = request.text("RoleArn") or "", request.text("RoleSessionName") or ""
    match = ROLE_ARN.fullmatch(arn)
    if match is None:
        raise ApiError("ValidationError", f"{arn} is invalid")
    account, role = match.groups()
    lifetime = _lifetime(world, request)
    _check_trust(world, request, account, arn)
    access_key_id, expiration = world.callers.give(account, lifetime)
    return {
        "Credentials": {
            "AccessKeyId": access_key_id,
            "SecretAccessKey": "simulated",
            "SessionToken": "simulated",
            "Expiration": expiration.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        },
        "AssumedRoleUser": {
            "AssumedRoleId": f"AROASIMULATEDEXAMPLE:{session}",
            "Arn": f"arn:aws:sts::{account}:assumed-role/{role}/{session}",
        },
    }


def _lifetime(world: World, request: Request) -> timedelta:
    text = request.text("DurationSeconds") or str(USUAL)
    if not text.isdecimal() or not SHORTEST <= int(text) <= LONGEST:
        raise ApiError("ValidationError", f"DurationSeconds is from {SHORTEST} to {LONGEST}, not {text}")
    lifetime = timedelta(seconds=int(text))
    return lifetime if world.role_lifetime is None else min(lifetime, world.role_lifetime)


def _check_trust(world: World, request: Request, account: str, arn: str) -> None:
    """Refuse whoever does not know the external id; AWS does not say that it is the id which is wrong."""
    external_id = world.external_ids.get(account)
    if external_id is not None and request.text("ExternalId") != external_id:
        caller = _user_arn(request.account)
        message = f"User: {caller} is not authorized to perform: sts:AssumeRole on resource: {arn}"
        raise ApiError("AccessDenied", message, status=403)


def _user_arn(account: str) -> str:
    return f"arn:aws:iam::{account}:user/simulated"
