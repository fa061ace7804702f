"""The canonical form: what is the same has one hash, what is not has another, and nothing secret is in it."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.aws.transform import import_task, wire_task
from collector.domain import ImportTask, SnapshotDetail, Tag
from collector.errors import MalformedTaskError
from collector.redaction import without_credentials
from tests.factories import task

_SAMPLES = sorted((Path(__file__).parent / "samples").glob("*.json"))


def _disk(**members: Any) -> SnapshotDetail:
    """Return the one disk of a task that has a disk with these members."""
    (disk,) = task("x", SnapshotDetails=[members]).snapshot_details
    return disk


def _refusal(wire: object) -> str:
    """Return why a task is refused."""
    with pytest.raises(MalformedTaskError) as raised:
        import_task(wire)
    return str(raised.value)


# Fields


def test_every_field_has_its_place() -> None:
    """The whole record, of the richest sample."""
    content = json.loads((Path(__file__).parent / "samples" / "encrypted-licensed.json").read_text())
    read = import_task(content["ImportImageTasks"][0])
    assert read == ImportTask(
        import_task_id="import-ami-0a1b2c3d4e5f60718",
        content_hash=read.content_hash,
        details_set=read.details_set,
        tags_set=read.tags_set,
        licenses_set=read.licenses_set,
        architecture="arm64",
        boot_mode="uefi-preferred",
        description=None,
        encrypted=True,
        hypervisor="xen",
        image_id="ami-01f2e3d4c5b6a7980",
        kms_key_id="arn:aws:kms:eu-central-1:111122223333:key/0f9e8d7c-6b5a-4938-2716-05f4e3d2c1b0",
        license_type="BYOL",
        platform="Linux",
        progress=None,
        status="completed",
        status_message=None,
        usage_operation="RunInstances:0010",
        extra=None,
        snapshot_details=read.snapshot_details,
        tags=(Tag("CostCenter", None), Tag("aws:cloudformation:stack-name", "wave")),
        license_specifications=read.license_specifications,
    )
    assert read.snapshot_details[0] == SnapshotDetail(
        position=0,
        description="root",
        device_name="/dev/sda1",
        disk_image_size=10737418240,
        format="RAW",
        progress="100",
        snapshot_id="snap-0123456789abcdef0",
        status="completed",
        status_message="done",
        url=None,
        s3_bucket="imgs",
        s3_key="arm.raw",
        extra=None,
    )
    (licence,) = read.license_specifications
    assert str(licence.license_configuration_arn).endswith(":lic-0123456789abcdef0123456789abcdef")


@pytest.mark.parametrize(
    "import_task_id",
    [
        "import-ami-fgk3m2td",
        "import-ami-0a1b2c3d4e5f60718",
        "import-ami-54be2e9c40116f35t",
        "odd/ID",
    ],
)
def test_an_id_is_opaque(import_task_id: str) -> None:
    """All forms that have been seen, and any other."""
    assert import_task({"ImportTaskId": import_task_id}).import_task_id == import_task_id


def test_the_id_is_not_part_of_the_content() -> None:
    """The hash is of what was observed of the task."""
    assert task("a").content_hash == task("b").content_hash


def test_wire_names_and_client_names_are_the_same_names() -> None:
    """The API's XML has small first letters and two names of its own."""
    wire = {
        "importTaskId": "import-ami-x",
        "status": "active",
        "snapshotDetailSet": [{"userBucket": {"s3Key": "k"}}],
        "tagSet": [{"key": "a", "value": "b"}],
    }
    members: dict[str, Any] = {
        "SnapshotDetails": [{"UserBucket": {"S3Key": "k"}}],
        "Tags": [{"Key": "a", "Value": "b"}],
    }
    assert import_task(wire) == task("x", **members)


# What is the same


_RICH: dict[str, Any] = {
    "Description": "d",
    "Odd": {"A": 1, "B": [1, {"c": 2}]},
    "SnapshotDetails": [
        {"DeviceName": "/dev/sdb", "Format": "RAW"},
        {"DeviceName": "/dev/sda1", "UserBucket": {"S3Bucket": "b", "S3Key": "k"}},
        {"UserBucket": {"S3Bucket": "b", "S3Key": "2"}, "Odd": True},
        {"UserBucket": {"S3Bucket": "b", "S3Key": "1"}},
        {"DiskImageSize": 2.0},
        {"DiskImageSize": 1.0},
    ],
    "Tags": [{"Key": key, "Value": key} for key in "cab"],
    "LicenseSpecifications": [{"LicenseConfigurationArn": arn} for arn in ("arn:2", "arn:1")],
}


