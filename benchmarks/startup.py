"""How long does ``collector --help`` take, against importing the libraries that print it?

CPU of whole processes, children included.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from statistics import median

from benchmarks.load import Row

REPEATS = 11

_OURS = ("-m", "collector", "--help")
_LIBRARIES = ("-c", "import typer, rich.console, rich.table, rich.panel, rich.markdown")


def rows() -> Iterator[Row]:
    """Start both in turn."""
    taken: dict[tuple[str, ...], list[float]] = {_OURS: [], _LIBRARIES: []}
    for _ in range(REPEATS):
        for arguments, seconds in taken.items():
            seconds.append(_cpu(arguments))
    yield Row("collector --help / importing Typer and Rich", median(taken[_OURS]), median(taken[_LIBRARIES]))


def _cpu(arguments: tuple[str, ...]) -> float:
    before = os.times()
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)  # noqa: S603 - ours
    after = os.times()
    return after.children_user - before.children_user + after.children_system - before.children_system
