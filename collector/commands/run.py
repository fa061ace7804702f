"""``collector run``: the daemon on the configured warehouse, and what watches it."""

import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from time import monotonic_ns
from types import FrameType, TracebackType
from typing import Self

import structlog

from collector.clock import utc_now
from collector.commands.composition import warehouse_of
from collector.commands.wiring import daemon_of
from collector.config import Settings
from collector.daemon import Daemon
from collector.domain import Target
from collector.errors import UsageError, WarehouseAwayError
from collector.notify import notify
from collector.warehouse import reading, schema
from collector.warehouse.access import Warehouse
from collector.web.app import make_app
from collector.web.metrics import Metrics
from collector.web.server import WebServer

_ANSWER = 60.0
"""Seconds that the database may take to answer one statement."""
_EXIT_WITHIN = 14.0
"""Seconds from the first signal to the end, whatever hangs."""

log = structlog.stdlib.get_logger(__name__)


def run(load: Callable[[], Settings], *, accounts: Sequence[str]) -> int:
    """Poll until SIGTERM or SIGINT; ``load`` reads the configuration, again at SIGHUP."""
    settings: Settings | None = load()
    with _Life() as life:
        while settings is not None:
            settings = _run_with(settings, load, accounts, life)
    return 0


def _run_with(
    settings: Settings, load: Callable[[], Settings], accounts: Sequence[str], life: "_Life"
) -> Settings | None:
    """Run until the end, or until a good new configuration, which is returned."""
    reread: list[Settings] = []

    def reload() -> bool:
        try:
            reread.append(load())
        except UsageError as error:
            log.error("the new configuration is not used", faults=list(error.faults))
            return False
        notify("RELOADING=1", f"MONOTONIC_USEC={monotonic_ns() // 1000}")
        log.info("the configuration was read again")
        return True

    metrics = Metrics()
    with warehouse_of(settings) as warehouse:
        known = _last_good_looks(warehouse)
        warehouse.patience.seconds = _ANSWER
        with daemon_of(settings, warehouse, accounts=accounts, known=known, observer=metrics) as daemon:
            app = make_app(daemon.state, metrics, utc_now)
            with WebServer(app, *settings.listen) as web:
                log.info("listening", url=web.url)
                life.daemon, life.warehouse = daemon, warehouse
                again = daemon.run(reload=reload)
    return reread[-1] if again else None


def _last_good_looks(warehouse: Warehouse) -> Mapping[Target, datetime]:
    """Return what the warehouse knows from before; one that is away tells nothing, and stops nobody.

    Raises:
        WarehouseError: it is there, but cannot be used, say because it is behind in migrations.
    """
    try:
        schema.require_current(warehouse.engine)
        return reading.last_good_looks(warehouse.engine)
    except WarehouseAwayError as error:
        log.error("starting without the database", error=str(error))
        return {}


class _Life:
    """The signals of a process that runs the daemon: the first ends it in time, a second one at once."""

    def __init__(self) -> None:
        self.daemon: Daemon | None = None
        self.warehouse: Warehouse | None = None
        self._signals = 0
        self._last_resort = threading.Timer(_EXIT_WITHIN, self._exit, args=["something hangs"])
        self._last_resort.daemon = True

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)
        if hasattr(signal, "SIGHUP"):
            signal.signal(signal.SIGHUP, self._reload)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._last_resort.cancel()

    def _reload(self, _number: int, _frame: FrameType | None) -> None:
        if self.daemon is not None:
            self.daemon.reload()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.daemon is None:  # nothing has begun
            signal.default_int_handler(number, frame)
        self._signals += 1
        if self._signals > 1:
            self._exit("a second signal")
        notify("STOPPING=1")
        self._last_resort.start()
        self.daemon.stop()

    def _exit(self, why: str) -> None:
        """End the process; what was seen and is not stored goes to disk first, which takes no database."""
        log.error("ended by force", cause=why)
        if self.daemon:
            self.daemon.rescue()
        if self.warehouse:
            self.warehouse.abandon()
        os._exit(1)