def _shuffled(value: Any, mix: random.Random, *, lists: bool) -> Any:
    """Return JSON that says the same with members, and the lists of a task's parts, in another order."""
    if isinstance(value, dict):
        items = [(name, _shuffled(item, mix, lists=name in _UNORDERED)) for name, item in value.items()]
        return dict(mix.sample(items, len(items)))
    if isinstance(value, list):
        items = [_shuffled(item, mix, lists=False) for item in value]
        return mix.sample(items, len(items)) if lists else items
    return value


_UNORDERED = frozenset({"Tags", "SnapshotDetails", "LicenseSpecifications"})


@pytest.mark.parametrize("path", _SAMPLES, ids=lambda path: path.stem)
def test_a_sample_has_one_hash_in_any_order(path: Path) -> None:
    """Order of members, tags, disks and licences says nothing."""
    content = json.loads(path.read_text(encoding="utf-8"))
    for wire in content.get("ImportImageTasks", [content]):
        shuffled = [_shuffled(wire, random.Random(seed), lists=False) for seed in range(20)]
        assert {import_task(other) for other in shuffled} == {import_task(wire)}


@given(seed=st.integers())
def test_the_order_of_lists_says_nothing(seed: int) -> None:
    """Disks by device, then source, then content; the position is the place in that order."""
    wire = {"ImportTaskId": "import-ami-x", "Status": "active", **_RICH}
    read = import_task(_shuffled(wire, random.Random(seed), lists=False))
    assert read == task("x", **_RICH)
    assert [disk.position for disk in read.snapshot_details] == list(range(6))
    assert [(d.device_name, d.s3_key, d.disk_image_size) for d in read.snapshot_details] == [
        (None, None, 1),
        (None, None, 2),
        (None, "1", None),
        (None, "2", None),
        ("/dev/sda1", "k", None),
        ("/dev/sdb", None, None),
    ]
    assert [tag.key for tag in read.tags] == ["a", "b", "c"]
    assert [spec.license_configuration_arn for spec in read.license_specifications] == ["arn:1", "arn:2"]


@pytest.mark.parametrize("nothing", [None, "", [], {}], ids=repr)
@pytest.mark.parametrize("name", ["ImageId", "Tags", "SnapshotDetails", "LicenseSpecifications", "Odd"])
def test_absent_and_empty_are_the_same(name: str, nothing: object) -> None:
    """The API sends either."""
    assert task("x", **{name: nothing}) == task("x")


def test_an_empty_list_has_no_hash() -> None:
    """A version without tags points at no tags."""
    bare = task("x", Tags=[])
    assert (bare.details_set, bare.tags_set, bare.licenses_set) == (None, None, None)


def test_a_disk_without_members_is_a_disk() -> None:
    """It has a position, so it was there."""
    assert [disk.position for disk in task("x", SnapshotDetails=[{}, {}]).snapshot_details] == [0, 1]


@pytest.mark.parametrize(
    "size", [10737418240, 10737418240.0, "10737418240", "1.073741824E10", "10737418240.000"]
)
def test_numbers_are_the_same_by_value(size: object) -> None:
    """However the wire, a client or a file writes them."""
    members: dict[str, Any] = {"SnapshotDetails": [{"DiskImageSize": size}]}
    same: dict[str, Any] = {"SnapshotDetails": [{"DiskImageSize": 10737418240.0}]}
    assert task("x", **members) == task("x", **same)


@pytest.mark.parametrize(("one", "other"), [(1, 1.0), (0, -0.0), (10**16, 1e16), (2**60, float(2**60))])
def test_unknown_numbers_are_the_same_by_value_too(one: float, other: float) -> None:
    """Beyond the integers that a float holds exactly as well."""
    assert task("x", Odd=one) == task("x", Odd=other)


def test_large_whole_numbers_keep_their_last_digit() -> None:
    """They are not rounded to a float."""
    assert task("x", Odd=2**53 + 1).extra == '{"odd":9007199254740993}'


