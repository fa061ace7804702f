"""Wire JSON to domain records, purely: one canonical form is hashed, and it is what is stored.

The input is a task as boto3 parses it and as ``aws ec2 describe-import-image-tasks`` prints it (PascalCase
members). The canonical form has the wire's own names, numbers by value, nothing for absent or empty, child
lists in an order that depends on content alone, storable text, and no credentials. It covers members that
have no field in ``collector.domain`` too; those travel in ``extra``. It must not depend on the warehouse's
columns: adding a column one day must not make a new version of every task.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple

from collector.domain import ImportTask, LicenseSpecification, SnapshotDetail, Tag
from collector.errors import MalformedTaskError
from collector.redaction import without_credentials

Json = dict[str, Any]

_RENAMED = {"SnapshotDetails": "snapshotDetailSet", "Tags": "tagSet"}
"""Members whose wire name is more than their own with a small first letter (EC2's service model)."""

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
LONGEST_KEY = 500
"""Characters in an id or a tag key; AWS allows 128 for a key. Longer ones do not fit PostgreSQL's B-trees."""


def import_task(wire: object) -> ImportTask:
    """Turn one task into its domain record.

    Raises:
        MalformedTaskError: the object is no import image task, or a member cannot be understood.
    """
    try:
        task = _canonical(wire) if isinstance(wire, Mapping) else None
    except MalformedTaskError as error:
        raise MalformedTaskError(f"{_named(wire)}: {error}") from None
    except RecursionError:
        raise MalformedTaskError(f"{_named(wire)} is nested too deeply") from None
    if task is None and not isinstance(wire, Mapping):
        raise MalformedTaskError(f"an import task must be a JSON object, not {_kind(wire)}")
    task = task or {}
    import_task_id = task.pop("importTaskId", None)
    if not isinstance(import_task_id, str) or len(import_task_id) > LONGEST_KEY:
        raise MalformedTaskError(f"an import task must have an ImportTaskId; {_fault_of_id(wire)}")
    try:
        return _import_task(import_task_id, task)
    except MalformedTaskError as error:
        raise MalformedTaskError(f"{import_task_id}: {error}") from None


def _import_task(import_task_id: str, task: Json) -> ImportTask:
    disks = _sorted_by(_disk_place, [_typed_disk(disk) for disk in _objects(task, "snapshotDetailSet")])
    tags = _tags(_objects(task, "tagSet"))
    specs = _sorted_by(
        _license_place, [_typed(spec, _LICENSE) for spec in _objects(task, "licenseSpecifications")]
    )
    sets = [_hash(items) if items else None for items in (disks, tags, specs)]
    content_hash = _hash([_typed(task, _TASK), *sets])
    return ImportTask(
        import_task_id=import_task_id,
        content_hash=content_hash,
        details_set=sets[0],
        tags_set=sets[1],
        licenses_set=sets[2],
        **_take(task, _TASK),
        extra=_rest(task),
        snapshot_details=tuple(_snapshot_detail(position, disk) for position, disk in enumerate(disks)),
        tags=tuple(Tag(**_take(tag, _TAG)) for tag in tags),
        license_specifications=tuple(
            LicenseSpecification(position, **_take(spec, _LICENSE), extra=_rest(spec))
            for position, spec in enumerate(specs)
        ),
    )


def _typed_disk(disk: Json) -> Json:
    if not isinstance(bucket := disk.get("userBucket", {}), dict):
        raise MalformedTaskError(f"userBucket of a disk must be an object, not {_kind(bucket)}")
    _typed(bucket, _BUCKET)
    return _typed(disk, _DISK)


def _snapshot_detail(position: int, disk: Json) -> SnapshotDetail:
    bucket = disk.pop("userBucket", {})
    source = _take(bucket, _BUCKET)
    if bucket:
        disk["userBucket"] = bucket
    return SnapshotDetail(position=position, **_take(disk, _DISK), **source, extra=_rest(disk))


def _tags(tags: list[Json]) -> list[Json]:
    """Sort by key and drop exact repeats; a key with two values is no tag set of EC2's."""
    by_key: dict[str, Json] = {}
    for tag in tags:
        pair = _typed({"key": "", **tag}, _TAG)
        pair = {name: pair[name] for name in _TAG if name in pair}
        if len(pair["key"]) > LONGEST_KEY:
            raise MalformedTaskError(f"a tag's Key must have at most {LONGEST_KEY} characters")
        if by_key.setdefault(pair["key"], pair) != pair:
            raise MalformedTaskError(f"tag {pair['key']!r} occurs twice with different values")
    return [by_key[key] for key in sorted(by_key)]


# Back to the wire


def wire_task(task: ImportTask) -> Json:
    """Return the task in the JSON that ``import_task`` turns into the very same record, hashes and all.

    Members have the CLI's names, unknown ones the wire's own; what is absent or empty is left out.
    """
    disks = [_wire_disk(disk) for disk in task.snapshot_details]
    tags = [_wire(tag, _TAG) for tag in task.tags]
    specs = [_wire(spec, _LICENSE) | _unknown(spec.extra) for spec in task.license_specifications]
    lists = {"SnapshotDetails": disks, "Tags": tags, "LicenseSpecifications": specs}
    return {
        "ImportTaskId": task.import_task_id,
        **_wire(task, _TASK),
        **{name: items for name, items in lists.items() if items},
        **_unknown(task.extra),
    }


def _wire_disk(disk: SnapshotDetail) -> Json:
    unknown = _unknown(disk.extra)
    bucket = _wire(disk, _BUCKET) | unknown.pop("userBucket", {})
    return _wire(disk, _DISK) | ({"UserBucket": bucket} if bucket else {}) | unknown


def _wire(record: object, table: Mapping[str, "_Member"]) -> Json:
    """Give the columns that hold something back their members' names."""
    members = {name: getattr(record, member.column) for name, member in table.items()}
    return {name[:1].upper() + name[1:]: value for name, value in members.items() if value is not None}


def _unknown(extra: str | None) -> Json:
    members: Json = json.loads(extra) if extra else {}
    return members


# The canonical form


def canonical_json(value: object) -> str | None:
    """Return the canonical form of any JSON value as text, ``None`` where nothing is left of it.

    Raises:
        MalformedTaskError: a member cannot be understood.
    """
    try:
        form = _canonical(value)
    except RecursionError:
        raise MalformedTaskError("nested too deeply") from None
    return None if form is None else _dumps(form)


def storable(text: str) -> str | None:
    """Return a text as the canonical form holds it, ``None`` where nothing is left of it."""
    kept: str | None = _canonical(text)
    return kept


def _canonical(value: Any, name: str = "") -> Any:
    """Return the canonical form of a JSON value, ``None`` where nothing is left of it."""
    if isinstance(value, str):
        return _canonical_text(value, name)
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int | float):
        return _canonical_number(value, name)
    if isinstance(value, dict | Mapping):  # asking for a dict first is quicker
        return _canonical_object(value)
    if isinstance(value, list | tuple):
        return [_canonical(item, name) for item in value] or None
    raise MalformedTaskError(f"{name} holds {_kind(value)}, which JSON does not have")


