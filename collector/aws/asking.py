"""How a target is asked: under one deadline, signed for its account, paced, retried; failures are values.

What is asked, and what the answers mean, is ``listing``'s and ``evidence``'s.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, TypeVar

from collector.aws.accounts import RenewableCredentials, renew_if_refused
from collector.aws.clients import acting_as
from collector.aws.deadline import Deadline, DeadlineExceededError, Deadlines
from collector.aws.failures import breaks_listing, code_of, is_transient, message_of
from collector.aws.pace import TokenBucket
from collector.aws.pages import every_page
from collector.aws.retrying import attempts
from collector.domain import Failure, Target

Json = dict[str, Any]
T = TypeVar("T")

Understand = Callable[[Json], tuple[T, str | None]]
"""Turns an answer into what is on the page and the next one's token; raises where it is no answer."""


class Asking:
    """Asks targets, from any number of threads.

    ``credentials_of`` gives an account's credentials, ``deadlines`` can end everything, ``now`` dates
    failures (UTC), and ``limit`` is the time for all that one target is asked at a time.
    """

    def __init__(
        self,
        credentials_of: Callable[[str], RenewableCredentials],
        *,
        deadlines: Deadlines,
        now: Callable[[], datetime],
        limit: timedelta,
    ) -> None:
        self._credentials_of = credentials_of
        self.deadlines = deadlines
        self._now = now
        self._limit = limit

    def ask(
        self, target: Target, pace: TokenBucket, work: Callable[["Asker"], T], *, action: str = ""
    ) -> T | Failure:
        """Return what ``work`` returns. Whatever goes wrong is the value returned; nothing is raised.

        ``action`` says in a failure's message what was asked, where that is not plain. What is ended before
        its time fails with the code ``Cancelled``.
        """
        with self.deadlines.limit(self._limit.total_seconds()) as deadline:
            asker = Asker(deadline, self.deadlines.pause, pace)
            try:
                with acting_as(self._credentials_of(target.account_id), target.region):
                    return work(asker)
            except Exception as error:  # noqa: BLE001 - one target's fault, whatever it is, must not stop others
                return self._failure(target, asker, error, action)

    def _failure(self, target: Target, asker: "Asker", error: Exception, action: str) -> Failure:
        """Say what went wrong: before the time was over, if anything did; else that it was over."""
        deadline = asker.deadline
        cause = error if deadline.remaining else asker.last_error or DeadlineExceededError()
        code = "Cancelled" if deadline.cancelled else code_of(cause)
        with suppress(KeyError):
            renew_if_refused(self._credentials_of(target.account_id), code)
        message = f"{action}: {message_of(cause)}" if action else message_of(cause)
        return Failure(target.account_id, target.region, self._now(), code, message)


class Asker:
    """The requests of one question, paced, and retried within its deadline."""

    def __init__(self, deadline: Deadline, pause: Callable[[float], None], pace: TokenBucket) -> None:
        self.deadline = deadline
        self.last_error: Exception | None = None
        self._pause = pause
        self._pace = pace

    def whole(self, read: Callable[[], T]) -> T:
        """Return what is read from the first page to the last, begun anew where a page breaks the listing."""
        for attempt in attempts(breaks_listing, self.deadline, self._pause):
            with attempt:
                found = read()
        return found

    def pages(self, request: Callable[..., Json], understand: Understand[T], **options: Any) -> Iterator[T]:
        """Yield every page, as ``understand`` finds it in the answer."""
        return every_page(lambda token: self.page(request, understand, **options, **token))

    def page(
        self, request: Callable[..., Json], understand: Understand[T], **options: Any
    ) -> tuple[T, str | None]:
        """Return one page, asking again while that may help."""
        for attempt in attempts(is_transient, self.deadline, self._pause):
            with attempt:
                try:
                    page = understand(self._answer(request, options))
                except Exception as error:
                    if self.deadline.remaining:
                        self.last_error = error
                    raise
        return page

    def _answer(self, request: Callable[..., Json], options: Json) -> Json:
        if wait := self._pace.take():
            self._pause(min(wait, self.deadline.remaining))
        self.deadline.check()
        try:
            return request(**options)
        finally:
            self.deadline.release()
