"""What imports people ask for, and what becomes of them: random requests and plans from a seed.

Requests have the form of boto3's ``ImportImage`` parameters.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random
from typing import Any

from collector.simulator.lives import PHASES, Disk, Plan

Request = dict[str, Any]

APPLICATIONS = (
    "erp",
    "crm",
    "billing",
    "payroll",
    "hr",
    "mes",
    "wiki",
    "mail",
    "print",
    "scada",
    "dwh",
    "shop",
)
ROLES = ("db", "app", "web", "batch", "proxy", "file", "queue")
OWNERS = ("Amara Okafor", "José Núñez", "Zoë Müller", "équipe-élan 🚀", "Kenji 田中", "platform@example.com")
COST_CENTERS = ("4711", "4712", "0815", "9000", "")
FORMATS = ("OVA", "VMDK", "VMDK", "VHD", "VHDX", "RAW")
BASE_36 = "0123456789abcdefghijklmnopqrstuvwxyz"
GIB = 2**30

NO_ACCESS = "Disk validation failed [We do not have access to the given resource. Reason 403 Forbidden]"
NO_BOOT = "This import request failed because the instance failed to boot and establish network connectivity."
FAILURES = (
    ("validating", "ClientError: Unsupported image format. The image is not a stream-optimized VMDK."),
    ("validating", f"CLIENT_ERROR : ClientError: {NO_ACCESS}"),
    ("converting", "ServerError: An internal error has occurred during conversion."),
    ("updating", "ClientError: No valid partitions. Not a valid volume."),
    ("updating", "ClientError: Unknown OS / Missing OS files."),
    ("updating", "ClientError: We detected an unsupported kernel version 5.19.0-41-generic."),
    ("booting", f"FirstBootFailure: {NO_BOOT}"),
)
"""The phase in which an import fails, and what EC2 says then."""


@dataclass(frozen=True)
class Planner:
    """Invents requests and plans from one stream of random numbers."""

    rng: Random

    def request(self, region: str, account_id: str) -> Request:
        """Invent an import of a server of some migration wave."""
        rng = self.rng
        name = f"{rng.choice(APPLICATIONS)}-{rng.choice(ROLES)}-{rng.randint(1, 24):02}"
        wave = rng.randint(1, 12)
        request: Request = {
            "DiskContainers": self._containers(name, wave, region),
            "TagSpecifications": [{"ResourceType": "import-image-task", "Tags": self._tags(name, wave)}],
        }
        if self._chance(0.9):
            request["Description"] = f"{name} wave {wave}"
        if self._chance(0.3):
            request["BootMode"] = rng.choice(("legacy-bios", "uefi", "uefi-preferred"))
        if self._chance(0.4):
            request["Platform"] = rng.choice(("Linux", "Windows"))
        if self._chance(0.25):
            request |= {"Encrypted": True, "KmsKeyId": self._key_arn(region, account_id)}
        if self._chance(0.15):
            request["LicenseSpecifications"] = [
                {"LicenseConfigurationArn": self._licence(region, account_id)}
            ]
        return request

    def plan(
        self,
        request: Request,
        at: datetime,
        *,
        duration: timedelta | None = None,
        failure: str | None = None,
        fails_in: str | None = None,
    ) -> Plan:
        """Plan the life of an import requested at that moment.

        Args:
            request: ``ImportImage`` parameters.
            at: when it was asked for.
            duration: how long a success takes; without one the disks' sizes decide.
            failure: the message it fails with.
            fails_in: the phase in which it fails; without one some phase that fits the message.
        """
        disks = tuple(self._disks(request.get("DiskContainers", ())))
        return Plan(
            import_task_id=self._task_id(),
            image_id=f"ami-0{self._hex(16)}",
            requested_at=at,
            duration=duration or self._duration(disks),
            disks=disks,
            requested=_requested(request),
            found=self._found(request),
            failure=failure,
            ends_at=1.0 if failure is None else self._end(fails_in or _usual_phase(failure)),
            shows_empty_image_id=self._chance(0.1),
        )

    def failure(self) -> tuple[str, str]:
        """Invent a failure: its phase and message."""
        return self.rng.choice(FAILURES)

    def _containers(self, name: str, wave: int, region: str) -> list[Request]:
        rng = self.rng
        image_format = rng.choice(FORMATS)
        count = 1 if image_format == "OVA" else rng.choice((1, 1, 1, 2, 3))
        bucket = f"migration-wave-{wave}"
        containers: list[Request] = []
        for number in range(count):
            key = f"exports/{name}{f'-disk{number}' if number else ''}.{image_format.lower()}"
            container: Request = {"Format": image_format}
            if self._chance(0.3):
                container["Description"] = "data" if number else "root"
            if self._chance(0.1):
                container["Url"] = f"https://{bucket}.s3.{region}.amazonaws.com/{key}"
            else:
                container["UserBucket"] = {"S3Bucket": bucket, "S3Key": key}
            containers.append(container)
        return containers

    def _tags(self, name: str, wave: int) -> list[dict[str, str]]:
        rng = self.rng
        tags = {"Name": name, "Wave": str(wave)}
        if self._chance(0.8):
            tags["Owner"] = rng.choice(OWNERS)
        if self._chance(0.6):
            tags["CostCenter"] = rng.choice(COST_CENTERS)
        return [{"Key": key, "Value": value} for key, value in tags.items()]

    def _disks(self, containers: Iterable[Request]) -> Iterable[Disk]:
        letters = iter("abcdefghijklmnopqrstuvwxyz")
        for container in containers:
            is_ova = str(container.get("Format", "")).upper() == "OVA"
            for _ in range(self.rng.choice((1, 1, 2)) if is_ova else 1):
                letter = next(letters, "z")
                yield self._disk(container, f"/dev/sd{letter}{'1' if letter == 'a' else ''}")

    def _disk(self, container: Request, device_name: str) -> Disk:
        rng = self.rng
        size = float(
            rng.choice((8, 10, 20, 40, 60, 100, 250)) * GIB - rng.choice((0, 0, rng.randrange(10**6) * 512))
        )
        image_format = str(container.get("Format") or "VMDK").upper()
        snapshot_id = container.get("SnapshotId") or f"snap-0{self._hex(16)}"
        bucket = container.get("UserBucket") or {}
        return Disk(
            format="VMDK" if image_format == "OVA" else image_format,
            device_name=container.get("DeviceName") or device_name,
            size=size,
            first_size=size if self._chance(0.7) else float(size // 3 // 512 * 512),
            snapshot_id=snapshot_id,
            first_snapshot_id=snapshot_id if self._chance(0.6) else f"snap-0{self._hex(16)}",
            description=container.get("Description"),
            url=container.get("Url"),
            s3_bucket=bucket.get("S3Bucket"),
            s3_key=bucket.get("S3Key"),
            shows_progress=self._chance(0.3),
        )

    def _found(self, request: Request) -> Request:
        """What EC2 learns from the disks; what the request says is left as it is."""
        platform = request.get("Platform") or self.rng.choice(("Linux", "Linux", "Windows"))
        licence = request.get("LicenseType") or self.rng.choice(("BYOL", "BYOL", "AWS"))
        found = {"Architecture": "x86_64", "Platform": platform, "LicenseType": licence}
        if self._chance(0.5):
            found["UsageOperation"] = "RunInstances:0002" if platform == "Windows" else "RunInstances"
        if self._chance(0.5):
            found["BootMode"] = self.rng.choice(("legacy-bios", "uefi"))
        return found | {key: request[key] for key in found if request.get(key)}

    def _duration(self, disks: tuple[Disk, ...]) -> timedelta:
        gibibytes = sum(disk.size for disk in disks) / GIB
        return timedelta(minutes=self.rng.uniform(18, 35) + gibibytes * self.rng.uniform(0.2, 0.5))

    def _end(self, phase_message: str) -> float:
        index = next((i for i, phase in enumerate(PHASES) if phase.message == phase_message), None)
        if index is None:
            raise ValueError(f"there is no phase {phase_message!r}")
        end = PHASES[index + 1].start if index + 1 < len(PHASES) else 1.0
        return PHASES[index].start + (end - PHASES[index].start) * self.rng.uniform(0.2, 0.9)

    def _task_id(self) -> str:
        """One of the three forms in which ids come, the newest most often."""
        forms = (
            f"import-ami-0{self._hex(16)}",
            f"import-ami-{self._hex(16)}t",
            f"import-ami-{''.join(self.rng.choices(BASE_36, k=8))}",
        )
        return self.rng.choices(forms, weights=(16, 3, 1))[0]

    def _chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def _hex(self, length: int) -> str:
        return f"{self.rng.getrandbits(4 * length):0{length}x}"

    def _key_arn(self, region: str, account_id: str) -> str:
        key = f"{self._hex(8)}-{self._hex(4)}-4{self._hex(3)}-8{self._hex(3)}-{self._hex(12)}"
        return f"arn:aws:kms:{region}:{account_id}:key/{key}"

    def _licence(self, region: str, account_id: str) -> str:
        return f"arn:aws:license-manager:{region}:{account_id}:license-configuration:lic-{self._hex(32)}"


SHOWN_AT_ONCE = (
    "Architecture",
    "BootMode",
    "Description",
    "Encrypted",
    "Hypervisor",
    "KmsKeyId",
    "LicenseSpecifications",
    "LicenseType",
    "Platform",
    "UsageOperation",
)


def _requested(request: Request) -> Request:
    """The members of a task that repeat its request."""
    tags = [
        tag
        for specification in request.get("TagSpecifications", ())
        if specification.get("ResourceType") == "import-image-task"
        for tag in specification.get("Tags", ())
    ]
    shown = {key: request[key] for key in SHOWN_AT_ONCE if request.get(key) not in (None, [])}
    return shown | {"Tags": tags}


def _usual_phase(failure: str) -> str:
    return next((phase for phase, message in FAILURES if message == failure), "converting")