def _canonical_text(value: str, name: str) -> str | None:
    """Do the work only where there may be any: most texts are short words, and there are very many."""
    if not value.isascii() or "\0" in value:
        value = _UNSTORABLE.sub(_escaped, value)
    if "://" in value:
        value = without_credentials(value, strict=name.lower().endswith("url"))
    return value or None


def _canonical_object(value: Mapping[Any, Any]) -> Json | None:
    members: Json = {}
    for key, member in value.items():
        name = _wire_name(str(key))
        if (kept := _canonical(member, name)) is not None and members.setdefault(name, kept) is not kept:
            raise MalformedTaskError(f"{name} occurs twice in one object")
    return members or None


@lru_cache(maxsize=1024)  # the same few dozen names, millions of times
def _wire_name(name: str) -> str:
    return _UNSTORABLE.sub(_escaped, _RENAMED.get(name) or name[:1].lower() + name[1:])


def _escaped(character: re.Match[str]) -> str:
    r"""Write what PostgreSQL's text cannot hold as JSON escapes it: a NUL becomes ``\u0000``."""
    return f"\\u{ord(character[0]):04x}"


def _canonical_number(value: float, name: str = "a number") -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise MalformedTaskError(f"{name} is not finite")
    return int(value) if number.is_integer() else value


_dumps = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode


def _hash(value: object) -> int:
    """Hash a canonical value to a signed 64-bit integer."""
    return int.from_bytes(blake2b(_dumps(value).encode(), digest_size=8).digest(), "big", signed=True)


def _sorted_by(place: Callable[[Json], tuple[str, ...]], items: list[Json]) -> list[Json]:
    """Sort by place, and by content only where places are equal: writing it down is most of the work."""
    places = list(map(place, items))
    if len(set(places)) == len(places):
        return sorted(items, key=place)
    return sorted(items, key=lambda item: (*place(item), _dumps(item)))


