"""The layers, read from the imports: arrows point inward, and only the top knows everyone."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import collector

PACKAGE = Path(collector.__file__).parent
MODULES = {
    ".".join(("collector", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}

REDACTION = "collector.redaction"
NOUNS = {"collector.domain", "collector.errors", "collector.outcomes"}
MAY_IMPORT = {
    "collector.domain": NOUNS,
    "collector.errors": NOUNS,
    "collector.outcomes": NOUNS,
    "collector.state": NOUNS,
    "collector.clock": set[str](),
    "collector.notify": set[str](),
    "collector.config": NOUNS | {REDACTION},
    "collector.polling": NOUNS,
    "collector.gathering": NOUNS,
    "collector.sightings": NOUNS | {"collector.state"},
    "collector.look_files": NOUNS,
    "collector.spool": NOUNS | {"collector.look_files"},
    "collector.loader": NOUNS | {"collector.spool"},
    "collector.daemon": NOUNS
    | {
        "collector.loader",
        "collector.polling",
        "collector.sightings",
        "collector.spool",
        "collector.state",
    },
    "collector.redaction": set[str](),
    "collector.logs": {REDACTION},
    "collector.aws": NOUNS | {"collector", "collector.aws", REDACTION},
    "collector.warehouse": NOUNS | {"collector", "collector.warehouse", REDACTION},
    "collector.web": NOUNS | {"collector", "collector.state", "collector.web"},
    "collector.simulator": {"collector.simulator"},
}
"""Layer, and what it may import of ours; a package means all that is in it, but ``collector`` only itself."""

KNOW_EVERYONE = {
    "collector",
    "collector.__main__",
    "collector.cli",
    "collector.options",
    "collector.commands",
}

ONLY_IN = {
    "boto3": {"collector.aws"},
    "botocore": {"collector.aws"},
    "alembic": {"collector.warehouse"},
    # The demo reads through the views as anybody would, with statements that are part of what it shows.
    "sqlalchemy": {"collector.warehouse", "collector.commands.demo", "collector.commands.demo_view"},
    # `collector psql` takes libpq's connection string apart; it never connects.
    "psycopg": {"collector.warehouse", "collector.commands.psql"},
    "apscheduler": {"collector.daemon"},
    "starlette": {"collector.web"},
    "uvicorn": {"collector.web"},
    "jinja2": {"collector.web"},
    "markupsafe": {"collector.web"},
    "prometheus_client": {"collector.web"},
    "typer": {"collector.cli", "collector.options", "collector.commands"},
}


def imports(path: Path) -> Iterator[str]:
    """Name every module that a file imports, wherever in it; none of ours is relative."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import, which this test does not follow"
            named = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            yield from named or {str(node.module)}


def within(module: str, layers: set[str]) -> bool:
    """Say whether a module is one of these or lies in one of these."""
    return any(
        module == layer or (layer != "collector" and module.startswith(f"{layer}.")) for layer in layers
    )


def test_every_module_has_a_layer() -> None:
    """A new module must be given its place here."""
    assert [name for name in MODULES if not within(name, KNOW_EVERYONE | MAY_IMPORT.keys())] == []


@pytest.mark.parametrize("layer", MAY_IMPORT)
def test_arrows_point_inward(layer: str) -> None:
    """A layer imports of ours only what it may know."""
    wrong = [
        (name, imported)
        for name, path in MODULES.items()
        if within(name, {layer})
        for imported in imports(path)
        if imported.split(".")[0] == "collector" and not within(imported, MAY_IMPORT[layer])
    ]
    assert wrong == []


@pytest.mark.parametrize(
    "name", [*sorted(NOUNS), "collector.clock", REDACTION, "collector.polling", "collector.simulator"]
)
def test_the_core_needs_the_standard_library_alone(name: str) -> None:
    """What the rest rests on rests on nothing that can be upgraded."""
    wrong = [
        (module, imported)
        for module, path in MODULES.items()
        if within(module, {name})
        for imported in imports(path)
        if imported.split(".")[0] not in sys.stdlib_module_names | {"collector"}
    ]
    assert wrong == []


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_stays_behind_its_border(library: str) -> None:
    """Whoever replaces a library looks in one place."""
    users = {
        name for name, path in MODULES.items() for used in imports(path) if used.split(".")[0] == library
    }
    assert users
    assert [name for name in users if not within(name, ONLY_IN[library])] == []
