"""The script that people write: one table of the present, ``INSERT … ON CONFLICT DO UPDATE`` for each task.

It keeps no history. Fetching is left out, as it is with the others. Runs in the peers' own environment:
``python peer_upsert.py URL TASKS.json FOLDER`` prints the seconds it took, and its CPU.
"""

import json
import sys
from pathlib import Path
from time import perf_counter, process_time

import psycopg
from psycopg.types.json import Jsonb

_TABLE = """
    CREATE TABLE IF NOT EXISTS public.import_image_tasks (
        import_task_id text PRIMARY KEY, status text, status_message text, progress text, platform text,
        snapshot_details jsonb, tags jsonb, updated_at timestamptz)
"""

_UPSERT = """
    INSERT INTO public.import_image_tasks VALUES (%s, %s, %s, %s, %s, %s, %s, now())
    ON CONFLICT (import_task_id) DO UPDATE SET status = excluded.status,
        status_message = excluded.status_message, progress = excluded.progress, platform = excluded.platform,
        snapshot_details = excluded.snapshot_details, tags = excluded.tags, updated_at = now()
"""


def main(url: str, tasks: str, _folder: str) -> None:
    """Write the tasks of one listing."""
    listing = json.loads(Path(tasks).read_text())
    began, cpu = perf_counter(), process_time()
    with psycopg.connect(url) as connection:
        connection.execute(_TABLE)
        rows = (
            (
                task["ImportTaskId"],
                task.get("Status"),
                task.get("StatusMessage"),
                task.get("Progress"),
                task.get("Platform"),
                Jsonb(task.get("SnapshotDetails")),
                Jsonb(task.get("Tags")),
            )
            for task in listing
        )
        connection.cursor().executemany(_UPSERT, rows)
    print(perf_counter() - began, process_time() - cpu)


if __name__ == "__main__":
    main(*sys.argv[1:])
