"""How one import looks at a moment: a pure function of its plan and the simulated time.

Tasks are dicts in the AWS CLI's JSON form (PascalCase). What appears when, and what is left out, follows
published outputs, not AWS's documentation.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit, urlunsplit

Task = dict[str, Any]
"""A task in the form of the CLI's JSON."""

FORGOTTEN_AFTER = timedelta(days=7)
"""How long EC2 still shows a task that has ended."""

DELETING_FOR = timedelta(minutes=3)
"""How long a cancelled task says ``deleting``."""

CANCELLED = "User initiated task cancelation"
"""AWS's own spelling."""


class Phase(NamedTuple):
    """A phase of a task that is ``active``: it begins at ``start`` (0 to 1 of the whole import)."""

    message: str
    start: float
    first_progress: int
    last_progress: int


PHASES = (
    Phase("pending", 0.00, 1, 2),
    Phase("validating", 0.03, 3, 9),
    Phase("validated", 0.10, 10, 18),
    Phase("converting", 0.15, 19, 30),
    Phase("updating", 0.50, 31, 35),
    Phase("updated", 0.56, 36, 38),
    Phase("booting", 0.60, 39, 48),
    Phase("booted", 0.72, 49, 56),
    Phase("preparing ami", 0.76, 57, 96),
)
PENDING, VALIDATING, CONVERTING, UPDATING, PREPARING = (
    [phase.message for phase in PHASES].index(message)
    for message in ("pending", "validating", "converting", "updating", "preparing ami")
)

# How much of its phase is over when a member shows its first, or its final, value.
SIZE_GUESSED, SIZE_KNOWN, SNAPSHOT_FINAL = 0.3, 0.7, 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """The plan of one disk; ``first_size`` and ``first_snapshot_id`` are shown before the real ones."""

    format: str
    device_name: str
    size: float
    first_size: float
    snapshot_id: str
    first_snapshot_id: str
    description: str | None = None
    url: str | None = None
    s3_bucket: str | None = None
    s3_key: str | None = None
    shows_progress: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One import from request to end. ``ends_at`` is 0 to 1 of ``duration``: less than 1 for a failure.

    ``requested`` are members shown from the start, ``found`` those that EC2 learns from the disks.
    """

    import_task_id: str
    image_id: str
    requested_at: datetime
    duration: timedelta
    disks: tuple[Disk, ...]
    requested: Task
    found: Task
    ends_at: float = 1.0
    failure: str | None = None
    cancelled_at: datetime | None = None
    shows_empty_image_id: bool = False

    @property
    def ended_at(self) -> datetime:
        """When its status becomes, or became, a final one."""
        if self.cancelled_at is not None:
            return self.cancelled_at + DELETING_FOR
        return self.requested_at + self.duration * self.ends_at

    def state(self, now: datetime) -> str:
        """``active``, ``deleting``, ``deleted`` or ``completed``."""
        if now >= self.ended_at:
            return "completed" if self.completes else "deleted"
        return "deleting" if self.cancelled_at is not None and now >= self.cancelled_at else "active"

    def visible(self, now: datetime) -> bool:
        """Whether the API knows the task at that moment."""
        return self.requested_at <= now < self.ended_at + FORGOTTEN_AFTER

    @property
    def completes(self) -> bool:
        """Whether an AMI comes of it."""
        return self.failure is None and self.cancelled_at is None

    def moment(self, now: datetime) -> tuple[int, float]:
        """Index of the phase it is in, or was in when it ended, and how much of that phase is over."""
        until = min(now, self.ended_at, self.cancelled_at or now)
        done = min((until - self.requested_at) / self.duration, 1.0)
        index = max(i for i, phase in enumerate(PHASES) if phase.start <= done)
        end = PHASES[index + 1].start if index + 1 < len(PHASES) else 1.0
        return index, (done - PHASES[index].start) / (end - PHASES[index].start)


def show(plan: Plan, now: datetime, signature: str) -> Task:
    """The task as EC2 shows it; ``signature`` signs its presigned URLs anew."""
    index, within = plan.moment(now)
    state = plan.state(now)
    task: Task = dict(plan.requested)
    if index >= UPDATING:
        task |= plan.found
    if state == "completed":
        task["ImageId"] = plan.image_id
    elif plan.shows_empty_image_id:
        task["ImageId"] = ""
    if state in {"active", "deleting"}:
        task["Progress"] = _progress(index, within)
    if message := _message(plan, state, index):
        task["StatusMessage"] = message
    task |= {"ImportTaskId": plan.import_task_id, "Status": state}
    task["SnapshotDetails"] = _disks(plan, now, state, signature)
    return task


def _progress(index: int, within: float) -> str:
    phase = PHASES[index]
    return str(phase.first_progress + int(within * (phase.last_progress - phase.first_progress + 1)))


def _message(plan: Plan, state: str, index: int) -> str | None:
    if state == "active":
        return PHASES[index].message
    if plan.cancelled_at is not None:
        return CANCELLED
    return plan.failure


def _disks(plan: Plan, now: datetime, state: str, signature: str) -> list[Task]:
    index, within = plan.moment(now)
    if index == PENDING:
        return []
    return [_disk(disk, index, within, state, _signed(disk.url, now, signature)) for disk in plan.disks]


def _disk(disk: Disk, index: int, within: float, state: str, url: str | None) -> Task:
    shown: Task = {"DiskImageSize": _size(disk, index, within), "Format": disk.format}
    if disk.description is not None:
        shown["Description"] = disk.description
    if url is not None:
        shown["Url"] = url
    if disk.s3_bucket is not None:
        shown["UserBucket"] = {"S3Bucket": disk.s3_bucket, "S3Key": disk.s3_key}
    if index > CONVERTING:
        shown |= {"DeviceName": disk.device_name, "Status": "completed"}
    elif index > VALIDATING:
        shown["Status"] = "active" if state == "active" else state
    if disk.shows_progress and index == CONVERTING and state == "active":
        shown |= {"Progress": str(int(within * 100)), "StatusMessage": "converting"}
    if state == "completed":
        shown["SnapshotId"] = disk.snapshot_id
    elif index == PREPARING:
        shown["SnapshotId"] = disk.first_snapshot_id if within < SNAPSHOT_FINAL else disk.snapshot_id
    return shown


def _size(disk: Disk, index: int, within: float) -> float:
    """Bytes; 0.0 until the conversion has looked at the disk, and a first guess before it is done."""
    if index < CONVERTING or (index == CONVERTING and within < SIZE_GUESSED):
        return 0.0
    return disk.first_size if index == CONVERTING and within < SIZE_KNOWN else disk.size


def _signed(url: str | None, now: datetime, signature: str) -> str | None:
    """An https URL comes back presigned, with another signature in every answer."""
    if url is None or not url.startswith("https://"):
        return url
    query = urlencode(
        {
            "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
            "X-Amz-Credential": f"AKIASIMULATEDEXAMPLE/{now:%Y%m%d}/us-east-1/s3/aws4_request",
            "X-Amz-Date": f"{now:%Y%m%dT%H%M%SZ}",
            "X-Amz-Expires": "86400",
            "X-Amz-SignedHeaders": "host",
            "X-Amz-Signature": signature,
        }
    )
    return urlunsplit(urlsplit(url)._replace(query=query))