@pytest.mark.parametrize("encrypted", [True, "true", "True", "TRUE"])
def test_encrypted_is_a_boolean_however_it_is_written(encrypted: object) -> None:
    """Text comes from files that somebody converted."""
    assert task("x", Encrypted=encrypted) == task("x", Encrypted=True)


def test_encrypted_false_is_not_unknown() -> None:
    """Nor is it empty."""
    assert task("x", Encrypted="false").encrypted is False
    assert task("x", Encrypted=False).content_hash != task("x").content_hash


def test_text_given_as_a_number_is_text() -> None:
    """A file may hold ``"Progress": 39``."""
    assert task("x", Progress=39) == task("x", Progress="39")


def test_a_repeated_tag_is_one_tag() -> None:
    """The same pair twice says nothing more."""
    twice = [{"Key": "a", "Value": "b"}, {"Value": "b", "Key": "a"}]
    assert task("x", Tags=twice) == task("x", Tags=twice[:1])


# What is not the same


_CHANGES: dict[str, dict[str, Any]] = {
    "field": {"Description": "e"},
    "case": {"Description": "D"},
    "unknown member": {"Odd": {"A": 1, "B": [1, {"c": 3}]}},
    "order within an unknown list": {"Odd": {"A": 1, "B": [{"c": 2}, 1]}},
    "a boolean is no number": {"Odd": {"A": True, "B": [1, {"c": 2}]}},
    "disk": {"SnapshotDetails": _RICH["SnapshotDetails"][1:]},
    "disk twice": {"SnapshotDetails": [*_RICH["SnapshotDetails"], {"DiskImageSize": 1.0}]},
    "tag": {"Tags": [{"Key": key, "Value": "c"} for key in "cab"]},
    "licence": {"LicenseSpecifications": [{"LicenseConfigurationArn": "arn:1"}]},
}


@pytest.mark.parametrize("change", _CHANGES.values(), ids=_CHANGES)
def test_what_differs_has_another_hash(change: dict[str, Any]) -> None:
    """In any part of the task."""
    assert task("x", **{**_RICH, **change}).content_hash != task("x", **_RICH).content_hash


def test_a_set_has_its_hash_to_itself() -> None:
    """A progress tick leaves disks, tags and licences as they are."""
    one, other = task("x", **_RICH), task("x", **_RICH, Progress="5")
    assert (one.details_set, one.tags_set, one.licenses_set) == (
        other.details_set,
        other.tags_set,
        other.licenses_set,
    )
    assert one.content_hash != other.content_hash


# Unknown members


def test_unknown_members_are_kept_at_every_level() -> None:
    """Under their wire names, as canonical JSON."""
    read = task(
        "x",
        NewField="n",
        SnapshotDetails=[{"NewDisk": 1.0, "UserBucket": {"S3Key": "k", "NewBucket": {"B": 1, "A": ""}}}],
        LicenseSpecifications=[{"NewLicence": [1, 2]}],
    )
    assert read.extra == '{"newField":"n"}'
    assert read.snapshot_details[0].extra == '{"newDisk":1,"userBucket":{"newBucket":{"b":1}}}'
    assert read.license_specifications[0].extra == '{"newLicence":[1,2]}'


def test_a_tag_is_a_key_and_a_value() -> None:
    """It is the one part without room for anything else."""
    assert task("x", Tags=[{"Key": "a", "Value": "b", "Odd": 1}]) == task(
        "x", Tags=[{"Key": "a", "Value": "b"}]
    )


# Credentials

_SIGNED = (
    "https://drop.s3.eu-west-1.amazonaws.com/win11.vhdx?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAEX"
    "AMPLE%2F20260301&X-Amz-Date=20260301T101500Z&X-Amz-Expires=86400&X-Amz-Security-Token=s3cret"
    "&X-Amz-SignedHeaders=host{}&X-Amz-Signature={}"
)
_PLAIN = "https://drop.s3.eu-west-1.amazonaws.com/win11.vhdx"


def test_a_presigned_url_loses_its_signature() -> None:
    """Its query string is a credential."""
    assert _disk(Url=_SIGNED.format("", "s3cret")).url == _PLAIN


