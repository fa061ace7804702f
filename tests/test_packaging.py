"""The wheel holds all that it needs away from the checkout, and the lock file holds all that it should."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.commands import CHECKOUT, Shell

LOCK = (CHECKOUT / "requirements.lock").read_text(encoding="utf-8")
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built as the README says."""
    folder = tmp_path_factory.mktemp("dist")
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(folder),
        str(CHECKOUT),
    ]
    subprocess.run(command, check=True, capture_output=True)
    (built,) = folder.iterdir()
    return built


def test_contents(wheel: Path) -> None:
    """The migrations and the mark of typed code are inside; tests and caches are not."""
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())

    migrations = {
        f"collector/{path.relative_to(CHECKOUT).as_posix()}"
        for path in (CHECKOUT / "migrations").rglob("*")
        if path.suffix in {".py", ".mako"}
    }
    assert len(migrations) > 3
    assert names >= migrations | {"collector/py.typed", "collector/cli.py"}
    assert not [name for name in names if "__pycache__" in name or name.startswith("tests/")]
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"collector", "vm_import_collector"}


def test_installed_elsewhere(wheel: Path, tmp_path: Path, empty_database_url: str) -> None:
    """Installed without the checkout, the command migrates with the migrations that came along."""
    site = tmp_path / "site"
    shell = Shell(tmp_path, PYTHONPATH=str(site), COLLECTOR_DATABASE_URL=empty_database_url)
    options = ("--quiet", "--disable-pip-version-check", "--no-deps", "--no-index", "--target", str(site))
    assert shell.python("-m", "pip", "install", *options, str(wheel)).code == 0
    assert shell.python("-c", "import collector; print(collector.__file__)").out.startswith(str(site))

    assert shell.run(str(site / "bin" / "collector"), "migrate").code == 0
    assert shell("migrate", "--check").code == 0


def test_lock_names_no_address() -> None:
    """Where packages come from is for the machine to say."""
    assert "http" not in LOCK
    assert "--index-url" not in LOCK


def test_lock_is_hashed() -> None:
    """Every package is pinned to one version and to its files."""
    packages = re.split(r"\n(?=\w)", LOCK.strip())

    assert all(re.match(r"[\w.-]+==\S+", package) for package in packages)
    assert all("--hash=sha256:" in package for package in packages)


def test_lock_holds_every_dependency() -> None:
    """Whatever pyproject.toml names is locked, in a version that it allows by name."""
    extras = PROJECT["project"]["optional-dependencies"].values()
    groups = PROJECT["dependency-groups"].values()
    wanted = {
        _name(requirement)
        for requirements in (PROJECT["project"]["dependencies"], *extras, *groups)
        for requirement in requirements
    }

    assert wanted <= _locked(LOCK.splitlines())


def _locked(lines: Iterable[str]) -> set[str]:
    return {_name(line) for line in lines if "==" in line and not line.startswith((" ", "#"))}


def _name(requirement: str) -> str:
    match = re.match(r"[\w.-]+", requirement)
    assert match is not None
    return re.sub(r"[-_.]+", "-", match[0]).lower()
