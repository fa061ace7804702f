"""The README shows only what works: its SQL runs, and it names every key and command."""

import re
from pathlib import Path

import psycopg
import pytest

from collector.config import Settings

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
_STATEMENTS = re.findall(r"```sql\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("statement", _STATEMENTS)
def test_sql_of_the_readme_runs(database_url: str, statement: str) -> None:
    """Each statement is accepted as it stands; only the database has another name here."""
    with psycopg.connect(database_url) as connection:
        connection.execute(statement.replace("aws.ec2_api", "ec2_api"))


@pytest.mark.parametrize("key", Settings.model_fields)
def test_every_key_is_described(key: str) -> None:
    """A key of the configuration has its row."""
    assert f"| `{key}` |" in README
