"""Short ways to say what was observed, and to read back what was stored."""

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Engine, text

from collector.aws.transform import import_task
from collector.domain import ImportTask, LicenseSpecification, Scan, SnapshotDetail, Tag, Target, Tasks
from collector.outcomes import Effect
from collector.warehouse import history

START = datetime(2026, 1, 1, tzinfo=UTC)
TARGET = Target("111122223333", "eu-west-1")

Chain = list[tuple[datetime, datetime | None, ImportTask | None]]
"""A task's versions in order: from, to, and what was observed (``None``: not listed)."""


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
    return Scan(target, observed_at, observed_at + timedelta(seconds=1), complete, source, Tasks(tasks))


def numbered(minutes: float, contents: Mapping[str, int] | Iterable[tuple[str, int]], **options: Any) -> Scan:
    """Return a scan of tasks whose contents are told by a number: fields, disks and tags differ with it."""
    return scan(minutes, *(content(name, number) for name, number in dict(contents).items()), **options)


def content(name: str, number: int) -> ImportTask:
    """Return a task with the content of that number, whatever its name.

    Neighbours share disks or tags, as progress ticks do.
    """
    disk = {"Format": "VMDK", "DiskImageSize": 1024.5 * (number // 2), "Lane": number // 2}
    licence = {"LicenseConfigurationArn": f"arn:{number // 2}", "Seats": 4}
    return task(
        name,
        Progress=str(number),
        Encrypted=number > 0,
        SnapshotDetails=[disk, {**disk, "DeviceName": "/dev/sdb"}] if number % 3 else [],
        Tags=[{"Key": "Wave", "Value": str(number // 2)}, {"Key": "Name", "Value": ""}],
        LicenseSpecifications=[licence] if number else [],
        Odd={"Round": number // 2},
    )


def store(engine: Engine, *scans: Scan) -> list[Effect]:
    """Store scans as one batch and say what each did."""
    return [outcome.effect for outcome in history.store(engine, scans)]


def stored(engine: Engine, target: Target = TARGET) -> dict[str, Chain]:
    """Read the chains of a target back, by AWS's id, with every column and every child row."""
    chains: dict[str, Chain] = {}
    parameters = {"account_id": target.account_id, "region": target.region}
    with engine.connect() as connection:
        for row in connection.execute(_SELECT_CHAINS, parameters).mappings():
            version = {name: value for name, value in row.items() if name not in _NOT_OBSERVED}
            observed = _observed(version) if row["listed"] else None
            assert row["listed"] or set(version.values()) == {row["import_task_id"], None}
            link = (row["valid_from"], row["valid_to"], observed)
            chains.setdefault(row["import_task_id"], []).append(link)
    return chains


def _observed(version: dict[str, Any]) -> ImportTask:
    disks, tags, licences = (version.pop(name) or [] for name in ("disks", "tag_list", "licences"))
    return ImportTask(
        **_with_canonical_extra(version),
        snapshot_details=tuple(SnapshotDetail(**_with_canonical_extra(disk)) for disk in disks),
        tags=tuple(Tag(**tag) for tag in tags),
        license_specifications=tuple(
            LicenseSpecification(**_with_canonical_extra(item)) for item in licences
        ),
    )


def _with_canonical_extra(members: dict[str, Any]) -> dict[str, Any]:
    extra = members["extra"]
    canonical = json.dumps(extra, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return {**members, "extra": None if extra is None else canonical}


_NOT_OBSERVED = frozenset({"task_id", "target_id", "valid_from", "valid_to", "listed"})
_SELECT_CHAINS = text("""
    SELECT k.import_task_id, v.*, (
        SELECT jsonb_agg(to_jsonb(d) - '{task_id,set_id}'::text[] ORDER BY d.position)
        FROM vm_import.snapshot_details d WHERE d.task_id = v.task_id AND d.set_id = v.details_set
        ) AS disks, (
        SELECT jsonb_agg(to_jsonb(g) - '{task_id,set_id}'::text[] ORDER BY g.key COLLATE "C")
        FROM vm_import.tags g WHERE g.task_id = v.task_id AND g.set_id = v.tags_set) AS tag_list, (
        SELECT jsonb_agg(to_jsonb(l) - '{task_id,set_id}'::text[] ORDER BY l.position)
        FROM vm_import.license_specifications l
        WHERE l.task_id = v.task_id AND l.set_id = v.licenses_set) AS licences
    FROM vm_import.task_versions v JOIN vm_import.tasks k USING (task_id)
    JOIN vm_import.targets t ON t.target_id = k.target_id AND t.target_id = v.target_id
    WHERE t.account_id = :account_id AND t.region = :region ORDER BY v.task_id, v.valid_from
""")
