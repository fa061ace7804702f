"""The promises of the history, against a reference that is short enough to believe.

A case is a set of scans and one way for them to arrive: some order, some retries, some batches, one writer or
several. Whatever the way, every version with all that it holds must be the reference's, and so must the
answer to "what was valid at …" at every instant.
"""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import datetime, timedelta
from itertools import chain as joined
from itertools import count, pairwise
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, create_engine, text

from collector.domain import ImportTask, Scan, Target
from collector.outcomes import Effect
from collector.warehouse import history
from collector.warehouse.engine import connect_to_url, make_engine
from collector.warehouse.tables import STATE
from tests.conftest import create_database, drop_database
from tests.factories import TARGET, Chain, at, numbered, scan, store, stored, task

State = dict[str, ImportTask]

_NAMES = "abcd"
_unused_accounts = (Target(f"{number:012}", "eu-west-1") for number in count(1))


@st.composite
def _scans(draw: st.DrawFn, most: int = 7) -> list[Scan]:
    """Scans of one target at distinct instants; a partial one names only tasks that it saw."""
    target = next(_unused_accounts)
    instants = draw(st.lists(st.integers(0, 30), min_size=1, max_size=most, unique=True))
    return [
        numbered(
            minutes,
            draw(st.dictionaries(st.sampled_from(_NAMES), st.integers(0, 2))),
            target=target,
            complete=draw(st.integers(0, 3)) > 0,
        )
        for minutes in instants
    ]


def in_effect(scans: Sequence[Scan], instant: datetime) -> State:
    """Say what was listed at an instant: each task as the last scan that covers it saw it."""
    state: State = {}
    for one in sorted(scans, key=lambda one: one.observed_at):
        if one.observed_at <= instant:
            seen = {task.import_task_id: task for task in one.tasks}
            state = seen if one.complete else state | seen
    return state


def reference(scans: Sequence[Scan]) -> dict[str, Chain]:
    """Say what the chains must be: per task, its states at all instants, equal neighbours joined."""
    chains: dict[str, Chain] = {}
    for name in {seen.import_task_id for one in scans for seen in one.tasks}:
        chain: Chain = []
        for instant in sorted(one.observed_at for one in scans):
            state = in_effect(scans, instant).get(name)
            if state == (chain[-1][2] if chain else None):
                continue
            if chain:
                chain[-1] = (chain[-1][0], instant, chain[-1][2])
            chain.append((instant, None, state))
        chains[name] = chain
    return chains


def test_the_reference_is_right() -> None:
    """The reference itself, on a history worked out by hand."""
    scans = [
        numbered(1, {}),
        numbered(2, {"a": 0}),
        numbered(3, {"b": 1}, complete=False),
        numbered(4, {"a": 0, "b": 1}),
        numbered(5, {"b": 2}),
    ]
    (a0, b1), (b2,) = scans[3].tasks, scans[4].tasks
    assert reference(scans) == {
        "import-ami-a": [(at(2), at(5), a0), (at(5), None, None)],
        "import-ami-b": [(at(3), at(5), b1), (at(5), None, b2)],
    }


def as_of(engine: Engine, target: Target, instants: Sequence[datetime]) -> dict[datetime, Any]:
    """Ask the SQL functions what was valid at the instants: fields, disks and tags of each listed task."""
    answers: dict[datetime, Any] = {instant: {} for instant in instants}
    parameters = {
        "instants": instants,
        "account_id": target.account_id,
        "region": target.region,
    }
    with engine.connect() as connection:
        for row in connection.execute(_AS_OF["tasks_as_of"], parameters).mappings():
            answers[row["instant"]][row["import_task_id"]] = ({c.name: row[c.name] for c in _FIELDS}, [], {})
        for row in connection.execute(_AS_OF["snapshot_details_as_of"], parameters).mappings():
            answers[row["instant"]][row["import_task_id"]][1].append(
                (row["position"], row["device_name"], row["disk_image_size"], row["format"])
            )
        for row in connection.execute(_AS_OF["tags_as_of"], parameters).mappings():
            answers[row["instant"]][row["import_task_id"]][2][row["key"]] = row["value"]
    return answers


def _as_answer(task: ImportTask) -> Any:
    fields = asdict(task)
    disks = [(d.position, d.device_name, d.disk_image_size, d.format) for d in task.snapshot_details]
    return {c.name: fields[c.name] for c in _FIELDS}, disks, {tag.key: tag.value for tag in task.tags}


