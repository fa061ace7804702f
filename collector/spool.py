"""Looks on disk while the database is away: scans and failures, one small file each.

It owns ``folder/<account>/<region or _>/<instant>-<unique>.look`` and, for what cannot be read,
``folder/damaged``: nothing is deleted but by ``remove``, and by ``make_room`` at the limit. What is in a
file is ``collector.look_files``'s.

Any number of threads and processes may use one folder. A file appears whole, by its renaming, and no reader
relies on one still being there.
"""

import os
import stat
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import groupby, islice
from pathlib import Path
from secrets import token_hex
from time import monotonic, time
from typing import BinaryIO
from urllib.parse import quote

import structlog

from collector.domain import Look
from collector.errors import SpoolError
from collector.look_files import (
    DamagedFileError,
    FromWire,
    NewerFileError,
    ToWire,
    decoded,
    digest_of_complete_scan,
    encoded,
    is_sound,
)

ABANDONED_AFTER = timedelta(hours=1)
"""The age at which nobody will finish a temporary file any more."""

_BLOCK = 512
"""Bytes in a unit of ``st_blocks``, whatever the file system's own blocks are."""

_ATTEMPTS = 100
"""How often a folder may be removed under the hands of whoever puts a file into it."""

_PAUSE = 10
"""How long a full folder is not measured again, in durations of the last time."""

_LOOK, _TEMPORARY = ".look", ".part"
_DAMAGED, _NO_REGION = "damaged", "_"
_TAKEN = frozenset({"", ".", "..", _DAMAGED, _NO_REGION})

Entry = os.DirEntry[str]

log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Spooled:
    """A look that waits, and the file that it waits in."""

    path: Path
    look: Look


@dataclass(frozen=True, slots=True)
class _Draft:
    """A file on its way in: under its temporary name, and where it will be."""

    temporary: Path
    path: Path


