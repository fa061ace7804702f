"""A Singer target, which upserts by key: MeltanoLabs' target-postgres. It keeps no history.

Runs in the peers' own environment: ``python peer_singer.py URL TASKS.json FOLDER`` prints seconds and CPU.
Starting the target is in them: Singer starts one for every run.
"""

import json
import resource
import subprocess
import sys
from pathlib import Path
from time import perf_counter

_TEXT = {"type": ["string", "null"]}
_LIST = {"type": ["array", "null"], "items": {"type": "object"}}
_SCHEMA = {
    "type": "SCHEMA",
    "stream": "import_image_tasks",
    "key_properties": ["ImportTaskId"],
    "schema": {
        "properties": {
            **dict.fromkeys(("ImportTaskId", "Status", "StatusMessage", "Progress", "Platform"), _TEXT),
            **dict.fromkeys(("SnapshotDetails", "Tags"), _LIST),
        }
    },
}


def main(url: str, tasks: str, folder: str) -> None:
    """Send the tasks of one listing."""
    listing = json.loads(Path(tasks).read_text())
    config = Path(folder) / "singer.json"
    config.write_text(
        json.dumps(
            {
                "sqlalchemy_url": url.replace("postgresql://", "postgresql+psycopg://"),
                "default_target_schema": "singer",
            }
        )
    )
    messages = [
        _SCHEMA,
        *({"type": "RECORD", "stream": "import_image_tasks", "record": task} for task in listing),
        {"type": "STATE", "value": {}},
    ]
    text = "\n".join(map(json.dumps, messages))
    target = Path(sys.executable).with_name("target-postgres")
    began = perf_counter()
    done = subprocess.run(  # noqa: S603 - the target under test
        [target, "--config", config], input=text, text=True, capture_output=True, check=False
    )
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(perf_counter() - began, used.ru_utime + used.ru_stime)


if __name__ == "__main__":
    main(*sys.argv[1:])
