"""One look at a target: every page of ``DescribeImportImageTasks``, as a ``Scan`` or as a ``Failure``.

"Could not look" is never "found nothing": a page counts only if the list is in it, and a listing from which
a task is missing that cannot have gone is doubtful until that task was looked up by its id.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from datetime import datetime

from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from collector.aws.asking import Asker, Asking, Json
from collector.aws.clients import Clients
from collector.aws.deadline import DeadlineExceededError
from collector.aws.failures import UnusableAnswerError, code_of
from collector.aws.pace import TokenBucket
from collector.aws.recognition import Recognition, tasks_of, union
from collector.aws.transform import import_task
from collector.domain import Failure, ImportTask, Scan, Target, Tasks
from collector.errors import CollectorError, MalformedTaskError

PAGE_SIZE = 500

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

    ``asking`` says in whose name and for how long, ``now`` gives the instants of scans (UTC, never the same
    twice), and ``missing`` names the tasks that make a listing doubtful; where it cannot say, the listing
    stays doubtful.
    """

    def __init__(
        self, clients: Clients, asking: Asking, *, now: Callable[[], datetime], missing: Missing
    ) -> None:
        self._clients = clients
        self.asking = asking
        self._now = now
        self._missing = missing
        self._recognition = Recognition()
        self._paces: defaultdict[Target, TokenBucket] = defaultdict(TokenBucket)
        self._gone: defaultdict[Target, set[str]] = defaultdict(set)

    def look(self, target: Target) -> Scan | Failure:
        """Read a target's listing. Whatever goes wrong is the value returned; nothing is raised."""
        return self.asking.ask(target, self._paces[target], lambda asker: self._look(target, asker))

    def _look(self, target: Target, asker: Asker) -> Scan:
        describe = self._clients.client("ec2").describe_import_image_tasks

        def listing() -> tuple[datetime, Tasks]:
            observed_at = self._now()
            with self._recognition.of(target):
                pages = list(asker.pages(describe, _page, MaxResults=PAGE_SIZE))
            return observed_at, self._recognition.joined(target, pages)

        observed_at, tasks = asker.whole(listing)
        scan = Scan(target, observed_at, self._now(), True, "api", tasks)
        try:
            missing = self._missing(scan)
        except CollectorError:
            return replace(scan, complete=False)  # What was seen counts, what was not seen means nothing.
        if not missing:
            self._gone.pop(target, None)
            return scan
        found, settled = self._look_up(target, asker, describe, set(missing))
        return replace(scan, finished_at=self._now(), complete=settled, tasks=Tasks(union([tasks, found])))

    def _look_up(
        self, target: Target, asker: Asker, describe: Callable[..., Json], missing: set[str]
    ) -> tuple[list[ImportTask], bool]:
        """Look missing tasks up one by one; return those that are there, and whether no doubt is left.

        EC2 never knows again what it has forgotten: if the time is over before all are looked up, the next
        look need not ask for those anew.
        """
        gone = self._gone[target]
        found: list[ImportTask] = []
        for import_task_id in sorted(missing - gone):
            match _looked_up(asker, describe, import_task_id):
                case ImportTask() as task:
                    found.append(task)
                case "gone":
                    gone.add(import_task_id)
        settled = missing <= gone | {task.import_task_id for task in found}
        if settled:
            self._gone.pop(target, None)
        return found, settled


def _looked_up(asker: Asker, describe: Callable[..., Json], import_task_id: str) -> ImportTask | str:
    """Return a task, ``gone`` when EC2 no longer knows it, or ``unsettled`` when nobody can say."""
    try:
        tasks, _ = asker.page(describe, _page, ImportTaskIds=[import_task_id])
    except ClientError as error:
        return "gone" if code_of(error).startswith("InvalidConversionTaskId") else "unsettled"
    except _UNSETTLING:
        return "unsettled"
    return next((task for task in tasks if task.import_task_id == import_task_id), "unsettled")


def _page(answer: Json) -> tuple[Tasks, str | None]:
    """Turn one answer into tasks and the next page's token.

    A 200 answer with a proxy's HTML page makes botocore return an object without the list, and no error.
    """
    if "ImportImageTasks" not in answer:
        raise UnusableAnswerError("the answer has no list of tasks; did a proxy answer for EC2?")
    return tasks_of(answer, _parsed), answer.get("NextToken")


def _parsed(answer: Json) -> Iterator[ImportTask]:
    return map(import_task, answer["ImportImageTasks"])
