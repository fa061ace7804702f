"""``collector demo``: everything on one machine, and nothing of it left behind."""

import os
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.commands import Shell

if sys.platform != "win32":
    import pty

ELSEWHERE = "postgresql://user:hunter2@127.0.0.1:1/aws"


@pytest.fixture
def shell(tmp_path: Path, public_folder: Path) -> Shell:
    """A place to run the demo in; what the environment says of a database and of AWS must not count."""
    return Shell(
        tmp_path,
        COLLECTOR_DATA_DIR=str(public_folder / "demonstration"),
        COLLECTOR_DATABASE_URL=ELSEWHERE,
        AWS_PROFILE="nobody",
        AWS_ENDPOINT_URL="http://127.0.0.1:1",
        HTTP_PROXY="http://127.0.0.1:1",
        TERM="xterm-256color",
    )


def left_running(shell: Shell) -> list[list[str]]:
    """Return the command lines that name the demo's folder."""
    lines: list[list[str]] = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            lines.append(process.cmdline())
    folder = shell.environment["COLLECTOR_DATA_DIR"]
    return [line for line in lines if any(folder in word for word in line)]


def test_plain(shell: Shell) -> None:
    """Without a terminal: plain lines, four questions with SQL and answers, and psql as it says."""
    ended = shell("demo", "--seconds", "8")

    assert (ended.code, ended.err) == (0, "")
    assert "\x1b" not in ended.out
    changes, *questions, last = ended.out.replace("\n\nThe demo's", "\n\n0. The demo's").split("\n\n")
    assert "import-ami-" in changes
    assert [question[:3] for question in questions] == ["1. ", "2. ", "3. ", "4. "]
    assert all("SELECT" in question and ";" in question for question in questions)
    answers = [question.rpartition(";")[2].strip().splitlines() for question in questions]
    assert all(len(answer) > 1 for answer in answers), "headings, and rows below them"
    assert re.search(r"[\u2500-\u259f]", ended.out) is None, "no line of a box without a terminal"
    assert left_running(shell) == []

    hint = last.splitlines()[1].strip()
    assert f"{hint}\n" in changes + "\n"
    variable, *command = shlex.split(hint)
    name, _, value = variable.partition("=")
    own = {**shell.environment, name: value}
    del own["COLLECTOR_DATABASE_URL"]
    command = [sys.executable, "-m", "collector", "psql", "-Atc", "SELECT count(*) > 9 FROM vm_import.tasks"]
    answer = subprocess.run(command, env=own, cwd=shell.folder, capture_output=True, text=True, check=True)
    assert answer.stdout == "t\n"
    assert left_running(shell) == []


def test_interrupted(shell: Shell) -> None:
    """Ctrl-C ends it as it should end: the questions are answered, the code is 0, nothing is left."""
    with shell.start("demo") as running:
        assert running.stdout is not None
        said = [running.stdout.readline() for _ in range(3)]
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=30)

    assert (running.returncode, err) == (0, "")
    assert "Ask it anything" in out, said
    assert left_running(shell) == []


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_on_a_terminal(shell: Shell) -> None:
    """On a terminal a table is drawn in place, until Ctrl-C is typed there."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "collector", "demo"]
    with subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=shell.folder,
        env=shell.environment | {"COLUMNS": "120", "LINES": "30"},
    ) as running:
        os.close(theirs)
        seen = _read_until(ours, b"Ctrl-C ends it")
        running.send_signal(signal.SIGINT)
        seen += _read_until(ours, b"Ask it anything")
        rest = _read_until(ours, None)
        code = running.wait(30)
    os.close(ours)

    assert code == 0, rest
    assert b"(simulated)" in seen
    assert b"\x1b[" in seen
    assert left_running(shell) == []


def _read_until(terminal: int, wanted: bytes | None) -> bytes:
    """Read until something was seen, or to the end."""
    seen = b""
    give_up = time.monotonic() + 30
    while wanted is None or wanted not in seen:
        assert time.monotonic() < give_up, seen
        if not select.select([terminal], [], [], 0.5)[0]:
            continue
        try:
            piece = os.read(terminal, 65536)
        except OSError:  # Linux's way to say that nobody has the other end
            break
        if not piece:
            break
        seen += piece
    return seen
