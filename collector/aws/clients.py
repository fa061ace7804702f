"""The boto3 clients: few and long-lived, one per Region, shared by all threads and all accounts.

Each request is signed with the credentials of the account that its thread acts for. Profiles, endpoints,
proxies and CA bundles come from boto3's own chain.
"""

import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
from botocore.loaders import create_loader
from botocore.parsers import ResponseParserError

from collector import __version__
from collector.aws import deadline
from collector.aws.failures import UnusableAnswerError, breaks_listing, code_of, is_transient, message_of
from collector.aws.retrying import attempts
from collector.errors import CollectorError

_HOME_REGION = "us-east-1"
"""Where questions about accounts go when no Region is configured; named in errors."""

_ANSWER_TIMEOUT = 20.0
"""Seconds: for one wait for bytes, and for all that a question about an account takes."""

_UNANSWERED = (
    BotoCoreError,
    ClientError,
    ResponseParserError,
    UnusableAnswerError,
    deadline.DeadlineExceededError,
)

T = TypeVar("T")

_acting_as: ContextVar["Credentials"] = ContextVar("acting_as")


class AwsUnavailableError(CollectorError):
    """An account cannot be asked: credentials, permissions or the network.

    ``code`` and ``reason`` are the cause's own, without what was asked.
    """

    def __init__(self, what: str, code: str, reason: str) -> None:
        super().__init__(f"{what}: {code}: {reason}")
        self.code = code
        self.reason = reason


class Credentials(Protocol):
    """What botocore signs with."""

    def get_frozen_credentials(self) -> Any:
        """Return key, secret and token of this moment."""


@contextmanager
def acting_as(credentials: Credentials) -> Iterator[None]:
    """Sign what this thread asks inside ``with`` with these credentials."""
    token = _acting_as.set(credentials)
    try:
        yield
    finally:
        _acting_as.reset(token)


class Clients:
    """Clients of one session; ``connections`` bounds each one's pool.

    ``patience`` bounds one wait for a connection or for bytes; the deadline of a look bounds the rest.
    ``deadlines`` can end all questions.
    """

    def __init__(
        self, *, connections: int, patience: timedelta, deadlines: deadline.Deadlines | None = None
    ) -> None:
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
        self._clients: dict[tuple[str, str], Any] = {}
        self._deadlines = deadlines or deadline.Deadlines()
        self._session = new_session()
        self.home = self._session.region_name or _HOME_REGION

    def ec2(self, region: str) -> Any:
        """Return the EC2 client of a Region."""
        return self._client("ec2", region)

    def sts(self) -> Any:
        """Return the STS client of the home Region."""
        return self._client("sts", self.home)

    def cloudtrail(self, region: str) -> Any:
        """Return the CloudTrail client of a Region."""
        return self._client("cloudtrail", region)

    def organizations(self) -> Any:
        """Return the client of AWS Organizations."""
        return self._client("organizations", self.home)

    def ask(self, question: Callable[[], T], what: str) -> T:
        """Return what a question finds in its answer, asking again within one deadline while that may help.

        ``what`` says in an error what AWS did not answer, and which action that is.

        Raises:
            AwsUnavailableError: there was no answer, or it is not AWS's.
        """
        try:
            with self._deadlines.limit(self._patience) as limit:
                for attempt in attempts(_may_help, limit, self._deadlines.pause):
                    with attempt:
                        answer = _answer(question, limit)
        except _UNANSWERED as error:
            raise AwsUnavailableError(what, code_of(error), message_of(error)) from error
        return answer

    def close(self) -> None:
        """Close every connection."""
        with self._lock:
            for client in self._clients.values():
                client.close()
            self._clients.clear()

    def _client(self, service: str, region: str) -> Any:
        with self._lock:  # a session is not for several threads at once
            if (service, region) not in self._clients:
                client = self._session.client(service, region_name=region, config=self._config)
                client.meta.events.register("before-sign", _sign_as_current)
                self._clients[service, region] = client
            return self._clients[service, region]


def _may_help(error: BaseException) -> bool:
    """Whether it may help to ask the same again."""
    return is_transient(error) or breaks_listing(error)


def _answer(question: Callable[[], T], limit: deadline.Deadline) -> T:
    limit.check()
    try:
        return question()
    except (KeyError, TypeError) as error:  # ours, or botocore's of an STS answer that is XML, but a proxy's
        raise UnusableAnswerError(f"the answer lacks {error}; did a proxy answer for AWS?") from error
    finally:
        limit.release()


def new_session() -> boto3.Session:
    """Return a session that reads boto3's variables and files anew.

    Raises:
        AwsUnavailableError: they cannot be read.
    """
    try:
        return boto3.Session()
    except BotoCoreError as error:
        raise AwsUnavailableError("AWS configuration", code_of(error), message_of(error)) from error


def known_regions() -> Collection[str]:
    """Return the names of all Regions of all partitions that the installed botocore knows."""
    partitions = create_loader().load_data("partitions")["partitions"]
    return sorted({name for partition in partitions for name in partition["regions"] if "global" not in name})


def _sign_as_current(request: Any, **_: Any) -> None:
    """Give botocore's signer the credentials of the account that this thread acts for."""
    if (credentials := _acting_as.get(None)) is None:
        raise NoCredentialsError
    request.context.setdefault("signing", {})["request_credentials"] = credentials
