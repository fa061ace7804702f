"""The boto3 clients: few, long-lived, one per Region, from one session that only one thread uses at a time.

Credentials, profiles, endpoints and CA bundles come from boto3's own chain.
"""

import threading
from collections.abc import Collection
from datetime import timedelta
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.loaders import create_loader

from collector import __version__
from collector.aws import deadline
from collector.aws.failures import code_of, message_of
from collector.errors import CollectorError

_HOME_REGION = "us-east-1"
"""Where questions about the account go when no Region is configured; named in errors."""


class AwsUnavailableError(CollectorError):
    """The account itself cannot be asked: credentials, permissions or the network."""


class Clients:
    """Clients for the credentials' own account; ``connections`` bounds each one's pool.

    ``patience`` bounds one wait for a connection or for bytes; the deadline of a look bounds the rest.
    """

    def __init__(self, *, connections: int, patience: timedelta) -> None:
        deadline.install()
        seconds = patience.total_seconds()
        self._config = Config(
            connect_timeout=min(5.0, seconds),
            read_timeout=min(20.0, seconds),
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
                return str(client.get_caller_identity()["Account"])
            finally:
                client.close()
        except (BotoCoreError, ClientError) as error:
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
            answer = self.ec2(self._home).describe_regions()
            return sorted(region["RegionName"] for region in answer["Regions"])
        except (BotoCoreError, ClientError, KeyError) as error:
            raise AwsUnavailableError(
                f"EC2 does not say which Regions are enabled (ec2:DescribeRegions in {self._home}):"
                f" {code_of(error)}: {message_of(error)}; or name them in `regions`"
            ) from error

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
