"""``collector backfill FILES…``: saved answers of the CLI, one or ten thousand, in any order."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import chain, groupby
from pathlib import Path

from collector.aws.saved import scan_of_files
from collector.commands.composition import warehouse_of
from collector.commands.reporting import Report, progress
from collector.commands.saved_files import STANDARD_INPUT, SavedFile
from collector.config import Settings
from collector.domain import Scan, Target
from collector.warehouse import schema

_SCANS = 500
"""Scans that are stored at a time."""


def from_files(
    settings: Settings,
    files: Sequence[SavedFile],
    *,
    complete: bool,
    faults: Sequence[str],
    dry_run: bool,
    as_json: bool,
) -> int:
    """Store saved answers, those of one place and instant as one scan, and return the exit code.

    ``faults`` are files that could not be placed; like files that cannot be read they are named, and the
    others are loaded. A dry run takes a target's scans together, because each changes what the next one does.
    """
    report = Report(dry_run=dry_run, as_json=as_json)
    report.tally.not_loaded += faults
    scans = _scans(files, complete=complete, faults=report.tally.not_loaded)
    with report.reported():
        skipped, first = _first_loadable(scans)
        if first is None:
            return report.tally.exit_code
        _load(settings, chain([(skipped, first)], scans), len(files), report)
    return report.tally.exit_code


def _first_loadable(scans: Iterable[tuple[int, Scan | None]]) -> tuple[int, Scan | None]:
    """Return the first scan with the number of files up to it: without one there is no need of a database."""
    skipped = 0
    for number, scan in scans:
        skipped += number
        if scan is not None:
            return skipped, scan
    return skipped, None


def _load(settings: Settings, scans: Iterable[tuple[int, Scan | None]], files: int, report: Report) -> None:
    with warehouse_of(settings) as warehouse:
        schema.require_current(warehouse.engine)
        with progress(files, "files loaded") as advance:
            batch: list[Scan] = []
            for number, scan in scans:
                another_target = bool(batch) and scan is not None and scan.target != batch[-1].target
                if another_target if report.dry_run else len(batch) >= _SCANS:
                    report.record(warehouse, batch)
                    batch.clear()
                if scan is not None:
                    batch.append(scan)
                advance(number)
            report.record(warehouse, batch)


def _scans(
    files: Iterable[SavedFile], *, complete: bool, faults: list[str]
) -> Iterator[tuple[int, Scan | None]]:
    """Yield the scan of each place and instant, in order, with the number of its files."""
    for (target, observed_at), group in groupby(sorted(files, key=_place), key=_place):
        members = list(group)
        contents: list[tuple[str, bytes]] = []
        unread: list[str] = []
        for file in members:
            try:
                contents.append((file.name, _read(file.name)))
            except OSError as error:
                unread.append(f"{file.name}: cannot be read: {error.strerror}")
        scan, found = scan_of_files(contents, target=target, observed_at=observed_at, complete=complete)
        faults += [*unread, *found]
        yield len(members), None if unread and complete else scan


def _place(file: SavedFile) -> tuple[Target, datetime]:
    return file.target, file.observed_at


def _read(name: str) -> bytes:
    return sys.stdin.buffer.read() if name == STANDARD_INPUT else Path(name).read_bytes()
