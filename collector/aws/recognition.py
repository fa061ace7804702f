"""Pages that EC2 sent in the last look at a target, byte for byte: they are recognised, not parsed again.

What may differ is the request's id and the page token, and botocore parses those each time, with everything
else around the list. The tasks of a recognised page are the very same objects as in the last look.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from hashlib import blake2b
from http import HTTPStatus
from typing import Any

from collector.aws.transform import import_task
from collector.domain import ImportTask

EVENT = "before-parse.ec2.DescribeImportImageTasks"

Pages = Mapping[bytes, list[ImportTask]]
"""The tasks of pages, by a digest of the page."""

_BEGIN, _END = b"<importImageTaskSet>", b"</importImageTaskSet>"
_VARYING = re.compile(rb"<(requestId|nextToken)>[^<]*</\1>")
_DIGEST = "PageDigest"
"""The member of botocore's answer that tells the digest."""

_current: ContextVar["Recognition"] = ContextVar("recognition")


class Recognition:
    """The pages of one look. ``before`` are those of the last good one, ``pages`` those of this one."""

    def __init__(self, before: Pages) -> None:
        self._before = before
        self.pages: dict[bytes, list[ImportTask]] = {}

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Recognise pages in what this thread asks inside ``with``."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    def begin(self) -> None:
        """Forget the pages of this look, because its listing is read anew."""
        self.pages = {}

    def knows(self, digest: bytes) -> bool:
        """Whether the last look had this page."""
        return digest in self._before

    def tasks(self, answer: Mapping[str, Any]) -> list[ImportTask]:
        """Return the tasks of an answer that holds a list.

        Raises:
            MalformedTaskError: one of them cannot be understood.
        """
        digest = answer.get(_DIGEST)
        tasks = self._before.get(digest) if digest else None
        if tasks is None:
            tasks = [import_task(wire) for wire in answer["ImportImageTasks"]]
        if digest:
            self.pages[digest] = tasks
        return tasks


def recognise(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any) -> None:
    """Answer botocore's event: leave it an empty list to parse where the last look had the same page."""
    recognition, body = _current.get(None), response_dict["body"]
    begin, end = body.find(_BEGIN), body.rfind(_END)
    if recognition is None or response_dict["status_code"] != HTTPStatus.OK or not 0 <= begin < end:
        return
    head, tail = body[: begin + len(_BEGIN)], body[end:]
    digest = _digest(_VARYING.sub(b"", head), memoryview(body)[begin:end], _VARYING.sub(b"", tail))
    customized_response_dict[_DIGEST] = digest
    if recognition.knows(digest):
        response_dict["body"] = head + tail


def _digest(*parts: bytes | memoryview) -> bytes:
    digest = blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.digest()
