"""``collector backfill``: one shot, from the API or from saved files."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from collector.aws.saved import UnreadableFilesError, scan_of_files
from collector.commands.composition import warehouse_of
from collector.commands.wiring import polling_of, spool_of
from collector.config import Settings
from collector.domain import Failure, Scan, Target
from collector.errors import CollectorError
from collector.outcomes import Effect, Outcome, Tally
from collector.polling import look_at_all
from collector.warehouse import history, outages, schema
from collector.warehouse.recording import record

_BATCH_SECONDS = 1.0
_PLAIN_LINE_SECONDS = 5.0
_BATCH_LOOKS = 200


def from_api(settings: Settings, *, accounts: Sequence[str], dry_run: bool, as_json: bool) -> int:
    """Look at every configured target once, store what was seen, and return the exit code."""
    tally = Tally()
    with (
        _reported(tally, dry_run=dry_run, as_json=as_json),
        warehouse_of(settings) as warehouse,
        polling_of(
            settings,
            warehouse,
            accounts=accounts,
            patience=settings.target_deadline,
            missing=lambda scan: history.missing_from(warehouse.engine, scan),
            known=list,
        ) as polling,
    ):
        schema.require_current(warehouse.engine)
        found = polling.discover()
        if not dry_run:
            outages.record_answers(warehouse.engine, found.answered, found.asked_at)
        targets, failures = found.targets, found.failures
        waiting: list[Scan | Failure] = list(failures)
        recorded_at = monotonic()

        def record_waiting() -> None:
            record(
                warehouse.engine,
                waiting,
                tally,
                dry_run=dry_run,
                tell=_teller(dry_run=dry_run, as_json=as_json),
            )
            waiting.clear()

        looks = look_at_all(targets, polling.look, concurrency=settings.concurrency, cancel=polling.cancel)
        try:
            with _progress(len(targets), "targets looked at") as advance:
                for target, result in looks:
                    if result is None:
                        tally.failures.append(_busy(target))
                    else:
                        waiting.append(result)
                    advance(1)
                    if monotonic() - recorded_at > _BATCH_SECONDS:
                        record_waiting()
                        recorded_at = monotonic()
        except KeyboardInterrupt:
            record_waiting()  # what was seen is not to be lost
            raise
        record_waiting()
    return tally.exit_code


def from_files(
    settings: Settings,
    files: Sequence[str],
    *,
    target: Target,
    observed_at: datetime,
    complete: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Store saved answers of the CLI as one scan, and return the exit code.

    Raises:
        UnreadableFilesError: a file is not what it should be; nothing is stored.
    """
    tally = Tally()
    with _reported(tally, dry_run=dry_run, as_json=as_json):
        contents = ((name, _read(name)) for name in files)
        scan = scan_of_files(contents, target=target, observed_at=observed_at, complete=complete)
        with warehouse_of(settings) as warehouse:
            schema.require_current(warehouse.engine)
            tell = _teller(dry_run=dry_run, as_json=as_json)
            record(warehouse.engine, [scan], tally, dry_run=dry_run, tell=tell)
    return tally.exit_code


def from_spool(settings: Settings, *, dry_run: bool, as_json: bool) -> int:
    """Store what waits on disk, the oldest first, and return the exit code."""
    tally = Tally()
    with _reported(tally, dry_run=dry_run, as_json=as_json), warehouse_of(settings) as warehouse:
        schema.require_current(warehouse.engine)
        spool = spool_of(settings)
        tell = _teller(dry_run=dry_run, as_json=as_json)
        with _progress(spool.files, "looks stored from disk") as advance:
            if dry_run:
                looks = [spooled.look for spooled in spool.waiting(spool.files)]
                record(warehouse.engine, looks, tally, dry_run=True, tell=tell)
            while not dry_run and (waiting := spool.waiting(_BATCH_LOOKS)):
                record(warehouse.engine, [spooled.look for spooled in waiting], tally, tell=tell)
                spool.remove(waiting)
                advance(len(waiting))
    return 3 if tally.refused else 0


def _read(name: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise UnreadableFilesError(f"{name}: cannot be read: {error.strerror}") from error


def _busy(target: Target) -> Failure:
    return Failure(
        target.account_id,
        target.region,
        datetime.now(UTC),
        "TargetBusy",
        "another collector kept looking at this target until target_deadline; try again",
    )


@contextmanager
def _progress(total: int, what: str) -> Iterator[Callable[[int], None]]:
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


def _teller(*, dry_run: bool, as_json: bool) -> Callable[[Outcome], None]:
    def tell(outcome: Outcome) -> None:
        if dry_run and not as_json and outcome.effect is Effect.CHANGED:
            typer.echo(
                f"{outcome.scan.target}, {outcome.scan.observed_at:%Y-%m-%dT%H:%M:%SZ}: would insert"
                f" {outcome.inserted} versions of tasks ({outcome.new_tasks} of them new), close"
                f" {outcome.closed}, expire {outcome.expired}, lose {outcome.vanished}"
            )

    return tell


@contextmanager
def _reported(tally: Tally, *, dry_run: bool, as_json: bool) -> Iterator[None]:
    """Report what was done; whoever reads JSON is told of the error that ended it, too."""
    try:
        yield
    except CollectorError as error:
        if as_json:
            _print_json(tally, dry_run=dry_run, error=str(error))
        raise
    _report(tally, dry_run=dry_run, as_json=as_json)


def _print_json(tally: Tally, *, dry_run: bool, error: str | None = None) -> None:
    typer.echo(json.dumps({"dry_run": dry_run, **asdict(tally), "error": error}, default=str))


def _report(tally: Tally, *, dry_run: bool, as_json: bool) -> None:
    for failure in tally.failures:
        typer.echo(f"failed: {failure}", err=True)
    for refusal in tally.refused:
        typer.echo(f"refused: {refusal}", err=True)
    if as_json:
        _print_json(tally, dry_run=dry_run)
        return
    would = "would be " if dry_run else ""
    typer.echo(
        f"{tally.scans} scans {would}stored ({tally.unchanged} unchanged, {tally.repeated} known already):"
        f" {tally.new_tasks} new tasks, {tally.inserted} versions inserted, {tally.closed} closed,"
        f" {tally.expired} tasks expired, {tally.vanished} vanished; {len(tally.failures)} targets failed"
    )
