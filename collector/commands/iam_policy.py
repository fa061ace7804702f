"""``collector iam-policy``: what AWS must allow the collector, and nothing more."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import typer

from collector.config import Settings
from collector.errors import UsageError

LOOKING = (
    "ec2:DescribeImportImageTasks",
    "ec2:DescribeRegions",
    "ec2:DescribeImages",
    "cloudtrail:LookupEvents",
)
"""What looking at an account takes, a line for each call; none of them can be limited to resources."""

_PARTITIONS = {
    "cn-": "aws-cn",
    "eu-isoe-": "aws-iso-e",
    "eusc-": "aws-eusc",
    "us-gov-": "aws-us-gov",
    "us-iso-": "aws-iso",
    "us-isob-": "aws-iso-b",
    "us-isof-": "aws-iso-f",
}
"""How the names of Regions begin in partitions other than ``aws``."""


def iam_policy(settings: Settings, *, hub: bool) -> int:
    """Print the policy of an account that is looked at, or of the account that assumes the roles.

    Raises:
        UsageError: ``hub``, and no role is configured that it would assume.
    """
    typer.echo(json.dumps(_hub_policy(settings) if hub else policy(), indent=2))
    return 0


def policy(
    *,
    looks: bool = True,
    role_arns: Iterable[str] = (),
    organization_role: str | None = None,
    partition: str = "aws",
) -> dict[str, Any]:
    """Return a policy.

    ``looks`` allows looking at the account itself. ``role_arns`` are roles to assume; ``organization_role``
    is the name, or path and name, of one to assume in every account of an organization in ``partition``.
    """
    assumed = list(dict.fromkeys(role_arns))
    if organization_role is not None:
        assumed.append(f"arn:{partition}:iam::*:role/{organization_role.removeprefix('/')}")
    statements = []
    if looks:
        statements.append(_allow("LookAtImports", LOOKING, ["*"]))
    if assumed:
        statements.append(_allow("AssumeRoles", ["sts:AssumeRole"], assumed))
    if organization_role is not None:
        statements.append(_allow("FindAccounts", ["organizations:ListAccounts"], ["*"]))
    return {"Version": "2012-10-17", "Statement": statements}


def _hub_policy(settings: Settings) -> dict[str, Any]:
    organization = settings.organization
    role_arns = [account.role_arn for account in settings.accounts if account.role_arn is not None]
    if organization is None and not role_arns:
        raise UsageError(
            "--hub: the configuration names no role to assume: give role_arn to [[accounts]],"
            " or role_name to [organization]; without --hub this prints what a single account needs"
        )
    return policy(
        # An organization's own account is looked at without a role, like an entry that names none.
        looks=organization is not None or len(role_arns) < len(settings.accounts),
        role_arns=role_arns,
        organization_role=None if organization is None else organization.role_name,
        partition=_partition(settings.regions),
    )


def _partition(regions: Sequence[str]) -> str:
    """Return the partition that the configured Regions, names or globs, lie in; most lie in ``aws``."""
    found = (name for region in regions for prefix, name in _PARTITIONS.items() if region.startswith(prefix))
    return next(found, "aws")


def _allow(sid: str, actions: Sequence[str], resources: Sequence[str]) -> dict[str, Any]:
    return {"Sid": sid, "Effect": "Allow", "Action": list(actions), "Resource": list(resources)}
