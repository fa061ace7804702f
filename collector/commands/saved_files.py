"""Which saved files there are, and where and when each was taken: said by flags, or by its path.

Never by the file's own time, which any copy resets.
"""

import glob
import re
import stat
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from collector.domain import Target, is_account_id
from collector.errors import UsageError

STANDARD_INPUT = "-"

_FIRST_INSTANT = datetime(2006, 8, 25, tzinfo=UTC)
"""When EC2 began: a mistyped year is no observation."""

_FIELDS = {"account": r"\d{12}", "region": r"[a-z0-9-]+"}
_DIRECTIVES = {
    "%Y": r"\d{4}",
    "%m": r"\d{2}",
    "%d": r"\d{2}",
    "%H": r"\d{2}",
    "%M": r"\d{2}",
    "%S": r"\d{2}",
    "%f": r"\d{1,6}",
    "%j": r"\d{3}",
    "%b": r"[A-Za-z]{3}",
    "%y": r"\d{2}",
    "%z": r"(?:Z|[+-]\d{2}:?\d{2})",
    "%%": "%",
}
EXAMPLE = "{account}/{region}/{observed_at:%Y-%m-%dT%H%M%SZ}.json"


class Place(NamedTuple):
    """Where and when a file was taken, as far as that is known; the instant is UTC."""

    account_id: str | None = None
    region: str | None = None
    observed_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class SavedFile:
    """One file, and where and when it was taken."""

    name: str
    target: Target
    observed_at: datetime


def instant(text: str) -> datetime:
    """Read an instant such as 2026-03-01T10:15:00Z, and return it in UTC.

    Raises:
        ValueError: it is none, says no time zone, or lies before EC2 began or in the future.
    """
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is no instant such as 2026-03-01T10:15:00Z") from None
    if found.tzinfo is None:
        raise ValueError(f"{text!r} says no time zone, as the Z of 2026-03-01T10:15:00Z does (UTC)")
    return _possible(found, text).astimezone(UTC)


class PathPattern:
    """A pattern of paths such as ``EXAMPLE``, held against the end of each path.

    ``*`` stands for anything within one name. Instants without ``%z`` are UTC.
    """

    def __init__(self, pattern: str) -> None:
        self._formats: list[str] = []
        parts = re.split(r"(\{[^{}]*\}|\*)", pattern)
        self._path = re.compile(r"(?:^|/)" + "".join(self._regex(part) for part in parts) + r"$")

    def place(self, path: str) -> Place | None:
        """Return what a path says, or ``None`` when it does not fit.

        Raises:
            ValueError: it fits, but its instant is none.
        """
        match = self._path.search(path.replace("\\", "/"))
        if match is None:
            return None
        found = match.groupdict()
        taken = " ".join(found[f"observed_at_{number}"] for number in range(len(self._formats)))
        observed_at = None
        if self._formats:
            try:
                observed_at = datetime.strptime(taken, " ".join(self._formats))  # noqa: DTZ007 - made aware below
            except ValueError:
                raise ValueError(f"{taken!r} in its path is no instant") from None
            observed_at = observed_at.replace(tzinfo=observed_at.tzinfo or UTC).astimezone(UTC)
            _possible(observed_at, taken)
        return Place(found.get("account"), found.get("region"), observed_at)

    def _regex(self, part: str) -> str:
        if part == "*":
            return "[^/]*"
        if not part.startswith("{"):
            return re.escape(part)
        name, _, format_ = part[1:-1].partition(":")
        if name in _FIELDS and not format_:
            return f"(?P<{name}>{_FIELDS[name]})"
        if name == "observed_at" and format_:
            self._formats.append(format_)
            return f"(?P<observed_at_{len(self._formats) - 1}>{_regex_of_format(format_)})"
        raise UsageError(
            f"--path-pattern: {part} is none of {{account}}, {{region}} and {{observed_at:FORMAT}},"
            f" as in {EXAMPLE}"
        )


