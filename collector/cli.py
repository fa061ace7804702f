"""The command line: what can be said, checked, and handed to ``collector.commands``.

Commands import their parts only when they run, so that ``--help`` is quick.
"""

import inspect
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from collector import __version__
from collector.errors import CollectorError, UsageError
from collector.options import Common, declare, given, known_regions, with_common_options
from collector.redaction import redacted

if TYPE_CHECKING:
    from collector.warehouse.access import Warehouse

EPILOG = (
    "Exit codes: 0 all well; 1 failed; 2 wrong usage or configuration; "
    "3 some targets failed, the rest is stored."
)

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
    IMAGES = "images"
    CLOUDTRAIL = "cloudtrail"


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
        typer.Argument(
            help="Saved JSON of `aws ec2 describe-import-image-tasks`, also gzipped or in lines;"
            " folders and globs; - is standard input."
        ),
    ] = None,
    source: Annotated[
        list[Source] | None,
        typer.Option(help="Where to look, without FILES; repeatable.", show_default="all three"),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            help="How far back images and cloudtrail go: an instant, or so long ago, such as 30d.",
            metavar="INSTANT|DURATION",
            show_default="all; cloudtrail has 90 days",
        ),
    ] = None,
    observed_at: Annotated[
        str | None,
        typer.Option(help="When FILES were taken, such as 2026-03-01T10:15:00Z.", metavar="INSTANT"),
    ] = None,
    path_pattern: Annotated[
        str | None,
        typer.Option(
            help="Where the paths of FILES say account, Region and instant, such as"
            " '{account}/{region}/{observed_at:%Y-%m-%dT%H%M%SZ}.json'.",
            metavar="PATTERN",
        ),
    ] = None,
    complete: Annotated[
        bool,
        typer.Option(
            "--complete", help="FILES of one instant together hold every task that was listed then."
        ),
    ] = False,
    spool: Annotated[
        bool, typer.Option("--spool", help="Store what waits on disk because the database was away.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would change, and change nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a machine-readable summary.")] = False,
) -> int:
    """Store what can be seen now, what AMIs and CloudTrail still tell of the past, or what saved FILES saw.

    FILES are the CLI's whole answer, a bare task or a bare list.
    --account, --region and --observed-at, or --path-pattern, say where and when they were taken.
    FILES of one command with the same account, Region and instant are one scan.
    Running it again goes on where it ended, and stores nothing twice.
    """
    of_files = bool(observed_at or path_pattern or complete)
    if spool:
        if files or source or since or of_files:
            raise UsageError("--spool stands alone: it stores what waits on disk, and looks at nothing")
        settings = common.settings()
        from collector.commands.backfill_spool import from_spool  # noqa: PLC0415 - see the module's first lines

        return from_spool(settings, dry_run=dry_run, as_json=as_json)
    if files:
        if source or since:
            raise UsageError("--source and FILES exclude each other, and so does --since: name one of them")
        return _backfill_files(
            common, files, observed_at, path_pattern, complete=complete, dry_run=dry_run, as_json=as_json
        )
    if of_files:
        raise UsageError("--observed-at, --path-pattern and --complete speak of FILES, and there are none")
    begin = None if since is None else _begin(since)
    settings = common.settings()
    from collector.commands.backfill import from_sources  # noqa: PLC0415 - see the module's first lines

    return from_sources(
        settings,
        accounts=common.account,
        sources={one.value for one in source or Source},
        since=begin,
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
    sql: Annotated[bool, typer.Option("--sql", help="Print the SQL of all migrations; run nothing.")] = False,
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


def _backfill_files(
    common: Common,
    files: list[str],
    observed_at: str | None,
    path_pattern: str | None,
    *,
    complete: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Say where and when FILES were taken, or raise every fault of the flags that should; then load them."""
    from collector.commands import saved_files  # noqa: PLC0415 - see the module's first lines

    pattern = saved_files.PathPattern(path_pattern) if path_pattern else None
    faults: list[str] = []
    instant = None
    if observed_at is not None:
        try:
            instant = saved_files.instant(observed_at)
        except ValueError as error:
            faults.append(f"--observed-at: {error}")
    faults += [
        f"{option}: name the one that FILES were taken in, or let --path-pattern tell"
        for option, names in (("--account", common.account), ("--region", common.region))
        if len(set(names)) > 1
    ]
    names, missing = saved_files.find_files(files)
    account, region = (one[0] if one else None for one in (common.account, common.region))
    flags = saved_files.Place(account, region, instant)
    placed, unplaced = saved_files.place_files(names, flags, pattern, known_regions)
    if faults or missing or not placed:
        told = {fault.split(":")[0] for fault in faults}
        others = (fault for fault in unplaced if fault.split(":")[0] not in told)
        raise UsageError(*missing, *others, *faults)
    settings = common.settings()
    from collector.commands.backfill_files import from_files  # noqa: PLC0415 - see the module's first lines

    return from_files(settings, placed, complete=complete, faults=unplaced, dry_run=dry_run, as_json=as_json)


def _begin(text: str) -> datetime:
    """Read ``--since``: an instant, or how long ago."""
    from collector.commands.saved_files import instant  # noqa: PLC0415 - see the module's first lines
    from collector.config import parse_duration  # noqa: PLC0415

    with suppress(ValueError):
        return datetime.now(UTC) - parse_duration(text)
    try:
        return instant(text)
    except ValueError as error:
        raise UsageError(f"--since: {error}, and no duration such as 30d") from None


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
