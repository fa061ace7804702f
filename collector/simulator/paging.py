"""Pages of a listing and their opaque tokens."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from collections.abc import Callable
from dataclasses import dataclass, field
from json import dumps, loads
from typing import Any

from collector.simulator.lives import Task


@dataclass(frozen=True, slots=True)
class Token:
    """Where the next page begins: behind the task with this number. ``salt`` makes equal places differ."""

    after: int
    page: int
    salt: str = ""

    def encode(self, scope: str) -> str:
        """Write it for one scope (account, Region and action)."""
        text = dumps([scope, self.after, self.page, self.salt], separators=(",", ":"))
        return urlsafe_b64encode(text.encode()).decode()


START = Token(after=-1, page=1)


def decode(text: str | None, scope: str) -> Token:
    """Read a token, or start. ``ValueError`` when it was not made here, or for another scope."""
    if not text:
        return START
    try:
        made_for, after, page, salt = loads(urlsafe_b64decode(text.encode()))
    except (Base64Error, TypeError, ValueError):
        raise ValueError("not a token of ours") from None
    if made_for != scope or not isinstance(after, int) or not isinstance(page, int):
        raise ValueError("a token of another listing")
    return Token(after, page, str(salt))


@dataclass(slots=True)
class Listing:
    """One page on its way out; listing faults alter it. ``first`` gives the first task of page 1, if any."""

    tasks: list[Task]
    page: int
    lookup: bool
    next_token: Token | None
    first: Callable[[], Task | None] = field(default=lambda: None)

    def as_result(self, scope: str) -> dict[str, Any]:
        """The answer in the form of boto3."""
        result: dict[str, Any] = {"ImportImageTasks": self.tasks}
        if self.next_token is not None:
            result["NextToken"] = self.next_token.encode(scope)
        return result
