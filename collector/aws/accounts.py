"""The accounts that are looked at, and the credentials for each: the caller's own, or an assumed role's.

Credentials are refreshed while they are in use, and made anew when AWS stops taking them: a role's by
assuming it again, the caller's own by reading boto3's variables and files again.
"""

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, TypeVar

from botocore.credentials import DeferredRefreshableCredentials
from botocore.exceptions import BotoCoreError, NoCredentialsError

from collector.aws import deadline
from collector.aws.clients import AwsUnavailableError, Clients, Credentials, acting_as, new_session
from collector.aws.failures import EndlessListingError, UnusableAnswerError
from collector.aws.pages import every_page
from collector.errors import UsageError

T = TypeVar("T")

SESSION_NAME = "vm-import-collector"
"""What CloudTrail of an account calls whoever assumed its role."""

NO_LONGER_TAKEN = frozenset(
    {
        "AuthFailure",
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidClientTokenId",
        "RequestExpired",
        "UnrecognizedClientException",
    }
)
"""Error codes after which new credentials may help."""

_DURATION = 3600
"""Seconds that a role's credentials are good for; every role allows an hour."""

RENEWAL_PAUSE = 30.0
"""Seconds: credentials that are refused for good are not made anew with every look."""

_REFUSAL_HOLDS = 3.0
"""Seconds."""

_NO_LIST = "AWS does not say which accounts the organization has (organizations:ListAccounts)"


class AccountChangedError(BotoCoreError):  # type: ignore[misc] # the library has no types
    """What the own account's tasks are must not be told by another account."""

    fmt = (
        "the credentials now belong to account {now}, no longer to {before}: put those back, or let the"
        " collector begin anew (SIGHUP, or a restart)"
    )


class RenewableCredentials:
    """Credentials that are made at their first use, and again after ``renew``; for any number of threads.

    ``pause`` is how many seconds they are kept before they are made anew.
    """

    def __init__(self, make: Callable[[], Any], *, pause: float = RENEWAL_PAUSE) -> None:
        self._make = make
        self._pause = pause
        self._lock = threading.Lock()
        self._made: Any = None
        self._made_at = -pause
        self._refusal: Exception | None = None
        self._refused_at = 0.0

    def get_frozen_credentials(self) -> Any:
        """Return key, secret and token of this moment.

        Raises:
            ClientError, BotoCoreError: there are none, or the role cannot be assumed.
            DeadlineExceededError: others have been waiting for them, and the time of this look is over.
        """
        limit = deadline.current()
        with self._locked(limit):
            # The looks at all Regions of an account that refuses us come at once; one question is enough.
            if self._refusal and monotonic() - self._refused_at < _REFUSAL_HOLDS:
                raise self._refusal.with_traceback(None)  # else it grows with every look
            try:
                if self._made is None:
                    self._made, self._made_at = self._make(), monotonic()
                frozen = self._made.get_frozen_credentials()
            except Exception as error:
                if limit is None or limit.remaining:  # else it says more of this look than of the account
                    self._refusal, self._refused_at = error, monotonic()
                raise
            self._refusal = None
            return frozen

    def renew(self) -> None:
        """Make them anew at their next use, because AWS no longer takes these."""
        with self._lock:
            if monotonic() - self._made_at >= self._pause:
                self._made = None

    @contextmanager
    def _locked(self, limit: deadline.Deadline | None) -> Iterator[None]:
        """Wait for whoever is making them, but not beyond the deadline of a look."""
        if not self._lock.acquire(timeout=-1 if limit is None else limit.remaining):
            raise deadline.DeadlineExceededError
        try:
            yield
        finally:
            self._lock.release()


@dataclass(frozen=True, slots=True)
class Account:
    """One account to look at. ``regions`` are patterns of its own; none: those of the configuration.

    ``role_arn`` is the role that is assumed in it; ``None``: it is the credentials' own.
    """

    account_id: str
    credentials: RenewableCredentials = field(compare=False)
    regions: tuple[str, ...] = ()
    role_arn: str | None = None


