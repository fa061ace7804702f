"""The parts that more than one command is put together from."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

from collector.aws.clients import AwsUnavailableError, Clients
from collector.aws.discovery import discover
from collector.aws.listing import Lister
from collector.clock import never_the_same_twice, utc_now
from collector.config import Settings
from collector.domain import Failure, Scan, Target
from collector.errors import UsageError
from collector.polling import leased
from collector.warehouse import history, schema
from collector.warehouse.access import Warehouse, open_warehouse
from collector.warehouse.leases import Leases
from collector.warehouse.recording import record


@contextmanager
def warehouse_of(settings: Settings) -> Iterator[Warehouse]:
    """Open the configured warehouse, or the embedded one."""
    url, direct = settings.database_url, settings.direct_database_url
    with open_warehouse(
        url=url.get_secret_value() if url else None,
        direct_url=direct.get_secret_value() if direct else None,
        folder=settings.data_dir,
    ) as warehouse:
        yield warehouse


@dataclass(frozen=True, slots=True)
class Polling:
    """AWS and the warehouse, joined: which targets there are, and a look at one under its lease."""

    targets: Callable[[], list[Target]]
    look: Callable[[Target], Scan | Failure | None]
    cancel: Callable[[], None]


@contextmanager
def polling_of(
    settings: Settings,
    warehouse: Warehouse,
    *,
    accounts: Sequence[str],
    patience: timedelta,
    now: Callable[[], datetime] = utc_now,
) -> Iterator[Polling]:
    """Join a warehouse and the credentials' account; ``patience`` is how long a look waits for its lease.

    Raises:
        WarehouseError: the warehouse cannot be written to.
        AwsUnavailableError: the credentials do not work.
        UsageError: ``accounts`` are others than the credentials'.
    """
    schema.require_current(warehouse.engine)
    now = never_the_same_twice(now)
    clients = Clients(connections=settings.concurrency, patience=settings.target_deadline)
    leases = Leases(warehouse.direct)
    try:
        account_id = clients.account_id()
        if accounts and list(accounts) != [account_id]:
            raise UsageError(f"--account: the credentials are those of account {account_id}")
        lister = Lister(
            clients,
            now=now,
            limit=settings.target_deadline,
            missing=lambda scan: history.missing_from(warehouse.engine, scan),
        )

        def targets() -> list[Target]:
            try:
                return discover(
                    clients, account_id, regions=settings.regions, exclude=settings.exclude_regions
                )
            except AwsUnavailableError as error:
                failure = Failure(account_id, None, now(), type(error).__name__, str(error))
                record(warehouse.engine, [failure])
                raise

        yield Polling(targets, leased(lister.look, leases, patience=patience), lister.cancel)
    finally:
        leases.close()
        clients.close()