class Spool:
    """The looks that wait in a folder, which is made when it is missing.

    ``limit`` is in bytes of disk. ``to_wire`` turns a task into JSON that the ``from_wire`` of any release
    turns back.

    Raises:
        SpoolError: the folder cannot be made or read.
    """

    def __init__(self, folder: Path, *, limit: int, to_wire: ToWire, from_wire: FromWire) -> None:
        self._folder = folder.absolute()
        self._limit = limit
        self._to_wire = to_wire
        self._from_wire = from_wire
        self._changing = threading.Lock()  # held while a look appears or goes, so that a count is exact
        self._measuring = threading.Lock()  # taken before the other, never after it
        self._measure_again = 0.0
        self._thinned: dict[Path, int] = {}
        self._newer: set[Path] = set()
        self._named: set[Path] = set()
        self._files = self._bytes = 0
        self._open()

    @property
    def files(self) -> int:
        """How many looks wait."""
        return self._files

    @property
    def bytes(self) -> int:
        """How much of the disk the looks that wait take."""
        return self._bytes

    @property
    def damaged(self) -> int:
        """How many files were set aside because they cannot be read."""
        return len(self._entries(self.damaged_folder))

    @property
    def damaged_folder(self) -> Path:
        """Where those files are."""
        return self._folder / _DAMAGED

    @property
    def full(self) -> bool:
        """Whether the limit is reached; ``make_room`` may help."""
        return self._bytes >= self._limit

    def make_room(self) -> None:
        """Where the limit is reached, count anew and thin runs of equal scans; seldom while it is no use."""
        with self._measuring:
            if self.full and (began := monotonic()) >= self._measure_again:
                self._count()  # another process may have drained the folder
                if self.full:
                    self._thin()
                self._measure_again = monotonic() + _PAUSE * (monotonic() - began)
            if not self.full:
                self._measure_again = 0.0

    def append(self, looks: Iterable[Look]) -> None:
        """Keep looks until they are removed, all of them or none; they outlive a power cut from here on.

        Raises:
            SpoolError: the disk refuses; none of the looks was kept.
        """
        drafts: list[_Draft] = []
        try:
            for look in looks:
                self._write(look, drafts)
            self._publish(drafts)
        except OSError as error:
            self._withdraw(drafts)
            raise self._refusal("kept in", error) from error
        except BaseException:
            self._withdraw(drafts)
            raise

    def waiting(self, limit: int, *, besides: Collection[Path] = ()) -> list[Spooled]:
        """Return at most ``limit`` looks, the oldest of all targets first; damaged files are set aside.

        ``besides`` are files that are left out for now.
        """
        return next(self.batches(limit, besides=besides), [])

    def batches(self, size: int, *, besides: Collection[Path] = ()) -> Iterator[list[Spooled]]:
        """Yield what waits when it begins, as ``waiting`` does, so many looks at a time.

        The folders are listed once, and a file is read when it is its turn; one that is gone is skipped.
        """
        names = sorted((entry.name, folder) for folder, entry in self._looks(abandoned=self._set_aside))
        if len(names) != self._files:  # another process was here
            self._count()
        paths = (folder / name for name, folder in names)
        found = (
            Spooled(path, look)
            for path in paths
            if path not in besides and (look := self._read(path)) is not None
        )
        while batch := list(islice(found, size)):
            yield batch

    def remove(self, spooled: Iterable[Spooled]) -> None:
        """Remove looks that are stored now, and the folders that are empty then; any may be gone already.

        Raises:
            SpoolError: the disk refuses; as many as possible were removed.
        """
        refused: OSError | None = None
        folders: set[Path] = set()
        for each in spooled:
            folders.add(each.path.parent)
            try:
                self._take_away(each.path, Path.unlink)
            except OSError as error:
                refused = error
        for folder in folders:
            _remove_empty(folder)
        if refused:
            raise self._refusal("removed from", refused) from refused

    # Into the folder

    def _open(self) -> None:
        try:
            # What lies above is not ours alone: the embedded server's account may have to pass.
            self._folder.parent.mkdir(parents=True, exist_ok=True)
            _make_folder(self._folder)
            with suppress(PermissionError):  # somebody else made it, in a folder that we may only pass
                _sync(self._folder.parent)
            os.scandir(self._folder).close()
        except OSError as error:
            raise self._refusal("kept in", error) from error
        self._count()

    def _write(self, look: Look, drafts: list[_Draft]) -> None:
        """Write a look under a temporary name, which is among ``drafts`` as soon as it exists."""
        content = encoded(look, self._to_wire)
        folder, name = self._folder_of(look), _name_of(look)
        draft = _Draft(folder / f".{name}{_TEMPORARY}", folder / name)
        with self._create(draft.temporary) as file:
            drafts.append(draft)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def _create(self, path: Path) -> BinaryIO:
        """Make a new file and its folders, which others may remove as long as they are empty."""
        for _ in range(_ATTEMPTS):
            with suppress(FileNotFoundError):
                for folder in (self._folder, path.parent.parent, path.parent):
                    _make_folder(folder)
                return open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600))
        raise FileNotFoundError(f"{path.parent} goes away again and again")

    def _publish(self, drafts: list[_Draft]) -> None:
        for draft in drafts:
            with self._changing:
                size = _size(draft.temporary.lstat())
                draft.temporary.rename(draft.path)
                self._files += 1
                self._bytes += size
        # All the way up: whoever made a folder that we found may not have come to this yet.
        for folder in {folder for draft in drafts for folder in (*draft.path.parents[:2], self._folder)}:
            with suppress(FileNotFoundError):  # drained and removed already
                _sync(folder)

    def _withdraw(self, drafts: list[_Draft]) -> None:
        for draft in drafts:
            for path in (draft.temporary, draft.path):
                with suppress(OSError):
                    self._take_away(path, Path.unlink)
            _remove_empty(draft.path.parent)

    def _folder_of(self, look: Look) -> Path:
        account, region = look.place
        return self._folder / _folder_name(account) / (_NO_REGION if region is None else _folder_name(region))

    def _refusal(self, doing: str, error: OSError) -> SpoolError:
        where = f" ({error.filename})" if error.filename else ""
        return SpoolError(
            f"What waits for the database cannot be {doing} {self._folder}: {error.strerror or error}{where}."
            " Mend that, or choose another data_dir (COLLECTOR_DATA_DIR)."
        )

    # Out of the folder

    def _read(self, path: Path) -> Look | None:
        """Return a file's look, or ``None`` if it has none for us; a damaged file is set aside."""
        if path in self._newer:
            return None
        try:
            return decoded(path.read_bytes(), self._from_wire)
        except FileNotFoundError:  # another process drained it
            return None
        except OSError as error:  # perhaps only now, or only for this account
            self._name_once(path, error.strerror or str(error))
        except NewerFileError as error:
            self._newer.add(path)
            self._name_once(path, str(error))
        except DamagedFileError as error:
            self._set_aside(path, str(error))
        return None

    def _set_aside(self, path: Path, cause: str = "whoever wrote it never finished it") -> None:
        """Move a file to where nobody reads it, under a name that tells where it was."""
        account, region, name = path.parts[-3:]
        goal = self.damaged_folder / f"{account}_{region}_{name.lstrip('.')}.{token_hex(4)}"
        try:
            _make_folder(goal.parent)
            moved = self._take_away(path, lambda path: path.rename(goal))
        except OSError as error:
            self._name_once(path, f"{cause}; it cannot be set aside: {error.strerror or error}")
            return
        if moved:  # otherwise another process was quicker, and names it
            _remove_empty(path.parent)
            log.error("a damaged file was set aside", file=str(path), now=str(goal), cause=cause)

    def _name_once(self, path: Path, cause: str) -> None:
        if path not in self._named:
            self._named.add(path)
            log.error("looks that wait cannot be read and stay where they are", file=str(path), cause=cause)

    def _take_away(self, path: Path, how: Callable[[Path], object]) -> bool:
        """Unlink or move a file and count it out; say whether it was there."""
        with self._changing:
            try:
                size = _size(path.lstat())
                how(path)
            except FileNotFoundError:
                return False
            if path.suffix == _LOOK:  # never below nothing: another process may have put it there, uncounted
                self._files = max(0, self._files - 1)
                self._bytes = max(0, self._bytes - size)
            return True

    # What is there

    def _entries(self, folder: Path) -> list[Entry]:
        """List a folder; one that is gone is empty, and so, with a complaint, is one that cannot be read."""
        try:
            with os.scandir(folder) as entries:
                return list(entries)
        except FileNotFoundError:
            return []
        except OSError as error:
            self._name_once(folder, error.strerror or str(error))
            return []

    def _folders(self) -> Iterator[Path]:
        """Return the folders of the targets."""
        for account in self._entries(self._folder):
            if account.name != _DAMAGED and account.is_dir(follow_symlinks=False):
                for region in self._entries(Path(account)):
                    if region.is_dir(follow_symlinks=False):
                        yield Path(region)

    def _looks(self, *, abandoned: Callable[[Path], None] | None = None) -> Iterator[tuple[Path, Entry]]:
        """Return folder and entry of all looks, unread; temporary files that nobody will finish are told."""
        for folder in self._folders():
            for entry in self._entries(folder):
                if entry.name.endswith(_LOOK):
                    yield folder, entry
                elif abandoned and entry.name.endswith(_TEMPORARY) and _is_abandoned(entry):
                    abandoned(folder / entry.name)

    def _count(self) -> None:
        with self._changing:
            files = size = 0
            for _, entry in self._looks():
                with suppress(OSError):
                    size += _size(entry.stat(follow_symlinks=False))
                    files += 1
            self._files, self._bytes = files, size

    def _thin(self) -> None:
        """Drop the inner ones of each target's runs of equal complete scans.

        What is as the last thinning left it is not read again: a spool may stay nearly full for long.
        """
        thinned: dict[Path, int] = {}
        for folder in self._folders():
            names = sorted(entry.name for entry in self._entries(folder) if entry.name.endswith(_LOOK))
            if self._thinned.get(folder) != hash(tuple(names)):
                dropped = {path.name for path in _inner(folder / name for name in names)}
                for name in dropped:
                    with suppress(OSError):
                        self._take_away(folder / name, Path.unlink)
                names = [name for name in names if name not in dropped]
            thinned[folder] = hash(tuple(names))
        self._thinned = thinned