@dataclass(frozen=True, slots=True)
class Role:
    """An account as configured: by the role to assume in it, or, without one, the credentials' own."""

    arn: str | None = None
    external_id: str | None = field(default=None, repr=False)
    regions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Organization:
    """All accounts of the organization but ``exclude``, by a role of this name in each."""

    role_name: str
    exclude: frozenset[str] = frozenset()


class Accounts:
    """Says which accounts there are, and acts for them.

    ``roles`` and ``organization`` exclude each other; without both it is the credentials' own account.
    ``only`` are the account ids that the command line names; none: all. Credentials that AWS no longer takes
    are made anew, but not before ``renewal_pause`` (seconds) is over.
    """

    def __init__(
        self,
        clients: Clients,
        *,
        roles: Sequence[Role] = (),
        organization: Organization | None = None,
        only: Sequence[str] = (),
        renewal_pause: float = RENEWAL_PAUSE,
    ) -> None:
        self._clients = clients
        self._roles = roles or (Role(),)
        self._organization = organization
        self._only = frozenset(only)
        self._renewal_pause = renewal_pause
        self._own = RenewableCredentials(self._own_credentials, pause=renewal_pause)
        self._known: dict[str, Account] = {}
        self._caller: str | None = None

    @property
    def own(self) -> Credentials:
        """The caller's own credentials, by which roles are assumed."""
        return self._own

    def own_arn(self) -> str:
        """Return whose the credentials are.

        Raises:
            AwsUnavailableError: nobody answers, or the credentials are not accepted.
        """
        if self._caller is None:
            self._caller = self._ask(
                self._own,
                "sts",
                lambda sts: str(sts.get_caller_identity()["Arn"]),
                "AWS does not say whose credentials these are"
                f" (sts:GetCallerIdentity in {self._clients.home})",
            )
        return self._caller

    def own_account(self) -> tuple[str, str]:
        """Return the id and the partition of the credentials' own account.

        Raises:
            AwsUnavailableError: as ``own_arn``.
        """
        _, partition, _, _, account_id, *_ = self.own_arn().split(":")
        return account_id, partition

    def current(self) -> list[Account]:
        """Return the accounts, sorted; each keeps its credentials from call to call.

        Raises:
            AwsUnavailableError: the caller's own account or the organization is needed, and AWS does not say.
            UsageError: the command line names one that is none of them, or two roles are of one account.
        """
        found = self._accounts(self._organization_roles() if self._organization else self._roles)
        if unknown := sorted(self._only - found.keys()):
            raise UsageError(
                f"--account: {', '.join(unknown)} is not among the accounts that these credentials and the"
                f" configuration lead to: {_few(sorted(found))}"
            )
        return [found[account_id] for account_id in sorted(self._only or found)]

    def remembered(self, account_ids: Collection[str]) -> list[Account]:
        """Return the accounts of the organization as they were known, because it cannot be asked.

        Raises:
            AwsUnavailableError: nobody says which of them is the caller's own.
        """
        if self._organization is None or not account_ids:
            return []
        found = self._accounts(self._roles_in(account_ids))
        return [found[account_id] for account_id in sorted(found) if account_id in (self._only or found)]

    def account(self, account_id: str) -> Account:
        """Return an account that was listed before."""
        return self._known[account_id]

    def enabled_regions(self, account: Account) -> list[str]:
        """Return the Regions that are enabled in an account, sorted.

        Raises:
            AwsUnavailableError: EC2 does not say.
        """
        return self._ask(
            account.credentials,
            "ec2",
            lambda ec2: sorted(str(one["RegionName"]) for one in ec2.describe_regions()["Regions"]),
            f"EC2 does not say which Regions are enabled in account {account.account_id}"
            f" (ec2:DescribeRegions in {self._clients.home}; or name them in `regions`)",
        )

    def _ask(
        self,
        credentials: RenewableCredentials,
        service: str,
        question: Callable[[Any], T],
        what: str,
    ) -> T:
        """Ask a service in the name of these credentials, which are made anew if AWS no longer takes them."""
        with suppress(BotoCoreError):  # the question will tell
            self._clients.client(service)  # is to be there before the time of the question begins
        with acting_as(credentials):
            try:
                return self._clients.ask(lambda: question(self._clients.client(service)), what)
            except AwsUnavailableError as error:
                renew_if_refused(credentials, error.code)
                raise

    def _accounts(self, roles: Sequence[Role]) -> dict[str, Account]:
        """Return the accounts of roles by their ids; each keeps its credentials from call to call."""
        found: dict[str, Account] = {}
        for role in roles:
            if (account_id := self._account_id(role)) in found:
                raise UsageError(
                    f"accounts: named twice: {account_id}, by its role and as the credentials' own"
                )
            if account_id not in self._known:
                self._known[account_id] = Account(account_id, self._credentials(role), role.regions, role.arn)
            found[account_id] = self._known[account_id]
        return found

    def _account_id(self, role: Role) -> str:
        return role.arn.split(":")[4] if role.arn else self.own_account()[0]

    def _credentials(self, role: Role) -> RenewableCredentials:
        if role.arn is None:
            return self._own
        return RenewableCredentials(
            lambda: DeferredRefreshableCredentials(lambda: self._assume(role), "assume-role"),
            pause=self._renewal_pause,
        )

    def _own_credentials(self) -> Any:
        """Read boto3's variables and files anew; what they hold now must be of the same account."""
        credentials = new_session().get_credentials()
        if credentials is None:
            raise NoCredentialsError
        if self._caller is not None:
            before = self._caller.split(":")[4]
            with acting_as(credentials), deadline.lent():
                now = self._clients.client("sts").get_caller_identity()["Arn"].split(":")[4]
            if now != before:
                raise AccountChangedError(now=now, before=before)
        return credentials

    def _assume(self, role: Role) -> dict[str, Any]:
        """Assume a role, within whatever deadline the request has that needs its credentials."""
        external_id = {"ExternalId": role.external_id} if role.external_id else {}
        try:
            with acting_as(self._own), deadline.lent():
                given = self._clients.client("sts").assume_role(
                    RoleArn=role.arn, RoleSessionName=SESSION_NAME, DurationSeconds=_DURATION, **external_id
                )["Credentials"]
        except KeyError as error:  # botocore's or ours, of an answer that is XML, but a proxy's
            raise UnusableAnswerError(
                "the answer names no Credentials; did a proxy answer for AWS?"
            ) from error
        return {
            "access_key": given["AccessKeyId"],
            "secret_key": given["SecretAccessKey"],
            "token": given["SessionToken"],
            "expiry_time": given["Expiration"].isoformat(),
        }

    def _organization_roles(self) -> list[Role]:
        """Return a role in each active account of the organization; the caller's own needs none."""
        try:
            active = [account_id for page in every_page(self._organization_page) for account_id in page]
        except EndlessListingError as error:
            raise AwsUnavailableError(_NO_LIST, error.code, str(error)) from error
        return self._roles_in(dict.fromkeys(active))  # one may move between pages

    def _organization_page(self, token: dict[str, str]) -> tuple[list[str], str | None]:
        def active(organizations: Any) -> tuple[list[str], str | None]:
            answer = organizations.list_accounts(**token)
            return [str(one["Id"]) for one in answer["Accounts"] if _is_active(one)], answer.get("NextToken")

        return self._ask(self._own, "organizations", active, _NO_LIST)

    def _roles_in(self, account_ids: Collection[str]) -> list[Role]:
        assert self._organization is not None  # noqa: S101 - for the type checker
        own, partition = self.own_account()
        name = self._organization.role_name.removeprefix("/")
        return [
            Role(None if account_id == own else f"arn:{partition}:iam::{account_id}:role/{name}")
            for account_id in account_ids
            if account_id not in self._organization.exclude
        ]


def renew_if_refused(credentials: RenewableCredentials, code: str) -> None:
    """Make credentials anew when this error code says that AWS no longer takes them."""
    if code in NO_LONGER_TAKEN:
        credentials.renew()


def _is_active(account: dict[str, Any]) -> bool:
    """Whether an account is in use; ``State`` is the newer of the two members that say so."""
    return str(account.get("State") or account.get("Status")) == "ACTIVE"


def _few(names: Sequence[str]) -> str:
    most = 10
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