_FIELDS = [column for column in STATE if column.name != "extra"]
_AS_OF = {
    name: text(f"""
        SELECT i.instant, h.* FROM unnest(CAST(:instants AS timestamptz[])) AS i (instant)
        CROSS JOIN LATERAL vm_import.{name}(i.instant) h
        WHERE h.account_id = :account_id AND h.region = :region ORDER BY i.instant, h.import_task_id {order}
    """)
    for name, order in (
        ("tasks_as_of", ""),
        ("snapshot_details_as_of", ", position"),
        ("tags_as_of", ", key"),
    )
}


def assert_history(engine: Engine, scans: Sequence[Scan]) -> None:
    """Hold what is stored for the scans' one target against the reference and against the rules."""
    target = scans[0].target
    chains = stored(engine, target)
    assert chains == reference(scans)
    for chain in chains.values():
        assert chain[0][2] is not None
        assert chain[-1][1] is None
        for one, other in pairwise(chain):
            assert one[1] == other[0]
            assert one[2] != other[2]
    seconds = timedelta(seconds=30)
    instants = sorted({s.observed_at + d for s in scans for d in (-seconds, timedelta(0), seconds)})
    expected = {
        instant: {name: _as_answer(task) for name, task in in_effect(scans, instant).items()}
        for instant in instants
    }
    assert as_of(engine, target, instants) == expected


@pytest.fixture(scope="module")
def shared_url(server_url: str, migrated: str) -> Iterator[str]:
    """One database for all cases of a property: each case has targets of its own."""
    name = f"history_{migrated[-12:]}"
    url = create_database(server_url, name, migrated)
    with psycopg.connect(server_url, autocommit=True) as connection:
        # Nothing here asks what survives a crash, and not waiting for the disk allows for more cases.
        connection.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
    yield url
    drop_database(server_url, name)


@pytest.fixture(scope="module")
def shared_engine(shared_url: str) -> Iterator[Engine]:
    """An engine on the database that all cases share."""
    engine = make_engine(connect_to_url(shared_url))
    yield engine
    engine.dispose()


def _cases(number: int) -> settings:
    return settings(deadline=None, max_examples=number, suppress_health_check=[HealthCheck.too_slow])


@_cases(280)
@given(scans=_scans(), data=st.data())
def test_any_order_with_retries_gives_the_same_history(
    shared_engine: Engine, scans: list[Scan], data: st.DataObject
) -> None:
    """Arrivals one by one: an order, some of them twice."""
    arrivals = data.draw(st.permutations(scans + scans[: data.draw(st.integers(0, 2))]))
    effects = [effect for scan in arrivals for effect in store(shared_engine, scan)]
    assert effects.count(Effect.REPEATED) == len(arrivals) - len(scans)
    assert Effect.REFUSED not in effects
    assert_history(shared_engine, scans)


@_cases(180)
@given(histories=st.lists(_scans(most=5), min_size=1, max_size=3), data=st.data())
def test_any_batches_of_targets_give_the_same_history(
    shared_engine: Engine, histories: list[list[Scan]], data: st.DataObject
) -> None:
    """Arrivals in batches, each with scans of several targets and now and then a retry."""
    arrivals = data.draw(st.permutations(list(joined.from_iterable(histories))))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(arrivals)), max_size=2)))
    for start, end in pairwise([0, *cuts, len(arrivals)]):
        effects = store(shared_engine, *arrivals[start:end], *arrivals[:1])
        assert Effect.REFUSED not in effects
    for scans in histories:
        assert_history(shared_engine, scans)


@_cases(160)
@given(scans=_scans(most=10), data=st.data())
def test_several_writers_give_the_same_history(
    shared_engine: Engine, scans: list[Scan], data: st.DataObject
) -> None:
    """Four writers at once, each with a share of the scans and one that all of them have."""
    arrivals = data.draw(st.permutations(scans))
    begin = threading.Barrier(4)

    def write(share: list[Scan]) -> list[Effect]:
        begin.wait()
        return store(shared_engine, *share)

    with ThreadPoolExecutor(4) as pool:
        shares = [[arrivals[0], *arrivals[1 + start :: 4]] for start in range(4)]
        effects = list(joined.from_iterable(pool.map(write, shares)))
    assert effects.count(Effect.REPEATED) == 3
    assert len(effects) == len(scans) + 3
    assert_history(shared_engine, scans)


