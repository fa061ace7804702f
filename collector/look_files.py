"""One look as the bytes of one file. Knows no folders; what makes a task's JSON is handed in.

The first line is a JSON header, the second the payload, also JSON. Older and newer releases read each
other's files: members that nobody knows are ignored, and only a greater format number says that a file is
for a newer release. The checksum covers the payload; the rest of the header is a copy, for a reader in haste.
"""

import json
from collections.abc import Callable
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from collector.domain import Failure, ImportTask, Look, Scan, Target, Tasks
from collector.errors import CollectorError

FORMAT = 1
"""The number of the files' format; a greater one only for files that this release could not read."""

Json = dict[str, Any]
ToWire = Callable[[ImportTask], Json]
FromWire = Callable[[object], ImportTask]

_LONGEST_HEADER = 65_536


class DamagedFileError(CollectorError):
    """A file holds no look; the text says why."""


class NewerFileError(CollectorError):
    """A file is for a newer release."""


def encoded(look: Look, to_wire: ToWire) -> bytes:
    """Return the content of a look's file."""
    payload = _line(_scan_members(look, to_wire) if isinstance(look, Scan) else _failure_members(look))
    header = {
        "collector_spool": FORMAT,
        "sha256": sha256(payload).hexdigest(),
        "complete": look.complete if isinstance(look, Scan) else None,
        "digest": look.digest.hex() if isinstance(look, Scan) else None,
        "kind": "scan" if isinstance(look, Scan) else "failure",
    }
    return _line(header) + b"\n" + payload + b"\n"


def decoded(content: bytes, from_wire: FromWire) -> Look:
    """Return the look that a file's content holds.

    Raises:
        DamagedFileError: it holds none, or a task that ``from_wire`` refuses.
        NewerFileError: a newer release wrote it.
    """
    try:
        header, payload = _taken_apart(content)
        return _look(header["kind"], json.loads(payload), from_wire)
    except KeyError as error:
        raise DamagedFileError(f"it has no {error}") from error
    except RecursionError as error:
        raise DamagedFileError("it is nested too deeply") from error
    except (DamagedFileError, NewerFileError):
        raise
    except (CollectorError, AttributeError, TypeError, ValueError) as error:
        raise DamagedFileError(str(error)) from error


def digest_of_complete_scan(path: Path) -> str | None:
    """Return what a file's header says, without reading on; ``None``: no complete scan, or nobody can say."""
    try:
        with path.open("rb") as file:
            header = _header(file.readline(_LONGEST_HEADER))
    except (OSError, CollectorError, RecursionError, ValueError):
        return None
    digest = header.get("digest")
    is_complete = header.get("kind") == "scan" and header.get("complete") is True
    return digest if is_complete and isinstance(digest, str) else None


def is_sound(path: Path) -> bool:
    """Whether a file is there and whole."""
    try:
        _taken_apart(path.read_bytes())
    except (OSError, CollectorError, KeyError, RecursionError, ValueError):
        return False
    return True


def _taken_apart(content: bytes) -> tuple[Json, bytes]:
    line, end, rest = content.partition(b"\n")
    if not end:
        raise DamagedFileError("it was not written to its end")
    header, payload = _header(line), rest.partition(b"\n")[0]
    if header["sha256"] != sha256(payload).hexdigest():
        raise DamagedFileError("its checksum is wrong")
    return header, payload


def _header(line: bytes) -> Json:
    header = json.loads(line)
    number = header.get("collector_spool") if isinstance(header, dict) else None
    if not isinstance(number, int) or number < 1:
        raise DamagedFileError("its header is none of the collector's")
    if number > FORMAT:
        raise NewerFileError(f"a newer release wrote it (format {number}) and must read it")
    members: Json = header
    return members


def _look(kind: object, members: Json, from_wire: FromWire) -> Look:
    match kind:
        case "scan":
            return _scan(members, from_wire)
        case "failure":
            return _failure(members)
    raise DamagedFileError(f"it is of an unknown kind: {kind!r}")


def _scan_members(scan: Scan, to_wire: ToWire) -> Json:
    return {
        "account_id": scan.target.account_id,
        "region": scan.target.region,
        "observed_at": scan.observed_at.isoformat(),
        "finished_at": scan.finished_at.isoformat(),
        "complete": scan.complete,
        "source": scan.source,
        "tasks": [to_wire(task) for task in scan.tasks],
    }


def _scan(members: Json, from_wire: FromWire) -> Scan:
    return Scan(
        target=Target(members["account_id"], members["region"]),
        observed_at=datetime.fromisoformat(members["observed_at"]),
        finished_at=datetime.fromisoformat(members["finished_at"]),
        complete=members["complete"],
        source=members["source"],
        tasks=Tasks(from_wire(task) for task in members["tasks"]),
    )


def _failure_members(failure: Failure) -> Json:
    return {
        "account_id": failure.account_id,
        "region": failure.region,
        "failed_at": failure.failed_at.isoformat(),
        "code": failure.code,
        "message": failure.message,
    }


def _failure(members: Json) -> Failure:
    return Failure(
        account_id=members["account_id"],
        region=members["region"],
        failed_at=datetime.fromisoformat(members["failed_at"]),
        code=members["code"],
        message=members["message"],
    )


def _line(members: Json) -> bytes:
    """Return JSON in ASCII, which has no line break and takes any text."""
    return json.dumps(members, separators=(",", ":")).encode("ascii")
