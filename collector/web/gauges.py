"""What the daemon's state says, as metrics: made anew at each scrape, so that a gone target leaves none."""

import platform
from collections.abc import Iterator
from datetime import datetime

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)

from collector import __version__
from collector.state import DaemonState, TargetState


def gauges(state: DaemonState, now: datetime) -> Iterator[Metric]:
    """Yield what the state says at the instant ``now``."""
    build = {"version": __version__, "python": platform.python_version()}
    yield InfoMetricFamily("collector_build", "The running program.", value=build)
    yield from _of_process(state)
    yield from _of_spool(state)
    yield from _of_targets(state, now)


def _of_process(state: DaemonState) -> Iterator[Metric]:
    yield _gauge("alive", "Whether ticks happen: 1 or 0.", state.alive)
    yield _gauge("ready", "Whether what is seen can be stored: 1 or 0.", state.ready)
    yield _gauge("database_up", "Whether nothing is wrong with the database: 1 or 0.", state.database is None)
    yield _gauge(
        "leading", "1: this process polls; 0: it stands by; absent: it could not ask yet.", state.leading
    )
    yield _gauge(
        "schedule_lag_seconds", "How long the longest-due target has been waiting.", state.schedule_lag
    )
    yield CounterMetricFamily(
        "collector_ticks_missed", "Ticks that the scheduler left out.", value=state.missed_ticks
    )


def _of_spool(state: DaemonState) -> Iterator[Metric]:
    yield _gauge("spool_files", "Files that wait on disk for the database.", state.spool_files)
    yield _gauge("spool_bytes", "Size of what waits on disk for the database.", state.spool_bytes)
    yield _gauge("spool_full", "Whether polling has stopped because the spool is full.", state.spool_full)


def _of_targets(state: DaemonState, now: datetime) -> Iterator[Metric]:
    forgotten = state.nearly_forgotten(now)
    yield _gauge("targets", "Pairs of account and Region that are polled.", len(state.targets))
    yield _gauge("targets_failing", "Targets whose newest look failed.", state.failing)
    yield _gauge("targets_nearly_forgotten", "Targets about to lose tasks for ever.", forgotten)
    yield _gauge("targets_unseen", "Targets that never had a complete look.", state.unseen)
    yield _last_successes(state.targets)
    yield _tasks(state.targets)


def _last_successes(targets: tuple[TargetState, ...]) -> Metric:
    metric = GaugeMetricFamily(
        "collector_last_success_timestamp_seconds",
        "When the last complete look at the target began; absent where there was none.",
        labels=["account", "region"],
    )
    for state in targets:
        if state.last_good_at is not None:
            metric.add_metric([state.target.account_id, state.target.region], state.last_good_at.timestamp())
    return metric


def _tasks(targets: tuple[TargetState, ...]) -> Metric:
    metric = GaugeMetricFamily(
        "collector_tasks",
        "Tasks that EC2 listed at the target's last look.",
        labels=["account", "region", "status"],
    )
    for state in targets:
        for status, number in sorted(state.statuses.items()):
            metric.add_metric([state.target.account_id, state.target.region, status], number)
    return metric


def _gauge(name: str, documentation: str, value: float | None) -> Metric:
    """Return a gauge without labels; without a sample, too, where there is no value."""
    return GaugeMetricFamily(f"collector_{name}", documentation, value=value)