@_cases(110)
@given(scans=_scans(), data=st.data())
def test_history_is_the_same_without_the_shortcut(
    shared_engine: Engine, scans: list[Scan], data: st.DataObject
) -> None:
    """A stored digest that equals none makes every scan take the long way, to the same end."""
    arrivals = data.draw(st.permutations(scans))
    for one in arrivals:
        assert store(shared_engine, one) == [Effect.CHANGED]
        with shared_engine.begin() as connection:
            spoil = text("UPDATE vm_import.scans SET digest = '' WHERE digest = :digest")
            connection.execute(spoil, {"digest": one.digest})
    assert_history(shared_engine, scans)


@_cases(110)
@given(scans=_scans(), data=st.data())
def test_the_shortcut_is_taken_after_an_equal_complete_scan_and_never_else(
    shared_engine: Engine, scans: list[Scan], data: st.DataObject
) -> None:
    """Early or late: what counts is the scan just before it, among those that are stored by then."""
    arrivals = data.draw(st.permutations(scans))
    for number, one in enumerate(arrivals):
        earlier = [s for s in arrivals[:number] if s.observed_at < one.observed_at]
        before = max(earlier, key=lambda s: s.observed_at, default=None)
        equal = before is not None and before.complete and one.complete and before.digest == one.digest
        assert store(shared_engine, one) == [Effect.UNCHANGED if equal else Effect.CHANGED]
    assert_history(shared_engine, scans)


@_cases(110)
@given(scans=_scans(), others=_scans(most=3), data=st.data())
def test_a_contradiction_costs_only_itself(
    shared_engine: Engine, scans: list[Scan], others: list[Scan], data: st.DataObject
) -> None:
    """The same instant with other contents or another completeness is refused by name; the rest is stored."""
    first = data.draw(st.sampled_from(scans))
    flipped = Scan(first.target, first.observed_at, first.finished_at, not first.complete, "api", first.tasks)
    other = numbered(0, {"a": 3}, target=first.target)
    changed = Scan(first.target, first.observed_at, first.finished_at, first.complete, "api", other.tasks)
    contradiction = data.draw(st.sampled_from([flipped, changed]))
    store(shared_engine, first)
    batch = data.draw(st.permutations([*scans, contradiction, *others]))
    outcomes = list(history.store(shared_engine, batch))
    (refused,) = (outcome for outcome in outcomes if outcome.effect is Effect.REFUSED)
    assert refused.scan is contradiction
    assert f"{first.target} at {first.observed_at.isoformat()}" in str(refused.refusal)
    assert_history(shared_engine, scans)
    assert_history(shared_engine, others)


@_cases(80)
@given(scans=_scans(), minutes=st.integers(31, 40), data=st.data())
def test_a_partial_scan_says_nothing_of_what_it_did_not_see(
    shared_engine: Engine, scans: list[Scan], minutes: int, data: st.DataObject
) -> None:
    """At any instant, before or after what is stored: other tasks' chains stay as they are."""
    late = data.draw(st.sampled_from([minutes, 30.5 - minutes / 2]))
    seen = data.draw(st.dictionaries(st.sampled_from(_NAMES), st.integers(0, 2)))
    store(shared_engine, *scans)
    before = stored(shared_engine, scans[0].target)
    partial = numbered(late + 0.25, seen, target=scans[0].target, complete=False)
    (outcome,) = history.store(shared_engine, [partial])
    after = stored(shared_engine, scans[0].target)
    unseen = before.keys() - {task.import_task_id for task in partial.tasks}
    assert {name: before[name] for name in unseen} == {name: after[name] for name in unseen}
    assert (outcome.expired, outcome.vanished) == (0, 0)
    assert_history(shared_engine, [*scans, partial])


def test_a_snapshot_older_than_its_lock_is_refused(database_url: str) -> None:
    """At REPEATABLE READ the merge would not see what the lock's last holder committed."""
    engine = create_engine(
        "postgresql+psycopg://", creator=connect_to_url(database_url), isolation_level="REPEATABLE READ"
    )
    with pytest.raises(ValueError, match="READ COMMITTED"):
        store(engine, scan(1, task("a")))
    assert stored(engine) == {}
    engine.dispose()


def test_a_target_is_known_by_account_and_region(engine: Engine) -> None:
    """The same account in another Region, and the same id there, is another task."""
    elsewhere = Target(TARGET.account_id, "us-east-1")
    here, there = scan(1, task("a")), scan(1, task("a", Progress="9"), target=elsewhere)
    store(engine, here, there)
    assert_history(engine, [here])
    assert_history(engine, [there])
