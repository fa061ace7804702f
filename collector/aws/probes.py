"""What AWS would say if we asked: dry runs, and the smallest reads where there is no dry run.

A dry run that would go well is an error with the code ``DryRunOperation``; whatever else comes is a refusal.
"""

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

from botocore.exceptions import ClientError

from collector.aws.accounts import Account, Accounts
from collector.aws.clients import AwsUnavailableError, Clients, acting_as
from collector.aws.failures import UnusableAnswerError, code_of

ALLOWED = "DryRunOperation"


class Refusal(NamedTuple):
    """Why something would not work: AWS's code and words, or ours where there is no answer."""

    code: str
    message: str


class Probes:
    """Tries what the collector needs of AWS, without doing it; for any number of threads."""

    def __init__(self, clients: Clients, accounts: Accounts) -> None:
        self._clients = clients
        self._accounts = accounts

    def clock_skew(self) -> timedelta | None:
        """Return how far AWS's clock is ahead of ours, to a second; ``None``: no answer tells its time.

        A refusal tells the time as well, and with a clock that is wrong it may be all that there is.
        """

        def skew() -> timedelta | None:
            before = datetime.now(UTC)
            try:
                answer = self._clients.client("sts").get_caller_identity()
            except ClientError as error:
                answer = error.response
            after = datetime.now(UTC)
            with suppress(KeyError, ValueError):
                told = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
                return told - (before + (after - before) / 2)
            return None

        with suppress(AwsUnavailableError), acting_as(self._accounts.own):
            return self._clients.ask(skew, "what time it is")
        return None

    def credentials(self, account: Account) -> Refusal | None:
        """Say why there are no credentials for an account, such as a role that cannot be assumed."""
        return self._refusal(account, self._clients.home, account.credentials.get_frozen_credentials)

    def describing_regions(self, account: Account) -> Refusal | None:
        """Say why an account's Regions cannot be asked for."""
        return self._dry_run(account, self._clients.home, self._clients.client("ec2").describe_regions)

    def describing_tasks(self, account: Account, region: str) -> Refusal | None:
        """Say why an account cannot be looked at in a Region."""
        return self._dry_run(account, region, self._clients.client("ec2").describe_import_image_tasks)

    def describing_images(self, account: Account, region: str) -> Refusal | None:
        """Say why an account cannot be asked for AMIs in a Region."""
        return self._dry_run(account, region, self._clients.client("ec2").describe_images)

    def looking_up_events(self, account: Account, region: str) -> Refusal | None:
        """Say why CloudTrail cannot be asked in a Region, by reading one event."""
        client = self._clients.client("cloudtrail")
        return self._refusal(account, region, lambda: client.lookup_events(MaxResults=1))

    def _dry_run(self, account: Account, region: str, call: Callable[..., dict[str, Any]]) -> Refusal | None:
        def question() -> None:
            try:
                call(DryRun=True)
            except ClientError as error:
                if code_of(error) == ALLOWED:
                    return
                raise
            raise UnusableAnswerError(
                "a dry run went through as if it were none; did a proxy answer for AWS?"
            )

        return self._refusal(account, region, question)

    def _refusal(self, account: Account, region: str, question: Callable[[], object]) -> Refusal | None:
        try:
            with acting_as(account.credentials, region):
                self._clients.ask(question, f"account {account.account_id}")
        except AwsUnavailableError as error:
            return Refusal(error.code, error.reason)
        return None
