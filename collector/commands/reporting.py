"""How a backfill tells what it does: progress, what would be, what was, for people and for machines."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from time import monotonic

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from collector.domain import Evidence, Look, Target
from collector.errors import CollectorError
from collector.outcomes import Effect, Outcome, Tally
from collector.warehouse.access import Warehouse
from collector.warehouse.recording import record

_PLAIN_LINE_SECONDS = 5.0
_EXAMPLES = 3


class Report:
    """What one command did, or with ``dry_run`` would do; ``as_json`` is for machines."""

    def __init__(self, *, dry_run: bool, as_json: bool) -> None:
        self.tally = Tally()
        self.dry_run = dry_run
        self._as_json = as_json
        self._would_be_known: defaultdict[Target, set[str]] = defaultdict(set)

    @contextmanager
    def reported(self) -> Iterator[None]:
        """Tell what was done when all is over, also when an error ended it before."""
        try:
            yield
        except CollectorError as error:
            self._tell_faults()
            if self._as_json:
                self._print_json(str(error))
            raise
        except KeyboardInterrupt:
            self._tell_faults()
            if self._as_json:
                self._print_json("interrupted")
            else:
                self._print_summary()
            raise CollectorError(
                "interrupted: what is stored stays; run the same command again to go on from there"
            ) from None
        self._tell_faults()
        self._print_json(None) if self._as_json else self._print_summary()

    def record(self, warehouse: Warehouse, looks: Iterable[Look]) -> None:
        """Store looks, or say what they would do, and count what comes of them."""
        record(warehouse.engine, looks, self.tally, dry_run=self.dry_run, tell=self._tell)

    def _tell(self, outcome: Outcome) -> None:
        """Say what a scan would do."""
        scan = outcome.scan
        if self.dry_run:
            self._would_be_known[scan.target] |= scan.tasks.ids
        if not self.dry_run or self._as_json or outcome.effect is not Effect.CHANGED:
            return
        typer.echo(
            f"{scan.target}, {scan.observed_at:%Y-%m-%dT%H:%M:%SZ}: would insert {outcome.inserted} versions"
            f" of tasks ({outcome.new_tasks} of them new), cut {outcome.cut}, close {outcome.closed}, expire"
            f" {outcome.expired}, lose {outcome.vanished}"
        )
        for example in outcome.examples:
            typer.echo(f"    {example}")

    def add_evidence(self, target: Target, new: Sequence[Evidence], tasks: set[str], *, known: int) -> None:
        """Count evidence, and say what of it would be new; ``tasks`` are ids that nobody had heard of."""
        if self.dry_run:  # nothing is stored, so the warehouse still does not know what came before this
            tasks = tasks - self._would_be_known[target]
            self._would_be_known[target] |= tasks
        self.tally.events += len(new)
        self.tally.known_events += known
        self.tally.new_tasks += len(tasks)
        if not self.dry_run or self._as_json or not new:
            return
        typer.echo(
            f"{target}: would add {len(new)} pieces of evidence;"
            f" {len(tasks)} tasks would be known from it alone"
        )
        for piece in new[:_EXAMPLES]:
            of = piece.import_task_id or f"a request that failed ({piece.error_code})"
            typer.echo(f"    {piece.event_name} of {of}, {piece.occurred_at:%Y-%m-%dT%H:%M:%SZ}")

    def _tell_faults(self) -> None:
        for fault in self.tally.not_loaded:
            typer.echo(f"not loaded: {fault}", err=True)
        for failure in self.tally.failures:
            typer.echo(f"failed: {failure}", err=True)
        for refusal in self.tally.refused:
            typer.echo(f"refused: {refusal}", err=True)

    def _print_json(self, error: str | None) -> None:
        summary = {"dry_run": self.dry_run, **asdict(self.tally), "error": error}
        typer.echo(json.dumps(summary, default=str))

    def _print_summary(self) -> None:
        tally = self.tally
        would = "would be " if self.dry_run else ""
        evidence = (
            f"; {tally.events} pieces of evidence {would}stored, {tally.known_events} known already"
            if tally.events or tally.known_events
            else ""
        )
        typer.echo(
            f"{tally.scans} scans {would}stored ({tally.unchanged} unchanged, {tally.repeated} known"
            f" already): {tally.new_tasks} new tasks, {tally.inserted} versions inserted, {tally.cut} cut,"
            f" {tally.closed} closed, {tally.expired} tasks expired, {tally.vanished} vanished{evidence};"
            f" {len({failure.place for failure in tally.failures})} targets failed"
        )


@contextmanager
def progress(total: int, what: str) -> Iterator[Callable[[int], None]]:
    """Show progress on standard error: a bar on a terminal, a line now and then elsewhere."""
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            bar = progress.add_task(what, total=total)
            yield lambda number: progress.advance(bar, number)
        return
    done, spoke_at = 0, monotonic()

    def advance(number: int) -> None:
        nonlocal done, spoke_at
        done += number
        if monotonic() - spoke_at > _PLAIN_LINE_SECONDS:
            typer.echo(f"{what}: {done} of {total}", err=True)
            spoke_at = monotonic()

    yield advance
