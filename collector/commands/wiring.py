"""AWS, the warehouse and the spool joined: what the commands that poll are put together from."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import structlog

from collector.aws.accounts import Accounts, Organization, Role
from collector.aws.asking import Asking
from collector.aws.clients import Clients
from collector.aws.deadline import Deadlines
from collector.aws.discovery import Discovery
from collector.aws.evidence import Gatherer
from collector.aws.listing import Lister
from collector.aws.transform import import_task, wire_task
from collector.clock import never_the_same_twice, utc_now
from collector.commands.doubts import Doubts
from collector.config import Settings
from collector.daemon import TICK, Daemon, Observer, Work
from collector.domain import Discovered, Evidence, Failure, Look, Scan, Target
from collector.loader import Loader
from collector.notify import notify
from collector.outcomes import Tally
from collector.polling import Cadence, leased
from collector.sightings import Sightings
from collector.spool import Spool
from collector.warehouse import outages, schema
from collector.warehouse.access import Warehouse
from collector.warehouse.leases import Leases
from collector.warehouse.recording import record

_LAST_ANSWER = 1.0
"""Seconds that the database may take to answer when the daemon ends."""

log = structlog.stdlib.get_logger(__name__)


def spool_folder(settings: Settings) -> Path:
    """Return where looks wait on disk for the warehouse."""
    return settings.data_dir / "spool"


def spool_of(settings: Settings) -> Spool:
    """Return what waits on disk for the warehouse.

    Raises:
        SpoolError: the folder cannot be used.
    """
    return Spool(spool_folder(settings), limit=settings.spool_limit, to_wire=wire_task, from_wire=import_task)


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


class _Answers:
    """Stores looks, and which accounts answered last: it ends their outages, even those stored later."""

    def __init__(self, warehouse: Warehouse) -> None:
        self._engine = warehouse.engine
        self._recorded: Discovered | None = None
        self.newest: Discovered | None = None

    @property
    def owed(self) -> bool:
        """Whether there is an answer that is not stored yet."""
        return self.newest is not self._recorded

    def store(self, looks: Sequence[Look]) -> Tally:
        """Store looks, and then the newest answer if it is owed or may end what they began."""
        tally = record(self._engine, looks)
        newest = self.newest
        if newest and (self.owed or any(failure.region is None for failure in tally.failures)):
            outages.record_answers(self._engine, newest.answered, newest.asked_at)
            self._recorded = newest
        return tally


@contextmanager
def daemon_of(
    settings: Settings,
    warehouse: Warehouse,
    *,
    accounts: Sequence[str],
    known: Mapping[Target, datetime],
    observer: Observer,
    now: Callable[[], datetime] = utc_now,
    tick: timedelta = TICK,
) -> Iterator[Daemon]:
    """Put a daemon together; ``known`` are targets of earlier times, with their last good looks."""
    sightings = Sightings(known)
    doubts = Doubts(warehouse.connect, sightings)
    spool = spool_of(settings)

    def missing(scan: Scan) -> set[str]:
        return doubts.missing(scan) if loader.trouble is None else sightings.missing(scan)

    def give_up() -> None:
        warehouse.patience.seconds = _LAST_ANSWER

    def told(tally: Tally, seconds: float) -> None:
        observer.recorded(tally, seconds)
        _log_tally(tally)

    answers = _Answers(warehouse)
    loader = Loader(
        store=answers.store,
        owes=lambda: answers.owed,
        reach=lambda: schema.require_current(warehouse.engine),
        repair=warehouse.repair,
        give_up=give_up,
        spool=spool,
        told=told,
    )
    with (
        closing(doubts),
        polling_of(
            settings,
            warehouse,
            accounts=accounts,
            patience=timedelta(0),
            missing=missing,
            known=known,
            now=now,
        ) as polling,
    ):

        def discover() -> Discovered:
            found = answers.newest = polling.discover()
            return found

        work = Work(
            discover=discover,
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
            tick=tick,
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
