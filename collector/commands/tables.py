"""Tables for people: drawn on a terminal, plain lines elsewhere."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

_BETWEEN_COLUMNS = 3
_LONGEST_WORD = 32
"""Ids of AWS are shorter and stay in one piece; what is longer, as in some messages, may be broken."""


def print_table(console: Console, headings: Sequence[str], rows: Sequence[Sequence[Text]]) -> None:
    """Print one row or more below their headings; nothing is cut.

    A terminal that is too narrow for a table gets plain lines, as a file or a pipe does.
    """
    rows = [[in_one_line(cell) for cell in row] for row in rows]
    plain = [headings, *([cell.plain for cell in row] for row in rows)]
    widths = _widths(plain, console.width) if console.is_terminal else None
    if widths is None:
        console.print(Text("\n".join(_aligned(plain))), soft_wrap=True)
        return
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading, width in zip(headings, widths, strict=True):
        table.add_column(heading, width=width, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def in_one_line(cell: Text) -> Text:
    """Blank out line breaks and what else acts upon a terminal: tags and messages are others' words."""
    plain = "".join(character if character.isprintable() else " " for character in cell.plain)
    return Text(plain, cell.style)


def _widths(rows: Sequence[Sequence[str]], width: int) -> list[int] | None:
    """Share a width out: each column's longest word first, then what they need, from left to right."""
    columns = list(zip(*rows, strict=True))
    words = [max(cell_len(word) for cell in column for word in cell.split(" ")) for column in columns]
    widths = [min(word, _LONGEST_WORD) for word in words]
    room = width - sum(widths) - _BETWEEN_COLUMNS * (len(columns) - 1)
    if room < 0:
        return None
    for place, column in enumerate(columns):
        more = min(room, max(map(cell_len, column)) - widths[place])
        widths[place] += more
        room -= more
    return widths


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]
