"""One look at a target: every page of ``DescribeImportImageTasks``, as a ``Scan`` or as a ``Failure``.

"Could not look" is never "found nothing": a page counts only if the list is in it, and a listing from which
a task is missing that cannot have gone is doubtful until that task was looked up by its id.
"""

import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from collector.aws.accounts import RenewableCredentials, renew_if_refused
from collector.aws.clients import Clients, acting_as
from collector.aws.deadline import Deadline, DeadlineExceededError
from collector.aws.failures import (
    EndlessListingError,
    UnusableAnswerError,
    breaks_listing,
    code_of,
    is_transient,
    message_of,
)
from collector.aws.pace import TokenBucket
from collector.aws.retrying import attempts
from collector.aws.transform import import_task
from collector.domain import Failure, ImportTask, Scan, Target
from collector.errors import CollectorError, MalformedTaskError

PAGE_SIZE = 500
MOST_PAGES = 1000

_UNSETTLING = (
    BotoCoreError,
    ResponseParserError,
    UnusableAnswerError,
    DeadlineExceededError,
    MalformedTaskError,
)

Missing = Callable[[Scan], Collection[str]]
"""Says which tasks are not in a listing though they cannot have gone."""


class Lister:
    """Looks at targets, from any number of threads.

    ``credentials_of`` gives an account's credentials, ``now`` the instants of scans (UTC, never the same
    twice), ``limit`` is the time for one look, and ``missing`` names the tasks that make a listing doubtful;
    where it cannot say, the listing stays doubtful.
    """

    def __init__(
        self,
        clients: Clients,
        credentials_of: Callable[[str], RenewableCredentials],
        *,
        now: Callable[[], datetime],
        limit: timedelta,
        missing: Missing,
    ) -> None:
        self._clients = clients
        self._credentials_of = credentials_of
        self._now = now
        self._limit = limit
        self._missing = missing
        self._stopped = threading.Event()
        self._looks: set[Deadline] = set()
        self._paces: defaultdict[Target, TokenBucket] = defaultdict(TokenBucket)
        self._gone: defaultdict[Target, set[str]] = defaultdict(set)

    def look(self, target: Target) -> Scan | Failure:
        """Read a target's listing. Whatever goes wrong is the value returned; nothing is raised."""
        deadline = Deadline(self._limit.total_seconds())
        reader = _Reader(deadline, self._stopped, self._paces[target])
        self._looks.add(deadline)
        try:
            with deadline, acting_as(self._credentials_of(target.account_id)):
                if self._stopped.is_set():
                    deadline.cancel()
                return self._look(target, reader)
        except Exception as error:  # noqa: BLE001 - one target's fault, whatever it is, must not stop the others
            return self._failure(target, reader, error)
        finally:
            self._looks.discard(deadline)

    def cancel(self) -> None:
        """End all looks at once, now and from now on; they fail with the code ``Cancelled``."""
        self._stopped.set()
        for deadline in list(self._looks):
            deadline.cancel()

    def _failure(self, target: Target, reader: "_Reader", error: Exception) -> Failure:
        """Say what went wrong: before the time was over, if anything did; else that it was over."""
        deadline = reader.deadline
        cause = error if deadline.remaining else reader.last_error or DeadlineExceededError()
        code = "Cancelled" if deadline.cancelled else code_of(cause)
        with suppress(KeyError):
            renew_if_refused(self._credentials_of(target.account_id), code)
        return Failure(target.account_id, target.region, self._now(), code, message_of(cause))

    def _look(self, target: Target, reader: "_Reader") -> Scan:
        reader.client = self._clients.ec2(target.region)
        observed_at, tasks = reader.listing(self._now)
        scan = Scan(target, observed_at, self._now(), True, "api", tuple(tasks.values()))
        try:
            missing = self._missing(scan)
        except CollectorError:
            return replace(scan, complete=False)  # What was seen counts, what was not seen means nothing.
        if not missing:
            self._gone.pop(target, None)
            return scan
        tasks, settled = self._look_up(target, reader, set(missing), tasks)
        return replace(scan, finished_at=self._now(), complete=settled, tasks=tuple(tasks.values()))

    def _look_up(
        self, target: Target, reader: "_Reader", missing: set[str], tasks: dict[str, ImportTask]
    ) -> tuple[dict[str, ImportTask], bool]:
        """Look missing tasks up one by one; return all tasks now seen, and whether no doubt is left.

        EC2 never knows again what it has forgotten: if the time is over before all are looked up, the next
        look need not ask for those anew.
        """
        gone = self._gone[target]
        found: dict[str, ImportTask] = {}
        for import_task_id in sorted(missing - gone):
            match reader.look_up(import_task_id):
                case ImportTask() as task:
                    found[import_task_id] = task
                case "gone":
                    gone.add(import_task_id)
        settled = missing <= gone | found.keys()
        if settled:
            self._gone.pop(target, None)
        return tasks | found, settled


