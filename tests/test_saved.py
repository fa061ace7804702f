"""Saved answers of the AWS CLI: every form that people keep, and every file that is none."""

import gzip
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from collector.aws.saved import scan_of_files
from collector.domain import Scan, Target

SAMPLES = Path(__file__).parent / "samples"
TASK = {"ImportTaskId": "import-ami-1", "Status": "active", "Tags": [{"Key": "Näme", "Value": "日本"}]}
OTHER = {"ImportTaskId": "import-ami-2", "Status": "completed"}


def encoded(value: object, encoding: str = "utf-8") -> bytes:
    """Write JSON as a file has it."""
    return json.dumps(value, ensure_ascii=False).encode(encoding)


def union(*contents: bytes, complete: bool = False) -> tuple[Scan | None, list[str]]:
    """Read files called a, b, …."""
    named = zip("abcdefgh", contents, strict=False)
    observed_at = datetime(2026, 3, 1, tzinfo=UTC)
    target = Target("111122223333", "eu-west-1")
    return scan_of_files(named, target=target, observed_at=observed_at, complete=complete)


def read(*contents: bytes, complete: bool = False) -> Scan:
    """Return the scan of files that are all good."""
    scan, found = union(*contents, complete=complete)
    assert found == []
    assert scan is not None
    return scan


def faults(*contents: bytes, complete: bool = False) -> list[str]:
    """Return what is wrong with files, line by line, none of which can be loaded."""
    scan, found = union(*contents, complete=complete)
    assert scan is None
    return found


@pytest.mark.parametrize(
    "form", [TASK, [TASK], {"ImportImageTasks": [TASK]}], ids=["bare task", "bare list", "whole answer"]
)
def test_three_forms(form: Any) -> None:
    """The CLI's whole answer, a bare list and a bare task say the same."""
    assert read(encoded(form)).digest == read(encoded([TASK])).digest


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_encodings(encoding: str) -> None:
    """PowerShell writes UTF-16 and byte order marks; the contents are the same."""
    assert read(encoded(TASK, encoding)).digest == read(encoded(TASK)).digest


@pytest.mark.parametrize("sample", sorted(SAMPLES.glob("*.json")), ids=lambda path: path.stem)
def test_samples(sample: Path) -> None:
    """Every sample is read, every task of it once."""
    scan = read(sample.read_bytes())

    assert len(scan.tasks) == len({task.import_task_id for task in scan.tasks})
    assert len(scan.tasks) == sample.read_text(encoding="utf-8").count('"ImportTaskId"')


def test_union() -> None:
    """Files of one command are one scan."""
    scan = read(encoded([TASK]), encoded([OTHER]))

    assert [task.import_task_id for task in scan.tasks] == ["import-ami-1", "import-ami-2"]
    assert (scan.source, scan.complete) == ("file", False)


def test_same_contents_twice() -> None:
    """One id twice with equal contents, in whatever order and with whatever signature, is one task."""
    signed = [TASK | {"SnapshotDetails": [{"Url": f"https://x/y?X-Amz-Signature={n}"}]} for n in "ab"]

    assert len(read(encoded([signed[0]]), encoded(signed[1])).tasks) == 1


@pytest.mark.parametrize("together", [True, False], ids=["in one file", "in two files"])
def test_two_contents(together: bool) -> None:
    """One id with two contents is refused, and both files are named."""
    pair = [TASK, TASK | {"Status": "completed"}]
    (fault,) = faults(encoded(pair)) if together else faults(*map(encoded, pair))

    assert fault.startswith("a: import-ami-1 has other contents than in a" if together else "b: import-ami-1")
    assert "than in a" in fault


def test_page_without_the_last() -> None:
    """Files that all say that another page follows cannot be complete."""
    page = encoded({"ImportImageTasks": [TASK], "NextToken": "more"})

    assert "NextToken" in faults(page, complete=True)[0]
    assert not read(page).complete
    assert read(page, encoded({"ImportImageTasks": [OTHER]}), complete=True).complete


def test_complete_and_empty() -> None:
    """An empty list, complete, says that nothing was listed."""
    scan = read(b'{"ImportImageTasks": []}', complete=True)

    assert (len(scan.tasks), scan.complete) == (0, True)