def _disk_place(disk: Json) -> tuple[str, ...]:
    """Order disks by device, then source: they have no id, and their order is not promised."""
    bucket = disk.get("userBucket")
    bucket = bucket if isinstance(bucket, dict) else {}
    return str(disk.get("deviceName", "")), str(bucket.get("s3Bucket", "")), str(bucket.get("s3Key", ""))


def _license_place(spec: Json) -> tuple[str, ...]:
    return (str(spec.get("licenseConfigurationArn", "")),)


def _objects(task: Json, name: str) -> list[Json]:
    items = task.pop(name, [])
    if not isinstance(items, list):
        raise MalformedTaskError(f"{name} must be a list, not {_kind(items)}")
    for item in items:
        if item is not None and not isinstance(item, dict):
            raise MalformedTaskError(f"{name} must hold objects, not {_kind(item)}")
    return [item or {} for item in items]


def _typed(members: Json, table: Mapping[str, "_Member"]) -> Json:
    """Give the members that have a column the column's type, in place: equal rows must hash equally."""
    for name, value in members.items():
        if (member := table.get(name)) and not (member.kind is _as_text and type(value) is str):
            try:
                members[name] = member.kind(value)
            except MalformedTaskError as error:
                raise MalformedTaskError(f"{name}: {error}") from None
            except (KeyError, TypeError, ValueError):
                sample = "" if isinstance(value, dict | list) else f" like {str(value)[:40]!r}"
                raise MalformedTaskError(f"{name} cannot be {_kind(value)}{sample}") from None
    return members


def _take(members: Json, table: Mapping[str, "_Member"]) -> Json:
    """Move the members that have a column out, by the column's name; what stays is ``extra``."""
    pop = members.pop
    return {member.column: pop(name, None) for name, member in table.items()}


def _rest(members: Json) -> str | None:
    return _dumps(members) if members else None


def _as_text(value: Any) -> str:
    if isinstance(value, dict | list):
        raise TypeError
    return value if isinstance(value, str) else _dumps(value)


def _as_number(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError
    return _canonical_number(float(value))


def _as_boolean(value: Any) -> bool:
    return {"true": True, "false": False}[_as_text(value).lower()]


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def _named(wire: object) -> str:
    """Name a task whose members cannot be read as far as anything tells its id."""
    name = wire.get("ImportTaskId", wire.get("importTaskId")) if isinstance(wire, Mapping) else None
    return str(name)[:LONGEST_KEY] if name else "an import task"


def _fault_of_id(wire: object) -> str:
    """Say what an id is that is none, or what a task has instead of one."""
    members = wire if isinstance(wire, Mapping) else {}
    for name in ("ImportTaskId", "importTaskId"):
        if name in members:
            value = members[name]
            if not isinstance(value, str):
                return f"this one's is {_kind(value)}"
            return f"this one's has more than {LONGEST_KEY} characters" if value else "this one's is empty"
    names = ", ".join(sorted(map(str, members))[:5])
    return f"this one has only {names[:200]}" if names else "this one has no members"


class _Member(NamedTuple):
    """Where a member goes, and what it must be."""

    column: str
    kind: Callable[[Any], Any] = _as_text


_TASK = {
    "architecture": _Member("architecture"),
    "bootMode": _Member("boot_mode"),
    "description": _Member("description"),
    "encrypted": _Member("encrypted", _as_boolean),
    "hypervisor": _Member("hypervisor"),
    "imageId": _Member("image_id"),
    "kmsKeyId": _Member("kms_key_id"),
    "licenseType": _Member("license_type"),
    "platform": _Member("platform"),
    "progress": _Member("progress"),
    "status": _Member("status"),
    "statusMessage": _Member("status_message"),
    "usageOperation": _Member("usage_operation"),
}
_DISK = {
    "description": _Member("description"),
    "deviceName": _Member("device_name"),
    "diskImageSize": _Member("disk_image_size", _as_number),
    "format": _Member("format"),
    "progress": _Member("progress"),
    "snapshotId": _Member("snapshot_id"),
    "status": _Member("status"),
    "statusMessage": _Member("status_message"),
    "url": _Member("url"),
}
_BUCKET = {"s3Bucket": _Member("s3_bucket"), "s3Key": _Member("s3_key")}
_TAG = {"key": _Member("key"), "value": _Member("value")}
_LICENSE = {"licenseConfigurationArn": _Member("license_configuration_arn")}
