"""All imports of all accounts and Regions, by the simulated clock."""

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import replace
from datetime import datetime, timedelta
from hashlib import sha256
from itertools import count
from random import Random
from threading import Lock
from typing import Any, NamedTuple

from collector.simulator.clock import SimulatedClock
from collector.simulator.lives import CANCELLED, Plan, Task, show
from collector.simulator.place import Place, Stream
from collector.simulator.planning import Planner
from collector.simulator.trail import Recorded

FINISHED = frozenset({"completed", "deleted"})


class FinishedTaskError(Exception):
    """The task has ended, or is already being deleted; the argument is its state."""


class Shown(NamedTuple):
    """One good answer to ``DescribeImportImageTasks``; ``more`` says that another page follows."""

    account_id: str
    region: str
    at: datetime
    page: int
    lookup: bool
    more: bool
    tasks: list[Task]


class Fleet:
    """The simulated imports. Thread-safe.

    Args:
        clock: the time by which tasks live.
        seed: makes everything random repeatable.
        shuffle: whether the order of tags and disks differs from answer to answer.
        record: whether ``ledger`` keeps every good listing that the server gave.
    """

    def __init__(
        self, clock: SimulatedClock, seed: int = 0, *, shuffle: bool = False, record: bool = False
    ) -> None:
        self.clock = clock
        self.shuffle = shuffle
        self.ledger: list[Shown] | None = [] if record else None
        self._rng = Random(seed)  # noqa: S311 - repeatable imports, not secrets
        self._shuffler = Random(seed)  # noqa: S311 - an order, not a secret
        self._planner = Planner(self._rng)
        self._lock = Lock()
        self._numbers = count()
        self._signatures = count()
        self._places: dict[tuple[str, str], Place] = {}

    def import_image(
        self,
        account: str,
        region: str,
        *,
        at: datetime | None = None,
        duration: timedelta | None = None,
        failure: str | None = None,
        fails_in: str | None = None,
        **request: Any,
    ) -> str:
        """Begin an import, and return its task's id.

        Args:
            account: the account that asks.
            region: the Region it asks in.
            at: when; now if not given.
            duration: how long a success takes; the disks' sizes decide if not given.
            failure: the message it fails with; it succeeds if not given.
            fails_in: the phase in which it fails, such as ``converting``.
            request: ``ImportImage`` parameters, named as boto3 names them.
        """
        with self._lock:
            at = at or self.clock.now()
            plan = self._planner.plan(request, at, duration=duration, failure=failure, fails_in=fails_in)
            self._begin((account, region), request, plan)
            return plan.import_task_id

    def refuse(
        self,
        account: str,
        region: str,
        code: str,
        message: str,
        *,
        at: datetime | None = None,
        action: str = "ImportImage",
        **request: Any,
    ) -> None:
        """Place a request that failed, of which CloudTrail alone tells; ``request`` are its parameters.

        Its time is ``at``, or now. EC2's codes begin with ``Client.`` or ``Server.`` there.
        """
        with self._lock:
            place = self._place(account, region)
            place.write_down(at or self.clock.now(), action, deepcopy(request), error=(code, message))

    def recorded(self, account: str, region: str) -> tuple[datetime, list[Recorded]]:
        """Now, and all requests that were written down, by number, those yet to come included."""
        with self._lock:
            now = self.clock.now()
            self._arrive(account, region, now)
            return now, list(self._place(account, region).recorded)

    def cancel(self, account: str, region: str, task_id: str) -> str:
        """Cancel an import, and return the state it was in.

        Raises:
            UnknownTaskError: EC2 does not know the task.
            FinishedTaskError: it has ended, or is being cancelled already.
        """
        with self._lock:
            now = self.clock.now()
            entry = self._place(account, region).find(task_id, now)
            state = entry.state(now)
            if state in FINISHED or state == "deleting":
                raise FinishedTaskError(state)
            if isinstance(entry.life, Plan):
                entry.life = replace(entry.life, cancelled_at=now)
            else:
                entry.life = entry.life | {"Status": "deleting", "StatusMessage": CANCELLED}
            place = self._place(account, region)
            place.foil_cancellations(task_id)
            place.write_down(now, "CancelImportTask", {"ImportTaskId": task_id}, task_id)
            return state

    def put(self, account: str, region: str, task: Task) -> None:
        """Place exactly this task (the CLI's JSON); it stays as it is until replaced or removed."""
        with self._lock:
            place = self._place(account, region)
            place.enter(next(self._numbers), str(task["ImportTaskId"]), deepcopy(task))

    def remove(self, account: str, region: str, task_id: str) -> None:
        """Forget a task at once, as EC2 does after seven days.

        Raises:
            UnknownTaskError: there is no such task.
        """
        with self._lock:
            self._place(account, region).leave(task_id)

    def put_image(self, account: str, region: str, image: dict[str, Any]) -> None:
        """Place exactly this AMI (the CLI's JSON), beside those that finished imports leave."""
        with self._lock:
            self._place(account, region).images[str(image["ImageId"])] = deepcopy(image)

    def placed_images(self, account: str, region: str) -> list[dict[str, Any]]:
        """The AMIs that were placed."""
        with self._lock:
            return list(self._place(account, region).images.values())

    def populate(
        self,
        account: str,
        region: str,
        number: int,
        *,
        since: timedelta = timedelta(days=8),
        until: timedelta = timedelta(hours=2),
        recent: float = 0.3,
        failures: float = 0.15,
        cancellations: float = 0.05,
    ) -> list[str]:
        """Invent imports that began, or will begin, around now, and return their ids.

        Args:
            account: the account that asked for them.
            region: the Region.
            number: how many.
            since: how far back the oldest began; past seven days EC2 has forgotten them, but their AMIs stay.
            until: how far ahead the last begins.
            recent: the share that began within the last hour and a half, so that some are under way.
            failures: the share that fails.
            cancellations: the share that is cancelled.
        """
        with self._lock:
            now = self.clock.now()
            starts = sorted(self._start(now, since, until, recent) for _ in range(number))
            shares = {"failures": failures, "cancellations": cancellations}
            return [self._invent((account, region), at, **shares) for at in starts]

    def keep_importing(self, account: str, region: str, *, every: timedelta) -> None:
        """Let new imports come, about one ``every`` so often, from now on."""
        if every <= timedelta(0):
            raise ValueError("imports cannot come without any time between them")
        with self._lock:
            self._place(account, region).stream = Stream(every, self.clock.now())

    def tasks(self, account: str, region: str, ids: Iterable[str] | None = None) -> list[Task]:
        """What EC2 shows now, in the CLI's form: everything, or the tasks with these ids.

        Raises:
            UnknownTaskError: one of the ids is unknown or forgotten.
        """
        _, shown = self.listing(account, region, ids=None if ids is None else list(ids))
        return deepcopy([task for _, task in shown])

    def listing(
        self,
        account: str,
        region: str,
        *,
        ids: list[str] | None = None,
        states: frozenset[str] | None = None,
        after: int = -1,
        limit: int | None = None,
    ) -> tuple[datetime, list[tuple[int, Task]]]:
        """One instant, and the tasks as they are then, with their numbers: up to ``limit`` behind ``after``.

        Raises:
            UnknownTaskError: one of the ids is unknown or forgotten.
        """
        with self._lock:
            now = self.clock.now()
            place = self._place(account, region)
            self._arrive(account, region, now)
            found: list[tuple[int, Plan | Task]] = []
            for entry in place.visible(now, after, ids):
                if limit is not None and len(found) == limit:
                    break
                if states is None or entry.state(now) in states:
                    found.append((entry.number, entry.life))
        return now, [(number, self._show(life, now)) for number, life in found]

    def finished_plans(self, account: str, region: str) -> tuple[datetime, list[Plan]]:
        """Now, and the imports that have left an AMI by now, however long ago."""
        with self._lock:
            now = self.clock.now()
            place = self._place(account, region)
            self._arrive(account, region, now)
            plans = (entry.life for entry in place.entries if isinstance(entry.life, Plan))
            return now, [plan for plan in plans if plan.completes and plan.ended_at <= now]

    def record(self, shown: Shown) -> None:
        """Write into the ledger, if there is one."""
        if self.ledger is not None:
            self.ledger.append(shown)

    def _place(self, account: str, region: str) -> Place:
        return self._places.setdefault((account, region), Place())

    def _show(self, life: Plan | Task, now: datetime) -> Task:
        if isinstance(life, Plan):
            signature = sha256(f"{life.import_task_id}{next(self._signatures)}".encode()).hexdigest()
            task = show(life, now, signature)
        else:
            task = dict(life)
        if self.shuffle:
            for key in ("Tags", "SnapshotDetails"):
                if key in task:
                    task[key] = self._shuffled(task[key])
        return task

    def _shuffled(self, items: list[Any]) -> list[Any]:
        with self._lock:
            return self._shuffler.sample(items, len(items))

    def _start(self, now: datetime, since: timedelta, until: timedelta, recent: float) -> datetime:
        if self._rng.random() < recent:
            return now - timedelta(minutes=self._rng.uniform(0, 90))
        return now - since + (since + until) * self._rng.random()

    def _invent(self, where: tuple[str, str], at: datetime, *, failures: float, cancellations: float) -> str:
        account, region = where
        request = self._planner.request(region, account)
        chance = self._rng.random()
        phase, message = self._planner.failure() if chance < failures else (None, None)
        plan = self._planner.plan(request, at, failure=message, fails_in=phase)
        if failures <= chance < failures + cancellations:
            plan = replace(plan, cancelled_at=at + plan.duration * self._rng.uniform(0.05, 0.9))
        self._begin(where, request, plan)
        return plan.import_task_id

    def _begin(self, where: tuple[str, str], request: dict[str, Any], plan: Plan) -> None:
        """Enter an import, and write down who will have asked for it and for its end."""
        place, task_id = self._place(*where), plan.import_task_id
        place.enter(next(self._numbers), task_id, plan)
        place.write_down(plan.requested_at, "ImportImage", request, task_id)
        if plan.cancelled_at is not None:
            place.write_down(plan.cancelled_at, "CancelImportTask", {"ImportTaskId": task_id}, task_id)

    def _arrive(self, account: str, region: str, now: datetime) -> None:
        """Let the imports come that are due by now."""
        stream = self._place(account, region).stream
        while stream is not None and stream.due <= now:
            self._invent((account, region), stream.due, failures=0.15, cancellations=0.05)
            stream.due += stream.every * self._rng.expovariate(1.0)
