"""What the demo shows: imports as they go, read through the same views as anybody's, then four questions."""

from collections.abc import Callable
from datetime import datetime
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text
from sqlalchemy import CursorResult, Engine, text

from collector.commands.tables import print_table

_OUTCOMES = {"in progress": "cyan", "completed": "green", "failed": "red", "cancelled": "yellow"}

_TASKS = text("""
    SELECT l.region, l.import_task_id, g.value AS name, l.outcome, l.status_message, l.progress_percent,
        l.last_observed_at
    FROM vm_import.latest_tasks l
    LEFT JOIN vm_import.tag_history g ON g.account_id = l.account_id AND g.region = l.region
        AND g.import_task_id = l.import_task_id AND g.key = 'Name' AND g.valid_to IS NULL
    WHERE l.listed
    ORDER BY l.outcome <> 'in progress', coalesce(l.finished_before, l.first_seen_at) DESC,
        l.import_task_id
""")

_NEWS = text("""
    SELECT h.valid_from, h.region, h.import_task_id, h.status, h.status_message, h.progress
    FROM vm_import.task_history h
    WHERE h.not_before IS NOT NULL AND h.valid_from > :since
    ORDER BY h.valid_from, h.region, h.import_task_id
""")

QUESTIONS = (
    (
        "What is being imported, and how far is it?",
        """SELECT region, import_task_id, status_message AS phase,
       progress_percent AS percent
FROM vm_import.current_tasks
WHERE status = 'active'
ORDER BY progress_percent DESC LIMIT 5;""",
    ),
    (
        "What failed, when, and why?",
        """SELECT import_task_id, finished_before AS failed_by,
       left(status_message, 38) AS why
FROM vm_import.latest_tasks
WHERE outcome = 'failed'
ORDER BY finished_before DESC LIMIT 5;""",
    ),
    (
        "How long does each phase take?",
        """SELECT phase, count(duration) AS times,
       date_trunc('second', avg(duration)) AS average,
       date_trunc('second', max(duration_max)) AS at_most
FROM vm_import.phases
GROUP BY phase HAVING count(duration) > 0
ORDER BY average DESC LIMIT 6;""",
    ),
    (
        "What was true half-way through?",
        """SELECT region, count(*) AS imports,
       count(*) FILTER (WHERE status = 'active') AS active
FROM vm_import.tasks_as_of((
    SELECT min(observed_at) + (max(observed_at) - min(observed_at)) / 2
    FROM vm_import.scans))
GROUP BY region ORDER BY region;""",
    ),
)


class View(Protocol):
    """Something that shows the present, again and again."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End."""

    def update(self) -> None:
        """Show what is new."""


class LiveView:
    """A table that changes in place, for a terminal."""

    def __init__(self, console: Console, engine: Engine, now: Callable[[], datetime], psql: str) -> None:
        self._console = console
        self._engine = engine
        self._now = now
        self._psql = psql
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def update(self) -> None:
        """Draw the tasks anew."""
        with self._engine.connect() as connection:
            rows = list(connection.execute(_TASKS))
        table = Table(title=f"VM imports at {self._now():%Y-%m-%d %H:%M} (simulated)", expand=True)
        for heading in ("Region", "Task", "Name", "State", "Progress"):
            table.add_column(heading, no_wrap=True, overflow="ellipsis")
        for row in rows[: max(3, self._console.height - 9)]:
            state = row.status_message if row.outcome == "in progress" else row.outcome
            table.add_row(
                row.region,
                row.import_task_id,
                row.name or "",
                Text(state or "", style=_OUTCOMES.get(row.outcome, "")),
                ProgressBar(100, float(row.progress_percent), width=20) if row.progress_percent else "",
            )
        hint = Text(f"SQL, from another terminal: {self._psql}\nCtrl-C ends it, and asks four questions.")
        self._live.update(Group(table, hint), refresh=True)


class PlainView:
    """A line for every change, for a file or a pipe."""

    def __init__(self, console: Console, engine: Engine, now: Callable[[], datetime], psql: str) -> None:
        self._console = console
        self._engine = engine
        self._shown_until = now()
        self._psql = psql

    def __enter__(self) -> Self:
        self._print(f"SQL, from another terminal: {self._psql}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.update()

    def update(self) -> None:
        """Print the versions that are new."""
        with self._engine.connect() as connection:
            rows = list(connection.execute(_NEWS, {"since": self._shown_until}))
        for row in rows:
            self._shown_until = max(self._shown_until, row.valid_from)
            progress = f", {row.progress} %" if row.progress else ""
            state = f"{row.status}: {row.status_message}" if row.status_message else row.status
            self._print(f"{row.valid_from:%m-%d %H:%M} {row.region} {row.import_task_id} {state}{progress}")

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def answer_questions(console: Console, engine: Engine, psql: str) -> None:
    """Print the questions, the SQL and the answers."""
    with engine.connect() as connection:
        for number, (question, statement) in enumerate(QUESTIONS, 1):
            console.print(f"\n[bold]{number}. {question}[/bold]")
            console.print(Syntax(statement, "sql", background_color="default"))
            _print_answer(console, connection.execute(text(statement)))
    console.print("\nThe demo's warehouse is still there. Ask it anything:")
    console.print(f"  {psql}", highlight=False, markup=False, soft_wrap=True)


def _print_answer(console: Console, answer: CursorResult[Any]) -> None:
    headings, rows = list(answer.keys()), answer.all()
    if rows:
        print_table(console, headings, [[Text(_cell(value)) for value in row] for row in rows])
    else:
        console.print("(nothing)")


def _cell(value: object) -> str:
    if isinstance(value, datetime):
        return f"{value:%m-%d %H:%M}"
    return "" if value is None else str(value)
