"""The simulated EC2 as these tests need it: boto3 led to it, tasks in it, and waiting without blind sleep."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from time import monotonic, sleep
from typing import Any, TypeVar

import pytest
from sqlalchemy import Engine, text

from collector.aws.accounts import Accounts
from collector.aws.asking import Asking
from collector.aws.deadline import Deadlines
from collector.clock import utc_now
from collector.commands.composition import warehouse_of
from collector.commands.wiring import Polling, polling_of
from collector.config import Settings, load
from collector.simulator import Fleet, SimulatedClock, Simulator
from collector.warehouse import history
from collector.warehouse.access import Warehouse

ACCOUNT = "111122223333"
REGION, OTHER_REGION = "eu-west-1", "us-east-1"
PRESIGNED = (
    "https://images.s3.amazonaws.com/erp.ova?X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20260301"
    "&X-Amz-Signature=0123456789abcdef"
)

PLENTY = timedelta(seconds=60)
"""More time than any look needs."""

T = TypeVar("T")


def eventually(condition: Callable[[], T], timeout: float = 20) -> T:
    """Return the condition's value as soon as it is true, or fail."""
    give_up = monotonic() + timeout
    while not (value := condition()):
        assert monotonic() < give_up, f"not within {timeout} s"
        sleep(0.02)
    return value


def lead_here(monkeypatch: pytest.MonkeyPatch, simulator: Simulator) -> None:
    """Let boto3 know the simulator and nothing else of this machine; the collector its defaults."""
    for name in os.environ:
        if name.startswith(("AWS_", "COLLECTOR_")) or name == "DATABASE_URL":
            monkeypatch.delenv(name)
    for name, value in simulator.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def make_simulator(*regions: str, port: int = 0) -> Simulator:
    """Return an EC2 with these Regions, whose imports stand still and whose ledger keeps what was shown."""
    fleet = Fleet(SimulatedClock(datetime.now(UTC)), record=True)
    return Simulator(fleet, regions=regions or [REGION, OTHER_REGION], port=port)


@contextmanager
def simulated(*regions: str) -> Iterator[Simulator]:
    """Run an EC2 with these Regions, which boto3 in this process and in its children talks to."""
    with make_simulator(*regions) as simulator, pytest.MonkeyPatch.context() as monkeypatch:
        lead_here(monkeypatch, simulator)
        yield simulator


def wire(name: str, **members: Any) -> dict[str, Any]:
    """Return a task in the CLI's form; it is active unless the members say otherwise."""
    return {"ImportTaskId": f"import-ami-{name}", "Status": "active", **members}


def settings(database_url: str, **flags: Any) -> Settings:
    """Return a configuration on that database, with the simulator's Regions."""
    return load({"database_url": database_url, "concurrency": 8, **flags})


@contextmanager
def polled(configuration: Settings, *, patience: float = 0) -> Iterator[tuple[Warehouse, Polling]]:
    """Put together what the commands put together."""
    with (
        warehouse_of(configuration) as warehouse,
        polling_of(
            configuration,
            warehouse,
            accounts=(),
            patience=timedelta(seconds=patience),
            missing=lambda scan: history.missing_from(warehouse.engine, scan),
        ) as polling,
    ):
        yield warehouse, polling


def rows(engine: Engine, query: str, **parameters: Any) -> list[Any]:
    """Return what a query finds."""
    with engine.connect() as connection:
        return list(connection.execute(text(query), parameters))


def asking_of(
    accounts: Accounts,
    *,
    now: Callable[[], datetime] = utc_now,
    limit: timedelta = PLENTY,
    deadlines: Deadlines | None = None,
) -> Asking:
    """Return what asks in the name of the accounts that there are."""
    accounts.current()
    return Asking(
        lambda account_id: accounts.account(account_id).credentials,
        deadlines=deadlines or Deadlines(),
        now=now,
        limit=limit,
    )
