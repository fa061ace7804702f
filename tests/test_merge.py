"""What one batch of scans does to the warehouse, and what it leaves alone."""

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, text

from collector.domain import FORGOTTEN_AFTER, ImportTask, Scan, Target
from collector.errors import MalformedTaskError
from collector.outcomes import Effect, Outcome
from collector.warehouse import history
from collector.warehouse.engine import connect_to_url, make_engine
from collector.warehouse.history import missing_from
from tests.factories import TARGET, at, content, numbered, scan, store, stored, task

Written = dict[str, tuple[int, int, int]]

_TABLES = ("targets", "scans", "tasks", "task_versions", "snapshot_details", "tags", "license_specifications")


def _counts(engine: Engine) -> dict[str, int]:
    """Count the rows of every table that the merge writes."""
    with engine.connect() as connection:
        return {
            name: connection.execute(text(f"SELECT count(*) FROM vm_import.{name}")).scalar_one()
            for name in _TABLES
        }


def _outcome(engine: Engine, one: Scan, *, dry_run: bool = False) -> Outcome:
    """Store a single scan and return what became of it."""
    (outcome,) = history.store(engine, [one], dry_run=dry_run)
    return outcome


def _eventually(look: Callable[[], Written], wanted: Callable[[Written], bool]) -> Written:
    """Look until the answer is the wanted one, for ten seconds at most."""
    deadline = time.monotonic() + 10
    while not wanted(found := look()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert wanted(found)
    return found


# Promise 4: an unchanged poll


def _many() -> list[ImportTask]:
    return [content(str(number), number % 5) for number in range(2000)]


def _poll(url: str, minutes: float) -> None:
    """Look at 2,000 tasks that do not change, over a connection of its own that is closed afterwards."""
    engine = make_engine(connect_to_url(url))
    try:
        store(engine, scan(minutes, *_many()))
    finally:
        engine.dispose()


def _written(connection: psycopg.Connection[Any]) -> Written:
    """Return rows inserted, updated and deleted since the database was made, per table."""
    rows = connection.execute("SELECT relname, n_tup_ins, n_tup_upd, n_tup_del FROM pg_stat_user_tables")
    return {name: tuple(written) for name, *written in rows}


def test_an_unchanged_poll_inserts_one_scan_and_nothing_else(database_url: str) -> None:
    """By the server's own statistics, which a closing connection hands in."""
    with psycopg.connect(database_url, autocommit=True) as watch:
        _poll(database_url, 1)
        before = _eventually(lambda: _written(watch), lambda written: written["scans"] == (1, 0, 0))
        _poll(database_url, 2)
        after = _eventually(lambda: _written(watch), lambda written: written["scans"] == (2, 0, 0))
    assert before["task_versions"] == (2000, 0, 0)
    assert after == {**before, "scans": (2, 0, 0)}


def _logged(watch: psycopg.Connection[Any], act: Callable[[], object]) -> int:
    """Return how many bytes of write-ahead log came to be meanwhile, on the whole server."""
    start = watch.execute("SELECT pg_current_wal_insert_lsn()").fetchone()
    act()
    size = watch.execute("SELECT pg_current_wal_insert_lsn() - %s::pg_lsn", start).fetchone()
    assert size is not None
    return int(size[0])


def test_an_unchanged_poll_logs_less_than_a_kilobyte(engine: Engine, database_url: str) -> None:
    """By the write-ahead log, which shows row locks too. Other sessions may add to a poll, but not to all."""
    with psycopg.connect(database_url, autocommit=True) as watch:
        tasks = _many()
        polls = [scan(minutes, *tasks) for minutes in range(30)]
        store(engine, polls[0])
        watch.execute("CHECKPOINT")
        store(engine, polls[1])
        sizes = [_logged(watch, partial(store, engine, poll)) for poll in polls[2:]]
    assert 0 < min(sizes) < 1000, sizes


# Outcomes


def test_a_first_scan_counts_what_is_new(engine: Engine) -> None:
    """Two tasks, two versions."""
    outcome = _outcome(engine, numbered(1, {"a": 1, "b": 1}))
    assert (outcome.effect, outcome.new_tasks, outcome.inserted, outcome.closed) == (Effect.CHANGED, 2, 2, 0)


def test_a_changed_task_closes_one_version_and_inserts_one(engine: Engine) -> None:
    """The other task is not touched."""
    store(engine, numbered(1, {"a": 1, "b": 1}))
    outcome = _outcome(engine, numbered(2, {"a": 1, "b": 2}))
    assert (outcome.effect, outcome.new_tasks, outcome.inserted, outcome.closed) == (Effect.CHANGED, 0, 1, 1)


def test_what_leaves_the_list_is_expired_or_vanished(engine: Engine) -> None:
    """Completed and deleted tasks expire; an active one vanishes."""
    store(engine, scan(1, task("a", Status="completed"), task("b", Status="deleted"), task("c")))
    outcome = _outcome(engine, scan(2))
    assert (outcome.expired, outcome.vanished, outcome.closed, outcome.inserted) == (2, 1, 3, 3)


def test_a_late_scan_cuts_the_version_that_it_falls_into(engine: Engine) -> None:
    """Before and after it, the task is what it was."""
    store(engine, numbered(1, {"a": 1}), numbered(3, {"a": 1}))
    outcome = _outcome(engine, numbered(2, {"a": 2}))
    one, two = content("a", 1), content("a", 2)
    assert (outcome.inserted, outcome.cut, outcome.closed) == (1, 1, 0)
    assert stored(engine) == {
        "import-ami-a": [(at(1), at(2), one), (at(2), at(3), two), (at(3), None, one)],
    }


def test_a_late_scan_extends_the_version_that_follows(engine: Engine) -> None:
    """The task was that already; nothing is inserted."""
    store(engine, numbered(1, {"a": 1}), numbered(3, {"a": 2}))
    outcome = _outcome(engine, numbered(2, {"a": 2}))
    assert (outcome.inserted, outcome.closed) == (0, 1)
    assert stored(engine) == {
        "import-ami-a": [(at(1), at(2), content("a", 1)), (at(2), None, content("a", 2))],
    }


def test_a_late_sighting_of_an_unknown_task_ends_at_the_next_complete_scan(engine: Engine) -> None:
    """A partial scan in between did not see it, which says nothing."""
    store(engine, scan(1), numbered(3, {"b": 1}, complete=False), scan(4, content("b", 1)))
    store(engine, numbered(2, {"a": 1}))
    assert stored(engine)["import-ami-a"] == [(at(2), at(4), content("a", 1)), (at(4), None, None)]


def test_a_partial_scan_closes_nothing(engine: Engine) -> None:
    """Not even when it saw nothing at all."""
    store(engine, numbered(1, {"a": 1, "b": 1}))
    before = stored(engine)
    outcome = _outcome(engine, scan(2, complete=False))
    assert (outcome.closed, outcome.expired, outcome.vanished) == (0, 0, 0)
    assert stored(engine) == before


def test_a_partial_scan_in_between_forbids_the_shortcut(engine: Engine) -> None:
    """The scan just before is what counts, not the last complete one."""
    store(engine, numbered(1, {"a": 1}), numbered(2, {"a": 2}, complete=False))
    assert store(engine, numbered(3, {"a": 1})) == [Effect.CHANGED]
    one, two = content("a", 1), content("a", 2)
    assert stored(engine) == {
        "import-ami-a": [(at(1), at(2), one), (at(2), at(3), two), (at(3), None, one)],
    }


def test_the_same_content_under_another_id_is_another_task(engine: Engine) -> None:
    """The shortcut knows one from the other."""
    store(engine, numbered(1, {"a": 1}))
    assert store(engine, numbered(2, {"b": 1})) == [Effect.CHANGED]
    assert stored(engine) == {
        "import-ami-a": [(at(1), at(2), content("a", 1)), (at(2), None, None)],
        "import-ami-b": [(at(2), None, content("b", 1))],
    }


def test_a_retry_writes_nothing(engine: Engine) -> None:
    """Neither in the batch of the first attempt nor later."""
    one = numbered(1, {"a": 1})
    assert store(engine, one, one) == [Effect.CHANGED, Effect.REPEATED]
    before = _counts(engine)
    assert store(engine, one) == [Effect.REPEATED]
    assert _counts(engine) == before


def test_a_progress_tick_rewrites_no_disks_and_no_tags(engine: Engine) -> None:
    """Versions point at lists that are there already."""
    parts: dict[str, Any] = {"Tags": [{"Key": "a", "Value": "b"}], "SnapshotDetails": [{"Format": "RAW"}]}
    store(engine, scan(1, task("a", Progress="1", **parts)))
    before = _counts(engine)
    store(engine, scan(2, task("a", Progress="2", **parts)))
    assert _counts(engine) == {**before, "scans": 2, "task_versions": 2}


# Refusals


@pytest.mark.parametrize(
    "bad",
    [
        replace(task("bad"), description="a\0b"),
        replace(task("bad"), extra='{"a":"\\u0000"}'),
        replace(task("bad"), import_task_id="import-ami-\0"),
    ],
    ids=["text", "json", "id"],
)
def test_a_value_that_postgres_refuses_costs_only_its_scan(engine: Engine, bad: ImportTask) -> None:
    """The same target's other scans and other targets' are stored."""
    elsewhere = Target(TARGET.account_id, "us-east-1")
    batch = [numbered(1, {"a": 1}), scan(2, task("fine"), bad), numbered(3, {"a": 2})]
    outcomes = list(history.store(engine, [*batch, numbered(2, {"a": 1}, target=elsewhere)]))
    assert [outcome.effect for outcome in outcomes if outcome.scan.target == elsewhere] == [Effect.CHANGED]
    (refused,) = (outcome for outcome in outcomes if outcome.effect is Effect.REFUSED)
    assert refused.scan is batch[1]
    assert str(refused.refusal).startswith(f"{TARGET}: PostgreSQL refuses a value: ")
    assert "\n" not in str(refused.refusal)
    assert stored(engine) == {
        "import-ami-a": [(at(1), at(3), content("a", 1)), (at(3), None, content("a", 2))],
    }


@pytest.mark.parametrize("complete", [True, False])
def test_a_contradiction_names_target_instant_and_both_kinds(engine: Engine, complete: bool) -> None:
    """Whoever reads it can find the other scan."""
    store(engine, numbered(1, {"a": 1}))
    before = _counts(engine)
    outcome = _outcome(engine, numbered(1, {"a": 2}, complete=complete))
    kind = "complete" if complete else "partial"
    assert outcome.effect is Effect.REFUSED
    assert outcome.refusal == (
        "a complete scan with other contents is already stored for account 111122223333, Region eu-west-1"
        f" at 2026-01-01T00:01:00+00:00; this one is {kind}"
    )
    assert _counts(engine) == before


# Dry run


def test_a_dry_run_tells_what_the_real_run_does_and_writes_nothing(engine: Engine) -> None:
    """Changes, an unchanged scan, a retry, a contradiction and a new target."""
    elsewhere = Target(TARGET.account_id, "us-east-1")
    first = scan(1, task("a"), task("b", Status="completed"), task("c"))
    store(engine, first)
    batch = [
        first,
        scan(1, task("z"), target=elsewhere),
        scan(2, task("a"), task("b", Status="completed"), task("c")),
        scan(3, task("a", Progress="2"), task("d")),
        scan(3, task("e")),
    ]
    before = _counts(engine)
    would = list(history.store(engine, batch, dry_run=True))
    assert _counts(engine) == before
    assert list(history.store(engine, batch)) == would
    effects = [outcome.effect.value for outcome in would]
    assert effects == ["repeated", "changed", "unchanged", "changed", "refused"]


# Sizes


def test_a_status_message_of_five_megabytes_is_kept(engine: Engine) -> None:
    """Beyond every page, in the row's overflow."""
    long = task("a", StatusMessage="disk validation failed; " * 220_000)
    store(engine, scan(1, long))
    assert stored(engine) == {"import-ami-a": [(at(1), None, long)]}


def test_what_the_transform_accepts_at_its_deepest_is_stored(engine: Engine) -> None:
    """Neither our recursion nor the server's jsonb parser is the narrower door."""
    accepted, refused = 1, 5000
    while refused - accepted > 1:
        depth = (accepted + refused) // 2
        try:
            deepest = _nested(depth)
            accepted = depth
        except MalformedTaskError:
            refused = depth
    assert accepted > 100
    assert store(engine, scan(1, deepest)) == [Effect.CHANGED]
    assert stored(engine) == {"import-ami-a": [(at(1), None, deepest)]}


def _nested(depth: int) -> ImportTask:
    value: Any = "x"
    for _ in range(depth):
        value = {"v": value}
    return task("a", Odd=value)


def test_a_batch_holds_several_targets(engine: Engine) -> None:
    """Each keeps its own tasks, the same ids among them."""
    targets = [Target(f"{number:012}", "eu-west-1") for number in range(5)]
    store(engine, *(numbered(1, {"a": number}, target=t) for number, t in enumerate(targets)))
    assert [stored(engine, target) for target in targets] == [
        {"import-ami-a": [(at(1), None, content("a", number))]} for number in range(5)
    ]


def test_writers_of_the_same_targets_never_wait_in_a_circle(engine: Engine) -> None:
    """Four at once: they take the locks in one order, whatever order the scans come in."""
    targets = [Target(f"{number:012}", "eu-west-1") for number in range(60)]
    store(engine, *(scan(0, target=target) for target in targets))
    begin = threading.Barrier(4)

    def write(writer: int) -> list[Effect]:
        scans = [scan(writer, task("a", Progress=str(writer)), target=target) for target in targets]
        begin.wait()
        return store(engine, *random.Random(writer).sample(scans, len(scans)))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(write, range(1, 5))) == [[Effect.CHANGED] * 60] * 4