def find_files(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the files that arguments name, sorted, each once, and what is wrong with the arguments.

    A folder stands for all files below it, a glob for those that fit; pipes, as of `<(aws …)` in a shell, are
    as good as files.
    """
    found: dict[str, None] = {}
    faults: list[str] = []
    for argument in arguments:
        names = [argument] if argument == STANDARD_INPUT else _expanded(argument)
        if isinstance(names, str):
            faults.append(f"{argument}: {names}")
        else:
            found |= dict.fromkeys(names)
    if list(arguments).count(STANDARD_INPUT) > 1:
        faults.append("-: standard input can be read only once")
    return list(found), faults


def place_files(
    names: Sequence[str],
    flags: Place,
    pattern: PathPattern | None,
    known_regions: Callable[[], Collection[str]],
) -> tuple[list[SavedFile], list[str]]:
    """Say where and when each file was taken: by its path where that tells, by the flags for the rest.

    Returns:
        The files that can be placed, and what is wrong with the others, one line each.
    """
    placed: list[SavedFile] = []
    faults: dict[str, None] = {}
    regions = set(known_regions())
    for name in names:
        try:
            place = _place(name, flags, pattern, regions)
        except ValueError as error:
            faults[f"{name}: {error}"] = None
            continue
        missing = list(_missing(place, regions))
        faults |= dict.fromkeys(missing)
        if not missing and place.account_id and place.region and place.observed_at:
            placed.append(SavedFile(name, Target(place.account_id, place.region), place.observed_at))
    return placed, list(faults)


def _place(name: str, flags: Place, pattern: PathPattern | None, regions: Collection[str]) -> Place:
    if pattern is None:
        return flags
    told = pattern.place(name)
    if told is None:
        raise ValueError("its path does not fit --path-pattern")
    if told.region is not None and told.region not in regions:
        raise ValueError(f"no Region is called {told.region!r}, as its path says")
    for option, by_path, by_flag in zip(("--account", "--region", "--observed-at"), told, flags, strict=True):
        if by_path and by_flag and by_path != by_flag:
            raise ValueError(f"its path says {by_path}, and {option} says {by_flag}: name one of them")
    return Place(
        told.account_id or flags.account_id,
        told.region or flags.region,
        told.observed_at or flags.observed_at,
    )


def _missing(place: Place, regions: Collection[str]) -> Iterator[str]:
    if place.account_id is None or not is_account_id(place.account_id):
        yield "--account: name the one account that FILES were taken in, 12 digits, or use --path-pattern"
    if place.region not in regions:
        yield (
            "--region: name the one Region that FILES were taken in, such as eu-west-1, or use --path-pattern"
            if place.region is None or set(place.region) & set("*?[")
            else f"--region: no Region is called {place.region!r}"
        )
    if place.observed_at is None:
        yield (
            "--observed-at: say when FILES were taken, or use --path-pattern; a file's own time is reset by"
            " any copy"
        )


def _expanded(argument: str) -> list[str] | str:
    """Return the files that one argument stands for, or why there are none."""
    path = Path(argument)
    try:
        mode = path.stat().st_mode if argument else None
    except FileNotFoundError:
        names = glob.glob(argument, recursive=True)  # noqa: PTH207 - an absolute pattern is none of a folder's
        files = sorted(name for name in names if Path(name).is_file())
        return files or "there is no such file"
    except (OSError, ValueError) as error:
        return f"cannot be read: {getattr(error, 'strerror', None) or error}"
    if mode is None:
        return "there is no such file"
    if not stat.S_ISDIR(mode):
        return [argument]
    below = sorted(str(file) for file in path.rglob("*") if file.is_file() and not _hidden(file, path))
    return below or "there is no file in this folder"


def _hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _regex_of_format(format_: str) -> str:
    parts = re.split(r"(%.)", format_)
    if unknown := [part for part in parts if part.startswith("%") and part not in _DIRECTIVES]:
        raise UsageError(
            f"--path-pattern: {unknown[0]} is not understood; there are {', '.join(_DIRECTIVES)}"
        )
    return "".join(_DIRECTIVES.get(part) or re.escape(part) for part in parts)


def _possible(found: datetime, text: str) -> datetime:
    if found < _FIRST_INSTANT:
        raise ValueError(f"{text!r} lies before EC2 began")
    if found > datetime.now(UTC):
        raise ValueError(f"{text!r} lies in the future")
    return found
