"""The command line: what can be said, checked, and handed to ``collector.commands``.

Commands import their parts only when they run, so that ``--help`` is quick.
"""

import inspect
import os
import re
import signal
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from collector import __version__
from collector.errors import CollectorError, UsageError
from collector.options import Common, declare, given, known_regions, with_common_options
from collector.redaction import redacted

if TYPE_CHECKING:
    from collector.domain import Target
    from collector.warehouse.access import Warehouse

EPILOG = (
    "Exit codes: 0 all well; 1 failed; 2 wrong usage or configuration; "
    "3 some targets failed, the rest is stored."
)

_FIRST_INSTANT = datetime(2006, 8, 25, tzinfo=UTC)
"""When EC2 began: a mistyped year is no observation."""

app = typer.Typer(
    name="collector",
    help="Keeps the true history of AWS VM imports in PostgreSQL, long after EC2 has forgotten them.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


class Source(StrEnum):
    """Where a backfill looks for the past."""

    API = "api"


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vm-import-collector {__version__}")
        raise typer.Exit


def _before(context: typer.Context, *, version: bool = False, **options: Any) -> None:  # noqa: ARG001 - acts by its callback
    context.obj = given(options)


def _run(common: Common) -> int:
    """Run the daemon: poll every configured Region and keep the history, until SIGTERM or Ctrl-C."""
    from collector.commands.run import run  # noqa: PLC0415 - see the module's first lines

    return run(common.settings, accounts=common.account)


def _backfill(
    common: Common,
    files: Annotated[
        list[str] | None,
        typer.Argument(help="Saved JSON of `aws ec2 describe-import-image-tasks`; - is standard input."),
    ] = None,
    source: Annotated[
        list[Source] | None,
        typer.Option(help="Where to look, without FILES; repeatable.", show_default="api"),
    ] = None,
    observed_at: Annotated[
        str | None,
        typer.Option(help="When FILES were taken, such as 2026-03-01T10:15:00Z.", metavar="INSTANT"),
    ] = None,
    complete: Annotated[
        bool, typer.Option("--complete", help="FILES together hold every task that was listed then.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would change, and change nothing.")
    ] = False,
    spool: Annotated[
        bool, typer.Option("--spool", help="Store what waits on disk because the database was away.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a machine-readable summary.")] = False,
) -> int:
    """Store what can be seen now (once), or what saved FILES saw.

    FILES are the CLI's whole answer, a bare task or a bare list.
    --account, --region and --observed-at say where and when they were taken.
    Files of one command are one scan.
    """
    if spool:
        if files or source or observed_at or complete:
            raise UsageError("--spool stands alone: it stores what waits on disk, and looks at nothing")
        settings = common.settings()
        from collector.commands.backfill import from_spool  # noqa: PLC0415 - see the module's first lines

        return from_spool(settings, dry_run=dry_run, as_json=as_json)
    if not files:
        if observed_at or complete:
            raise UsageError("--observed-at and --complete speak of FILES, and there are none")
        settings = common.settings()
        from collector.commands.backfill import from_api  # noqa: PLC0415 - see the module's first lines

        return from_api(settings, accounts=common.account, dry_run=dry_run, as_json=as_json)
    if source:
        raise UsageError("--source and FILES exclude each other: name one of them")
    target, instant = _place_of_files(common, files, observed_at)
    settings = common.settings()
    from collector.commands.backfill import from_files  # noqa: PLC0415 - see the module's first lines

    return from_files(
        settings,
        files,
        target=target,
        observed_at=instant,
        complete=complete,
        dry_run=dry_run,
        as_json=as_json,
    )


def _status(
    common: Common,
    as_json: Annotated[bool, typer.Option("--json", help="Print one machine-readable object.")] = False,
) -> int:
    """Show how fresh each target is, its gaps and its errors, and the imports in flight."""
    settings = common.settings()
    from collector.commands.status import status  # noqa: PLC0415 - see the module's first lines

    return status(settings, accounts=common.account, as_json=as_json)


def _check(common: Common) -> int:
    """Try credentials, permissions, Regions, database and schema: one line each, with the mend."""
    settings = common.settings()
    from collector.commands.check import check  # noqa: PLC0415 - see the module's first lines

    return check(settings, accounts=common.account)


def _iam_policy(
    common: Common,
    hub: Annotated[
        bool, typer.Option("--hub", help="For the account that assumes the configured roles.")
    ] = False,
) -> int:
    """Print the least-privilege IAM policy of an account that is looked at."""
    settings = common.settings()
    from collector.commands.iam_policy import iam_policy  # noqa: PLC0415 - see the module's first lines

    return iam_policy(settings, hub=hub)


def _migrate(
    common: Common,
    check: Annotated[
        bool, typer.Option("--check", help="Only say whether the database is behind (exit code 1).")
    ] = False,
    sql: Annotated[bool, typer.Option("--sql", help="Print the SQL instead of running it.")] = False,
) -> int:
    """Bring the database to this release's schema."""
    settings = common.settings()
    from collector.commands import migrate  # noqa: PLC0415 - see the module's first lines

    if check and sql:
        raise UsageError("--check and --sql exclude each other: name one of them")
    if sql:
        return migrate.print_sql()
    return migrate.check(settings) if check else migrate.migrate(settings)


def _psql(common: Common, arguments: list[str]) -> int:
    """Open psql on the warehouse; what follows is psql's, such as -c 'SELECT …'."""
    settings = common.settings()
    from collector.commands.psql import psql  # noqa: PLC0415 - see the module's first lines

    return psql(settings, arguments)


def _demo(
    common: Common,
    seconds: Annotated[
        float | None, typer.Option(help="End after so many seconds.", min=1, show_default="until Ctrl-C")
    ] = None,
) -> int:
    """Show everything on this machine, without AWS: simulated EC2, embedded PostgreSQL, a fast clock."""
    from collector.commands.demo import demo  # noqa: PLC0415 - see the module's first lines

    return demo(common.settings(), seconds=seconds)


_VERSION = Annotated[
    bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
]
declare(
    _before,
    [inspect.Parameter("version", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=_VERSION)],
)
app.callback()(_before)

_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
app.command("run", epilog=EPILOG)(with_common_options(_run))
app.command("backfill", epilog=EPILOG)(with_common_options(_backfill))
app.command("status", epilog=EPILOG)(with_common_options(_status))
app.command("check", epilog=EPILOG)(with_common_options(_check))
app.command("iam-policy", epilog=EPILOG)(with_common_options(_iam_policy))
app.command("migrate", epilog=EPILOG)(with_common_options(_migrate))
app.command("demo", epilog=EPILOG)(with_common_options(_demo))
app.command("psql", epilog=EPILOG, context_settings=_PASS_ON)(with_common_options(_psql))


def _place_of_files(common: Common, files: list[str], observed_at: str | None) -> tuple["Target", datetime]:
    """Return the one target and instant of FILES, or raise every fault of the flags that name them."""
    from collector.domain import Target  # noqa: PLC0415 - see the module's first lines

    faults = [f"{name}: {fault}" for name in files if name != "-" and (fault := _fault_of_file(name))]
    if files.count("-") > 1:
        faults.append("-: standard input can be read only once")
    if len(set(common.account)) != 1 or not re.fullmatch(r"\d{12}", common.account[0]):
        faults.append("--account: name the one account that FILES were taken in, 12 digits")
    if len(set(common.region)) != 1 or common.region[0] not in known_regions():
        faults.append("--region: name the one Region that FILES were taken in, such as eu-west-1")
    instant = None
    if observed_at is None:
        faults.append("--observed-at: say when FILES were taken; a file's own time is reset by any copy")
    else:
        try:
            instant = _instant(observed_at)
        except ValueError as error:
            faults.append(f"--observed-at: {error}")
    if faults or instant is None:
        raise UsageError(*faults)
    return Target(common.account[0], common.region[0]), instant


def _fault_of_file(name: str) -> str | None:
    """Say why there is nothing to read; pipes, as of `<(aws …)` in a shell, are as good as files."""
    try:
        mode = os.stat(name).st_mode  # noqa: PTH116 - Path("") is the working folder
    except FileNotFoundError:
        return "there is no such file"
    except (OSError, ValueError) as error:
        return f"cannot be read: {getattr(error, 'strerror', error)}"
    return "is a folder; name the files in it" if stat.S_ISDIR(mode) else None


def _instant(text: str) -> datetime:
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is no instant such as 2026-03-01T10:15:00Z") from None
    if instant.tzinfo is None:
        raise ValueError(f"{text!r} says no time zone, as the Z of 2026-03-01T10:15:00Z does (UTC)")
    if instant < _FIRST_INSTANT:
        raise ValueError(f"{text!r} lies before EC2 began")
    if instant > datetime.now(UTC):
        raise ValueError(f"{text!r} lies in the future")
    return instant.astimezone(UTC)


@contextmanager
def configured_warehouse() -> "Iterator[Warehouse]":
    """Open the warehouse that the environment and ``collector.toml`` configure, as `alembic` does."""
    from collector.commands.composition import warehouse_of  # noqa: PLC0415 - see the module's first lines

    with warehouse_of(Common().settings()) as warehouse:
        yield warehouse


def main() -> None:
    """Run a command; a mistake of the user's ends with a sentence and a code, never with a traceback."""
    # Like Ctrl-C: what was started, an embedded server above all, is stopped on the way out.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app()
    except CollectorError as error:
        lines = str(error).splitlines() or [type(error).__name__]
        for line in lines:
            typer.echo(f"collector: {redacted(line)}", err=True)
        sys.exit(error.exit_code)
