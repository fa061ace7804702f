"""The actions of STS that tell or change whose credentials a caller has."""

from datetime import UTC, datetime, timedelta
from hashlib import sha256

from collector.simulator.protocol import ApiError
from collector.simulator.request import Request, Result, World


def answer(world: World, request: Request) -> Result:
    """Answer as STS."""
    if request.action == "GetCallerIdentity":
        return _get_caller_identity(request)
    if request.action == "AssumeRole":
        return _assume_role(world, request)
    raise ApiError("InvalidAction", f"Could not find operation {request.action} for version 2011-06-15")


def _get_caller_identity(request: Request) -> Result:
    """Say whose credentials these are."""
    return {
        "Arn": f"arn:aws:iam::{request.account}:user/simulated",
        "UserId": "AIDASIMULATEDEXAMPLE",
        "Account": request.account,
    }


def _assume_role(world: World, request: Request) -> Result:
    """Give out credentials of the account that the role's ARN names."""
    arn, session = request.text("RoleArn") or "", request.text("RoleSessionName") or ""
    parts = arn.split(":")
    if len(parts) < 6 or not parts[4].isdecimal():  # noqa: PLR2004 - an ARN has six parts
        raise ApiError("ValidationError", f"{arn} is invalid")
    access_key_id = f"ASIA{sha256(arn.encode()).hexdigest()[:16].upper()}"
    world.accounts[access_key_id] = parts[4]
    seconds = int(request.text("DurationSeconds") or 3600)
    return {
        "Credentials": {
            "AccessKeyId": access_key_id,
            "SecretAccessKey": "simulated",
            "SessionToken": "simulated",
            "Expiration": f"{datetime.now(UTC) + timedelta(seconds=seconds):%Y-%m-%dT%H:%M:%SZ}",
        },
        "AssumedRoleUser": {
            "AssumedRoleId": f"AROASIMULATEDEXAMPLE:{session}",
            "Arn": f"arn:aws:sts::{parts[4]}:assumed-role/{arn.rpartition('/')[2]}/{session}",
        },
    }
