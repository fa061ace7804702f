"""AWS, the warehouse and the spool joined: what the commands that poll are put together from.

Only ``daemon_of`` imports the daemon, and with it the scheduler.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import structlog

from collector.aws.accounts import Accounts, Organization, RenewableCredentials, Role
from collector.aws.clients import Clients
from collector.aws.discovery import Discovery
from collector.aws.evidence import Gatherer
from collector.aws.listing import Lister
from collector.clock import never_the_same_twice, utc_now
from collector.commands.composition import spool_of
from collector.config import Settings
from collector.domain import Evidence, Failure, Scan, Target
from collector.errors import WarehouseError
from collector.loader import Loader
from collector.notify import notify
from collector.outcomes import Tally
from collector.polling import Cadence, leased
from collector.sightings import NeverSeenError, Sightings
from collector.warehouse import history, schema
from collector.warehouse.access import Warehouse
from collector.warehouse.leases import Leases
from collector.warehouse.recording import record

if TYPE_CHECKING:
    from collector.daemon import Daemon, Observer

_LAST_ANSWER = 1.0
"""Seconds that the database may take to answer when the daemon ends."""

log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Polling:
    """AWS and the warehouse, joined: which targets there are, and a look at one under its lease.

    ``discover`` returns the targets and the accounts that could not be asked. ``cancel`` ends both at once.
    """

    discover: Callable[[], tuple[Sequence[Target], Sequence[Failure]]]
    look: Callable[[Target], Scan | Failure | None]
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
    known: Callable[[], Sequence[Target]],
    now: Callable[[], datetime] = utc_now,
) -> Iterator[Polling]:
    """Join a warehouse and the accounts that are looked at.

    ``accounts`` are those that the command line names, ``patience`` is how long a look waits for its lease,
    ``missing`` names what makes a listing doubtful, ``known`` the targets of earlier times.

    Raises:
        AwsUnavailableError: boto3's own configuration cannot be read.
    """
    now = never_the_same_twice(now)
    clients = Clients(connections=settings.concurrency, patience=settings.target_deadline)
    leases = Leases(warehouse.direct)
    directory = accounts_of(settings, clients, only=accounts)
    limit = settings.target_deadline

    def credentials_of(account_id: str) -> RenewableCredentials:
        return directory.account(account_id).credentials

    lister = Lister(clients, credentials_of, now=now, limit=limit, missing=missing)
    gatherer = Gatherer(clients, credentials_of, now=now, limit=limit)
    discovery = Discovery(
        directory, regions=settings.regions, exclude=settings.exclude_regions, known=known, now=now
    )

    def cancel() -> None:
        lister.cancel()
        gatherer.cancel()
        clients.cancel()

    try:
        yield Polling(
            discover=discovery.discover,
            look=leased(lister.look, leases, patience=patience),
            images=gatherer.images,
            requests=gatherer.requests,
            cancel=cancel,
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


@contextmanager
def daemon_of(
    settings: Settings,
    warehouse: Warehouse,
    *,
    accounts: Sequence[str],
    known: Mapping[Target, datetime],
    observer: "Observer",
    now: Callable[[], datetime] = utc_now,
    tick: timedelta | None = None,
) -> Iterator["Daemon"]:
    """Put a daemon together; ``known`` are targets of earlier times, with their last good looks."""
    from collector.daemon import TICK, Daemon, Work  # noqa: PLC0415 - see the module's first lines

    sightings = Sightings(known)
    spool = spool_of(settings)

    def missing(scan: Scan) -> set[str]:
        """Ask the warehouse and this process: what was seen last may not be stored yet."""
        if loader.trouble is not None:
            return sightings.missing(scan)
        try:
            stored = history.missing_from(warehouse.engine, scan)
        except WarehouseError:
            return sightings.missing(scan)
        with suppress(NeverSeenError):
            return stored | sightings.missing(scan)
        return stored

    def give_up() -> None:
        warehouse.patience.seconds = _LAST_ANSWER

    def told(tally: Tally, seconds: float) -> None:
        observer.recorded(tally, seconds)
        _log_tally(tally)

    loader = Loader(
        store=lambda looks: record(warehouse.engine, looks),
        reach=lambda: schema.require_current(warehouse.engine),
        repair=warehouse.repair,
        give_up=give_up,
        spool=spool,
        told=told,
    )
    with polling_of(
        settings,
        warehouse,
        accounts=accounts,
        patience=timedelta(0),
        missing=missing,
        known=lambda: list(known),
        now=now,
    ) as polling:
        work = Work(
            discover=polling.discover,
            look=polling.look,
            cancel=polling.cancel,
            lead=polling.lead,
            now=now,
            progress=lambda: notify("READY=1", "WATCHDOG=1"),
        )
        cadence = Cadence(
            interval=settings.interval,
            idle_interval=settings.idle_interval,
            concurrency=settings.concurrency,
        )
        yield Daemon(
            work,
            cadence,
            loader,
            spool,
            sightings,
            observer,
            concurrency=settings.concurrency,
            tick=tick or TICK,
        )


def _log_tally(tally: Tally) -> None:
    """Log what a batch of looks brought, at INFO only if it is news."""
    for refusal in tally.refused:
        log.error("scan refused", reason=refusal)
    news = {
        name: number
        for name in ("new_tasks", "inserted", "closed", "expired", "vanished")
        if (number := getattr(tally, name))
    }
    say = log.info if news else log.debug
    say("history changed" if news else "nothing new", scans=tally.scans, failures=len(tally.failures), **news)
