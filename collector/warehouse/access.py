"""The way in: the configured database or the embedded one, opened, checked, and repaired when it can be."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine

from collector.warehouse import schema
from collector.warehouse.engine import (
    Connect,
    Patience,
    connect_to_parameters,
    connect_to_url,
    make_engine,
)


@dataclass(frozen=True, slots=True)
class Warehouse:
    """An opened warehouse.

    ``direct`` connects past a pooler, for what needs a session of its own. ``repair`` restarts an embedded
    server that died, and begins with new sessions on a configured one: old ones may stay read-only when it no
    longer is. ``abandon`` ends an embedded server without waiting. ``patience`` bounds the wait for an answer.
    """

    engine: Engine
    connect: Connect
    direct: Connect
    embedded: bool
    repair: Callable[[], None]
    abandon: Callable[[], None]
    patience: Patience

    @property
    def direct_engine(self) -> Engine:
        """An engine for migrations; the caller disposes of it."""
        return make_engine(self.direct)


@contextmanager
def open_warehouse(*, url: str | None, direct_url: str | None, folder: Path) -> Iterator[Warehouse]:
    """Open the database at ``url``, or an embedded one in ``folder`` when there is none.

    The embedded database is migrated here; a configured one is left as it is.

    Raises:
        WarehouseError: the database cannot be used.
        EmbeddedPostgresError: the server cannot be started.
    """
    patience = Patience()
    with ExitStack() as stack:
        if url is not None:
            connect = connect_to_url(url, patience)
            engine = make_engine(connect)
            warehouse = Warehouse(
                engine=engine,
                connect=connect,
                direct=connect_to_url(direct_url, patience) if direct_url else connect,
                embedded=False,
                repair=engine.dispose,
                abandon=lambda: None,
                patience=patience,
            )
        else:
            # Only here: a machine with its own database does without the extra that this needs.
            from collector.warehouse.embedded import EmbeddedPostgres  # noqa: PLC0415

            server = stack.enter_context(EmbeddedPostgres(folder / "postgres"))
            connect = connect_to_parameters(server.conninfo, patience)
            warehouse = Warehouse(
                engine=make_engine(connect),
                connect=connect,
                direct=connect,
                embedded=True,
                repair=server.ensure_running,
                abandon=server.abandon,
                patience=patience,
            )
        stack.callback(warehouse.engine.dispose)
        if warehouse.embedded:
            schema.upgrade(warehouse.engine)
        yield warehouse
