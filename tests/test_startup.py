"""A command imports only what it uses: help, mistakes, and what needs no AWS do without the big libraries."""

from pathlib import Path

import pytest

from tests.commands import PLACE, SAMPLES, Shell

AWS = {"boto3", "botocore"}
DATABASE = {"alembic", "sqlalchemy"}
WEB = {"jinja2", "prometheus_client", "starlette", "uvicorn"}
SCHEDULER = {"apscheduler"}
BIG = AWS | DATABASE | WEB | SCHEDULER

NOTHING_YET = "postgresql://user@127.0.0.1:1/aws"
SAVED = str(SAMPLES / "none.json")

PROGRAM = """
import os, runpy, sys

sys.argv[0] = "collector"
try:
    runpy.run_module("collector", run_name="__main__")
finally:
    with open("imported", "w") as file:
        file.write(" ".join(name for name in sys.modules if "." not in name))
"""
"""Runs ``collector`` in this interpreter, and leaves behind what that imported."""


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """A place to run the command in, with a database that nobody reaches."""
    return Shell(tmp_path, COLLECTOR_DATABASE_URL=NOTHING_YET)


def imported(shell: Shell, *arguments: str, code: int, **variables: str) -> set[str]:
    """Run a command to its end, and name the big libraries that it imported."""
    ended = shell.python("-c", PROGRAM, *arguments, **variables)
    assert ended.code == code, ended.err
    return BIG & set((shell.folder / "imported").read_text().split())


@pytest.mark.parametrize(
    "command",
    [(), *((c,) for c in ("run", "backfill", "status", "check", "migrate", "iam-policy", "psql", "demo"))],
)
def test_help_needs_nothing(shell: Shell, command: tuple[str, ...]) -> None:
    """Nor does any command's."""
    assert imported(shell, *command, "--help", code=0) == set()


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "--config", "nowhere.toml"),
        ("backfill", "--config", "nowhere.toml"),
        ("backfill", "--spool", "--config", "nowhere.toml"),
        ("status", "--config", "nowhere.toml"),
        ("check", "--config", "nowhere.toml"),
        ("migrate", "--config", "nowhere.toml"),
        ("psql", "--config", "nowhere.toml"),
        ("demo", "--config", "nowhere.toml"),
        ("migrate", "--check", "--sql"),
        ("backfill", "--complete"),
        ("backfill", "--since", "yesterday"),
        ("backfill", *PLACE, "nowhere.json"),
        ("status", "--nope"),
    ],
)
def test_mistakes_are_told_before_anything_is_imported(shell: Shell, arguments: tuple[str, ...]) -> None:
    """Those of the command line and those of the configuration."""
    assert imported(shell, *arguments, code=2) == set()


@pytest.mark.parametrize("arguments", [("iam-policy",), ("--version",)])
def test_what_only_prints_needs_nothing(shell: Shell, arguments: tuple[str, ...]) -> None:
    """The policy is made of the configuration alone."""
    assert imported(shell, *arguments, code=0) == set()


def test_names_of_regions_come_from_botocore_without_boto3(shell: Shell) -> None:
    """Whoever names a Region hears of a mistake in it, and waits for no client."""
    assert imported(shell, "iam-policy", "--region", "eu-west-1", code=0) == {"botocore"}


def test_psql_on_a_configured_database_needs_nothing(shell: Shell) -> None:
    """It reads the URL as libpq does, and hands over."""
    program = shell.folder / "psql"
    program.write_text("#!/bin/sh\nexit 7\n")
    program.chmod(0o755)
    path = f"{shell.folder}:{shell.environment['PATH']}"
    assert imported(shell, "psql", "-c", "SELECT 1", code=7, PATH=path) == set()


def test_the_sql_of_migrations_needs_neither_aws_nor_a_server(shell: Shell) -> None:
    """It is Alembic's."""
    assert imported(shell, "migrate", "--sql", code=0) == DATABASE


@pytest.mark.parametrize(
    "arguments", [("status",), ("migrate",), ("migrate", "--check"), ("backfill", "--spool")]
)
def test_the_database_alone_needs_no_aws(shell: Shell, arguments: tuple[str, ...]) -> None:
    """Nobody is there, and that is told."""
    assert imported(shell, *arguments, code=1) == DATABASE


def test_saved_files_need_no_client_of_aws(shell: Shell) -> None:
    """They are read as boto3 would have read them, by our own transform."""
    assert imported(shell, "backfill", *PLACE, SAVED, code=1) == DATABASE | {"botocore"}


@pytest.mark.parametrize("command", ["backfill", "check"])
def test_asking_aws_once_needs_neither_scheduler_nor_web(shell: Shell, command: str) -> None:
    """Those are the daemon's."""
    assert imported(shell, command, code=1) == DATABASE | AWS
