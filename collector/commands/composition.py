"""The warehouse and the spool, as configured: what nearly every command is put together from."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from collector.aws.transform import import_task, wire_task
from collector.config import Settings
from collector.spool import Spool
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


def spool_folder(settings: Settings) -> Path:
    """Return where looks wait on disk for the warehouse."""
    return settings.data_dir / "spool"


def spool_of(settings: Settings) -> Spool:
    """Return what waits on disk for the warehouse.

    Raises:
        SpoolError: the folder cannot be used.
    """
    return Spool(spool_folder(settings), limit=settings.spool_limit, to_wire=wire_task, from_wire=import_task)
