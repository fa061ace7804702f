"""One frozen ``Settings``, read once at the edge.

Flags over environment (``COLLECTOR_…``) over the TOML file over defaults. Every fault of a configuration is
reported at once, each with its key; no value is ever printed, because it may hold a password.
"""

import difflib
import json
import os
import re
import tomllib
from collections.abc import Callable, Collection, Mapping
from contextvars import ContextVar
from datetime import timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

import platformdirs
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from collector.domain import is_account_id
from collector.errors import UsageError
from collector.redaction import keep_secret, keep_secrets_of_url

PREFIX = "COLLECTOR_"
DEFAULT_FILE = Path("collector.toml")
LONGEST_INTERVAL = timedelta(hours=24)
_LAST_PORT = 65535

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_LATER = {"scan_horizon", "retention", "executor"}
"""Keys of the design that this release does not act on yet: accepting one silently would be a lie."""

_known_regions: ContextVar[Callable[[], Collection[str]]] = ContextVar("known_regions")


def parse_duration(text: object) -> timedelta:
    """Turn ``30s``, ``15m``, ``24h`` or ``7d`` into a timedelta; leave what is one already.

    Raises:
        ValueError: the text is no such duration.
    """
    if isinstance(text, timedelta):
        return text
    match = re.fullmatch(r"(\d{1,9})([smhd])", str(text).strip())
    if match is None:
        raise ValueError("must be a duration such as 30s, 15m, 24h or 7d")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def _names(value: object) -> object:
    return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value


def _interval(value: object) -> object:
    duration = parse_duration(value)
    if not timedelta(seconds=1) <= duration <= LONGEST_INTERVAL:
        raise ValueError("must be between 1s and 24h: EC2 forgets a task seven days after its end")
    return duration


def _deadline(value: object) -> object:
    duration = parse_duration(value)
    if not timedelta(seconds=1) <= duration <= timedelta(hours=1):
        raise ValueError("must be between 1s and 1h")
    return duration


def _existing(patterns: list[str]) -> list[str]:
    """Check Region names and globs against those that exist; an empty list of those checks nothing."""
    known = _known_regions.get()() if set(patterns) - {"all"} else ()
    faults = [
        f"no Region is called {pattern!r}{_nearest(pattern, known)}"
        for pattern in patterns
        if known and pattern != "all" and not any(fnmatchcase(region, pattern) for region in known)
    ]
    if faults:
        raise ValueError("; ".join(faults))
    return patterns


def _database_url(value: object) -> object:
    if not isinstance(value, str) or not re.match(r"postgres(ql)?://", value):
        raise ValueError(
            "must read postgresql://user:password@host:port/database"
            " (DATABASE_URL counts where nothing else sets it)"
        )
    return value


def _role_arn(value: object) -> object:
    if not isinstance(value, str) or not re.fullmatch(r"arn:aws[\w-]*:iam::\d{12}:role/[\w+=,.@/-]+", value):
        raise ValueError("must read arn:aws:iam::ACCOUNT:role/NAME, the account with 12 digits")
    return value


def _account_id(value: object) -> object:
    if not isinstance(value, str) or not is_account_id(value):
        raise ValueError("must be an account's 12 digits, in quotes")
    return value


def _address(value: object) -> object:
    if isinstance(value, Address):
        return value
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[\w.-]+):(\d{1,5})", str(value).strip())
    if match is None or int(match[2]) > _LAST_PORT:
        raise ValueError("must read HOST:PORT, such as 127.0.0.1:8080; port 0 takes a free one")
    return Address(match[1].strip("[]"), int(match[2]))