def test_more_than_500_targets_take_several_transactions(engine: Engine) -> None:
    """The first 500 are stored for good before the next ones begin."""
    scans = (scan(1, target=Target(f"{number:012}", "eu-west-1")) for number in range(501))
    outcomes = history.store(engine, scans)
    next(outcomes)
    assert _counts(engine)["scans"] == 500
    assert len(list(outcomes)) == 500
    assert _counts(engine)["scans"] == 501


# What may not be missing

_WEEK = FORGOTTEN_AFTER / timedelta(minutes=1)


def _missing(engine: Engine, minutes: float, *tasks: ImportTask) -> set[str]:
    """Return what makes a listing of these tasks doubtful."""
    return missing_from(engine, scan(minutes, *tasks))


def test_nothing_is_expected_of_an_unknown_target(engine: Engine) -> None:
    """There is no history to contradict."""
    assert _missing(engine, 1) == set()


def test_what_is_there_is_not_missing(engine: Engine) -> None:
    """Whether it is unchanged or not."""
    store(engine, scan(1, task("a"), task("b")))
    assert _missing(engine, 2, task("a"), task("b")) == set()
    assert _missing(engine, 2, task("a", Progress="7")) == {"import-ami-b"}


@pytest.mark.parametrize("members", [{}, {"Status": "deleting"}, {"Status": None}, {"Status": "odd"}])
def test_an_unfinished_task_may_not_be_missing(engine: Engine, members: dict[str, Any]) -> None:
    """However long ago it was seen."""
    store(engine, scan(1, task("a", **members)))
    assert _missing(engine, 10 * _WEEK) == {"import-ami-a"}


