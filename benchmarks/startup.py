"""How long does ``collector`` take to start, against the import of the libraries that it talks with?

In CPU seconds of whole processes, which other work on the machine changes little. Runs alternate, so that
what changes changes both. The limit is the import of Typer and of the parts of Rich that it prints help with.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median

from benchmarks.load import Row

RUNS = 21
IMPORTS = ("-c", "import typer, typer.rich_utils")
COMMANDS: Mapping[str, tuple[str, ...]] = {
    "collector --help": ("-m", "collector", "--help"),
    "collector --version": ("-m", "collector", "--version"),
    "collector iam-policy": ("-m", "collector", "iam-policy"),
}


def rows(runs: int = RUNS) -> Iterator[Row]:
    """Run everything once to warm up, and then in turns."""
    processes = {"": IMPORTS, **COMMANDS}
    seconds: dict[str, list[float]] = {name: [] for name in processes}
    for turn in range(runs + 1):
        for name, arguments in processes.items():
            spent = cpu_seconds(*arguments)
            if turn:
                seconds[name].append(spent)
    for name in COMMANDS:
        yield Row(f"{name} / importing Typer and Rich, CPU", median(seconds[name]), median(seconds[""]))


def cpu_seconds(*arguments: str) -> float:
    """Run a Python process to its end, silently, and return the CPU time that it took."""
    with Path(os.devnull).open("w", encoding="utf-8") as nothing:
        quiet = [(os.POSIX_SPAWN_DUP2, nothing.fileno(), number) for number in (1, 2)]
        process = os.posix_spawn(sys.executable, [sys.executable, *arguments], os.environ, file_actions=quiet)
        _, status, usage = os.wait4(process, 0)
    if status:
        raise RuntimeError(f"{arguments} ended with {os.waitstatus_to_exitcode(status)}")
    return usage.ru_utime + usage.ru_stime
