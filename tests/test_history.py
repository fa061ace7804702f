"""The promises of the history, against a reference that is short enough to believe.

A case is a set of scans of one target and one way for them to arrive: some order, some retries, some batches,
one writer or several. Whatever the way, the chains must be those of the reference.
"""

import threading
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import count, pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from collector.domain import Scan, Target
from collector.warehouse import history
from collector.warehouse.history import Effect
from tests.factories import numbered

Chain = list[tuple[datetime, datetime | None, int | None]]

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


def reference(scans: Sequence[Scan]) -> dict[str, Chain]:
    """Say what the chains must be: per task, what the scans that cover it saw, equal neighbours joined."""
    chains: dict[str, Chain] = {}
    for name in {task.import_task_id for scan in scans for task in scan.tasks}:
        chain: Chain = []
        for scan in sorted(scans, key=lambda scan: scan.observed_at):
            seen = {task.import_task_id: task.content_hash for task in scan.tasks}
            if (scan.complete or name in seen) and (chain or name in seen):
                if chain and chain[-1][2] == seen.get(name):
                    continue
                chain[-1:] = [(*chain[-1][:1], scan.observed_at, chain[-1][2])] if chain else []
                chain.append((scan.observed_at, None, seen.get(name)))
        chains[name] = chain
    return chains


def stored(engine: Engine, target: Target) -> dict[str, Chain]:
    """Read the chains of a target back."""
    statement = text("""
        SELECT k.import_task_id, v.valid_from, v.valid_to, v.content_hash
        FROM vm_import.task_versions v JOIN vm_import.tasks k USING (task_id)
        JOIN vm_import.targets t ON t.target_id = k.target_id
        WHERE t.account_id = :account AND t.region = :region ORDER BY v.task_id, v.valid_from
    """)
    chains: dict[str, Chain] = {}
    with engine.connect() as connection:
        for row in connection.execute(statement, {"account": target.account_id, "region": target.region}):
            chains.setdefault(row.import_task_id, []).append((row.valid_from, row.valid_to, row.content_hash))
    return chains


def store(engine: Engine, *scans: Scan) -> list[Effect]:
    """Store scans as one batch."""
    return [outcome.effect for outcome in history.store(engine, scans)]


@pytest.fixture(scope="module")
def shared_engine(server_url: str, migrated: str) -> Iterator[Engine]:
    """One database for all cases of a property: each case has a target of its own."""
    from tests.conftest import create_database, drop_database

    name = f"history_{migrated[-12:]}"
    from collector.warehouse.engine import connect_to_url, make_engine

    engine = make_engine(connect_to_url(create_database(server_url, name, migrated)))
    yield engine
    engine.dispose()
    drop_database(server_url, name)


_property = settings(
    deadline=None, max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@_property
@given(scans=_scans(), data=st.data())
def test_any_order_with_retries_gives_the_same_chains(
    shared_engine: Engine, scans: list[Scan], data: st.DataObject
) -> None:
    """Arrivals one by one: an order, some of them twice."""
    arrivals = data.draw(st.permutations(scans + scans[: data.draw(st.integers(0, 2))]))
    effects = [effect for scan in arrivals for effect in store(shared_engine, scan)]
    assert effects.count(Effect.REPEATED) == len(arrivals) - len(scans)
    assert Effect.REFUSED not in effects
    assert stored(shared_engine, scans[0].target) == reference(scans)


@_property
@given(scans=_scans(), data=st.data())
def test_any_batching_gives_the_same_chains(
    shared_engine: Engine, scans: list[Scan], data: st.DataObject
) -> None:
    """Arrivals in batches: within one a target's scans follow each other, retries among them."""
    arrivals = data.draw(st.permutations(scans))
    cut = data.draw(st.integers(0, len(scans)))
    store(shared_engine, *arrivals[:cut])
    store(shared_engine, *arrivals[cut:], *arrivals[:1])
    assert stored(shared_engine, scans[0].target) == reference(scans)


@settings(_property, max_examples=200)
@given(scans=_scans(most=10), data=st.data())
def test_several_writers_give_the_same_chains(
    shared_engine: Engine, scans: list[Scan], data: st.DataObject
) -> None:
    """Four writers at once, each with a share of the scans and one that another has too."""
    arrivals = data.draw(st.permutations(scans))
    shares = [arrivals[start::4] + arrivals[:1] for start in range(4)]
    writers = [threading.Thread(target=store, args=(shared_engine, *share)) for share in shares]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert stored(shared_engine, scans[0].target) == reference(scans)


def test_chains_have_neither_gaps_nor_equal_neighbours(shared_engine: Engine) -> None:
    """What the cases above left behind satisfies the rules that hold for every chain."""
    statement = text("SELECT * FROM vm_import.task_versions ORDER BY task_id, valid_from")
    with shared_engine.connect() as connection:
        rows = list(connection.execute(statement))
    assert rows
    for one, other in pairwise(rows):
        if one.task_id == other.task_id:
            assert one.valid_to == other.valid_from
            assert one.content_hash != other.content_hash
        else:
            assert one.valid_to is None
            assert other.listed