def test_the_version_of_an_object_survives() -> None:
    """It opens nothing and names what was imported."""
    assert _disk(Url=_SIGNED.format("&versionId=v.1", "s3cret")).url == f"{_PLAIN}?versionId=v.1"
    assert _disk(Url=f"{_PLAIN}?versionId=v.1").url == f"{_PLAIN}?versionId=v.1"


def test_two_signatures_of_one_object_are_one_content() -> None:
    """Otherwise each poll of a client that signs anew would be a version."""
    one, other = ([{"Url": _SIGNED.format("", signature)}] for signature in ("s3cret1", "s3cret2"))
    assert task("x", SnapshotDetails=one) == task("x", SnapshotDetails=other)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (f"ClientError: {_SIGNED.format('', 's3cret')} is not there", f"ClientError: {_PLAIN} is not there"),
        ("read 'https://user:s3cret@host/disk' failed", "read 'https://host/disk' failed"),
        ("https://proxy/https://user:s3cret@host/disk", "https://proxy/https://host/disk"),
        ("ftp://s3cret@host/disk", "ftp://host/disk"),
        ("https://h/d?AWSAccessKeyId=AKIA&Signature=s3cret&Expires=1", "https://h/d"),
        ("https://h/d?X-Amz-Security-Token=s3cret", "https://h/d"),
        ("https://h/d?sv=2024&sig=s3cret%3D", "https://h/d"),
        ("https://h/d?x-goog-signature=s3cret", "https://h/d"),
        ("https://h/d?a=1&access_token=s3cret", "https://h/d"),
        ("see https://docs.aws.amazon.com/vm-import?topic=errors", None),
        ("mail someone@example.com? 5 > 4", None),
    ],
)
def test_text_loses_credentials_and_nothing_else(text: str, kept: str | None) -> None:
    """In a status message, where a URL is among other words."""
    assert task("x", StatusMessage=text).status_message == (kept or text)


def test_credentials_are_cut_at_every_level() -> None:
    """Unknown members and tags too."""
    signed = _SIGNED.format("", "s3cret")
    disk = {"Url": signed, "StatusMessage": signed, "NewUrl": [signed + "?x=s3cret"], "Odd": {"A": signed}}
    read = task("x", Odd=[signed], SnapshotDetails=[disk], Tags=[{"Key": signed, "Value": signed}])
    assert "s3cret" not in repr(read)
    assert "AKIAEXAMPLE" not in repr(read)


@pytest.mark.timeout(5)
@pytest.mark.parametrize("part", ["a", "a@", "://", "a://", "://a@", "?", "?sig=", "&sig", "://?"])
def test_long_text_takes_no_longer_than_it_must(part: str) -> None:
    """A megabyte of what the patterns look for; whoever starts an import writes its description."""
    assert without_credentials(f"{part * (10**6 // len(part))} https://user:s3cret@h").endswith(" https://h")


def test_an_s3_url_stays() -> None:
    """It holds no credential."""
    assert _disk(Url="s3://bucket/folder/disk 1.vmdk").url == "s3://bucket/folder/disk 1.vmdk"


@given(text=st.text(alphabet="https:/@?&=#. ab%", max_size=40), strict=st.booleans())
def test_what_was_cleaned_is_clean(text: str, strict: bool) -> None:
    """A file that was saved from the warehouse has the hash of the API's answer."""
    once = without_credentials(f"https://{text}", strict=strict)
    assert without_credentials(once, strict=strict) == once


# Text that cannot be stored


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("a\0b", "a\\u0000b"),
        ("\ud83d", "\\ud83d"),
        ("\udfff\ud800", "\\udfff\\ud800"),
        ("élan 🚀\n", "élan 🚀\n"),
    ],
    ids=["NUL", "lone surrogate", "two the wrong way round", "fine"],
)
def test_what_postgres_cannot_hold_is_written_as_json_escapes_it(text: str, stored: str) -> None:
    """In values, tags, keys of unknown members and ids."""
    read = import_task(
        {"ImportTaskId": f"i{text}", "Description": text, "Odd": {f"k{text}": text}, "Tags": [{"Key": text}]}
    )
    assert read.import_task_id == f"i{stored}"
    assert read.description == stored
    assert json.loads(str(read.extra)) == {"odd": {f"k{stored}": stored}}
    assert read.tags == (Tag(stored, None),)


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    )
)
def test_any_json_is_kept_or_refused_by_name(value: Any) -> None:
    """As an unknown member: its canonical form is its own canonical form, and can be encoded."""
    try:
        read = task("x", Odd=value)
    except MalformedTaskError as error:
        assert str(error).startswith("import-ami-x: ")  # noqa: PT017 - either way is fine, with a name
        return
    again = json.loads(read.extra) if read.extra else {}
    assert task("x", **again) == read
    assert str(read.extra).encode()


