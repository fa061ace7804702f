"""How the database is waited for: as long as patience lasts, and no longer than somebody wants."""

import signal
import subprocess
import sys

import psycopg
import pytest

from collector.errors import WarehouseAwayError
from collector.warehouse.engine import Patience, connect_to_url, translated_errors
from tests.simulation import eventually

_WAITING = """
import sys
from sqlalchemy import text
from collector.logs import configure
from collector.warehouse.engine import connect_to_url, make_engine, translated_errors
configure("text", verbose=True)
try:
    with translated_errors(), make_engine(connect_to_url(sys.argv[1])).connect() as connection:
        connection.execute(text("SELECT pg_sleep(60)"))
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGINT to send to another process")
def test_a_statement_can_be_interrupted(database_url: str) -> None:
    """By Ctrl-C, which is what the user hears of, and not that the database is away."""
    with (
        psycopg.connect(database_url, autocommit=True) as watching,
        subprocess.Popen(
            [sys.executable, "-c", _WAITING, database_url],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        sleeping = "SELECT pid FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)' AND state = 'active'"
        eventually(lambda: watching.execute(sleeping).fetchone())
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=20)
    assert said == ("interrupted\n", "")


def test_a_statement_that_takes_too_long_is_given_up(database_url: str) -> None:
    """Patience can be lost in the midst of it."""
    patience = Patience()
    with connect_to_url(database_url, patience)() as connection:
        patience.seconds = 0.3
        with pytest.raises(WarehouseAwayError, match=r"did not answer for 0\.3 s"), translated_errors():
            connection.execute("SELECT pg_sleep(60)")
        assert connection.closed
