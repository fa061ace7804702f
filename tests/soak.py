"""``python -m tests.soak``: the daemon at speed for simulated weeks, faults all the time, then an audit.

Three accounts whose roles are assumed, eight Regions, imports that come and end. Faults of AWS, of the
network, of credentials, of the database and of the clock come and go by a seeded chance, and the daemon is
restarted among them. At the end all is made well again, and ``soak_audit`` asks what is wrong.
"""

import argparse
import gc
import os
import sys
import tempfile
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from time import monotonic, sleep
from typing import NamedTuple

import psutil
import psycopg
import pytest
import structlog
from psycopg import sql

from collector.commands.composition import warehouse_of
from collector.commands.wiring import daemon_of
from collector.config import Settings
from collector.daemon import Daemon
from collector.domain import Target
from collector.errors import WarehouseError
from collector.simulator import Faults, Fleet, SimulatedClock, Simulator
from collector.simulator.faults import (
    Denied,
    Drip,
    DuplicateOverPages,
    EmptyListing,
    ErrorAnswer,
    Fault,
    HtmlPage,
    Latency,
    MissingTask,
    RepeatedToken,
    Reset,
    ServerError,
    Stall,
    Throttle,
    TokenCycle,
    TruncatedXml,
)
from collector.warehouse import reading, schema
from collector.warehouse.embedded import EmbeddedPostgres
from collector.warehouse.engine import connect_to_url, make_engine
from tests.conftest import create_database, drop_database
from tests.simulation import eventually, lead_here, settings
from tests.soak_audit import Audit, Journal, Watch

ACCOUNTS = ("222233334444", "444455556666", "777788889999")
REGIONS = (
    "eu-west-1",
    "eu-central-1",
    "eu-north-1",
    "us-east-1",
    "us-west-2",
    "ap-south-1",
    "ap-southeast-2",
    "sa-east-1",
)
PAGE = 12
"""Tasks on a page: a week's imports of one target are some pages."""

IMPORTS_EVERY = timedelta(hours=7)
TICK = timedelta(seconds=0.05)
SPEED = {
    "interval": timedelta(seconds=0.4),
    "idle_interval": timedelta(seconds=0.8),
    "target_deadline": timedelta(seconds=1.5),
}
"""Too short for a configuration; everything else is as configured."""

_AT_ONCE = 4
"""The most faults in force at a time."""

_LONGEST_SPELL = 4.0
"""Seconds."""

_MARGINS = {"threads": 12, "sockets": 24, "files": 24}
"""How many more there may be at the end than after the warm-up: pools grow with the looks at once."""

_MEGABYTES = 80
"""How much more memory there may be at the end, in all."""

Say = Callable[[str], object]


class Usage(NamedTuple):
    """What this process holds of the machine."""

    megabytes: float
    threads: int
    sockets: int
    files: int

    @classmethod
    def now(cls) -> "Usage":
        """Measure."""
        gc.collect()
        process = psutil.Process()
        files = process.num_fds() if hasattr(process, "num_fds") else len(process.open_files())
        megabytes = process.memory_info().rss / 2**20
        return cls(megabytes, process.num_threads(), len(process.net_connections("all")), files)


class House:
    """The daemon that runs in this process, with the very parts of ``collector run``; it can be restarted."""

    def __init__(self, configuration: Settings, journal: Journal, watch: Watch) -> None:
        self._configuration = configuration
        self._journal = journal
        self._watch = watch
        self._stack = ExitStack()
        self.daemon: Daemon | None = None
        self.errors: list[BaseException] = []

    def start(self) -> None:
        """Begin, with the database or without it."""
        with ExitStack() as stack:
            warehouse = stack.enter_context(warehouse_of(self._configuration))
            known: dict[Target, datetime] = {}
            with suppress(WarehouseError):
                known = reading.last_good_looks(warehouse.engine)
            warehouse.patience.seconds = 5.0
            parts = daemon_of(
                self._configuration,
                warehouse,
                accounts=(),
                known=known,
                observer=self._journal,
                now=self._watch,
                tick=TICK,
            )
            self.daemon = stack.enter_context(parts)
            thread = threading.Thread(target=self._run, args=[self.daemon], name="daemon")
            thread.start()
            stack.callback(self._ended, thread)
            stack.callback(self.daemon.stop)
            self._stack = stack.pop_all()

    def stop(self) -> None:
        """End, as SIGTERM does."""
        self._stack.close()
        self.daemon = None

    def restart(self) -> None:
        """Stop, and start anew with what waits on disk."""
        self.stop()
        self.start()

    def _run(self, daemon: Daemon) -> None:
        try:
            daemon.run()
        except BaseException as error:  # noqa: BLE001 - shown at the end
            self.errors.append(error)

    def _ended(self, thread: threading.Thread) -> None:
        thread.join(timeout=20)
        if thread.is_alive():
            self.errors.append(TimeoutError("the daemon did not end within 20 s"))


