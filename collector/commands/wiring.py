"""AWS and the leases of the warehouse joined: what the commands that poll are put together from."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

from collector.aws.accounts import Accounts, Organization, Role
from collector.aws.asking import Asking
from collector.aws.clients import Clients
from collector.aws.deadline import Deadlines
from collector.aws.discovery import Discovery
from collector.aws.evidence import Gatherer
from collector.aws.listing import Lister
from collector.clock import never_the_same_twice, utc_now
from collector.config import Settings
from collector.domain import Discovered, Evidence, Failure, Look, Scan, Target
from collector.polling import leased
from collector.warehouse.access import Warehouse
from collector.warehouse.leases import Leases


@dataclass(frozen=True, slots=True)
class Polling:
    """AWS and the warehouse, joined: which targets there are, and a look at one under its lease.

    ``cancel`` ends at once whatever is asked of AWS.
    """

    discover: Callable[[], Discovered]
    look: Callable[[Target], Look | None]
    images: Callable[[Target], list[Evidence] | Failure]
    requests: Callable[[Target, datetime, datetime], list[Evidence] | Failure]
    cancel: Callable[[], None]
    lead: Callable[[], bool]


@contextmanager
def polling_of(
    settings: Settings,
    warehouse: Warehouse,
    *,
    accounts: Sequence[str],
    patience: timedelta,
    missing: Callable[[Scan], set[str]],
    known: Collection[Target] = (),
    now: Callable[[], datetime] = utc_now,
) -> Iterator[Polling]:
    """Join a warehouse and the accounts that are looked at.

    ``accounts`` are those that the command line names, ``patience`` is how long a look waits for its lease,
    ``missing`` names what makes a listing doubtful, ``known`` the targets of earlier times.

    Raises:
        AwsUnavailableError: boto3's own configuration cannot be read.
    """
    now = never_the_same_twice(now)
    deadlines = Deadlines()
    clients = Clients(
        connections=settings.concurrency, patience=settings.target_deadline, deadlines=deadlines
    )
    leases = Leases(warehouse.direct)
    directory = accounts_of(settings, clients, only=accounts)
    asking = Asking(
        lambda account_id: directory.account(account_id).credentials,
        deadlines=deadlines,
        now=now,
        limit=settings.target_deadline,
    )
    lister = Lister(clients, asking, now=now, missing=missing)
    gatherer = Gatherer(clients, asking)
    discovery = Discovery(
        directory, regions=settings.regions, exclude=settings.exclude_regions, known=known, now=now
    )

    try:
        yield Polling(
            discover=discovery.discover,
            look=leased(lister.look, leases, patience=patience),
            images=gatherer.images,
            requests=gatherer.requests,
            cancel=deadlines.end,
            lead=leases.lead,
        )
    finally:
        leases.close()
        clients.close()


def accounts_of(settings: Settings, clients: Clients, *, only: Sequence[str]) -> Accounts:
    """Return the accounts that are configured; ``only`` are those that the command line names."""
    organization = settings.organization
    return Accounts(
        clients,
        roles=roles_of(settings),
        organization=Organization(organization.role_name, frozenset(organization.exclude))
        if organization
        else None,
        only=only,
    )


def roles_of(settings: Settings) -> list[Role]:
    """Return the configured accounts; none: the credentials' own, or an organization's."""
    return [
        Role(
            account.role_arn,
            account.external_id.get_secret_value() if account.external_id else None,
            tuple(account.regions),
        )
        for account in settings.accounts
    ]
