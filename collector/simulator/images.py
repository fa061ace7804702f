"""The AMIs that finished imports leave, and the filters of ``DescribeImages``."""

import re
from collections.abc import Callable, Iterable
from typing import Any

from collector.simulator.lives import Disk, Plan
from collector.simulator.protocol import ApiError

Image = dict[str, Any]
GIB = 2**30


def image_of(plan: Plan, account: str) -> Image:
    """The AMI of an import: its name is the task's id, its date the import's end."""
    task = plan.requested | plan.found
    image = {
        "ImageId": plan.image_id,
        "ImageLocation": f"{account}/{plan.import_task_id}",
        "State": "available",
        "OwnerId": account,
        "CreationDate": f"{plan.ended_at:%Y-%m-%dT%H:%M:%S}.000Z",
        "Public": False,
        "Architecture": task["Architecture"],
        "ImageType": "machine",
        "Name": plan.import_task_id,
        "Description": f"AWS-VMImport service: {task['Platform']} - {task.get('Description', '')}",
        "RootDeviceType": "ebs",
        "RootDeviceName": plan.disks[0].device_name if plan.disks else "/dev/sda1",
        "BlockDeviceMappings": [_mapping(disk, task) for disk in plan.disks],
        "VirtualizationType": "hvm",
        "Hypervisor": "xen",
        "EnaSupport": True,
        "PlatformDetails": "Windows" if task["Platform"] == "Windows" else "Linux/UNIX",
        "UsageOperation": task.get("UsageOperation", "RunInstances"),
        "Tags": task["Tags"],
    }
    if task["Platform"] == "Windows":
        image["Platform"] = "windows"
    if "BootMode" in task:
        image["BootMode"] = task["BootMode"]
    return image


def _mapping(disk: Disk, task: dict[str, Any]) -> dict[str, Any]:
    ebs = {
        "DeleteOnTermination": True,
        "SnapshotId": disk.snapshot_id,
        "VolumeSize": int(-(-disk.size // GIB)),
        "VolumeType": "gp2",
        "Encrypted": bool(task.get("Encrypted")),
    }
    return {"DeviceName": disk.device_name, "Ebs": ebs}


MEMBERS = {
    "architecture": "Architecture",
    "creation-date": "CreationDate",
    "description": "Description",
    "image-id": "ImageId",
    "name": "Name",
    "owner-id": "OwnerId",
    "platform": "Platform",
    "state": "State",
}
"""The filters that look at one member."""


def select(images: Iterable[Image], filters: dict[str, list[str]]) -> list[Image]:
    """The images that pass all filters; ``*`` and ``?`` in a value are wildcards."""
    tests = [_passes(name, values) for name, values in filters.items()]
    return [image for image in images if all(test(image) for test in tests)]


def _passes(name: str, values: list[str]) -> Callable[[Image], bool]:
    patterns = [_pattern(value) for value in values]
    if name not in MEMBERS and not name.startswith("tag:"):
        raise ApiError("InvalidParameterValue", f"The filter '{name}' is invalid")

    def passes(image: Image) -> bool:
        if name.startswith("tag:"):
            tags = {tag["Key"]: tag["Value"] for tag in image.get("Tags", [])}
            text = tags.get(name.removeprefix("tag:"))
        else:
            text = image.get(MEMBERS[name])
        return text is not None and any(pattern.fullmatch(text) for pattern in patterns)

    return passes


def _pattern(value: str) -> re.Pattern[str]:
    text = re.escape(value).replace(r"\*", ".*").replace(r"\?", ".")
    return re.compile(text, re.DOTALL)
