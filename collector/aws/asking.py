"""How a target is asked: under one deadline, signed for its account, paced, retried; failures are values.

What is asked, and what the answers mean, is ``listing``'s and ``evidence``'s.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, TypeVar

from collector.aws.accounts import RenewableCredentials, renew_if_refused
from collector.aws.clients import acting_as
from collector.aws.deadline import Deadline, DeadlineExceededError
from collector.aws.failures import EndlessListingError, breaks_listing, code_of, is_transient, message_of
from collector.aws.pace import TokenBucket
from collector.aws.retrying import attempts
from collector.domain import Failure, Target

MOST_PAGES = 1000

Json = dict[str, Any]
T = TypeVar("T")

Understand = Callable[[Json], tuple[list[T], str | None]]
"""Turns an answer into its items and the next page's token; raises where it is no answer."""


class Asking:
    """Asks targets, from any number of threads.

    ``credentials_of`` gives an account's credentials, ``now`` dates failures (UTC), and ``limit`` is the time
    for all that one target is asked at a time.
    """

    def __init__(
        self,
        credentials_of: Callable[[str], RenewableCredentials],
        *,
        now: Callable[[], datetime],
        limit: timedelta,
    ) -> None:
        self._credentials_of = credentials_of
        self._now = now
        self._limit = limit
        self._stopped = threading.Event()
        self._running: set[Deadline] = set()

    def ask(
        self, target: Target, pace: TokenBucket, work: Callable[["Asker"], T], *, action: str = ""
    ) -> T | Failure:
        """Return what ``work`` returns. Whatever goes wrong is the value returned; nothing is raised.

        ``action`` says in a failure's message what was asked, where that is not plain.
        """
        deadline = Deadline(self._limit.total_seconds())
        asker = Asker(deadline, self._stopped, pace)
        self._running.add(deadline)
        try:
            with deadline, acting_as(self._credentials_of(target.account_id)):
                if self._stopped.is_set():
                    deadline.cancel()
                return work(asker)
        except Exception as error:  # noqa: BLE001 - one target's fault, whatever it is, must not stop the others
            return self._failure(target, asker, error, action)
        finally:
            self._running.discard(deadline)

    def cancel(self) -> None:
        """End everything at once, now and from now on; it fails with the code ``Cancelled``."""
        self._stopped.set()
        for deadline in list(self._running):
            deadline.cancel()

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

    def __init__(self, deadline: Deadline, stopped: threading.Event, pace: TokenBucket) -> None:
        self.deadline = deadline
        self.last_error: Exception | None = None
        self._stopped = stopped
        self._pace = pace

    def whole(self, read: Callable[[], T]) -> T:
        """Return what is read from the first page to the last, begun anew where a page breaks the listing."""
        for attempt in attempts(breaks_listing, self.deadline, self._stopped.wait):
            with attempt:
                found = read()
        return found

    def pages(
        self, request: Callable[..., Json], understand: Understand[T], **options: Any
    ) -> Iterator[list[T]]:
        """Yield the items of every page, as ``understand`` finds them in the answers."""
        tokens: set[str] = set()
        while True:
            items, token = self.page(request, understand, **options)
            yield items
            if not token:
                return
            if token in tokens:
                raise EndlessListingError("a page token came twice in one listing")
            tokens.add(token)
            if len(tokens) >= MOST_PAGES:
                raise EndlessListingError(f"the listing has more than {MOST_PAGES} pages")
            options["NextToken"] = token

    def page(
        self, request: Callable[..., Json], understand: Understand[T], **options: Any
    ) -> tuple[list[T], str | None]:
        """Return one page, asking again while that may help."""
        for attempt in attempts(is_transient, self.deadline, self._stopped.wait):
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
            self._stopped.wait(min(wait, self.deadline.remaining))
        self.deadline.check()
        try:
            return request(**options)
        finally:
            self.deadline.release()
