"""Policies: what AWS must allow, and nothing more."""

import json
import os
from typing import Any

import pytest

from collector.commands.iam_policy import iam_policy, policy
from collector.config import Settings, load
from collector.errors import UsageError

ROLE = "arn:aws:iam::111122223333:role/collector"
OTHER_ROLE = "arn:aws:iam::444455556666:role/path/collector"
ACTIONS = (
    "ec2:DescribeImportImageTasks",
    "ec2:DescribeRegions",
    "ec2:DescribeImages",
    "cloudtrail:LookupEvents",
)
LOOKING = {action: ["*"] for action in ACTIONS}


@pytest.fixture(autouse=True)
def _told_by_flags_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep this machine's configuration out."""
    for name in os.environ:
        if name.startswith("COLLECTOR_") or name == "DATABASE_URL":
            monkeypatch.delenv(name)


def _printed(capsys: pytest.CaptureFixture[str], settings: Settings, *, hub: bool) -> dict[str, list[str]]:
    """Return what the command prints: each allowed action with its resources."""
    assert iam_policy(settings, hub=hub) == 0
    return _allowed(json.loads(capsys.readouterr().out))


def _allowed(document: dict[str, Any]) -> dict[str, list[str]]:
    """Return each allowed action with its resources."""
    assert document["Version"] == "2012-10-17"
    assert {statement["Effect"] for statement in document["Statement"]} == {"Allow"}
    return {
        action: statement["Resource"] for statement in document["Statement"] for action in statement["Action"]
    }


def test_a_single_account(capsys: pytest.CaptureFixture[str]) -> None:
    """What is needed is to look, whatever else is configured."""
    settings = load({"accounts": [{"role_arn": ROLE}]})
    assert _printed(capsys, load({}), hub=False) == LOOKING
    assert _printed(capsys, settings, hub=False) == LOOKING


def test_a_hub_assumes_the_roles_of_the_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    """Those and no others, and it looks at nothing itself."""
    settings = load({"accounts": [{"role_arn": ROLE}, {"role_arn": OTHER_ROLE}]})
    assert _printed(capsys, settings, hub=True) == {"sts:AssumeRole": [ROLE, OTHER_ROLE]}


def test_a_hub_that_is_looked_at_too(capsys: pytest.CaptureFixture[str]) -> None:
    """An entry without a role is the hub itself."""
    settings = load({"accounts": [{"role_arn": ROLE}, {}]})
    assert _printed(capsys, settings, hub=True) == {**LOOKING, "sts:AssumeRole": [ROLE]}


def test_the_hub_of_an_organization(capsys: pytest.CaptureFixture[str]) -> None:
    """It finds the accounts, assumes one role in all of them, and looks at its own without one."""
    settings = load({"organization": {"role_name": "path/collector"}})
    assert _printed(capsys, settings, hub=True) == {
        **LOOKING,
        "sts:AssumeRole": ["arn:aws:iam::*:role/path/collector"],
        "organizations:ListAccounts": ["*"],
    }


@pytest.mark.parametrize(
    ("region", "partition"),
    [("eu-west-1", "aws"), ("us-gov-*", "aws-us-gov"), ("cn-north-1", "aws-cn"), ("all", "aws")],
)
def test_the_partition_of_an_organization(
    capsys: pytest.CaptureFixture[str], region: str, partition: str
) -> None:
    """The Regions tell it."""
    settings = load({"organization": {"role_name": "collector"}, "regions": [region]})
    allowed = _printed(capsys, settings, hub=True)
    assert allowed["sts:AssumeRole"] == [f"arn:{partition}:iam::*:role/collector"]


@pytest.mark.parametrize("accounts", [[], [{}]])
def test_a_hub_without_a_role_to_assume(accounts: list[dict[str, str]]) -> None:
    """The keys that name one are named."""
    with pytest.raises(UsageError) as raised:
        iam_policy(load({"accounts": accounts}), hub=True)
    assert "role_arn" in str(raised.value)
    assert "role_name" in str(raised.value)


def test_a_role_is_named_once() -> None:
    """However often it is given."""
    assert _allowed(policy(looks=False, role_arns=[ROLE, ROLE])) == {"sts:AssumeRole": [ROLE]}