def _inner(paths: Iterable[Path]) -> Iterator[Path]:
    """Return the files that may go: of each run all but the first and the last, if those two are sound.

    Anything else in between ends a run: a failure begins an outage that the next scan ends, and what a
    partial scan saw lasted until the next complete one at most.
    """
    for digest, group in groupby(paths, key=digest_of_complete_scan):
        run = list(group)
        if digest is not None and run[1:-1] and is_sound(run[0]) and is_sound(run[-1]):
            yield from run[1:-1]


# Names and the disk


def _name_of(look: Look) -> str:
    """Return a name that sorts by the look's instant, and that nobody else makes."""
    return f"{look.instant:%Y%m%dT%H%M%S%fZ}-{token_hex(6)}{_LOOK}"


def _folder_name(text: str) -> str:
    """Return a name that stays within its folder, whatever an account or a Region is called."""
    name = quote(text, safe="", errors="surrogatepass")
    return f"%{name}" if name in _TAKEN else name


def _make_folder(folder: Path) -> None:
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)


def _remove_empty(folder: Path) -> None:
    """Remove a target's folder, and then its account's, as far as nothing is in them."""
    with suppress(OSError):
        folder.rmdir()
        folder.parent.rmdir()


def _sync(folder: Path) -> None:
    """Make the names in a folder outlive a power cut."""
    if sys.platform == "win32":  # it does not open folders
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _size(found: os.stat_result) -> int:
    """Return how much of the disk a file takes."""
    return found.st_size if sys.platform == "win32" else found.st_blocks * _BLOCK


def _is_abandoned(entry: Entry) -> bool:
    with suppress(OSError):
        found = entry.stat(follow_symlinks=False)
        return stat.S_ISREG(found.st_mode) and time() - found.st_mtime > ABANDONED_AFTER.total_seconds()
    return False
