"""Runs the command as users do: in a process and a folder of its own, told nothing by our environment."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql

SAMPLES = Path(__file__).parent / "samples"
CHECKOUT = Path(__file__).parent.parent
PLACE = ("--account", "111122223333", "--region", "eu-west-1", "--observed-at", "2026-03-01T10:15:00Z")
"""Where and when saved files were taken."""

_PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "LD_PRELOAD")
_PATIENCE = 60.0


@dataclass(frozen=True, slots=True)
class Ended:
    """What came of a command."""

    code: int
    out: str
    err: str


class Shell:
    """A home, an empty folder to be in, and no variables of ours, AWS's or libpq's but those given."""

    def __init__(self, folder: Path, **variables: str) -> None:
        self.folder = folder / "here"
        self.folder.mkdir()
        (folder / "home").mkdir()
        self.environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ} | {
            "HOME": str(folder / "home"),
            "LANG": "C.UTF-8",
            "COLUMNS": "200",
            "AWS_EC2_METADATA_DISABLED": "true",
            "COLLECTOR_LISTEN": "127.0.0.1:0",
            **variables,
        }

    def __call__(self, *arguments: str, stdin: str = "", **variables: str) -> Ended:
        """Run ``collector`` with arguments to its end; a traceback is never what a user should see."""
        return self.python("-m", "collector", *arguments, stdin=stdin, **variables)

    def python(self, *arguments: str, stdin: str = "", **variables: str) -> Ended:
        """Run the interpreter to its end."""
        return self.run(sys.executable, *arguments, stdin=stdin, **variables)

    def run(self, *command: str, stdin: str = "", **variables: str) -> Ended:
        """Run any command to its end."""
        done = subprocess.run(
            command,
            input=stdin.encode(),
            capture_output=True,
            cwd=self.folder,
            env=self.environment | variables,
            timeout=_PATIENCE,
            check=False,
        )
        ended = Ended(done.returncode, done.stdout.decode(), done.stderr.decode())
        assert "Traceback" not in ended.err, ended.err
        return ended

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        """Start ``collector`` and leave it running."""
        return subprocess.Popen(
            [sys.executable, "-m", "collector", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env=self.environment | variables,
        )

    def write(self, name: str, content: bytes | str) -> str:
        """Write a file into the folder; returns its name."""
        (self.folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return name


TABLES = (
    "targets",
    "scans",
    "outages",
    "tasks",
    "task_versions",
    "snapshot_details",
    "tags",
    "license_specifications",
    "task_events",
    "event_scans",
)


def row_counts(url: str) -> dict[str, int]:
    """Count the rows of every table."""
    with psycopg.connect(url) as connection:
        return {table: _count(connection, table) for table in TABLES}


def _count(connection: psycopg.Connection, table: str) -> int:
    statement = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier("vm_import", table))
    row = connection.execute(statement).fetchone()
    assert row is not None
    return int(row[0])


NOTHING = dict.fromkeys(TABLES, 0)
