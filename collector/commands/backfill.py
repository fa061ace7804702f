"""``collector backfill``: one shot, from the API, or from what AMIs and CloudTrail still tell."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from time import monotonic

from collector.clock import utc_now
from collector.commands.composition import warehouse_of
from collector.commands.reporting import Report, progress
from collector.commands.wiring import Polling, polling_of
from collector.config import Settings
from collector.domain import Evidence, Failure, Look, Stretch, Target
from collector.gathering import KEPT_FOR, halves, is_settled, unread_stretches
from collector.polling import look_at_all
from collector.warehouse import evidence, history, outages, schema
from collector.warehouse.access import Warehouse

_BATCH_SECONDS = 1.0


def from_sources(
    settings: Settings,
    *,
    accounts: Sequence[str],
    sources: Collection[str],
    since: datetime | None,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Ask every configured target once, store what is new, and return the exit code.

    ``sources`` are of ``api``, ``images`` and ``cloudtrail``; ``since`` bounds the last two; CloudTrail goes
    back 90 days in any case.
    """
    report = Report(dry_run=dry_run, as_json=as_json)
    with (
        report.reported(),
        warehouse_of(settings) as warehouse,
        polling_of(
            settings,
            warehouse,
            accounts=accounts,
            patience=settings.target_deadline,
            missing=lambda scan: history.missing_from(warehouse.engine, scan),
        ) as polling,
    ):
        schema.require_current(warehouse.engine)
        found = polling.discover()
        if not dry_run:
            outages.record_answers(warehouse.engine, found.answered, found.asked_at)
        report.record(warehouse, found.failures)
        job = _Job(settings, warehouse, polling, found.targets, report, since)
        if "api" in sources:
            job.look()
        if "images" in sources:
            job.gather_images()
        if "cloudtrail" in sources:
            job.gather_requests()
    return report.tally.exit_code


@dataclass(frozen=True, slots=True)
class _Job:
    """One source after the other, over all targets."""

    settings: Settings
    warehouse: Warehouse
    polling: Polling
    targets: Sequence[Target]
    report: Report
    since: datetime | None

    def look(self) -> None:
        """Look at the present, and store it in batches as it comes."""
        waiting: list[Look] = []
        recorded_at = monotonic()
        looks = look_at_all(
            self.targets, self.polling.look, concurrency=self.settings.concurrency, cancel=self.polling.cancel
        )
        try:
            with progress(len(self.targets), "targets looked at") as advance:
                for target, result in looks:
                    if result is None:
                        self.report.tally.failures.append(_busy(target))
                    else:
                        waiting.append(result)
                    advance(1)
                    if monotonic() - recorded_at > _BATCH_SECONDS:
                        self._record(waiting)
                        recorded_at = monotonic()
        finally:
            self._record(waiting)  # what was seen is not to be lost, whatever ended it

    def gather_images(self) -> None:
        """Ask for the AMIs that imports have left."""
        self._gather(self._images, "targets asked for AMIs")

    def gather_requests(self) -> None:
        """Ask CloudTrail who asked for what, one stretch of time after the other."""
        self._gather(self._requests, "targets' CloudTrail read")

    def _gather(self, gather: Callable[[Target], "_Gathered"], what: str) -> None:
        gathered = look_at_all(
            self.targets, gather, concurrency=self.settings.concurrency, cancel=self.polling.cancel
        )
        with progress(len(self.targets), what) as advance:
            for target, found in gathered:
                self.report.add_evidence(target, found.new, found.tasks, known=found.known)
                self.report.tally.failures += found.failures
                advance(1)

    def _images(self, target: Target) -> "_Gathered":
        gathered = _Gathered()
        match self.polling.images(target):
            case Failure() as failure:
                gathered.failures.append(failure)
            case images:
                since = self.since
                self._store(target, [i for i in images if since is None or i.occurred_at >= since], gathered)
        return gathered

    def _requests(self, target: Target) -> "_Gathered":
        """Store stretch by stretch, so that an interruption costs no more than one."""
        gathered = _Gathered()
        now = utc_now()
        read = evidence.stretches_read(self.warehouse.engine, target)
        left = unread_stretches(self.since or now - KEPT_FOR, now, read)
        while left:
            stretch = left.pop(0)
            match self.polling.requests(target, stretch.begin, stretch.end):
                case Failure(code="DeadlineExceeded") if parts := halves(stretch):
                    left[:0] = parts
                case Failure() as failure:
                    gathered.failures.append(failure)
                    break
                case requests:
                    self._store(target, requests, gathered, stretch if is_settled(stretch, now) else None)
        return gathered

    def _store(
        self,
        target: Target,
        pieces: Sequence[Evidence],
        gathered: "_Gathered",
        read: Stretch | None = None,
    ) -> None:
        new, tasks = evidence.store(
            self.warehouse.engine, target, pieces, read=read, dry_run=self.report.dry_run
        )
        gathered.new += new
        gathered.tasks |= tasks
        gathered.known += len(pieces) - len(new)

    def _record(self, waiting: list[Look]) -> None:
        self.report.record(self.warehouse, waiting)
        waiting.clear()


@dataclass(slots=True)
class _Gathered:
    """What came of one target's evidence: new pieces, ids nobody had heard of, pieces known already."""

    new: list[Evidence] = field(default_factory=list)
    tasks: set[str] = field(default_factory=set)
    known: int = 0
    failures: list[Failure] = field(default_factory=list)


def _busy(target: Target) -> Failure:
    return Failure(
        target.account_id,
        target.region,
        utc_now(),
        "TargetBusy",
        "another collector kept looking at this target until target_deadline; try again",
    )
