"""Which targets there are: the accounts that are looked at, and in each the Regions that are asked for.

"Could not ask" is never "there is none": what cannot be asked now is as it was known before.
"""

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

from collector.aws.accounts import Account, Accounts
from collector.aws.clients import AwsUnavailableError
from collector.domain import Discovered, Failure, Target, is_chosen
from collector.errors import UsageError

_AT_ONCE = 8
"""Accounts that are asked for their Regions at the same time."""


class Discovery:
    """Finds the targets, again and again, and remembers what it found last.

    ``known`` names targets from before this process, for what fails at the first time, the organization
    included; ``now`` dates failures (UTC). Regions that are named without globs are taken as they are, and
    nobody is asked.
    """

    def __init__(
        self,
        accounts: Accounts,
        *,
        regions: Sequence[str],
        exclude: Sequence[str],
        now: Callable[[], datetime],
        known: Collection[Target] = (),
    ) -> None:
        self._accounts = accounts
        self._regions = tuple(regions)
        self._exclude = tuple(exclude)
        self._known = known
        self._now = now
        self._last_accounts: list[Account] | None = None
        self._last_regions: dict[str, list[str]] = {}

    def discover(self) -> Discovered:
        """Return the targets of this moment.

        Raises:
            AwsUnavailableError: no account is known, now or from before.
            UsageError: nothing is left to look at.
        """
        asked_at = self._now()
        failures: list[Failure] = []
        try:
            accounts = self._last_accounts = self._accounts.current()
        except AwsUnavailableError as error:
            accounts = self._last_accounts or self._remembered_accounts()
            if not accounts:
                raise
            failures.append(self._failure(self._accounts.own_account()[0], error))
        targets: list[Target] = []
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="discovery") as pool:
            for account, found in zip(accounts, pool.map(self.regions_of, accounts), strict=True):
                if isinstance(found, Failure):
                    failures.append(found)
                regions = self._remembered(account) if isinstance(found, Failure) else found
                targets += (Target(account.account_id, region) for region in self.chosen(account, regions))
        if not targets and not failures:
            raise UsageError(
                "regions: no enabled Region of "
                + ", ".join(f"account {account.account_id}" for account in accounts)
                + f" is among {', '.join(self._regions)}"
                + (f" without {', '.join(self._exclude)}" if self._exclude else "")
            )
        silent = {failure.account_id for failure in failures}
        answered = tuple(one.account_id for one in accounts if one.account_id not in silent)
        return Discovered(tuple(targets), tuple(failures), answered, asked_at)

    def names_regions(self, account: Account) -> bool:
        """Whether an account's Regions are named, so that nobody is asked which are enabled."""
        patterns = self._patterns(account)
        return all(pattern != "all" and not set(pattern) & set("*?[") for pattern in patterns)

    def regions_of(self, account: Account) -> list[str] | Failure:
        """Return the Regions that an account has enabled, or those that are named for it."""
        if self.names_regions(account):
            return list(self._patterns(account))
        try:
            regions = self._last_regions[account.account_id] = self._accounts.enabled_regions(account)
        except AwsUnavailableError as error:
            return self._failure(account.account_id, error)
        return regions

    def chosen(self, account: Account, regions: Collection[str]) -> list[str]:
        """Return those of an account's Regions that are looked at, sorted."""
        patterns = self._patterns(account)
        return sorted(region for region in set(regions) if is_chosen(region, patterns, self._exclude))

    def _remembered_accounts(self) -> list[Account]:
        return self._accounts.remembered({target.account_id for target in self._known})

    def _remembered(self, account: Account) -> list[str]:
        last = self._last_regions.get(account.account_id)
        if last is None:
            last = [target.region for target in self._known if target.account_id == account.account_id]
        return last

    def _patterns(self, account: Account) -> tuple[str, ...]:
        return account.regions or self._regions

    def _failure(self, account_id: str, error: AwsUnavailableError) -> Failure:
        return Failure(account_id, None, self._now(), error.code, str(error))