REFUSED = {
    "empty": (b"", "empty"),
    "white space": (b" \r\n", "empty"),
    "byte order mark alone": (b"\xef\xbb\xbf", "not JSON"),
    "text": (b"An error occurred (UnauthorizedOperation)", "not JSON: line 1"),
    "cut off": (b'{"ImportImageTasks": [{"ImportTaskId"', "not JSON: line 1, column 38"),
    "two documents": (b"{} {}", "not JSON"),
    "YAML": (b"ImportImageTasks:\n- ImportTaskId: x", "not JSON"),
    "a picture": (b"\x89PNG\r\n\x1a\n\x00\x00\xff", "not JSON"),
    "bytes": (bytes(range(128, 256)), "not JSON: the bytes are no text"),
    "latin-1": ('{"ImportTaskId": "ä"}'.encode("latin-1"), "not JSON: the bytes are no text"),
    "NULs": (b"\x00" * 64, "not JSON"),
    "NaN": (b'{"ImportTaskId": "x", "Progress": NaN}', "NaN is no JSON number"),
    "infinity": (b'[{"ImportTaskId": "x", "Progress": -Infinity}]', "-Infinity is no JSON number"),
    "too large a number": (b'{"ImportTaskId": "x", "SnapshotDetails": [{"DiskImageSize": 1e999}]}', "x: "),
    "a huge integer": (b'{"ImportTaskId": "x", "Odd": ' + b"9" * 5000 + b"}", "not JSON"),
    "a large integer": (b'{"ImportTaskId": "x", "Odd": ' + b"9" * 4000 + b"}", "x: "),
    "deep nesting": (b"[" * 100_000, "nested too deeply"),
    "deep member": (b'{"ImportTaskId": "x", "Odd": ' + b"[" * 900 + b"]" * 900 + b"}", "nested too deeply"),
    "a number": (b"3", "must be a JSON object"),
    "null": (b"null", "must be a JSON object"),
    "a list of numbers": (b"[3]", "must be a JSON object"),
    "another answer": (b'{"Images": [], "ResponseMetadata": {}}', "members: Images, ResponseMetadata"),
    "no members": (b"{}", "members: none"),
    "no list": (b'{"ImportImageTasks": {"ImportTaskId": "x"}}', "ImportImageTasks"),
    "no id": (b'[{"Status": "active"}]', "must have an ImportTaskId; this one has only Status"),
    "an empty id": (b'{"ImportTaskId": "", "Status": "active"}', "must have an ImportTaskId"),
    "a long id": (encoded({"ImportTaskId": "x" * 501}), "must have an ImportTaskId"),
    "id of another kind": (b'{"ImportTaskId": ["x"]}', "must have an ImportTaskId"),
    "tags are no list": (b'{"ImportTaskId": "x", "Tags": {"a": "b"}}', "x: tagSet must be a list"),
    "a key twice": (
        b'{"ImportTaskId": "x", "Tags": [{"Key": "k", "Value": "1"}, {"Key": "k", "Value": "2"}]}',
        "x: tag 'k' occurs twice",
    ),
}


@pytest.mark.parametrize(("content", "fault"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(content: bytes, fault: str) -> None:
    """What is no listing is refused in a sentence that names the file and the fault."""
    (line,) = faults(content)

    assert line.startswith("a: ")
    assert fault in line
    assert len(line) < 400


def test_all_faults_at_once() -> None:
    """Every faulty file is named, and the good ones beside them count."""
    scan, found = union(b"", encoded(TASK), b"{", b"3")
    assert [line[0] for line in found] == ["a", "c", "d"]
    assert scan is not None
    assert [task.import_task_id for task in scan.tasks] == ["import-ami-1"]


def test_a_bad_file_spoils_what_is_said_to_be_complete() -> None:
    """Nobody knows what it would have shown."""
    assert [line[0] for line in faults(b"{", encoded(TASK), complete=True)] == ["a"]


def test_gzip_and_lines() -> None:
    """Compressed, and one answer in each line: as log shippers keep them."""
    lines = encoded({"ImportImageTasks": [TASK]}) + b"\n\n" + encoded(OTHER) + b"\n"
    both = read(encoded([TASK, OTHER])).digest
    assert read(lines).digest == both
    assert read(gzip.compress(lines)).digest == both


def test_gzip_that_is_cut_off() -> None:
    """It is named as what it is."""
    assert "not gzip to its end" in faults(gzip.compress(encoded(TASK))[:-9])[0]
