"""Whose an access key is: the keys that were named, and those of assumed roles, which come and go."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from itertools import count
from threading import Lock

ROLE_KEY = re.compile(r"ASIA(\d{12})[0-9A-F]{4}")
"""As long as AWS's keys. It names its account itself, so that a forgotten key belongs to nobody else."""

FORGET_EVERY = 1024
"""Expired keys are forgotten once in so many new ones, which keeps the cost of each low."""


class Callers:
    """The access keys. Thread-safe. A role's key expires by the real clock, as the client's does.

    Args:
        accounts: access key id to account id.
        default_account: the account of all other access keys, but those of roles.
    """

    def __init__(self, accounts: Mapping[str, str], default_account: str) -> None:
        self.default_account = default_account
        self._accounts = dict(accounts)
        self._numbers = count(1)
        self._lock = Lock()
        self._expirations: dict[str, datetime] = {}

    def account_of(self, access_key_id: str) -> str:
        """The account that an access key belongs to, whether it is still good or not."""
        if (account := self._accounts.get(access_key_id)) is not None:
            return account
        role = ROLE_KEY.fullmatch(access_key_id)
        return role[1] if role else self.default_account

    def expired(self, access_key_id: str) -> bool:
        """Whether it is a role's key that is no longer good: past its time, revoked, or forgotten since."""
        if access_key_id in self._accounts or not ROLE_KEY.fullmatch(access_key_id):
            return False
        expiration = self._expirations.get(access_key_id)
        return expiration is None or expiration <= datetime.now(UTC)

    @property
    def remembered(self) -> int:
        """How many keys of roles are known."""
        return len(self._expirations)

    def give(self, account: str, lifetime: timedelta) -> tuple[str, datetime]:
        """Give out a new key for a role of an account, and say when it expires."""
        now = datetime.now(UTC)
        with self._lock:
            number = next(self._numbers)
            if number % FORGET_EVERY == 0:
                self._expirations = {key: at for key, at in self._expirations.items() if at > now}
            access_key_id = f"ASIA{account}{number % 0x10000:04X}"
            self._expirations[access_key_id] = now + lifetime
        return access_key_id, now + lifetime

    def revoke(self, account: str) -> None:
        """Make an end of all keys that were given out for roles of an account."""
        with self._lock:
            kept = {key: at for key, at in self._expirations.items() if self.account_of(key) != account}
            self._expirations = kept
