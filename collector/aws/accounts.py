"""The accounts that are looked at, and the credentials for each: the caller's own, or an assumed role's.

Credentials are refreshed while they are in use, and made anew when AWS stops taking them: a role's by
assuming it again, the caller's own by reading boto3's variables and files again.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from botocore.credentials import DeferredRefreshableCredentials
from botocore.exceptions import NoCredentialsError

from collector.aws.clients import AwsUnavailableError, Clients, acting_as, new_session
from collector.errors import UsageError

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

_RENEWAL_PAUSE = 30.0
"""Seconds: credentials that are refused for good are not made anew with every look."""

_REFUSAL_HOLDS = 3.0
"""Seconds."""


class RenewableCredentials:
    """Credentials that are made at their first use, and again after ``renew``; for any number of threads."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._made: Any = None
        self._made_at = -_RENEWAL_PAUSE
        self._refusal: Exception | None = None
        self._refused_at = 0.0

    def get_frozen_credentials(self) -> Any:
        """Return key, secret and token of this moment.

        Raises:
            ClientError, BotoCoreError: there are none, or the role cannot be assumed.
        """
        with self._lock:
            # The looks at all Regions of an account that refuses us come at once; one question is enough.
            if self._refusal and monotonic() - self._refused_at < _REFUSAL_HOLDS:
                raise self._refusal
            try:
                if self._made is None:
                    self._made, self._made_at = self._make(), monotonic()
                frozen = self._made.get_frozen_credentials()
            except Exception as error:
                self._refusal, self._refused_at = error, monotonic()
                raise
            self._refusal = None
            return frozen

    def renew(self) -> None:
        """Make them anew at their next use, because AWS no longer takes these."""
        with self._lock:
            if monotonic() - self._made_at > _RENEWAL_PAUSE:
                self._made = None


