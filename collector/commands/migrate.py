"""``collector migrate``."""

import typer

from collector.commands.composition import warehouse_of
from collector.config import Settings
from collector.warehouse import schema


def migrate(settings: Settings) -> int:
    """Bring the database to this release's migrations."""
    with warehouse_of(settings) as warehouse:
        engine = warehouse.direct_engine
        try:
            before = schema.current_revision(engine)
            schema.upgrade(engine)
            after = schema.current_revision(engine)
        finally:
            engine.dispose()
    typer.echo(
        f"the database is at {after}" + (" already" if before == after else f", from {before or 'nothing'}")
    )
    return 0


def check(settings: Settings) -> int:
    """Say that the database is at this release's migrations.

    Raises:
        WarehouseError: it is not.
    """
    with warehouse_of(settings) as warehouse:
        schema.require_current(warehouse.engine, to_write=False)
    typer.echo(f"the database is at {schema.head_revision()}, as this release needs")
    return 0


def print_sql() -> int:
    """Print the SQL of all migrations."""
    typer.echo(schema.upgrade_sql())
    return 0
