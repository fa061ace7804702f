"""dlt as its documentation keeps a history: ``merge`` with ``scd2``, rows sent as CSV.

Runs in the peers' own environment: ``python peer_dlt.py URL TASKS.json FOLDER`` prints seconds and CPU.
"""

import json
import os
import sys
from pathlib import Path
from time import perf_counter, process_time

os.environ["RUNTIME__DLTHUB_TELEMETRY"] = "false"
os.environ["RUNTIME__LOG_LEVEL"] = "ERROR"

import dlt  # type: ignore[import-not-found, unused-ignore]


def main(url: str, tasks: str, folder: str) -> None:
    """Load the tasks of one listing."""
    listing = json.loads(Path(tasks).read_text())
    pipeline = dlt.pipeline(
        "imports",
        destination=dlt.destinations.postgres(url),
        dataset_name="dlt_imports",
        pipelines_dir=f"{folder}/dlt",
    )
    began, cpu = perf_counter(), process_time()
    pipeline.run(
        listing,
        table_name="import_image_tasks",
        write_disposition={"disposition": "merge", "strategy": "scd2"},
        loader_file_format="csv",
    )
    print(perf_counter() - began, process_time() - cpu)


if __name__ == "__main__":
    main(*sys.argv[1:])
