"""Targets: their ids in this warehouse, and the lock under which anything is said about their tasks."""

import json
from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, text

from collector.domain import Target

_MERGE_LOCKS = 0x766D6902
"""Key space of the targets' merge locks; leases and leadership have others."""


def register(connection: Connection, targets: Sequence[Target], *, commit: bool) -> Mapping[Target, int]:
    """Return the targets' ids; unknown ones are made first, sorted, in a transaction of their own."""
    ids = _ids(connection, targets)
    if missing := sorted(target for target in targets if target not in ids):
        connection.execute(_INSERT_TARGETS, _json(missing))
        ids = _ids(connection, targets)
        if commit:
            connection.commit()
    return ids


def lock(connection: Connection, target_ids: Sequence[int]) -> None:
    """Take the targets' locks in a statement of its own, in one order everywhere, until the commit.

    A later statement must see what the lock's last holder committed; only READ COMMITTED promises that.
    """
    parameters = {"space": _MERGE_LOCKS, "target_ids": sorted(target_ids)}
    isolation = connection.scalar(_LOCK_TARGETS, parameters)
    if isolation != "read committed":
        raise ValueError(f"the merge needs READ COMMITTED, not {isolation}: its snapshot predates its lock")


def _ids(connection: Connection, targets: Sequence[Target]) -> dict[Target, int]:
    rows = connection.execute(_SELECT_TARGETS, _json(targets)).all()
    return {Target(account_id, region): target_id for target_id, account_id, region in rows}


def _json(targets: Sequence[Target]) -> dict[str, str]:
    return {"targets": json.dumps([[target.account_id, target.region] for target in targets])}


# A list is sent as JSON: the driver takes far longer over an array.
_SELECT_TARGETS = text("""
    SELECT t.target_id, t.account_id, t.region
    FROM json_array_elements(CAST(:targets AS json)) AS i (target)
    JOIN vm_import.targets t ON t.account_id = i.target ->> 0 AND t.region = i.target ->> 1
""")

_INSERT_TARGETS = text("""
    INSERT INTO vm_import.targets (account_id, region)
    SELECT target ->> 0, target ->> 1 FROM json_array_elements(CAST(:targets AS json)) AS i (target)
    ON CONFLICT DO NOTHING
""")

# unnest keeps the array's order, so locks are taken in it.
_LOCK_TARGETS = text("""
    SELECT current_setting('transaction_isolation'),
        count(pg_advisory_xact_lock(CAST(:space AS int), target_id))
    FROM unnest(CAST(:target_ids AS int[])) AS i (target_id)
""")
