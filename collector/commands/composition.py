"""The warehouse, as configured: what nearly every command is put together from."""

from collections.abc import Iterator
from contextlib import contextmanager

from collector.config import Settings
from collector.warehouse.access import Warehouse, open_warehouse


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
