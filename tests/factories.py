"""Short ways to say what was observed."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from collector.aws.transform import import_task
from collector.domain import ImportTask, Scan, Target

START = datetime(2026, 1, 1, tzinfo=UTC)
TARGET = Target("111122223333", "eu-west-1")


def at(minutes: float) -> datetime:
    """Return an instant, in minutes after an arbitrary start."""
    return START + timedelta(minutes=minutes)


def task(name: str, **members: Any) -> ImportTask:
    """Return an active task; members are in wire JSON, such as ``StatusMessage='booting'``."""
    return import_task({"ImportTaskId": f"import-ami-{name}", "Status": "active", **members})


def scan(
    minutes: float,
    *tasks: ImportTask,
    target: Target = TARGET,
    complete: bool = True,
    source: str = "api",
) -> Scan:
    """Return what a look at ``minutes`` saw."""
    observed_at = at(minutes)
    return Scan(target, observed_at, observed_at + timedelta(seconds=1), complete, source, tasks)


def numbered(minutes: float, contents: Mapping[str, int] | Iterable[tuple[str, int]], **options: Any) -> Scan:
    """Return a scan of tasks whose contents are told by a number: fields, disks and tags differ with it."""
    return scan(minutes, *(content(name, number) for name, number in dict(contents).items()), **options)


def content(name: str, number: int) -> ImportTask:
    """Return a task with the content of that number; neighbours share disks or tags, as progress ticks do."""
    return task(
        name,
        Progress=str(number),
        SnapshotDetails=[{"Format": "VMDK", "DiskImageSize": 1024.0 * (number // 2)}] if number % 3 else [],
        Tags=[{"Key": "Wave", "Value": str(number // 2)}, {"Key": "Name", "Value": name}],
    )