def _size(value: object) -> object:
    units = {"": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
    match = re.fullmatch(r"(\d{1,12}) ?(B|KiB|MiB|GiB|TiB)?", str(value).strip())
    if match is None or (size := int(match[1]) * units[match[2] or ""]) < 2**20:
        raise ValueError("must be a size such as 500MiB or 1GiB, and at least 1MiB")
    return size


def _folder(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError("nobody knows whose home folder ~ is: write the whole path") from None


def _json(value: object) -> object:
    """Read what a variable holds; a file needs no JSON."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        raise ValueError("must be JSON; a TOML file is the easier place for it") from None


class Address(NamedTuple):
    """Where to listen."""

    host: str
    port: int


Regions = Annotated[list[str], NoDecode, BeforeValidator(_names), AfterValidator(_existing)]
AccountId = Annotated[str, BeforeValidator(_account_id)]
Interval = Annotated[timedelta, BeforeValidator(_interval)]
DatabaseUrl = Annotated[SecretStr, BeforeValidator(_database_url)]


def default_data_dir() -> Path:
    """Return where the embedded database lives: a system folder for root, the user's own otherwise."""
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        return Path("/var/lib/vm-import-collector")
    return platformdirs.user_data_path("vm-import-collector", appauthor=False)


class AccountSettings(BaseModel):
    """One of ``[[accounts]]``; without ``role_arn`` it is the credentials' own account."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    role_arn: Annotated[str, BeforeValidator(_role_arn)] | None = None
    external_id: SecretStr | None = None
    regions: Regions = Field(default_factory=list)

    @model_validator(mode="after")
    def _external_id_needs_a_role(self) -> Self:
        if self.external_id is not None and self.role_arn is None:
            raise ValueError("external_id needs role_arn: the credentials' own account is not assumed")
        return self


class OrganizationSettings(BaseModel):
    """``[organization]``: every active account of it, by a role of the same name in each."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    role_name: Annotated[str, Field(pattern=r"^[\w+=,.@/-]+$")]
    exclude: list[AccountId] = Field(default_factory=list)


def _named_once(accounts: list[AccountSettings]) -> list[AccountSettings]:
    ids = [one.role_arn.split(":")[4] if one.role_arn else "the credentials' own" for one in accounts]
    if twice := sorted({account_id for account_id in ids if ids.count(account_id) > 1}):
        raise ValueError(f"named twice: {', '.join(twice)}")
    return accounts


AccountList = Annotated[list[AccountSettings], NoDecode, BeforeValidator(_json), AfterValidator(_named_once)]


class Settings(BaseSettings):
    """What the collector is told. See the README for the meaning of each key."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix=PREFIX, env_ignore_empty=True, hide_input_in_errors=True
    )

    database_url: DatabaseUrl | None = None
    direct_database_url: DatabaseUrl | None = None
    data_dir: Annotated[Path, AfterValidator(_folder)] = Field(default_factory=default_data_dir)
    spool_limit: Annotated[int, BeforeValidator(_size)] = 2**30
    accounts: AccountList = Field(default_factory=list)
    organization: Annotated[OrganizationSettings | None, NoDecode, BeforeValidator(_json)] = None
    regions: Regions = Field(default_factory=lambda: ["all"], min_length=1)
    exclude_regions: Regions = Field(default_factory=list)
    interval: Interval = timedelta(seconds=60)
    idle_interval: Interval = timedelta(minutes=15)
    concurrency: Annotated[int, Field(ge=1, le=1024)] = 64
    target_deadline: Annotated[timedelta, BeforeValidator(_deadline)] = timedelta(seconds=60)
    listen: Annotated[Address, NoDecode, BeforeValidator(_address)] = Address("127.0.0.1", 8080)

    @field_validator("organization")
    @classmethod
    def _stands_alone(
        cls, value: OrganizationSettings | None, info: ValidationInfo
    ) -> OrganizationSettings | None:
        if value is not None and info.data.get("accounts"):
            raise ValueError("accounts and organization exclude each other: configure one of them")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the library's signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the library's signature
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order the sources; ``_file`` among the flags names the TOML file.

        ``DATABASE_URL``, which other software sets too, counts only where nothing else does.
        """
        assert isinstance(init_settings, InitSettingsSource)  # noqa: S101 - for the type checker
        file = init_settings.init_kwargs.pop("_file", None)
        common = {"database_url": url} if (url := os.environ.get("DATABASE_URL")) else {}
        return (
            init_settings,
            env_settings,
            TomlConfigSettingsSource(settings_cls, toml_file=file),
            InitSettingsSource(settings_cls, init_kwargs=common),
        )


_NESTED = {"accounts": AccountSettings.model_fields, "organization": OrganizationSettings.model_fields}


def load(
    flags: Mapping[str, Any],
    *,
    file: Path | None = None,
    known_regions: Callable[[], Collection[str]] = tuple,
) -> Settings:
    """Read the configuration.

    ``flags`` are the keys given on the command line, ``file`` is ``--config``; ``known_regions`` is called
    only when Regions are named, and an empty answer checks nothing.

    Raises:
        UsageError: one fault or more, all of them, each with its key.
    """
    path, faults = _config_file(file)
    faults += _unknown_variables()
    token = _known_regions.set(known_regions)
    try:
        settings = Settings(**{**flags, "_file": path})
    except ValidationError as error:
        faults += [_fault(detail) for detail in error.errors(include_input=False, include_url=False)]
    finally:
        _known_regions.reset(token)
    if faults:
        raise UsageError(*faults)
    _keep_secrets(settings)
    return settings


def _keep_secrets(settings: Settings) -> None:
    """Keep what is secret out of logs and errors, wherever it may turn up."""
    for url in (settings.database_url, settings.direct_database_url):
        if url is not None:
            keep_secrets_of_url(url.get_secret_value())
    for account in settings.accounts:
        if account.external_id is not None:
            keep_secret(account.external_id.get_secret_value())


def _unknown_variables() -> list[str]:
    known = {PREFIX + name.upper() for name in Settings.model_fields} | {PREFIX + "CONFIG"}
    unknown = [name for name in sorted(os.environ) if name.startswith(PREFIX) and name not in known]
    return [f"{name}: no such variable{_hint(name, known)}" for name in unknown]


def _config_file(given: Path | None) -> tuple[Path | None, list[str]]:
    """Return the TOML file to read, if any, and what is wrong with it."""
    origin = "--config"
    if given is None and (value := os.environ.get(PREFIX + "CONFIG")):
        given, origin = Path(value), PREFIX + "CONFIG"
    if given is None and not DEFAULT_FILE.is_file():
        return None, []
    path = given or DEFAULT_FILE
    try:
        tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None, [f"{origin}: there is no file {path}"]
    except OSError as error:
        return None, [f"{path}: cannot be read: {error.strerror}"]
    except UnicodeDecodeError:
        return None, [f"{path}: not UTF-8 text"]
    except (ValueError, RecursionError) as error:
        return None, [f"{path}: not TOML: {error}"]
    return path, []


def _fault(detail: ErrorDetails) -> str:
    first, *rest = (str(part) for part in detail["loc"])
    key = ".".join([first, *rest])
    if detail["type"] == "extra_forbidden":
        near = _nearest(rest[-1], _NESTED[first]) if rest else _hint(key, Settings.model_fields)
        return f"{key}: no such key{near}"
    message = detail["msg"].removeprefix("Value error, ")
    return f"{key}: {message[:1].lower()}{message[1:]}"


def _hint(name: str, known: Collection[str]) -> str:
    key = name.lower().removeprefix(PREFIX.lower()).split("__")[0].split(".")[0]
    return ": it belongs to a later release" if key in _LATER else _nearest(name, known)


def _nearest(name: str, known: Collection[str]) -> str:
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
    return f"; did you mean {match[0]}?" if match else ""
