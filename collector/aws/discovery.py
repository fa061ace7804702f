"""Which targets there are: the Regions of the credentials' account that the configuration asks for."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from collector.aws.clients import Clients
from collector.domain import Target
from collector.errors import UsageError


def discover(
    clients: Clients, account_id: str, *, regions: Sequence[str], exclude: Sequence[str]
) -> list[Target]:
    """Return the account's targets, sorted. Regions that are named without globs are taken as they are.

    Raises:
        AwsUnavailableError: the enabled Regions are needed, and EC2 does not name them.
        UsageError: nothing is left to look at.
    """
    literal = all(pattern != "all" and not set(pattern) & set("*?[") for pattern in regions)
    candidates = list(regions) if literal else clients.enabled_regions()
    chosen = {
        region for region in candidates if "all" in regions or _matches(region, regions)
        if not _matches(region, exclude)
    }  # fmt: skip
    if not chosen:
        raise UsageError(
            f"regions: no enabled Region of account {account_id} is among {', '.join(regions)}"
            + (f" without {', '.join(exclude)}" if exclude else "")
        )
    return [Target(account_id, region) for region in sorted(chosen)]


def _matches(region: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(region, pattern) for pattern in patterns)
