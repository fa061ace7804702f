"""``collector run``: the daemon on the configured warehouse."""

from collections.abc import Sequence
from datetime import timedelta

from collector.commands.composition import polling_of, warehouse_of
from collector.config import Settings
from collector.daemon import Daemon, Work
from collector.polling import Cadence
from collector.warehouse.recording import record


def run(settings: Settings, *, accounts: Sequence[str]) -> int:
    """Poll until SIGTERM or SIGINT."""
    with (
        warehouse_of(settings) as warehouse,
        polling_of(settings, warehouse, accounts=accounts, patience=timedelta(0)) as polling,
    ):
        daemon = Daemon(
            Work(
                discover=polling.targets,
                look=polling.look,
                cancel=polling.cancel,
                record=lambda looks: record(warehouse.engine, looks),
                repair=warehouse.repair,
            ),
            Cadence(interval=settings.interval, idle_interval=settings.idle_interval),
            concurrency=settings.concurrency,
        )
        daemon.stop_on_signals()
        daemon.run()
    return 0
