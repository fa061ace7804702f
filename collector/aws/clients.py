"""The boto3 clients: few, long-lived, one per Region, from one session that only one thread uses at a time.

Credentials, profiles, endpoints and CA bundles come from boto3's own chain.
"""

import threading
from collections.abc import Callable, Collection
from datetime import timedelta
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.loaders import create_loader
from botocore.parsers import ResponseParserError
from tenacity import Retrying, retry_if_exception, wait_random_exponential

from collector import __version__
from collector.aws import deadline
from collector.aws.failures import UnusableAnswerError, breaks_listing, code_of, is_transient, message_of
from collector.errors import CollectorError

_HOME_REGION = "us-east-1"
"""Where questions about the account go when no Region is configured; named in errors."""


_ANSWER_TIMEOUT = 20.0
"""Seconds: for one wait for bytes, and for all that a question about the account takes."""

_UNANSWERED = (
    BotoCoreError,
    ClientError,
    ResponseParserError,
    UnusableAnswerError,
    deadline.DeadlineExceededError,
)


class AwsUnavailableError(CollectorError):
    """The account itself cannot be asked: credentials, permissions or the network."""


class Clients:
    """Clients for the credentials' own account; ``connections`` bounds each one's pool.

    ``patience`` bounds one wait for a connection or for bytes; the deadline of a look bounds the rest.
    """

    def __init__(self, *, connections: int, patience: timedelta) -> None:
        deadline.install()
        seconds = patience.total_seconds()
        self._patience = min(_ANSWER_TIMEOUT, seconds)
        self._config = Config(
            connect_timeout=min(5.0, seconds),
            read_timeout=self._patience,
            max_pool_connections=connections,
            # Retries are ours, per target: a client's own are shared by all that use it.
            retries={"total_max_attempts": 1, "mode": "standard"},
            tcp_keepalive=True,
            user_agent_extra=f"vm-import-collector/{__version__}",
        )
        self._lock = threading.Lock()
        self._clients: dict[str, Any] = {}
        try:
            self._session = boto3.Session()
        except BotoCoreError as error:
            raise AwsUnavailableError(f"AWS configuration: {message_of(error)}") from error

    def ec2(self, region: str) -> Any:
        """Return the EC2 client of a Region."""
        with self._lock:
            if region not in self._clients:
                self._clients[region] = self._session.client("ec2", region_name=region, config=self._config)
            return self._clients[region]

    def account_id(self) -> str:
        """Return the account of the credentials.

        Raises:
            AwsUnavailableError: nobody answers, or the credentials are not accepted.
        """
        try:
            client = self._session.client("sts", region_name=self._home, config=self._config)
            try:
                return str(self._ask(client.get_caller_identity, "Account"))
            finally:
                client.close()
        except _UNANSWERED as error:
            raise AwsUnavailableError(
                f"AWS does not say whose credentials these are (sts:GetCallerIdentity in {self._home}):"
                f" {code_of(error)}: {message_of(error)}"
            ) from error

    def enabled_regions(self) -> list[str]:
        """Return the Regions that are enabled in the account, sorted.

        Raises:
            AwsUnavailableError: EC2 does not say.
        """
        try:
            regions = self._ask(self.ec2(self._home).describe_regions, "Regions")
            return sorted(region["RegionName"] for region in regions)
        except _UNANSWERED as error:
            raise AwsUnavailableError(
                f"EC2 does not say which Regions are enabled (ec2:DescribeRegions in {self._home}):"
                f" {code_of(error)}: {message_of(error)}; or name them in `regions`"
            ) from error

    def _ask(self, question: Callable[[], dict[str, Any]], member: str) -> Any:
        """Return a member of the answer, asking again within one deadline while that may help."""
        with deadline.Deadline(self._patience) as limit:
            for attempt in Retrying(
                retry=retry_if_exception(lambda error: is_transient(error) or breaks_listing(error)),
                wait=wait_random_exponential(multiplier=0.2, max=5),
                stop=lambda state: state.upcoming_sleep >= limit.remaining,
                reraise=True,
            ):
                with attempt:
                    limit.check()
                    try:
                        answer = question()
                    except KeyError:  # botocore's, of an STS answer that is XML, but a proxy's
                        answer = {}
                    finally:
                        limit.release()
                    if member not in answer:
                        raise UnusableAnswerError(
                            f"the answer names no {member}; did a proxy answer for AWS?"
                        )
        return answer[member]

    def close(self) -> None:
        """Close every connection."""
        with self._lock:
            for client in self._clients.values():
                client.close()
            self._clients.clear()

    @property
    def _home(self) -> str:
        return self._session.region_name or _HOME_REGION


def known_regions() -> Collection[str]:
    """Return the names of all Regions of all partitions that the installed botocore knows."""
    partitions = create_loader().load_data("partitions")["partitions"]
    return sorted({name for partition in partitions for name in partition["regions"] if "global" not in name})
