"""What can go wrong between a client and EC2, and when it does.

A fault is one of three kinds: an error answer, an altered listing, or a misbehaving connection.
``Faults`` holds the rules that say which requests meet which faults.
"""

from dataclasses import dataclass, field
from random import Random
from threading import Lock
from types import TracebackType
from typing import ClassVar, Self
from zlib import crc32

from collector.simulator.paging import START, Listing, Token
from collector.simulator.protocol import ApiError


class Fault:
    """Something that goes wrong with one request."""


@dataclass(frozen=True)
class ErrorAnswer(Fault):
    """EC2 answers with this error."""

    code: str
    message: str | None = None

    KNOWN: ClassVar[dict[str, tuple[int, str]]] = {
        "AccessDenied": (403, "You are not authorized to perform this operation."),
        "AccessDeniedException": (400, "You don't have permissions to access this resource."),
        "AuthFailure": (401, "AWS was not able to validate the provided access credentials"),
        "Blocked": (403, "This account is currently blocked."),
        "ExpiredToken": (400, "The security token included in the request is expired"),
        "ExpiredTokenException": (400, "The security token included in the request is expired"),
        "InternalError": (500, "An internal error has occurred."),
        "InvalidClientTokenId": (403, "The security token included in the request is invalid."),
        "OptInRequired": (401, "You are not subscribed to this service."),
        "RequestExpired": (400, "Request has expired."),
        "RequestLimitExceeded": (503, "Request limit exceeded."),
        "ThrottlingException": (400, "Rate exceeded"),
        "UnauthorizedOperation": (403, "You are not authorized to perform this operation."),
        "Unavailable": (503, "The service is unavailable. Please try again shortly."),
    }

    def error(self) -> ApiError:
        """The error to answer with; a code that is not in the table is a client's fault."""
        status, message = self.KNOWN.get(self.code, (400, "The request has failed."))
        return ApiError(self.code, self.message or message, status=status)


@dataclass(frozen=True)
class Throttle(ErrorAnswer):
    """503 ``RequestLimitExceeded``."""

    code: str = "RequestLimitExceeded"


@dataclass(frozen=True)
class ServerError(ErrorAnswer):
    """500 ``InternalError``, or 503 ``Unavailable``."""

    code: str = "InternalError"


@dataclass(frozen=True)
class Denied(ErrorAnswer):
    """The caller is refused: ``UnauthorizedOperation``, or another code.

    EC2 also says ``AuthFailure``, STS ``AccessDenied``, Organizations ``AccessDeniedException``.
    """

    code: str = "UnauthorizedOperation"


class AlteredListing(Fault):
    """EC2 answers well, but not truly."""

    def alter(self, listing: Listing) -> None:
        """Change the page in place."""
        raise NotImplementedError


@dataclass(frozen=True)
class TokenCycle(AlteredListing):
    """Tokens A, B, A, B, … for ever; every page is the first one again."""

    def alter(self, listing: Listing) -> None:
        """Change the page in place."""
        listing.next_token = Token(START.after, 2 if listing.page % 2 else 3, "cycle")


@dataclass(frozen=True)
class RepeatedToken(AlteredListing):
    """Token A, A, A, …: the client is led to the same page for ever."""

    def alter(self, listing: Listing) -> None:
        """Change the page in place."""
        listing.next_token = Token(START.after, 2, "repeated")


@dataclass(frozen=True)
class EndlessPages(AlteredListing):
    """There is always another page with a new token; the pages behind the last task are empty."""

    def alter(self, listing: Listing) -> None:
        """Change the page in place."""
        if listing.next_token is None:
            listing.next_token = Token(2**62, listing.page + 1, "endless")


@dataclass(frozen=True)
class MissingTask(AlteredListing):
    """Listings leave out some tasks, by id or a fraction of them (always the same); a look-up finds them."""

    ids: frozenset[str] | tuple[str, ...] = ()
    fraction: float = 0.0

    def alter(self, listing: Listing) -> None:
        """Change the page in place."""
        if not listing.lookup:
            listing.tasks = [task for task in listing.tasks if not self._missing(str(task["ImportTaskId"]))]

    def _missing(self, task_id: str) -> bool:
        return task_id in self.ids or crc32(task_id.encode()) < self.fraction * 2**32


@dataclass(frozen=True)
class EmptyListing(AlteredListing):
    """A valid answer without tasks, though there are some."""

    def alter(self, listing: Listing) -> None:
        """Change the page in place."""
        listing.tasks, listing.next_token = [], None


