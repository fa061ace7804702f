"""Pages of listings that have not changed are recognised by their bytes, and not parsed again.

Parsing is most of what a look costs, and hardly any page differs from the last time's but for its
``requestId`` and ``nextToken``. botocore's ``before-parse`` event shows the body first: if it is known, the
parser gets one without tasks, and the tasks of the last time are handed past it.
"""

import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from hashlib import blake2b
from typing import Any

from collector.aws.transform import import_task, wire_task
from collector.domain import ImportTask, Target, Tasks

Json = dict[str, Any]

EVENT = "before-parse.ec2.DescribeImportImageTasks"

_TASKS, _PRINT = "collector:tasks", "collector:print"
"""Members of an answer that no service has: the known tasks of a page, or what it is to be known by."""

_EMPTY = b"<DescribeImportImageTasksResponse>%b<importImageTaskSet/>%b</DescribeImportImageTasksResponse>"
_OK = 200

_pages: ContextVar["_Pages"] = ContextVar("pages")


class Recognition:
    """Remembers the pages of each target's last listing; for any number of threads, one for a target."""

    def __init__(self) -> None:
        self._known: dict[Target, dict[bytes, Tasks]] = {}
        self._joined: dict[Target, tuple[tuple[bytes, ...], Tasks]] = {}

    @contextmanager
    def of(self, target: Target) -> Iterator[None]:
        """Recognise pages that this thread reads inside ``with``, and remember them if it ends well."""
        pages = _Pages(self._known.get(target, {}))
        token = _pages.set(pages)
        try:
            yield
            self._known[target] = pages.seen
        finally:
            _pages.reset(token)

    def joined(self, target: Target, pages: Sequence[Tasks]) -> Tasks:
        """Return the tasks of all pages of a listing, without reading them if every page is as last time."""
        if len(pages) == 1:
            return pages[0]
        digests = tuple(page.digest for page in pages)
        before, tasks = self._joined.get(target, ((), Tasks()))
        if digests != before:
            kept = {page.digest: page for page in self._known[target].values()}
            tasks = Tasks(union(pages))
            load = partial(_read_again, [kept.get(page.digest, page) for page in pages])
            self._joined[target] = digests, tasks.loaded_by(load)
        return tasks


class _Pages:
    """Those of the last listing, and those seen in this one, by their prints."""

    def __init__(self, known: dict[bytes, Tasks]) -> None:
        self.known = known
        self.seen: dict[bytes, Tasks] = {}


def look_at_body(response_dict: Json, customized_response_dict: Json, **_: Any) -> None:
    """Handle botocore's event: note what a page is to be known by, or hand over the tasks that it has."""
    if (pages := _pages.get(None)) is None or response_dict["status_code"] != _OK:
        return
    print_of_page, head, tail = _taken_apart(response_dict["body"])
    if (tasks := pages.known.get(print_of_page)) is None:
        customized_response_dict[_PRINT] = print_of_page
    else:
        pages.seen[print_of_page] = customized_response_dict[_TASKS] = tasks
        response_dict["body"] = _EMPTY % (head, tail)


def tasks_of(answer: Json, parse: Callable[[Json], Iterable[ImportTask]]) -> Tasks:
    """Return the tasks of an answer: those that its page is known to have, or else parsed, and remembered."""
    known: Tasks | None = answer.get(_TASKS)
    if known is not None:
        return known
    tasks = Tasks(union([parse(answer)]))
    if (print_of_page := answer.get(_PRINT)) is not None:
        _pages.get().seen[print_of_page] = tasks.loaded_by(partial(_unpacked, _packed(tasks)))
    return tasks


def _taken_apart(body: bytes) -> tuple[bytes, bytes, bytes]:
    """Return a print of all that a page says, and the two elements that differ between equal pages."""
    seen = blake2b(digest_size=16)
    request_id, rest = _cut(body, b"<requestId>", b"</requestId>")
    token, rest = _cut(rest, b"<nextToken>", b"</nextToken>")
    seen.update(rest)
    return seen.digest(), request_id, token


def _cut(body: bytes, begin: bytes, end: bytes) -> tuple[bytes, bytes]:
    """Return the element between two tags, with them, and the body without it."""
    start = body.find(begin)
    stop = body.find(end, start)
    if start < 0 or stop < 0:
        return b"", body
    stop += len(end)
    return body[start:stop], body[:start] + body[stop:]


def union(pages: Iterable[Iterable[ImportTask]]) -> Iterable[ImportTask]:
    """Return each task once: it may come twice while tasks move between pages; the later is the newer."""
    return {task.import_task_id: task for page in pages for task in page}.values()


def _read_again(pages: Sequence[Tasks]) -> tuple[ImportTask, ...]:
    return tuple(Tasks(union(pages)))


def _packed(tasks: Tasks) -> bytes:
    """Return tasks in a tenth of the memory: those of all targets are there all the time."""
    return zlib.compress(json.dumps([wire_task(task) for task in tasks]).encode(), level=1)


def _unpacked(packed: bytes) -> tuple[ImportTask, ...]:
    return tuple(map(import_task, json.loads(zlib.decompress(packed))))
