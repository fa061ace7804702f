"""``collector status``: how fresh each target is, and which imports go on. Asks the warehouse, never AWS."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

from collector.clock import utc_now
from collector.commands.composition import warehouse_of
from collector.commands.tables import print_table
from collector.config import Settings
from collector.domain import is_chosen
from collector.state import nearly_forgotten
from collector.warehouse import schema
from collector.warehouse.reading import Outage, TargetSeen, TaskInFlight, targets_seen, tasks_in_flight

ALL_REGIONS = "(all)"
"""Stands for the Regions of an account that fails before they are known."""

_LONG_AGO = datetime.min.replace(tzinfo=UTC)


def status(
    settings: Settings,
    *,
    accounts: Sequence[str],
    as_json: bool,
    now: Callable[[], datetime] = utc_now,
) -> int:
    """Show the targets of the configured Regions and of ``accounts`` (none: all), and what they import.

    The exit code tells whether it could be shown, not whether all is well.

    Raises:
        WarehouseError: the database cannot be read.
    """
    with warehouse_of(settings) as warehouse:
        schema.require_current(warehouse.engine, to_write=False)
        targets = targets_seen(warehouse.engine)
        tasks = tasks_in_flight(warehouse.engine)
    moment = now()
    wanted = _wanted(settings, accounts)
    targets = sorted(
        (target for target in targets if wanted(target.account_id, target.region)),
        key=lambda target: _urgency(target, moment),
    )
    tasks = sorted(
        (task for task in tasks if wanted(task.target.account_id, task.target.region)),
        key=lambda task: (-task.unchanged_for, task.target, task.import_task_id),
    )
    if as_json:
        typer.echo(json.dumps(_document(targets, tasks, moment), default=datetime.isoformat))
    else:
        _show(Console(), targets, tasks, moment)
    return 0


def _wanted(settings: Settings, accounts: Sequence[str]) -> Callable[[str, str | None], bool]:
    """Return whether a place is asked for; an account that fails concerns each of its Regions."""

    def wanted(account_id: str, region: str | None) -> bool:
        if accounts and account_id not in accounts:
            return False
        return region is None or is_chosen(region, settings.regions, settings.exclude_regions)

    return wanted


def _urgency(target: TargetSeen, now: datetime) -> tuple[bool, datetime, str, str]:
    """Order what fails or is overdue first, the longest unseen before all, and the rest by name."""
    well = not _trouble(target, now)
    unseen_since = _LONG_AGO if well else target.last_complete_scan or _LONG_AGO
    return well, unseen_since, target.account_id, target.region or ""


def _trouble(target: TargetSeen, now: datetime) -> list[str]:
    failing = ["failing"] if target.outage else []
    if target.last_complete_scan is None:
        return failing or ["never complete"]
    return failing + (["nearly forgotten"] if nearly_forgotten(target.last_complete_scan, now) else [])


# For people

_TARGET_HEADINGS = ("Account", "Region", "State", "Last complete scan", "Longest gap", "Gaps over 7 days")
_OUTAGE_HEADINGS = ("Account", "Region", "Failing since", "Failures", "Last error")
_TASK_HEADINGS = (
    "Account",
    "Region",
    "Task",
    "Name",
    "Phase",
    "Progress",
    "Unchanged for",
    "First seen",
    "Last seen",
)


def _show(
    console: Console, targets: Sequence[TargetSeen], tasks: Sequence[TaskInFlight], now: datetime
) -> None:
    parts = (
        ("Targets", _TARGET_HEADINGS, [_target_cells(target, now) for target in targets]),
        (
            "Outages",
            _OUTAGE_HEADINGS,
            [_outage_cells(target, target.outage) for target in targets if target.outage],
        ),
        ("Imports in flight", _TASK_HEADINGS, [_task_cells(task, now) for task in tasks]),
    )
    for title, headings, rows in parts:
        console.print(Text(title if rows else f"{title}: none", "bold"))
        if rows:
            print_table(console, headings, rows)
        console.print()


def _target_cells(target: TargetSeen, now: datetime) -> list[Text]:
    trouble = _trouble(target, now)
    colour = "red" if target.outage else "yellow" if trouble else "green"
    return [
        Text(target.account_id),
        Text(target.region or ALL_REGIONS),
        Text(", ".join(trouble) or "well", colour),
        Text(
            _ago(target.last_complete_scan, now),
            "yellow" if nearly_forgotten(target.last_complete_scan, now) else "",
        ),
        Text("" if target.longest_gap is None else _span(target.longest_gap)),
        Text(str(target.gaps_over_7_days), "yellow" if target.gaps_over_7_days else ""),
    ]


def _outage_cells(target: TargetSeen, outage: Outage) -> list[Text]:
    return [
        Text(target.account_id),
        Text(target.region or ALL_REGIONS),
        Text(f"{outage.first_failed_at:%Y-%m-%d %H:%MZ}"),
        Text(str(outage.failures)),
        Text(f"{outage.error_code}: {outage.message}", "red"),
    ]


def _task_cells(task: TaskInFlight, now: datetime) -> list[Text]:
    return [
        Text(task.target.account_id),
        Text(task.target.region),
        Text(task.import_task_id),
        Text(task.name or ""),
        Text(task.phase, "cyan"),
        Text("" if task.progress_percent is None else f"{task.progress_percent:g} %"),
        Text(_span(task.unchanged_for)),
        Text(_ago(task.first_seen_at, now)),
        Text(_ago(task.last_observed_at, now)),
    ]


def _ago(instant: datetime | None, now: datetime) -> str:
    return "never" if instant is None else f"{_span(now - instant)} ago"


def _span(duration: timedelta) -> str:
    """Return a duration in its two largest units; the clock that gave an instant may be ahead of ours."""
    seconds = max(0, int(duration.total_seconds()))
    counts = (seconds // 86400, seconds // 3600 % 24, seconds // 60 % 60, seconds % 60)
    largest = next((place for place, count in enumerate(counts) if count), len(counts) - 1)
    parts = [f"{count}{unit}" for count, unit in zip(counts, "dhms", strict=True)]
    return " ".join(part for part in parts[largest : largest + 2] if part[0] != "0") or "0s"


# For machines


def _document(
    targets: Sequence[TargetSeen], tasks: Sequence[TaskInFlight], now: datetime
) -> dict[str, list[dict[str, Any]]]:
    return {
        "targets": [_target_members(target, now) for target in targets if target.region is not None],
        "tasks": [_task_members(task) for task in tasks],
        "outages": [
            {"account_id": target.account_id, "region": target.region, **asdict(target.outage)}
            for target in targets
            if target.outage
        ],
    }


def _target_members(target: TargetSeen, now: datetime) -> dict[str, Any]:
    last, gap = target.last_complete_scan, target.longest_gap
    return {
        "account_id": target.account_id,
        "region": target.region,
        "last_complete_scan": last,
        "age_seconds": None if last is None else (now - last).total_seconds(),
        "nearly_forgotten": nearly_forgotten(last, now),
        "longest_gap_seconds": None if gap is None else gap.total_seconds(),
        "gaps_over_7_days": target.gaps_over_7_days,
        "outage": asdict(target.outage) if target.outage else None,
    }


def _task_members(task: TaskInFlight) -> dict[str, Any]:
    return {
        **asdict(task.target),
        "import_task_id": task.import_task_id,
        "name": task.name,
        "phase": task.phase,
        "progress_percent": task.progress_percent,
        "first_seen_at": task.first_seen_at,
        "unchanged_since": task.unchanged_since,
        "last_observed_at": task.last_observed_at,
        "unchanged_for_seconds": task.unchanged_for.total_seconds(),
    }