@dataclass(frozen=True)
class DuplicateOverPages(AlteredListing):
    """The first task of page 1 appears again on later pages."""

    def alter(self, listing: Listing) -> None:
        """Change the page in place."""
        if listing.page > START.page and (first := listing.first()) is not None:
            listing.tasks = [first, *listing.tasks]


class Misbehaviour(Fault):
    """The connection, or somebody on the way, misbehaves; the server knows how."""


@dataclass(frozen=True)
class Reset(Misbehaviour):
    """The connection is reset (RST): before any byte, or after half of the body."""

    after_half: bool = False


@dataclass(frozen=True)
class Stall(Misbehaviour):
    """Not a byte, for so many seconds or until the client gives up or the server stops; then the end."""

    seconds: float | None = None


@dataclass(frozen=True)
class Drip(Misbehaviour):
    """A byte of the body every so many seconds."""

    every: float = 0.5


@dataclass(frozen=True)
class TruncatedXml(Misbehaviour):
    """Valid HTTP, but the XML ends in the middle."""


@dataclass(frozen=True)
class HtmlPage(Misbehaviour):
    """A proxy's page with status 200: XHTML that parses as XML, or HTML that does not."""

    well_formed: bool = True


@dataclass(frozen=True)
class Latency(Fault):
    """The answer comes later."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Call:
    """What a rule can look at. ``page`` counts from 1; ``lookup`` says that the caller named ids.

    ``account_id`` is the caller's, but that of the role where one is to be assumed.
    """

    action: str
    account_id: str
    region: str
    page: int = 1
    lookup: bool = False
    service: str = "ec2"


@dataclass(eq=False)
class Rule:
    """A fault and the requests that meet it. Leaving it as a context manager removes it."""

    owner: "Faults"
    fault: Fault
    action: str | None
    region: str | None = None
    account: str | None = None
    page: int | None = None
    only_listing: bool = False
    only_lookups: bool = False
    times: int | None = None
    probability: float = 1.0
    hits: int = field(default=0, init=False)

    def remove(self) -> None:
        """Make an end of it; removing it twice is no error."""
        self.owner.remove(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def concerns(self, call: Call) -> bool:
        """Whether a request of this kind meets the fault, chance aside."""
        return (
            self.action in (None, call.action)
            and self.region in (None, call.region)
            and self.account in (None, call.account_id)
            and self.page in (None, call.page)
            and not (self.only_listing and call.lookup)
            and not (self.only_lookups and not call.lookup)
            and (self.times is None or self.hits < self.times)
        )


class Faults:
    """The rules in force. Thread-safe."""

    def __init__(self, seed: int = 0) -> None:
        self._lock = Lock()
        self._rules: list[Rule] = []
        self._rng = Random(seed)  # noqa: S311 - chance for tests, not a secret

    def add(
        self,
        fault: Fault,
        *,
        region: str | None = None,
        account: str | None = None,
        action: str | None = "DescribeImportImageTasks",
        times: int | None = None,
        probability: float = 1.0,
        page: int | None = None,
        only_listing: bool = False,
        only_lookups: bool = False,
    ) -> Rule:
        """Let requests meet a fault.

        Args:
            fault: what goes wrong.
            region: only in this Region.
            account: only for this account; ``AssumeRole`` counts for the account of the role.
            action: only for this action; ``None`` for all.
            times: how often; ``None`` for ever.
            probability: how likely each of them is.
            page: only on this page of a listing, from 1.
            only_listing: only for requests that name no ids.
            only_lookups: only for requests that name ids.

        Returns:
            The rule; ``remove()`` ends it, ``hits`` counts how often it applied.
        """
        rule = Rule(
            self, fault, action, region, account, page, only_listing, only_lookups, times, probability
        )
        with self._lock:
            self._rules.append(rule)
        return rule

    def clear(self) -> None:
        """Remove all rules."""
        with self._lock:
            self._rules.clear()

    def remove(self, rule: Rule) -> None:
        """Remove one rule; an unknown one is no error."""
        with self._lock:
            self._rules = [other for other in self._rules if other is not rule]

    def met_by(self, call: Call) -> list[Fault]:
        """The faults that this request meets, counted."""
        met: list[Fault] = []
        with self._lock:
            for rule in self._rules:
                if rule.concerns(call) and self._rng.random() < rule.probability:
                    rule.hits += 1
                    met.append(rule.fault)
        return met
