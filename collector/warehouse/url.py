"""What a ``postgresql://`` URL says; needs libpq and nothing of SQLAlchemy."""

import re
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from collector.errors import UsageError


def parameters_of(url: str) -> dict[str, Any]:
    """Return a URL's parameters; libpq reads it, so all of them work.

    Raises:
        UsageError: the URL cannot be read, or its password spills over. libpq's own words would quote it.
    """
    try:
        parameters = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        parameters = {"host": "@"}
    host, port, name = (str(parameters.get(key, "")) for key in ("host", "port", "dbname"))
    if "@" in host + name or not re.fullmatch(r"[\d,]*", port):
        raise UsageError(
            "database_url: cannot be read: write special characters of user name and password"
            " percent-encoded, such as %40 for @, %2F for / and %25 for %"
        )
    return parameters
