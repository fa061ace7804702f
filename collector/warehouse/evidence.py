"""Evidence goes into ``task_events``, each piece once, and names tasks that no scan ever saw.

It never writes a version: the views combine both. What is there already is not touched, so that the same
evidence a second time writes nothing.
"""

from collections.abc import Sequence
from dataclasses import fields

from sqlalchemy import Connection, Engine, text

from collector.domain import Evidence, Stretch, Target
from collector.warehouse.engine import translated_errors
from collector.warehouse.targets import lock, register


def store(
    engine: Engine,
    target: Target,
    evidence: Sequence[Evidence],
    *,
    read: Stretch | None = None,
    dry_run: bool = False,
) -> tuple[list[Evidence], set[str]]:
    """Store what is not known yet of one target's evidence, whole or not at all.

    ``read`` is the stretch of CloudTrail that it is all of, if that needs no second reading.

    Returns:
        The pieces that are new, and the ids of the tasks that nobody had heard of.

    Raises:
        WarehouseError: the database failed; nothing is stored.
    """
    with translated_errors(), engine.connect() as connection:
        target_id = register(connection, [target], commit=not dry_run)[target]
        lock(connection, [target_id])
        new = _unknown(connection, evidence)
        tasks = _insert_tasks(connection, target_id, new)
        if new:
            connection.execute(_INSERT_EVENTS, [_row(piece, target_id) for piece in new])
        if read is not None:
            connection.execute(_INSERT_SCAN, {"target_id": target_id, "begin": read.begin, "end": read.end})
        if dry_run:
            connection.rollback()
        else:
            connection.commit()
    return new, tasks


def stretches_read(engine: Engine, target: Target) -> list[Stretch]:
    """Return the stretches of CloudTrail that need no second reading, the oldest first.

    Raises:
        WarehouseError: the database failed.
    """
    parameters = {"account_id": target.account_id, "region": target.region}
    with translated_errors(), engine.connect() as connection:
        return [
            Stretch(row.scanned_from, row.scanned_to) for row in connection.execute(_SELECT_SCANS, parameters)
        ]


def _unknown(connection: Connection, evidence: Sequence[Evidence]) -> list[Evidence]:
    """Return the pieces that are not stored, each once: pages may repeat one."""
    pieces = {(piece.source, piece.event_id): piece for piece in evidence}
    parameters = {
        "sources": [source for source, _ in pieces],
        "event_ids": [event_id for _, event_id in pieces],
    }
    known = {(row.source, row.event_id) for row in connection.execute(_SELECT_KNOWN, parameters)}
    return [piece for key, piece in pieces.items() if key not in known]


def _insert_tasks(connection: Connection, target_id: int, evidence: Sequence[Evidence]) -> set[str]:
    names = sorted({piece.import_task_id for piece in evidence if piece.import_task_id is not None})
    if not names:
        return set()
    return set(connection.scalars(_INSERT_TASKS, {"target_id": target_id, "names": names}))


def _row(piece: Evidence, target_id: int) -> dict[str, object]:
    names = (*_PLAIN, "import_task_id", "details")
    return {"target_id": target_id, **{name: getattr(piece, name) for name in names}}


# The members that are columns of their own name, as they are.
_PLAIN = tuple(
    field.name for field in fields(Evidence) if field.name not in {"target", "import_task_id", "details"}
)

_SELECT_KNOWN = text("""
    SELECT e.source, e.event_id
    FROM unnest(CAST(:sources AS text[]), CAST(:event_ids AS text[])) AS i (source, event_id)
    JOIN vm_import.task_events e USING (source, event_id)
""")

_INSERT_TASKS = text("""
    INSERT INTO vm_import.tasks (target_id, import_task_id)
    SELECT CAST(:target_id AS int), i.name FROM unnest(CAST(:names AS text[])) AS i (name)
    WHERE NOT EXISTS (
        SELECT FROM vm_import.tasks k WHERE k.target_id = :target_id AND k.import_task_id = i.name)
    RETURNING import_task_id
""")

_INSERT_EVENTS = text(f"""
    INSERT INTO vm_import.task_events (target_id, task_id, details, {", ".join(_PLAIN)})
    VALUES (:target_id,
        (SELECT k.task_id FROM vm_import.tasks k
         WHERE k.target_id = :target_id AND k.import_task_id = :import_task_id),
        CAST(:details AS jsonb), :{", :".join(_PLAIN)})
""")  # noqa: S608 - our own names

_INSERT_SCAN = text("""
    INSERT INTO vm_import.event_scans (target_id, source, scanned_from, scanned_to)
    SELECT :target_id, 'cloudtrail', :begin, :end
    WHERE NOT EXISTS (
        SELECT FROM vm_import.event_scans s
        WHERE s.target_id = :target_id AND s.source = 'cloudtrail' AND s.scanned_from = :begin)
""")

_SELECT_SCANS = text("""
    SELECT s.scanned_from, s.scanned_to
    FROM vm_import.targets t JOIN vm_import.event_scans s USING (target_id)
    WHERE t.account_id = :account_id AND t.region = :region AND s.source = 'cloudtrail'
    ORDER BY s.scanned_from
""")
