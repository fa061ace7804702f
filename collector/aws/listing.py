"""One look at a target: every page of ``DescribeImportImageTasks``, as a ``Scan`` or as a ``Failure``.

"Could not look" is never "found nothing": a page counts only if the list is in it, and a listing from which
a task is missing that cannot have gone is doubtful until that task was looked up by its id.
"""

import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError
from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential

from collector.aws.clients import Clients
from collector.aws.deadline import Deadline, DeadlineExceededError
from collector.aws.failures import (
    EndlessListingError,
    UnusableAnswerError,
    breaks_listing,
    code_of,
    is_transient,
    message_of,
)
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

    ``now`` gives the instants of scans (UTC, never the same twice), ``limit`` is the time for one look, and
    ``missing`` names the tasks that make a listing doubtful; where it cannot say, the listing stays doubtful.
    """

    def __init__(
        self, clients: Clients, *, now: Callable[[], datetime], limit: timedelta, missing: Missing
    ) -> None:
        self._clients = clients
        self._now = now
        self._limit = limit
        self._missing = missing
        self._stopped = threading.Event()
        self._looks: set[Deadline] = set()

    def look(self, target: Target) -> Scan | Failure:
        """Read a target's listing. Whatever goes wrong is the value returned; nothing is raised."""
        deadline = Deadline(self._limit.total_seconds())
        self._looks.add(deadline)
        try:
            with deadline:
                if self._stopped.is_set():
                    deadline.cancel()
                reader = _Reader(self._clients.ec2(target.region), deadline, self._stopped)
                return self._look(target, reader)
        except Exception as error:  # noqa: BLE001 - one target's fault, whatever it is, must not stop the others
            return self._failure(target, deadline, error)
        finally:
            self._looks.discard(deadline)

    def cancel(self) -> None:
        """End all looks at once, now and from now on; they fail with the code ``Cancelled``."""
        self._stopped.set()
        for deadline in list(self._looks):
            deadline.cancel()

    def _failure(self, target: Target, deadline: Deadline, error: Exception) -> Failure:
        """Say what went wrong; what fails when the time is over fails because of that."""
        cause = error if deadline.remaining else DeadlineExceededError()
        code = "Cancelled" if deadline.cancelled else code_of(cause)
        return Failure(target.account_id, target.region, self._now(), code, message_of(cause))

    def _look(self, target: Target, reader: "_Reader") -> Scan:
        observed_at, tasks = reader.listing(self._now)
        scan = Scan(target, observed_at, self._now(), True, "api", tuple(tasks.values()))
        try:
            missing = self._missing(scan)
        except CollectorError:
            return replace(scan, complete=False)  # What was seen counts, what was not seen means nothing.
        if not missing:
            return scan
        unsettled = 0
        for import_task_id in sorted(missing):
            match reader.look_up(import_task_id):
                case ImportTask() as task:
                    tasks[import_task_id] = task
                case "unsettled":
                    unsettled += 1
        return replace(scan, finished_at=self._now(), complete=not unsettled, tasks=tuple(tasks.values()))


class _Reader:
    """Requests to one Region's EC2 on behalf of one look, retried within its deadline."""

    def __init__(self, client: Any, deadline: Deadline, stopped: threading.Event) -> None:
        self._client = client
        self._deadline = deadline
        self._stopped = stopped

    def listing(self, now: Callable[[], datetime]) -> tuple[datetime, dict[str, ImportTask]]:
        """Return every listed task by its id, and the instant before the first request."""
        for attempt in self._attempts(breaks_listing):
            with attempt:
                observed_at = now()
                # The same id may come twice while tasks move between pages; the later answer is the newer.
                tasks = {task.import_task_id: task for page in self._pages() for task in page}
        return observed_at, tasks

    def look_up(self, import_task_id: str) -> ImportTask | str:
        """Return a task, ``gone`` when EC2 no longer knows it, or ``unsettled`` when nobody can say."""
        try:
            tasks, _ = _page(self._request(ImportTaskIds=[import_task_id]))
        except ClientError as error:
            return "gone" if code_of(error).startswith("InvalidConversionTaskId") else "unsettled"
        except _UNSETTLING:
            return "unsettled"
        return next((task for task in tasks if task.import_task_id == import_task_id), "unsettled")

    def _pages(self) -> Iterator[list[ImportTask]]:
        options: dict[str, Any] = {"MaxResults": PAGE_SIZE}
        tokens: set[str] = set()
        while True:
            tasks, token = _page(self._request(**options))
            yield tasks
            if not token:
                return
            if token in tokens:
                raise EndlessListingError("a page token came twice in one listing")
            tokens.add(token)
            if len(tokens) >= MOST_PAGES:
                raise EndlessListingError(f"the listing has more than {MOST_PAGES} pages")
            options["NextToken"] = token

    def _request(self, **options: Any) -> dict[str, Any]:
        for attempt in self._attempts(is_transient):
            with attempt:
                self._deadline.check()
                try:
                    answer: dict[str, Any] = self._client.describe_import_image_tasks(**options)
                finally:
                    self._deadline.release()
        return answer

    def _attempts(self, worth_it: Callable[[BaseException], bool]) -> Retrying:
        return Retrying(
            retry=retry_if_exception(worth_it),
            wait=wait_random_exponential(multiplier=0.2, max=5),
            stop=self._too_late,
            sleep=self._sleep,
            reraise=True,
        )

    def _sleep(self, seconds: float) -> None:
        self._stopped.wait(seconds)

    def _too_late(self, state: RetryCallState) -> bool:
        return state.upcoming_sleep >= self._deadline.remaining


def _page(answer: dict[str, Any]) -> tuple[list[ImportTask], str | None]:
    """Turn one answer into tasks and the next page's token.

    A 200 answer with a proxy's HTML page makes botocore return an object without the list, and no error.
    """
    if "ImportImageTasks" not in answer:
        raise UnusableAnswerError("the answer has no list of tasks; did a proxy answer for EC2?")
    return [import_task(wire) for wire in answer["ImportImageTasks"]], answer.get("NextToken")
