"""The boto3 clients: one per service, long-lived, shared by all threads, accounts and Regions.

Each request goes to the Region, and is signed with the credentials of the account, that its thread acts for.
Profiles, endpoints, proxies and CA bundles come from boto3's own chain.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, NamedTuple, Protocol, TypeVar

import boto3
import botocore
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
from botocore.parsers import ResponseParserError
from botocore.regions import EndpointResolverBuiltins

from collector import __version__
from collector.aws import deadline, recognition
from collector.aws.connections import fit_botocore
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

_acting: ContextVar["_Actor"] = ContextVar("acting")


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


class _Actor(NamedTuple):
    """Whose name requests are made in, and the Region that is asked; ``None``: the clients' home."""

    credentials: Credentials
    region: str | None


@contextmanager
def acting_as(credentials: Credentials, region: str | None = None) -> Iterator[None]:
    """Ask a Region, by default the clients' home, with these credentials in this thread inside ``with``."""
    token = _acting.set(_Actor(credentials, region))
    try:
        yield
    finally:
        _acting.reset(token)


class Clients:
    """Clients of one session; ``connections`` bounds each one's pool.

    ``patience`` bounds one wait for a connection or for bytes; the deadline of a look bounds the rest.
    ``deadlines`` can end all questions.
    """

    def __init__(
        self, *, connections: int, patience: timedelta, deadlines: deadline.Deadlines | None = None
    ) -> None:
        fit_botocore()
        seconds = patience.total_seconds()
        self._patience = min(_ANSWER_TIMEOUT, seconds)
        self._config = Config(
            connect_timeout=min(5.0, seconds),
            read_timeout=self._patience,
            max_pool_connections=connections,
            # Retries are ours, per target: a client's own are shared by all that use it.
            retries={"total_max_attempts": 1, "mode": "standard"},
            tcp_keepalive=True,
            # The whole of it: botocore puts its own together twice for each request, in a third of its time.
            user_agent=f"vm-import-collector/{__version__} Botocore/{botocore.__version__}",
        )
        self._lock = threading.Lock()
        self._clients: dict[str, Any] = {}
        self._deadlines = deadlines or deadline.Deadlines()
        self._session = new_session()
        self.home = self._session.region_name or _HOME_REGION

    def client(self, service: str) -> Any:
        """Return the client of a service, such as ``ec2``; making it takes a moment, and happens once."""
        with self._lock:  # a session is not for several threads at once
            if service not in self._clients:
                client = self._session.client(service, region_name=self.home, config=self._config)
                client.meta.events.register("before-endpoint-resolution", _resolve_for_actor)
                client.meta.events.register("before-sign", _sign_for_actor)
                client.meta.events.register(recognition.EVENT, recognition.look_at_body)
                self._clients[service] = client
            return self._clients[service]

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


def _resolve_for_actor(builtins: dict[str, Any], **_: Any) -> None:
    """Let botocore's rules find the endpoint in the Region that this thread asks."""
    if (actor := _acting.get(None)) and actor.region:
        builtins[EndpointResolverBuiltins.AWS_REGION] = actor.region


def _sign_for_actor(request: Any, **_: Any) -> None:
    """Give botocore's signer the Region, and the credentials of the account, that this thread acts for."""
    if (actor := _acting.get(None)) is None:
        raise NoCredentialsError
    signing = request.context.setdefault("signing", {})
    signing["request_credentials"] = actor.credentials
    if actor.region:
        signing["region"] = actor.region