@dataclass(frozen=True, slots=True)
class Account:
    """One account to look at. ``regions`` are patterns of its own; none: those of the configuration."""

    account_id: str
    credentials: RenewableCredentials = field(compare=False)
    regions: tuple[str, ...] = ()


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
    ``only`` are the account ids that the command line names; none: all.
    """

    def __init__(
        self,
        clients: Clients,
        *,
        roles: Sequence[Role] = (),
        organization: Organization | None = None,
        only: Sequence[str] = (),
    ) -> None:
        self._clients = clients
        self._roles = roles or (Role(),)
        self._organization = organization
        self._only = frozenset(only)
        self._own = RenewableCredentials(_own_credentials)
        self._known: dict[str, Account] = {}
        self._caller: tuple[str, str] | None = None

    def own_account(self) -> tuple[str, str]:
        """Return the id and the partition of the credentials' own account.

        Raises:
            AwsUnavailableError: nobody answers, or the credentials are not accepted.
        """
        if self._caller is None:
            arn = self._ask(
                lambda: self._clients.sts().get_caller_identity(),
                "Arn",
                "AWS does not say whose credentials these are"
                f" (sts:GetCallerIdentity in {self._clients.home})",
            )
            _, partition, _, _, account_id, *_ = arn.split(":")
            self._caller = account_id, partition
        return self._caller

    def current(self) -> list[Account]:
        """Return the accounts, sorted; each keeps its credentials from call to call.

        Raises:
            AwsUnavailableError: the caller's own account or the organization is needed, and AWS does not say.
            UsageError: the command line names one that is none of them.
        """
        roles = self._organization_roles() if self._organization else self._roles
        found = {self._account_id(role): role for role in roles}
        if unknown := sorted(self._only - found.keys()):
            raise UsageError(
                f"--account: {', '.join(unknown)} is not among the accounts that these credentials and the"
                f" configuration lead to: {_few(sorted(found))}"
            )
        for account_id, role in found.items():
            if account_id not in self._known:
                self._known[account_id] = Account(account_id, self._credentials(role), role.regions)
        return [self._known[account_id] for account_id in sorted(self._only or found)]

    def account(self, account_id: str) -> Account:
        """Return an account that was listed before."""
        return self._known[account_id]

    def enabled_regions(self, account: Account) -> list[str]:
        """Return the Regions that are enabled in an account, sorted.

        Raises:
            AwsUnavailableError: EC2 does not say.
        """
        home = self._clients.home
        with acting_as(account.credentials):
            try:
                regions = self._clients.ask(
                    lambda: self._clients.ec2(home).describe_regions(),
                    "Regions",
                    f"EC2 does not say which Regions are enabled in account {account.account_id}"
                    f" (ec2:DescribeRegions in {home}; or name them in `regions`)",
                )
            except AwsUnavailableError as error:
                renew_if_refused(account.credentials, error.code)
                raise
        return sorted(region["RegionName"] for region in regions)

    def _ask(self, question: Callable[[], dict[str, Any]], member: str, what: str) -> Any:
        with acting_as(self._own):
            try:
                return self._clients.ask(question, member, what)
            except AwsUnavailableError as error:
                renew_if_refused(self._own, error.code)
                raise

    def _account_id(self, role: Role) -> str:
        return role.arn.split(":")[4] if role.arn else self.own_account()[0]

    def _credentials(self, role: Role) -> RenewableCredentials:
        if role.arn is None:
            return self._own
        return RenewableCredentials(
            lambda: DeferredRefreshableCredentials(lambda: self._assume(role), "assume-role")
        )

    def _assume(self, role: Role) -> dict[str, Any]:
        """Assume a role, within whatever deadline the request has that needs its credentials."""
        external_id = {"ExternalId": role.external_id} if role.external_id else {}
        with acting_as(self._own):
            answer = self._clients.sts().assume_role(
                RoleArn=role.arn, RoleSessionName=SESSION_NAME, DurationSeconds=_DURATION, **external_id
            )
        given = answer["Credentials"]
        return {
            "access_key": given["AccessKeyId"],
            "secret_key": given["SecretAccessKey"],
            "token": given["SessionToken"],
            "expiry_time": given["Expiration"].isoformat(),
        }

    def _organization_roles(self) -> list[Role]:
        """Return a role in each active account of the organization; the caller's own needs none."""
        assert self._organization is not None  # noqa: S101 - for the type checker
        own, partition = self.own_account()
        active: list[str] = []
        token: dict[str, str] = {}
        while True:
            answer = self._organization_page(token)
            active += [one["Id"] for one in answer["Accounts"] if _is_active(one)]
            if not answer.get("NextToken"):
                break
            token = {"NextToken": answer["NextToken"]}
        name = self._organization.role_name
        return [
            Role(None if account_id == own else f"arn:{partition}:iam::{account_id}:role/{name}")
            for account_id in active
            if account_id not in self._organization.exclude
        ]

    def _organization_page(self, token: dict[str, str]) -> dict[str, Any]:
        def question() -> dict[str, Any]:
            answer: dict[str, Any] = self._clients.organizations().list_accounts(**token)
            return {"page": answer} if "Accounts" in answer else {}

        page: dict[str, Any] = self._ask(
            question,
            "page",
            "AWS does not say which accounts the organization has (organizations:ListAccounts)",
        )
        return page


def renew_if_refused(credentials: RenewableCredentials, code: str) -> None:
    """Make credentials anew when this error code says that AWS no longer takes them."""
    if code in NO_LONGER_TAKEN:
        credentials.renew()


def _is_active(account: dict[str, Any]) -> bool:
    """Whether an account is in use; ``State`` is the newer of the two members that say so."""
    return str(account.get("State") or account.get("Status")) == "ACTIVE"


def _own_credentials() -> Any:
    credentials = new_session().get_credentials()
    if credentials is None:
        raise NoCredentialsError
    return credentials


def _few(names: Sequence[str]) -> str:
    most = 10
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
