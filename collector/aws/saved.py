"""Saved answers of ``aws ec2 describe-import-image-tasks``: files to one scan, or every fault in them.

People keep the CLI's whole answer, a bare task, or a bare list. A file says nothing about where and when it
was taken, and its own time is reset by any copy, so account, Region and instant come from outside.
"""

import gzip
import json
import zlib
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, NoReturn

from collector.aws.transform import import_task
from collector.domain import ImportTask, Scan, Target, Tasks
from collector.errors import MalformedTaskError

_GZIP = b"\x1f\x8b"


class _ExtraDataError(MalformedTaskError):
    """A good document, and something behind it."""


def scan_of_files(
    contents: Iterable[tuple[str, bytes]], *, target: Target, observed_at: datetime, complete: bool
) -> tuple[Scan | None, list[str]]:
    """Return the union of files that were saved at one instant, as one scan, and what is wrong with them.

    ``contents`` are names, for messages, and bytes, also gzipped. ``complete`` says that together they hold
    every task that was listed; then a bad file spoils them all, and so does a contradiction. Otherwise the
    good files count.
    """
    faults: list[str] = []
    spoiled = False
    origin: dict[str, str] = {}
    tasks: dict[str, ImportTask] = {}
    read = last_page = False
    for name, content in contents:
        try:
            found, has_next = _tasks(content)
        except MalformedTaskError as error:
            faults.append(f"{name}: {error}")
            continue
        read = True
        last_page |= not has_next
        for task in found:
            first = tasks.setdefault(task.import_task_id, task)
            if first.content_hash != task.content_hash:
                spoiled = True
                faults.append(
                    f"{name}: {task.import_task_id} has other contents than in"
                    f" {origin[task.import_task_id]}, and both are said to be of one instant"
                )
            origin.setdefault(task.import_task_id, name)
    if complete and not last_page and not faults:
        faults.append("--complete: every file has a NextToken, so the last page is missing")
    if spoiled or not read or (faults and complete):
        return None, faults
    return Scan(target, observed_at, observed_at, complete, "file", Tasks(tasks.values())), faults


def _tasks(content: bytes) -> tuple[list[ImportTask], bool]:
    """Return the tasks of one file, and whether the answer said that another page follows."""
    answers = _answers(_unzipped(content))
    found = [task for answer in answers for task in _tasks_of(answer)]
    tokens = [isinstance(answer, Mapping) and bool(answer.get("NextToken")) for answer in answers]
    return found, all(tokens)


def _tasks_of(answer: Any) -> list[ImportTask]:
    if isinstance(answer, Mapping) and "ImportTaskId" not in answer:
        tasks = answer.get("ImportImageTasks")
        if "ImportImageTasks" in answer and not isinstance(tasks, list):
            raise MalformedTaskError(
                "not an answer of describe-import-image-tasks: ImportImageTasks is no list"
            )
        if not isinstance(tasks, list):
            names = ", ".join(sorted(answer)[:5])[:200] or "none"
            raise MalformedTaskError(
                "not an answer of describe-import-image-tasks: it has neither ImportImageTasks nor"
                f" ImportTaskId; its members: {names}"
            )
        return [import_task(task) for task in tasks]
    return [import_task(task) for task in (answer if isinstance(answer, list) else [answer])]


def _unzipped(content: bytes) -> bytes:
    if not content.startswith(_GZIP):
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise MalformedTaskError(f"not gzip to its end: {error}") from None


def _answers(content: bytes) -> list[Any]:
    """Return the JSON documents of a file: one, or one in each line."""
    if not content.strip():
        raise MalformedTaskError("the file is empty")
    try:
        return [_parse(content)]
    except _ExtraDataError as error:
        lines = [line for line in content.splitlines() if line.strip()]
        try:
            return [_parse(line) for line in lines]
        except MalformedTaskError:
            raise error from None  # not JSON lines either


def _parse(content: bytes) -> Any:
    try:
        return json.loads(content, parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        raise MalformedTaskError("not JSON: the bytes are no text") from None
    except json.JSONDecodeError as error:
        kind = _ExtraDataError if error.msg == "Extra data" else MalformedTaskError
        raise kind(f"not JSON: line {error.lineno}, column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise MalformedTaskError("not an answer of describe-import-image-tasks: nested too deeply") from None
    except ValueError as error:
        raise MalformedTaskError(f"not JSON: {error}") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