# Back to the wire


@pytest.mark.parametrize("path", _SAMPLES, ids=lambda path: path.stem)
def test_a_sample_comes_back_from_the_wire(path: Path) -> None:
    """Through the text of a file: what waits on disk has the hashes of what was seen."""
    content = json.loads(path.read_text(encoding="utf-8"))
    for wire in content.get("ImportImageTasks", [content]):
        read = import_task(wire)
        assert import_task(json.loads(json.dumps(wire_task(read)))) == read


def test_a_task_goes_out_as_the_cli_prints_it() -> None:
    """With its names, and nothing for what is absent; unknown members under the wire's own names."""
    disk = {"Url": "s3://b/k", "UserBucket": {"S3Bucket": "b", "S3Key": "k", "newBucket": 1}, "newDisk": 2}
    wire = {
        "ImportTaskId": "import-ami-x",
        "KmsKeyId": "k",
        "SnapshotDetails": [{"DiskImageSize": 1.5}, disk],
        "Tags": [{"Key": "a"}, {"Key": "b", "Value": "c"}],
        "LicenseSpecifications": [{"LicenseConfigurationArn": "arn", "newLicence": True}],
        "newField": [{"A": None}],
    }
    assert wire_task(import_task(wire)) == wire | {"newField": [None]}


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=()))
    | st.sampled_from(["https://u:p@h/d?versionId=1&sig=s#f", "s3://b/k", "\0", "TRUE", "1e3"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)


def _objects(*names: str, **members: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Generate objects with any of these members, odd ones among them, and others that nobody knows."""
    scalar = st.none() | st.text(max_size=5) | st.integers() | st.booleans() | st.floats(0, 1e300)
    odd = st.fixed_dictionaries({}, optional=dict.fromkeys(("Odd", "newUrl", "tags", "\0"), _JSON))
    known = st.fixed_dictionaries({}, optional=dict.fromkeys(names, scalar) | members)
    return st.builds(lambda one, other: {**one, **other}, odd, known)


_DISKS = _objects(
    "DeviceName",
    "Format",
    "SnapshotId",
    DiskImageSize=st.floats(-1e300, 1e300) | st.integers() | st.sampled_from(["1.073741824E10", "7"]),
    Url=_JSON.filter(lambda value: not isinstance(value, dict | list)),
    UserBucket=st.none() | _objects("S3Bucket", "s3Key"),
)
_TASKS = _objects(
    "Description",
    "BootMode",
    "Progress",
    "StatusMessage",
    Encrypted=st.sampled_from([True, False, "true", "FALSE", None, ""]),
    SnapshotDetails=st.lists(st.none() | _DISKS, max_size=3),
    Tags=st.lists(_objects("Key", "Value"), max_size=3),
    licenseSpecifications=st.lists(_objects("LicenseConfigurationArn"), max_size=2),
)


@given(wire=_TASKS)
def test_any_task_comes_back_from_the_wire(wire: dict[str, Any]) -> None:
    """Whatever odd members it has, at every level."""
    try:
        read = import_task({"ImportTaskId": "import-ami-x", **wire})
    except MalformedTaskError:
        return
    assert import_task(json.loads(json.dumps(wire_task(read)))) == read


# What is refused


@pytest.mark.parametrize(
    ("wire", "refusal"),
    [
        (None, "an import task must be a JSON object, not null"),
        ([], "an import task must be a JSON object, not a list"),
        ("x", "an import task must be a JSON object, not text"),
        ({}, "an import task must have an ImportTaskId; this one has no members"),
        ({"ImportTaskId": ""}, "an import task must have an ImportTaskId; this one's is empty"),
        ({"Status": "active"}, "an import task must have an ImportTaskId; this one has only Status"),
        ({"ImportTaskId": 5}, "an import task must have an ImportTaskId; this one's is a number"),
        (
            {"ImportTaskId": "i" * 501},
            "an import task must have an ImportTaskId; this one's has more than 500 characters",
        ),
    ],
)
def test_what_is_no_task_is_refused(wire: object, refusal: str) -> None:
    """With a word on what it is instead."""
    assert _refusal(wire) == refusal


@pytest.mark.parametrize(
    ("members", "refusal"),
    [
        ({"Description": ["a"]}, "description cannot be a list"),
        ({"Description": {"a": 1}}, "description cannot be an object"),
        ({"Encrypted": "perhaps"}, "encrypted cannot be text like 'perhaps'"),
        ({"Encrypted": 2}, "encrypted cannot be a number like '2'"),
        ({"Tags": "a"}, "tagSet must be a list, not text"),
        ({"Tags": ["a"]}, "tagSet must hold objects, not text"),
        ({"Tags": [{"Key": ["a"]}]}, "key cannot be a list"),
        ({"Tags": [{"Key": "a", "Value": {"b": 1}}]}, "value cannot be an object"),
        (
            {"Tags": [{"Key": "a", "Value": "b"}, {"Key": "a"}]},
            "tag 'a' occurs twice with different values",
        ),
        ({"Tags": [{"Key": "a" * 501}]}, "a tag's Key must have at most 500 characters"),
        ({"SnapshotDetails": {"Format": "RAW"}}, "snapshotDetailSet must be a list, not an object"),
        ({"SnapshotDetails": [5]}, "snapshotDetailSet must hold objects, not a number"),
        ({"SnapshotDetails": [{"UserBucket": "b"}]}, "userBucket of a disk must be an object, not text"),
        ({"SnapshotDetails": [{"UserBucket": {"S3Key": [1]}}]}, "s3Key cannot be a list"),
        ({"SnapshotDetails": [{"DiskImageSize": "big"}]}, "diskImageSize cannot be text like 'big'"),
        ({"SnapshotDetails": [{"DiskImageSize": True}]}, "diskImageSize cannot be a boolean like 'True'"),
        ({"SnapshotDetails": [{"DiskImageSize": "nan"}]}, "diskImageSize: a number is not finite"),
        ({"SnapshotDetails": [{"DiskImageSize": "1e999"}]}, "diskImageSize: a number is not finite"),
        ({"SnapshotDetails": [{"DiskImageSize": math.inf}]}, "diskImageSize is not finite"),
        ({"SnapshotDetails": [{"DiskImageSize": 10**400}]}, "diskImageSize is not finite"),
        ({"LicenseSpecifications": [["arn"]]}, "licenseSpecifications must hold objects, not a list"),
        ({"Odd": math.nan}, "odd is not finite"),
        ({"Odd": 10**400}, "odd is not finite"),
        ({"Odd": b"x"}, "odd holds bytes, which JSON does not have"),
        ({"Odd": {"A": "x", "a": "y"}}, "a occurs twice in one object"),
        ({"Tags": [{"Key": "a"}], "tagSet": [{"Key": "b"}]}, "tagSet occurs twice in one object"),
    ],
)
def test_a_member_that_cannot_be_understood_is_named_with_its_task(
    members: dict[str, Any], refusal: str
) -> None:
    """So that one bad field costs one task, and somebody can find it."""
    assert _refusal({"ImportTaskId": "import-ami-x", **members}) == f"import-ami-x: {refusal}"


def test_keys_as_long_as_they_may_be_are_kept() -> None:
    """The longest that PostgreSQL's B-trees take in any script."""
    key = "🚀" * 500
    assert task("x", Tags=[{"Key": key}]).tags == (Tag(key, None),)


@pytest.mark.parametrize("depth", [2_000, 100_000])
def test_deep_nesting_is_refused_with_its_task(depth: int) -> None:
    """Python's stack ends before PostgreSQL's does."""
    value: Any = "x"
    for _ in range(depth):
        value = [value]
    refusal = _refusal({"ImportTaskId": "import-ami-x", "Odd": value})
    assert refusal == "import-ami-x is nested too deeply"
    while isinstance(value, list):  # taken apart by hand: freeing it in one go is deep, too
        value = value[0]


def test_a_complaint_about_a_long_value_is_short() -> None:
    """A message of megabytes helps nobody."""
    refusal = _refusal({"ImportTaskId": "import-ami-x", "Encrypted": "x" * 10**6})
    assert len(refusal) < 200
