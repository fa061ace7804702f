"""How questions are answered: one about some tasks never reads the history of all."""

from collections.abc import Iterator
from typing import Any, LiteralString

import psycopg
import pytest

from benchmarks.reads import QUESTIONS, fill, scanned
from tests.conftest import create_database, drop_database


@pytest.fixture(scope="module")
def history(server_url: str, migrated: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection to a history that is long enough for the planner to prefer indexes."""
    with psycopg.connect(create_database(server_url, "test_plans", migrated)) as connection:
        fill(connection, 60_000)
        yield connection
    drop_database(server_url, "test_plans")


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_question_about_some_tasks_reads_no_history_from_end_to_end(
    history: psycopg.Connection[Any], question: LiteralString
) -> None:
    """Neither versions nor looks, whatever the filter."""
    assert not scanned(history, question) & {"task_versions", "scans"}