def test_a_task_that_is_gone_already_is_not_expected(engine: Engine) -> None:
    """A complete scan has said so."""
    store(engine, scan(1, task("a")), scan(2), scan(3, task("b")))
    assert _missing(engine, 4, task("b", Progress="7")) == set()


@pytest.mark.parametrize("status", ["completed", "deleted"])
@pytest.mark.parametrize("before", [[], [scan(1, task("a"))]], ids=["first seen finished", "seen unfinished"])
@pytest.mark.parametrize(("later", "expected"), [(-0.1, {"import-ami-a"}), (0, set()), (1, set())])
def test_a_finished_task_is_expected_for_a_week_after_it_was_last_seen(
    engine: Engine, status: str, before: list[Scan], later: float, expected: set[str]
) -> None:
    """Then it has certainly left the list by itself; until then only a look-up can tell."""
    finished = task("a", Status=status)
    store(engine, *before, scan(2, finished), scan(9, finished))
    assert _missing(engine, 9 + _WEEK + later) == expected


def test_a_partial_look_at_a_finished_task_prolongs_the_week(engine: Engine) -> None:
    """One that did not cover the task does not."""
    finished = task("a", Status="completed")
    store(engine, scan(1, finished), scan(2, finished, complete=False), scan(3, complete=False))
    assert _missing(engine, 1.9 + _WEEK) == {"import-ami-a"}
    assert _missing(engine, 2 + _WEEK) == set()