class _Reader:
    """Requests to one Region's EC2 on behalf of one look, paced, and retried within its deadline."""

    client: Any = None

    def __init__(self, deadline: Deadline, stopped: threading.Event, pace: TokenBucket) -> None:
        self.deadline = deadline
        self.last_error: Exception | None = None
        self._stopped = stopped
        self._pace = pace

    def listing(self, now: Callable[[], datetime]) -> tuple[datetime, dict[str, ImportTask]]:
        """Return every listed task by its id, and the instant before the first request."""
        for attempt in attempts(breaks_listing, self.deadline, self._stopped.wait):
            with attempt:
                observed_at = now()
                # The same id may come twice while tasks move between pages; the later answer is the newer.
                tasks = {task.import_task_id: task for page in self._pages() for task in page}
        return observed_at, tasks

    def look_up(self, import_task_id: str) -> ImportTask | str:
        """Return a task, ``gone`` when EC2 no longer knows it, or ``unsettled`` when nobody can say."""
        try:
            tasks, _ = self._page(ImportTaskIds=[import_task_id])
        except ClientError as error:
            return "gone" if code_of(error).startswith("InvalidConversionTaskId") else "unsettled"
        except _UNSETTLING:
            return "unsettled"
        return next((task for task in tasks if task.import_task_id == import_task_id), "unsettled")

    def _pages(self) -> Iterator[list[ImportTask]]:
        options: dict[str, Any] = {"MaxResults": PAGE_SIZE}
        tokens: set[str] = set()
        while True:
            tasks, token = self._page(**options)
            yield tasks
            if not token:
                return
            if token in tokens:
                raise EndlessListingError("a page token came twice in one listing")
            tokens.add(token)
            if len(tokens) >= MOST_PAGES:
                raise EndlessListingError(f"the listing has more than {MOST_PAGES} pages")
            options["NextToken"] = token

    def _page(self, **options: Any) -> tuple[list[ImportTask], str | None]:
        for attempt in attempts(is_transient, self.deadline, self._stopped.wait):
            with attempt:
                try:
                    page = _page(self._request(**options))
                except Exception as error:
                    if self.deadline.remaining:
                        self.last_error = error
                    raise
        return page

    def _request(self, **options: Any) -> dict[str, Any]:
        if wait := self._pace.take():
            self._stopped.wait(min(wait, self.deadline.remaining))
        self.deadline.check()
        try:
            answer: dict[str, Any] = self.client.describe_import_image_tasks(**options)
        finally:
            self.deadline.release()
        return answer


def _page(answer: dict[str, Any]) -> tuple[list[ImportTask], str | None]:
    """Turn one answer into tasks and the next page's token.

    A 200 answer with a proxy's HTML page makes botocore return an object without the list, and no error.
    """
    if "ImportImageTasks" not in answer:
        raise UnusableAnswerError("the answer has no list of tasks; did a proxy answer for EC2?")
    return [import_task(wire) for wire in answer["ImportImageTasks"]], answer.get("NextToken")
