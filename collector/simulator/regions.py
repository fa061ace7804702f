"""The Regions that the simulated partition has, and which of them an account has enabled."""

from collections.abc import Iterable, Mapping

ALWAYS_ENABLED = [
    "us-east-1",
    "us-east-2",
    "us-west-1",
    "us-west-2",
    "ca-central-1",
    "sa-east-1",
    "eu-central-1",
    "eu-west-1",
    "eu-west-2",
    "eu-west-3",
    "eu-north-1",
    "ap-south-1",
    "ap-northeast-1",
    "ap-northeast-2",
    "ap-northeast-3",
    "ap-southeast-1",
    "ap-southeast-2",
]
OPT_IN = [
    "af-south-1",
    "ap-east-1",
    "ap-east-2",
    "ap-south-2",
    "ap-southeast-3",
    "ap-southeast-4",
    "ap-southeast-5",
    "ap-southeast-6",
    "ap-southeast-7",
    "ca-west-1",
    "eu-central-2",
    "eu-south-1",
    "eu-south-2",
    "il-central-1",
    "me-central-1",
    "me-south-1",
    "mx-central-1",
]

Enabled = Iterable[str] | Mapping[str, Iterable[str]]


class Regions:
    """Which Regions are enabled: the same for every account, or by account id.

    Without a choice, and for accounts that a mapping leaves out, those that need no opt-in. A name that AWS
    does not have is a Region too.
    """

    def __init__(self, enabled: Enabled | None = None) -> None:
        self._everywhere = ALWAYS_ENABLED
        self._by_account: dict[str, list[str]] = {}
        if isinstance(enabled, Mapping):
            self._by_account = {account: list(regions) for account, regions in enabled.items()}
        elif enabled is not None:
            self._everywhere = list(enabled)

    def enabled(self, account: str) -> list[str]:
        """The Regions that the account may use."""
        return self._by_account.get(account, self._everywhere)

    def opt_in_states(self, account: str) -> dict[str, str]:
        """Every Region and its ``OptInStatus`` for the account."""
        enabled = self.enabled(account)
        return {
            region: self._state(region, enabled)
            for region in dict.fromkeys([*ALWAYS_ENABLED, *OPT_IN, *enabled])
        }

    @staticmethod
    def _state(region: str, enabled: list[str]) -> str:
        if region not in enabled:
            return "not-opted-in"
        return "opted-in" if region in OPT_IN else "opt-in-not-required"
