"""What commands import: nothing that takes long and is not needed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

AWS = {"boto3"}
WAREHOUSE = {"alembic", "psycopg", "sqlalchemy"}
WEB = {"prometheus_client", "starlette", "uvicorn"}
DAEMON = {"apscheduler"}
ALL = AWS | WAREHOUSE | WEB | DAEMON

FILE = ("--account", "111122223333", "--region", "eu-west-1", "--observed-at", "2026-01-01T00:00:00Z")
NOWHERE = "postgresql://collector@127.0.0.1:1/nowhere"
"""A command begins with its imports, and ends soon where there is no database."""

_PROGRAM = """
import atexit, json, sys
atexit.register(lambda: print("\\n" + json.dumps(sorted(sys.modules))))
sys.argv = ["collector", *json.loads(sys.argv[1])]
from collector.cli import main
main()
"""


def imported(folder: Path, *arguments: str) -> set[str]:
    """Run a command, and return which of the great libraries it imported."""
    environment = {"COLLECTOR_DATABASE_URL": NOWHERE, "COLLECTOR_DATA_DIR": str(folder), "HOME": str(folder)}
    command = [sys.executable, "-c", _PROGRAM, json.dumps(arguments)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=False, cwd=folder, env=environment
    )
    return ALL & set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        (["--help"], set()),
        (["--version"], set()),
        (["run", "--help"], set()),
        (["backfill", "--help"], set()),
        (["iam-policy"], set()),
        (["status"], WAREHOUSE),
        (["migrate", "--check"], WAREHOUSE),
        (["psql", "--", "-c", "SELECT 1"], WAREHOUSE),
        (["backfill", "a.json", *FILE], WAREHOUSE),
        (["backfill", "--spool"], WAREHOUSE),
        (["backfill"], AWS | WAREHOUSE),
        (["check"], AWS | WAREHOUSE),
        (["run"], ALL),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",  # a set has no order of its own
)
def test_a_command_imports_what_it_needs(tmp_path: Path, arguments: list[str], needed: set[str]) -> None:
    """And of the great libraries no other."""
    (tmp_path / "a.json").write_text('{"ImportImageTasks": []}')
    assert imported(tmp_path, *arguments) <= needed


def test_a_command_is_seen_to_import(tmp_path: Path) -> None:
    """Or the others would prove nothing."""
    assert imported(tmp_path, "status") == WAREHOUSE
