"""Saved answers of ``aws ec2 describe-import-image-tasks``: files to one scan, or every fault in them.

People keep the CLI's whole answer, a bare task, or a bare list. A file says nothing about where and when it
was taken, and its own time is reset by any copy, so account, Region and instant come from outside.
"""

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, NoReturn

from collector.aws.transform import import_task
from collector.domain import ImportTask, Scan, Target
from collector.errors import CollectorError, MalformedTaskError


class UnreadableFilesError(CollectorError):
    """One saved file or more cannot be read as import tasks; nothing of them was stored."""

    def __init__(self, *faults: str) -> None:
        super().__init__("\n".join(faults))


def scan_of_files(
    contents: Iterable[tuple[str, bytes]], *, target: Target, observed_at: datetime, complete: bool
) -> Scan:
    """Return the union of files that were saved at one instant, as one scan.

    ``contents`` are names, for messages, and bytes. ``complete`` says that together they hold every task
    that was listed.

    Raises:
        UnreadableFilesError: one fault or more, each with its file; nothing is to be stored then.
    """
    faults: list[str] = []
    origin: dict[str, str] = {}
    tasks: dict[str, ImportTask] = {}
    last_page = False
    for name, content in contents:
        try:
            found, has_next = _tasks(content)
            last_page |= not has_next
        except MalformedTaskError as error:
            faults.append(f"{name}: {error}")
            continue
        for task in found:
            first = tasks.setdefault(task.import_task_id, task)
            if first.content_hash != task.content_hash:
                faults.append(
                    f"{name}: {task.import_task_id} has other contents than in"
                    f" {origin[task.import_task_id]}, and both are said to be of one instant"
                )
            origin.setdefault(task.import_task_id, name)
    if complete and not last_page and not faults:
        faults.append("--complete: every file has a NextToken, so the last page is missing")
    if faults:
        raise UnreadableFilesError(*faults)
    return Scan(target, observed_at, observed_at, complete, "file", tuple(tasks.values()))


def _tasks(content: bytes) -> tuple[list[ImportTask], bool]:
    """Return the tasks of one file, and whether the answer said that another page follows."""
    answer = _parse(content)
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
        return [import_task(task) for task in tasks], bool(answer.get("NextToken"))
    return [import_task(task) for task in (answer if isinstance(answer, list) else [answer])], False


def _parse(content: bytes) -> Any:
    if not content.strip():
        raise MalformedTaskError("the file is empty")
    try:
        return json.loads(content, parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        raise MalformedTaskError("not JSON: the bytes are no text") from None
    except json.JSONDecodeError as error:
        raise MalformedTaskError(
            f"not JSON: line {error.lineno}, column {error.colno}: {error.msg}"
        ) from None
    except RecursionError:
        raise MalformedTaskError("not an answer of describe-import-image-tasks: nested too deeply") from None
    except ValueError as error:
        raise MalformedTaskError(f"not JSON: {error}") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
