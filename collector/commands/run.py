"""``collector run``: the daemon on the configured warehouse, and what watches it."""

import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from queue import SimpleQueue
from time import monotonic_ns
from types import FrameType, TracebackType
from typing import Self

import structlog

from collector.clock import utc_now
from collector.commands.composition import warehouse_of
from collector.commands.daemon import daemon_of
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
        while settings is not None and not life.ending:
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
                life.begin(daemon, warehouse)
                daemon.run(reload=reload, stood_by=life.stood_by)
                life.stood_by = daemon.state().leading is False
    return reread[-1] if reread else None


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
    """The signals of a process that runs the daemon: the first ends it in time, a second one at once.

    A handler only notes them, where that needs no lock, for a thread that acts: it may have interrupted
    whoever holds the locks that acting takes.
    """

    def __init__(self) -> None:
        self.ending = False
        self.stood_by = False
        self._daemon: Daemon | None = None
        self._warehouse: Warehouse | None = None
        self._noted: SimpleQueue[int] = SimpleQueue()
        self._last_resort = threading.Timer(_EXIT_WITHIN, self._exit, args=["something hangs"])
        self._last_resort.daemon = True

    def __enter__(self) -> Self:
        threading.Thread(target=self._act, name="signals", daemon=True).start()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)
        if hasattr(signal, "SIGHUP"):
            signal.signal(signal.SIGHUP, lambda number, _: self._noted.put(number))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._last_resort.cancel()

    def begin(self, daemon: Daemon, warehouse: Warehouse) -> None:
        """From now on signals are about this daemon; one that came since the last one's end, too."""
        self._daemon, self._warehouse = daemon, warehouse
        if self.ending:
            daemon.stop()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._daemon is None:  # nothing has begun
            signal.default_int_handler(number, frame)
        self._noted.put(number)

    def _act(self) -> None:
        while True:
            number = self._noted.get()
            if number not in {signal.SIGTERM, signal.SIGINT}:
                if self._daemon is not None:
                    self._daemon.reload()
            elif self.ending:
                self._exit("a second signal")
            else:
                self.ending = True
                notify("STOPPING=1")
                self._last_resort.start()
                if self._daemon is not None:
                    self._daemon.stop()

    def _exit(self, why: str) -> None:
        """End the process; what was seen and is not stored goes to disk first, which takes no database."""
        log.error("ended by force", cause=why)
        if self._daemon:
            self._daemon.rescue()
        if self._warehouse:
            self._warehouse.abandon()
        os._exit(1)
