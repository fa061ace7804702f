"""What Prometheus reads: counters that the daemon feeds, and gauges made from its state at each scrape.

Task ids are never labels: their number has no bound. Histograms have no labels by target, because each series
of theirs is a dozen.
"""

from collections.abc import Iterator
from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from collector.domain import Failure, Look, Target
from collector.outcomes import Tally
from collector.state import DaemonState
from collector.web.gauges import gauges

_OPENMETRICS = "application/openmetrics-text"
_POLL_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_RECORDING_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Counts what happens, in a registry of its own; every method may be called from any thread."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self._polls = Counter(
            "collector_polls",
            "Looks at targets by what came of them; busy: another process was looking.",
            ["account", "region", "outcome"],
            registry=registry,
        )
        self._failures = Counter(
            "collector_poll_failures",
            "Looks that failed, by AWS's error code or the collector's own.",
            ["account", "region", "code"],
            registry=registry,
        )
        self._poll_seconds = Histogram(
            "collector_poll_duration_seconds",
            "How long looks took, with all their pages and retries.",
            ["outcome"],
            registry=registry,
            buckets=_POLL_BUCKETS,
        )
        self._scans = Counter(
            "collector_scans",
            "Scans by their effect on the warehouse; unchanged and repeated ones touched no task.",
            ["effect"],
            registry=registry,
        )
        self._new_tasks = Counter("collector_tasks_new", "Tasks seen for the first time.", registry=registry)
        self._gone_tasks = Counter(
            "collector_tasks_gone",
            "Tasks that EC2 lists no more: expired after they finished, or vanished while unfinished.",
            ["how"],
            registry=registry,
        )
        self._inserted = Counter(
            "collector_versions_inserted", "Task versions written to the warehouse.", registry=registry
        )
        self._closed = Counter(
            "collector_versions_closed", "Task versions that came to their end.", registry=registry
        )
        self._recording_seconds = Histogram(
            "collector_recording_duration_seconds",
            "How long batches of scans took to be recorded.",
            registry=registry,
            buckets=_RECORDING_BUCKETS,
        )
        self._begin_at_zero()

    def looked(self, target: Target, result: Look | None, seconds: float) -> None:
        """Count a look at a target; ``None``: another process was at it."""
        outcome = _outcome(result)
        self._polls.labels(target.account_id, target.region, outcome).inc()
        self._poll_seconds.labels(outcome).observe(seconds)
        if isinstance(result, Failure):
            self._failures.labels(target.account_id, target.region, result.code).inc()

    def recorded(self, tally: Tally, seconds: float) -> None:
        """Count what a recorded batch of scans amounted to."""
        self._scans.labels("changed").inc(tally.scans - tally.unchanged - tally.repeated)
        self._scans.labels("unchanged").inc(tally.unchanged)
        self._scans.labels("repeated").inc(tally.repeated)
        self._scans.labels("refused").inc(len(tally.refused))
        self._new_tasks.inc(tally.new_tasks)
        self._gone_tasks.labels("expired").inc(tally.expired)
        self._gone_tasks.labels("vanished").inc(tally.vanished)
        self._inserted.inc(tally.inserted)
        self._closed.inc(tally.closed)
        self._recording_seconds.observe(seconds)

    def exposition(self, state: DaemonState, now: datetime, accept: str) -> tuple[bytes, str]:
        """Return all metrics and their content type: OpenMetrics if ``accept`` names it, else plain text."""
        # The library fails on versions that it does not expect, so it is asked without one.
        encode, content_type = choose_encoder(_OPENMETRICS if _OPENMETRICS in accept.lower() else "")
        return encode(_Scrape(self._registry, state, now)), content_type

    def _begin_at_zero(self) -> None:
        """Show what has not happened yet as 0: a rate does not see the event that a counter appears with."""
        for effect in ("changed", "unchanged", "repeated", "refused"):
            self._scans.labels(effect)
        for how in ("expired", "vanished"):
            self._gone_tasks.labels(how)
        for outcome in ("complete", "partial", "failed", "busy"):
            self._poll_seconds.labels(outcome)


class _Scrape(Collector):
    """Everything there is to read at one scrape."""

    def __init__(self, registry: CollectorRegistry, state: DaemonState, now: datetime) -> None:
        self._registry = registry
        self._state = state
        self._now = now

    def collect(self) -> Iterator[Metric]:
        """Yield counters, then gauges."""
        for metric in self._registry.collect():
            # The library adds the time of birth of every series, which would double their number.
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric
        yield from gauges(self._state, self._now)


def _outcome(result: Look | None) -> str:
    if result is None:
        return "busy"
    if isinstance(result, Failure):
        return "failed"
    return "complete" if result.complete else "partial"
