"""``collector demo``: simulated EC2, embedded PostgreSQL and the daemon on a fast clock, in one process."""

import logging
import os
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from time import monotonic

from rich.console import Console
from sqlalchemy import Engine, text

from collector.clock import utc_now
from collector.commands.composition import warehouse_of
from collector.commands.daemon import daemon_of
from collector.commands.demo_view import LiveView, PlainView, View, answer_questions
from collector.config import Settings
from collector.daemon import Daemon, Result
from collector.domain import Target
from collector.errors import CollectorError
from collector.outcomes import Tally
from collector.simulator import Fleet, SimulatedClock, Simulator
from collector.warehouse import schema
from collector.warehouse.access import Warehouse

ACCOUNT = "111122223333"
REGIONS = ("ap-southeast-2", "eu-central-1", "eu-west-1", "us-east-1")
SIMULATED_SECONDS_PER_SECOND = 300
IMPORTS_PER_REGION = 8
NEW_IMPORT_EVERY = timedelta(minutes=25)
POLL_EVERY = timedelta(seconds=1)
HEAD_START = timedelta(days=7)
"""How far in the past the demo's clock starts, so that its history is not from the future."""


def demo(settings: Settings, *, seconds: float | None) -> int:
    """Run everything for so many seconds, or until Ctrl-C; then show what SQL knows of it."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    console = Console(width=None if sys.stdout.isatty() else 110)
    logging.getLogger("collector").setLevel(logging.ERROR)
    settings = settings.model_copy(
        update={
            "database_url": None,
            "direct_database_url": None,
            "data_dir": settings.data_dir / "demo",
            "accounts": [],
            "organization": None,
            "concurrency": len(REGIONS),
            "regions": list(REGIONS),
            "exclude_regions": [],
            "interval": POLL_EVERY,
            "idle_interval": POLL_EVERY,
        }
    )
    console.print("Starting PostgreSQL and a simulated EC2 …", highlight=False)
    with (
        warehouse_of(settings) as warehouse,
        _only_demo(warehouse),
        _simulated_ec2() as clock,
    ):
        _empty(warehouse.engine)
        with daemon_of(
            settings,
            warehouse,
            accounts=(),
            known={},
            observer=_Nobody(),
            now=clock.now,
            tick=POLL_EVERY / 2,
        ) as daemon:
            command = f"COLLECTOR_DATA_DIR={shlex.quote(str(settings.data_dir))} {_this_command()} psql"
            view = (LiveView if console.is_terminal else PlainView)(
                console, warehouse.engine, clock.now, command
            )
            _run(daemon, view, ended, seconds)
        answer_questions(console, warehouse.engine, command)
    return 0


class _Nobody:
    """Counts nothing: the demo shows what is in the warehouse."""

    def looked(self, target: Target, result: Result, seconds: float) -> None:
        """Let it pass."""

    def recorded(self, tally: Tally, seconds: float) -> None:
        """Let it pass."""


def _this_command() -> str:
    """Return how the user can start us again: by name only when that is on the PATH."""
    script = Path(sys.argv[0])
    if script.name != "collector":
        return f"{shlex.quote(sys.executable)} -m collector"
    found = shutil.which("collector")
    return "collector" if found and script.resolve() == Path(found).resolve() else shlex.quote(str(script))


def _run(daemon: Daemon, view: View, ended: threading.Event, seconds: float | None) -> None:
    """Let the daemon poll in the background while the view is shown."""
    thread = threading.Thread(target=daemon.run, name="daemon")
    thread.start()
    give_up = None if seconds is None else monotonic() + seconds
    try:
        with view:
            while thread.is_alive() and not ended.wait(0.25):
                view.update()
                if give_up is not None and monotonic() >= give_up:
                    break
    finally:
        daemon.stop()
        thread.join()


@contextmanager
def _simulated_ec2() -> Iterator[SimulatedClock]:
    """Run a simulated EC2 and lead boto3 to it, whatever the environment says of the real one."""
    clock = SimulatedClock(utc_now() - HEAD_START, SIMULATED_SECONDS_PER_SECOND)
    fleet = Fleet(clock, shuffle=True)
    for region in REGIONS:
        fleet.populate(ACCOUNT, region, IMPORTS_PER_REGION)
        fleet.keep_importing(ACCOUNT, region, every=NEW_IMPORT_EVERY)
    with Simulator(fleet, regions=REGIONS, default_account=ACCOUNT) as simulator:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            del os.environ[name]
        nowhere = {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull, "NO_PROXY": "*"}
        os.environ.update(simulator.environment | nowhere)
        yield clock


@contextmanager
def _only_demo(warehouse: Warehouse) -> Iterator[None]:
    """Keep a second demo from emptying the first one's warehouse."""
    with warehouse.direct() as connection:
        row = connection.execute("SELECT pg_try_advisory_lock(hashtext('collector demo'))").fetchone()
        if row != (True,):
            raise CollectorError("another demo is running here: end it first")
        yield


def _empty(engine: Engine) -> None:
    """Forget an earlier demo: its imports are not those of this one."""
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA ec2_api, vm_import CASCADE"))
    schema.upgrade(engine)
