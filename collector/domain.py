"""The collector's nouns: frozen records of what was looked at and what was seen.

Standard library only. AWS's names stop before this module, column names begin behind it. Every string
here is storable text, every instant is timezone-aware UTC, and every list is in canonical order, so
equal hashes mean equal contents (see ``collector.aws.transform``).
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from hashlib import blake2b
from itertools import pairwise
from typing import overload

FORGOTTEN_AFTER = timedelta(days=7)
"""How long ``DescribeImportImageTasks`` still lists a task that has ended (AWS's documentation)."""

FINISHED_STATUSES = frozenset({"completed", "deleted"})
"""The statuses after which a task no longer changes; a failed or cancelled one is ``deleted``."""


@dataclass(frozen=True, slots=True, order=True)
class Target:
    """One (account, Region): the unit of polling, locking and failure."""

    account_id: str
    region: str

    def __str__(self) -> str:
        return f"account {self.account_id}, Region {self.region}"


def is_account_id(text: str) -> bool:
    """Whether this is how AWS names an account: 12 digits."""
    return re.fullmatch("[0-9]{12}", text) is not None


def is_chosen(region: str, patterns: Collection[str], exclude: Collection[str]) -> bool:
    """Whether a Region is looked at: ``all``, or globs that choose it, and none that exclude it."""
    return ("all" in patterns or _matches(region, patterns)) and not _matches(region, exclude)


def _matches(region: str, patterns: Collection[str]) -> bool:
    return any(fnmatchcase(region, pattern) for pattern in patterns)


@dataclass(frozen=True, slots=True)
class SnapshotDetail:
    """One disk of an import. ``position`` is its place in the canonical order, from 0.

    ``disk_image_size`` is in bytes, whatever AWS's documentation says. ``extra`` is canonical JSON text of
    the members that have no field here.
    """

    position: int
    description: str | None
    device_name: str | None
    disk_image_size: float | None
    format: str | None
    progress: str | None
    snapshot_id: str | None
    status: str | None
    status_message: str | None
    url: str | None
    s3_bucket: str | None
    s3_key: str | None
    extra: str | None


@dataclass(frozen=True, slots=True)
class Tag:
    """One tag; an empty value is ``None``."""

    key: str
    value: str | None


@dataclass(frozen=True, slots=True)
class LicenseSpecification:
    """One licence configuration; ``position`` is its place in the canonical order, from 0."""

    position: int
    license_configuration_arn: str | None
    extra: str | None


@dataclass(frozen=True, slots=True)
class ImportTask:
    """An import image task as one look saw it.

    ``content_hash`` covers everything observed but the id. The ``*_set`` hashes name the child lists
    within the task (``None``: an empty list). All hashes are signed 64-bit.
    """

    import_task_id: str
    content_hash: int
    details_set: int | None
    tags_set: int | None
    licenses_set: int | None
    architecture: str | None
    boot_mode: str | None
    description: str | None
    encrypted: bool | None
    hypervisor: str | None
    image_id: str | None
    kms_key_id: str | None
    license_type: str | None
    platform: str | None
    progress: str | None
    status: str | None
    status_message: str | None
    usage_operation: str | None
    extra: str | None
    snapshot_details: tuple[SnapshotDetail, ...]
    tags: tuple[Tag, ...]
    license_specifications: tuple[LicenseSpecification, ...]

    @property
    def finished(self) -> bool:
        """Whether the task has ended and will only be forgotten."""
        return self.status in FINISHED_STATUSES


class Tasks(Sequence[ImportTask]):
    """The tasks of one look, sorted by id; equal digests mean equal tasks.

    ``digest`` is an order-free hash of their ids and contents. What most looks are asked for is at hand, so
    that the tasks themselves need not be: ``ids``, ``unfinished`` ones, and how many have each status.
    """

    __slots__ = ("_load", "digest", "ids", "statuses", "unfinished")

    def __init__(self, tasks: Iterable[ImportTask] = ()) -> None:
        found = tuple(sorted(tasks, key=lambda task: task.import_task_id))
        for one, other in pairwise(found):
            if one.import_task_id == other.import_task_id:
                raise ValueError(f"{one.import_task_id} occurs twice in one look")
        self._load: Callable[[], tuple[ImportTask, ...]] = lambda: found
        self.digest = _digest(found)
        self.ids = frozenset(task.import_task_id for task in found)
        self.statuses = Counter(task.status or "none" for task in found)
        self.unfinished = tuple(task for task in found if not task.finished)

    def loaded_by(self, load: Callable[[], tuple[ImportTask, ...]]) -> "Tasks":
        """Return the same tasks, kept elsewhere: ``load`` makes them anew each time that they are read."""
        other = copy(self)
        other._load = load  # noqa: SLF001 - of our own copy
        return other

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[ImportTask]:
        return iter(self._load())

    @overload
    def __getitem__(self, place: int) -> ImportTask: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[ImportTask]: ...
    def __getitem__(self, place: int | slice) -> ImportTask | Sequence[ImportTask]:
        return self._load()[place]

    def __eq__(self, other: object) -> bool:
        return self.digest == other.digest if isinstance(other, Tasks) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Tasks({list(self)})"


def _digest(tasks: Sequence[ImportTask]) -> bytes:
    """Hash ``{(id, content)}``; the tasks are sorted by id, so their first order does not matter."""
    digest = blake2b(digest_size=16)
    for task in tasks:
        digest.update(f"{task.import_task_id}\0{task.content_hash}\0".encode())
    return digest.digest()


@dataclass(frozen=True, slots=True)
class Scan:
    """What one look at a target saw.

    ``observed_at`` was taken just before the first request, ``finished_at`` after the last answer. Only a
    *complete* scan (unfiltered, read to the last page, free of errors, every doubt settled) says that a
    task it does not name is gone. ``source`` is where it came from: ``api`` or ``file``.
    """

    target: Target
    observed_at: datetime
    finished_at: datetime
    complete: bool
    source: str
    tasks: Tasks

    def __post_init__(self) -> None:
        if self.observed_at.utcoffset() != timedelta(0):
            raise ValueError(f"observed_at of a scan of {self.target} is not UTC: {self.observed_at}")

    def __str__(self) -> str:
        return f"{self.target} at {self.observed_at.isoformat()}"

    @property
    def place(self) -> tuple[str, str | None]:
        """Account and Region."""
        return self.target.account_id, self.target.region

    @property
    def instant(self) -> datetime:
        """When it was seen (UTC)."""
        return self.observed_at

    @property
    def digest(self) -> bytes:
        """The digest of its tasks."""
        return self.tasks.digest


@dataclass(frozen=True, slots=True)
class Failure:
    """One look that failed: it says nothing about any task.

    ``region`` is ``None`` where an account failed before its Regions were known. ``code`` is AWS's
    error code or our error's name; ``message`` is safe to log and store.
    """

    account_id: str
    region: str | None
    failed_at: datetime
    code: str
    message: str

    def __str__(self) -> str:
        where = f"account {self.account_id}" + (f", Region {self.region}" if self.region else "")
        return f"{where}: {self.code}: {self.message}"

    @property
    def place(self) -> tuple[str, str | None]:
        """Account and Region, if one was known."""
        return self.account_id, self.region

    @property
    def instant(self) -> datetime:
        """When it failed (UTC)."""
        return self.failed_at.astimezone(UTC)


Look = Scan | Failure


@dataclass(frozen=True, slots=True)
class Discovered:
    """Which targets there are, sorted, as far as anybody could say at ``asked_at`` (UTC).

    ``failures`` are accounts that did not answer; their targets are the last known ones. ``answered`` are the
    ids of those that did.
    """

    targets: tuple[Target, ...]
    failures: tuple[Failure, ...]
    answered: tuple[str, ...]
    asked_at: datetime


@dataclass(frozen=True, slots=True)
class Evidence:
    """A fact about a task from elsewhere, with its own time; it never becomes part of a version.

    ``source`` is ``cloudtrail`` or ``images``, and ``event_id`` CloudTrail's id of the event or the AMI's id:
    together they are its key. ``event_name`` is ``ImportImage`` or ``CancelImportTask``, of an AMI ``image``.
    ``occurred_at`` is UTC: when it was asked for, or when the AMI was made, which is the end of the import.
    ``import_task_id`` is ``None`` for a request that failed. ``details`` is canonical JSON text of all else:
    request parameters, or the AMI's disks and tags.
    """

    target: Target
    source: str
    event_id: str
    event_name: str
    occurred_at: datetime
    import_task_id: str | None
    requested_by: str | None = None
    source_address: str | None = None
    user_agent: str | None = None
    error_code: str | None = None
    error_message: str | None = None
    image_id: str | None = None
    architecture: str | None = None
    boot_mode: str | None = None
    platform: str | None = None
    usage_operation: str | None = None
    encrypted: bool | None = None
    details: str | None = None


@dataclass(frozen=True, slots=True, order=True)
class Stretch:
    """A stretch of time ``[begin, end)``, UTC."""

    begin: datetime
    end: datetime
