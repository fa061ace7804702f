"""The options that every command takes, before its name and after it.

What they need is imported only when they are used, so that ``--help`` is quick.
"""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from collector.errors import CollectorError, UsageError

if TYPE_CHECKING:
    from collector.config import Settings


class LogFormat(StrEnum):
    """How log lines are written."""

    TEXT = "text"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class Common:
    """The options that every command takes."""

    config: Path | None = None
    region: tuple[str, ...] = ()
    account: tuple[str, ...] = ()
    log_format: LogFormat = LogFormat.TEXT
    verbose: bool = False

    def settings(self) -> "Settings":
        """Read the configuration, with these options above all else.

        Raises:
            UsageError: one fault or more, of these options or of the configuration.
        """
        from collector.config import load  # noqa: PLC0415 - see the module's first lines
        from collector.domain import is_account_id  # noqa: PLC0415 - as above

        flags = {"regions": list(self.region)} if self.region else {}
        faults = [
            f"--account: {name!r} is no account id of 12 digits"
            for name in self.account
            if not is_account_id(name)
        ]
        try:
            settings = load(flags, file=self.config, known_regions=known_regions)
        except UsageError as error:
            raise UsageError(*faults, *error.faults) from None
        if faults:
            raise UsageError(*faults)
        if self.region:  # above the Regions of single accounts, too
            accounts = [account.model_copy(update={"regions": []}) for account in settings.accounts]
            settings = settings.model_copy(update={"accounts": accounts})
        return settings

    def start_logging(self) -> None:
        """Send log lines to standard error in the wanted format."""
        from collector.logs import configure  # noqa: PLC0415 - as above

        configure(self.log_format.value, verbose=self.verbose)


COMMON_OPTIONS: dict[str, Any] = {
    "config": Annotated[
        Path | None,
        typer.Option(help="Read this TOML file [COLLECTOR_CONFIG, ./collector.toml].", show_default=False),
    ],
    "region": Annotated[
        list[str] | None,
        typer.Option(help="Only this Region; repeatable, globs allowed.", show_default=False),
    ],
    "account": Annotated[
        list[str] | None, typer.Option(help="Only this account, 12 digits; repeatable.", show_default=False)
    ],
    "log_format": Annotated[LogFormat | None, typer.Option(help="How to write log lines.")],
    "verbose": Annotated[bool | None, typer.Option("--verbose", help="Log more.")],
}


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Return those of the options that somebody gave."""
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in options.items()
        if value not in (None, [], False)
    }


def with_common_options(command: Callable[..., int]) -> Callable[..., None]:
    """Let a command take the common options too, before its name and after it, and end with its code."""
    own = inspect.signature(command).parameters

    def run(*, context: typer.Context, **options: Any) -> None:
        after = given({name: options.pop(name) for name in COMMON_OPTIONS})
        common = Common(**{**(context.obj or {}), **after})
        common.start_logging()
        arguments = {"arguments": context.args} if "arguments" in own else {}
        try:
            code = command(common, **arguments, **options)
        except KeyboardInterrupt:  # Typer would end without a word, and with a code that is none of ours
            raise CollectorError("interrupted") from None
        raise typer.Exit(code)

    declare(run, [p for name, p in own.items() if name not in {"common", "arguments"}])
    run.__doc__ = command.__doc__
    return run


def declare(function: Callable[..., None], own: Iterable[inspect.Parameter]) -> None:
    """Give a function the signature that Typer reads: the context, its own options, the common ones."""
    context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    common = [
        context.replace(name=name, default=None, annotation=annotation)
        for name, annotation in COMMON_OPTIONS.items()
    ]
    parameters = [context, *(p.replace(kind=context.kind) for p in own), *common]
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {p.name: p.annotation for p in parameters}


def known_regions() -> list[str]:
    """Return the names of all Regions that the installed botocore knows."""
    from collector.aws import regions  # noqa: PLC0415 - see the module's first lines

    return list(regions.known_regions())