class Database:
    """The warehouse's server, as its superuser can spoil it."""

    def __init__(self, server_url: str, name: str) -> None:
        self._server_url = server_url
        self._name = name

    def terminate(self, share: float = 1.0) -> None:
        """End some of the backends, whatever they are doing."""
        with psycopg.connect(self._server_url, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND random() < %s",
                [self._name, share],
            )

    @contextmanager
    def away(self) -> Iterator[None]:
        """Nobody is in, nobody gets in."""
        self._allow(allowed=False)
        self.terminate()
        try:
            yield
        finally:
            self._allow(allowed=True)

    def _allow(self, *, allowed: bool) -> None:
        statement = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
        with psycopg.connect(self._server_url, autocommit=True) as connection:
            connection.execute(statement.format(sql.Identifier(self._name), allowed))


@dataclass
class Spell:
    """Something that is wrong for a while."""

    name: str
    ends: float
    trouble: AbstractContextManager[object]


ANSWERS: tuple[tuple[Fault, dict[str, bool]], ...] = (
    (Throttle(), {}),
    (ServerError(), {}),
    (ServerError("Unavailable"), {}),
    (Reset(), {}),
    (Reset(after_half=True), {}),
    (Stall(), {}),
    (Drip(0.005), {}),
    (Latency(0.3), {}),
    (TruncatedXml(), {}),
    (HtmlPage(), {}),
    (HtmlPage(well_formed=False), {}),
    (TokenCycle(), {}),
    (RepeatedToken(), {}),
    (DuplicateOverPages(), {}),
    (EmptyListing(), {}),
    (EmptyListing(), {"only_listing": True}),
    (EmptyListing(), {"only_lookups": True}),
    (MissingTask(fraction=0.4), {}),
    (Denied(), {}),
    (Denied("AuthFailure"), {}),
    (ErrorAnswer("ExpiredToken"), {}),
    (ErrorAnswer("InvalidNextToken"), {}),
)
"""What EC2's answers meet. An empty answer to look-ups too leaves a listing in doubt."""


@dataclass
class Weather:
    """Faults that come and go."""

    simulator: Simulator
    database: Database
    watch: Watch
    house: House
    rng: Random
    spells: list[Spell] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)

    def change(self) -> None:
        """Let what is over go, and let something come."""
        for spell in [spell for spell in self.spells if spell.ends < monotonic()]:
            self._end(spell)
        if len(self.spells) < _AT_ONCE and self.rng.random() < 0.5:
            self._begin()

    def clear(self) -> None:
        """Let everything be well."""
        while self.spells:
            self._end(self.spells[0])

    def _end(self, spell: Spell) -> None:
        self.spells.remove(spell)
        spell.trouble.__exit__(None, None, None)

    def _begin(self) -> None:
        kinds = {
            self._answers: 60,
            self._second_page: 8,
            self._denied_role: 5,
            self._short_roles: 5,
            self._revoked: 3,
            self._away: 4,
            self._terminated: 5,
            self._clock: 4,
            self._restart: 2,
        }
        (kind,) = self.rng.choices(list(kinds), list(kinds.values()))
        name, trouble = kind()
        if name in {spell.name for spell in self.spells}:
            return
        trouble.__enter__()
        self.seen[name] += 1
        self.spells.append(Spell(name, monotonic() + self.rng.uniform(0.2, _LONGEST_SPELL), trouble))

    def _answers(self) -> tuple[str, AbstractContextManager[object]]:
        fault, hits = self.rng.choice(ANSWERS)
        return type(fault).__name__, self._rule(fault, **hits)
