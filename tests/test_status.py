"""``collector status``: what it says of targets and of imports in flight, to people and to machines."""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import Engine

from collector.commands.status import status
from collector.config import Settings
from collector.domain import Failure, Target
from collector.errors import WarehouseError
from collector.warehouse.recording import record
from tests.factories import TARGET, at, scan, store, task

DAY = 24 * 60
OTHER = Target(TARGET.account_id, "us-east-1")
ELSEWHERE = Target("444455556666", "eu-west-1")

Read = Callable[..., Any]


def failed(minutes: float, target: Target = TARGET, message: str = "not subscribed") -> Failure:
    """Return a look that failed."""
    return Failure(target.account_id, target.region, at(minutes), "OptInRequired", message)


def account_failed(minutes: float) -> Failure:
    """Return a discovery that failed, before any Region was known."""
    return Failure(ELSEWHERE.account_id, None, at(minutes), "AwsUnavailableError", "no Regions")


@pytest.fixture
def read(database_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Read:
    """The command, some minutes after the start and without a terminal; it returns what was printed."""
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.delenv("TTY_COMPATIBLE", raising=False)

    def run(
        minutes: float, *, accounts: Sequence[str] = (), as_json: bool = True, **settings: Any
    ) -> dict[str, list[dict[str, Any]]] | str:
        url = SecretStr(database_url)
        code = status(
            Settings.model_construct(database_url=url, **settings),
            accounts=accounts,
            as_json=as_json,
            now=lambda: at(minutes),
        )
        assert code == 0, "it could be shown"
        printed = capsys.readouterr().out
        return dict(json.loads(printed)) if as_json else printed

    return run


def places(rows: Sequence[dict[str, Any]]) -> list[tuple[str, str | None]]:
    """Return where rows are about, in their order."""
    return [(row["account_id"], row["region"]) for row in rows]


# Targets


def test_a_target_that_is_watched_well(engine: Engine, read: Read) -> None:
    """A partial look does not make it fresher."""
    store(engine, scan(0), scan(2), scan(10), scan(12, task("a"), complete=False))

    assert read(15)["targets"] == [
        {
            "account_id": TARGET.account_id,
            "region": TARGET.region,
            "last_complete_scan": "2026-01-01T00:10:00+00:00",
            "age_seconds": 300.0,
            "nearly_forgotten": False,
            "longest_gap_seconds": 480.0,
            "gaps_over_7_days": 0,
            "outage": None,
        }
    ]


def test_gaps_in_which_a_task_can_come_and_go_are_counted(engine: Engine, read: Read) -> None:
    """What was missed in them is missed for ever."""
    store(engine, scan(0), scan(8 * DAY), scan(9 * DAY))

    (target,) = read(9 * DAY)["targets"]
    assert (target["longest_gap_seconds"], target["gaps_over_7_days"]) == (8 * DAY * 60, 1)


@pytest.mark.parametrize(("minutes", "nearly"), [(5 * DAY, False), (5 * DAY + 1, True)])
def test_a_target_not_seen_for_five_days_is_nearly_forgotten(
    engine: Engine, read: Read, minutes: float, nearly: bool
) -> None:
    """EC2 forgets after seven; somebody must have the time to act."""
    store(engine, scan(0))

    assert read(minutes)["targets"][0]["nearly_forgotten"] is nearly
    assert ("nearly forgotten" in read(minutes, as_json=False)) is nearly


def test_a_failing_target_says_since_when_how_often_and_why(engine: Engine, read: Read) -> None:
    """The outage stands with its target, and among all outages."""
    record(engine, [scan(0), failed(1), failed(3)])

    answer = read(5)
    outage = {
        "first_failed_at": "2026-01-01T00:01:00+00:00",
        "last_failed_at": "2026-01-01T00:03:00+00:00",
        "failures": 2,
        "error_code": "OptInRequired",
        "message": "not subscribed",
    }
    assert [target["outage"] for target in answer["targets"]] == [outage]
    assert answer["outages"] == [{"account_id": TARGET.account_id, "region": TARGET.region, **outage}]


def test_an_outage_that_is_over_is_no_longer_shown(engine: Engine, read: Read) -> None:
    """History is for SQL."""
    record(engine, [failed(1)])
    record(engine, [scan(2)])

    answer = read(5)
    assert (answer["targets"][0]["outage"], answer["outages"]) == (None, [])


def test_a_target_that_only_ever_failed_is_a_target(engine: Engine, read: Read) -> None:
    """No scan has registered it."""
    record(engine, [failed(1)])

    (target,) = read(5)["targets"]
    assert (target["region"], target["last_complete_scan"], target["age_seconds"]) == (
        "eu-west-1",
        None,
        None,
    )


def test_an_account_that_fails_is_no_target_but_has_a_row(engine: Engine, read: Read) -> None:
    """Its Regions are not known."""
    record(engine, [account_failed(1)])

    answer = read(5)
    assert (answer["targets"], places(answer["outages"])) == ([], [(ELSEWHERE.account_id, None)])
    assert "444455556666  (all)   failing" in read(5, as_json=False)


def test_failing_and_overdue_targets_come_first(engine: Engine, read: Read) -> None:
    """The longest unseen before all; the well ones by name."""
    never, overdue, failing = (
        Target(TARGET.account_id, name) for name in ("sa-east-1", "us-west-1", "us-west-2")
    )
    store(engine, scan(9 * DAY, target=OTHER), scan(9 * DAY - 1), scan(0, target=overdue))
    record(engine, [scan(8 * DAY, target=failing), failed(9 * DAY, failing), failed(9 * DAY, never)])

    regions = [target["region"] for target in read(9 * DAY)["targets"]]
    assert regions == ["sa-east-1", "us-west-1", "us-west-2", "eu-west-1", "us-east-1"]


def test_a_target_that_was_only_ever_seen_in_part_is_not_well(engine: Engine, read: Read) -> None:
    """Nothing says that a task is gone there."""
    store(engine, scan(1, task("a"), complete=False), scan(1, target=OTHER))

    lines = read(2, as_json=False).splitlines()
    assert [re.split("  +", line)[1:4] for line in lines[2:4]] == [
        ["eu-west-1", "never complete", "never"],
        ["us-east-1", "well", "1m ago"],
    ]


# Tasks in flight


def test_a_task_in_flight(engine: Engine, read: Read) -> None:
    """With its name, and unchanged up to when it was last seen."""
    tags = [{"Key": "Name", "Value": "web"}, {"Key": "Wave", "Value": "2"}]
    later = task("a", StatusMessage="converting", Progress="39.5", Tags=tags)
    store(engine, scan(1, task("a", StatusMessage="pending")), scan(4, later), scan(10, later))

    assert read(60)["tasks"] == [
        {
            "account_id": TARGET.account_id,
            "region": TARGET.region,
            "import_task_id": "import-ami-a",
            "name": "web",
            "phase": "converting",
            "progress_percent": 39.5,
            "first_seen_at": "2026-01-01T00:01:00+00:00",
            "unchanged_since": "2026-01-01T00:04:00+00:00",
            "last_observed_at": "2026-01-01T00:10:00+00:00",
            "unchanged_for_seconds": 360.0,
        }
    ]


def test_a_task_of_which_little_is_known(engine: Engine, read: Read) -> None:
    """A tag that was taken off again is no name."""
    tagged = task("a", Tags=[{"Key": "Name", "Value": "web"}])
    store(engine, scan(1, tagged), scan(2, task("a")))

    (shown,) = read(3)["tasks"]
    assert (shown["name"], shown["phase"], shown["progress_percent"]) == (None, "active", None)


def test_a_task_that_ended_or_is_gone_is_not_in_flight(engine: Engine, read: Read) -> None:
    """Completed, deleted, vanished; one that is being deleted still is."""
    ended = [task("a", Status="completed"), task("b", Status="deleted"), task("d", Status="deleting")]
    store(engine, scan(1, task("c")), scan(2, *ended))

    assert [(shown["import_task_id"], shown["phase"]) for shown in read(3)["tasks"]] == [
        ("import-ami-d", "deleting")
    ]


def test_the_longest_unchanged_task_comes_first(engine: Engine, read: Read) -> None:
    """Whatever its name."""
    store(engine, scan(1, task("b")), scan(3, task("a"), task("b")), scan(4, task("a"), task("b")))

    assert [shown["import_task_id"] for shown in read(5)["tasks"]] == ["import-ami-b", "import-ami-a"]


# What is asked for


def test_regions_and_accounts_restrict_what_is_shown(engine: Engine, read: Read) -> None:
    """Globs are for Regions; an account that fails concerns each of its Regions."""
    for target in (TARGET, OTHER, ELSEWHERE):
        store(engine, scan(1, task("a"), target=target))
    record(engine, [account_failed(2)])

    european = read(3, regions=["eu-*"])
    assert (
        places(european["targets"])
        == places(european["tasks"])
        == [
            (TARGET.account_id, "eu-west-1"),
            (ELSEWHERE.account_id, "eu-west-1"),
        ]
    )
    assert places(european["outages"]) == [(ELSEWHERE.account_id, None)]
    one = read(3, accounts=[TARGET.account_id], regions=["all"], exclude_regions=["us-*"])
    assert (places(one["targets"]), one["outages"]) == ([(TARGET.account_id, "eu-west-1")], [])


# For people


def test_without_a_terminal_lines_are_plain_aligned_and_whole(engine: Engine, read: Read) -> None:
    """Neither colours nor boxes, and nothing is cut."""
    message = "x" * 300
    record(engine, [scan(0), failed(1, message=message), scan(0, target=OTHER)])

    printed = read(61, as_json=False)
    title, headings, failing, well, _, outages, _, outage, *_ = printed.splitlines()
    assert (title, outages, re.search(r"[\x1b\u2500-\u259f]", printed)) == ("Targets", "Outages", None)
    assert outage == f"111122223333  eu-west-1  2026-01-01 00:01Z  1         OptInRequired: {message}"
    columns = {"State": ("failing", "well"), "Last complete scan": ("1h 1m ago", "1h 1m ago")}
    for heading, (first, second) in columns.items():
        assert headings.index(heading) == failing.index(first) == well.index(second)


@pytest.mark.parametrize(
    ("minutes", "age"),
    [(-1, "0s"), (0, "0s"), (1.5, "1m 30s"), (60, "1h"), (65.5, "1h 5m"), (DAY + 5, "1d"), (12 * DAY, "12d")],
)
def test_an_age_is_said_in_its_two_largest_units(
    engine: Engine, read: Read, minutes: float, age: str
) -> None:
    """Another machine's clock may be ahead of ours."""
    store(engine, scan(0))

    assert f"  {age} ago  " in read(minutes, as_json=False)


def test_what_others_wrote_cannot_break_a_line_or_colour_it(engine: Engine, read: Read) -> None:
    """Tags and messages are shown as they are, without what acts upon a terminal."""
    store(engine, scan(0, task("a", Tags=[{"Key": "Name", "Value": "[red]a\x1b[31m\n:ok:"}])))

    assert "  [red]a [31m :ok:  " in read(1, as_json=False)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make standard output a terminal of that width; Rich takes FORCE_COLOR for one."""

    def of_width(columns: int) -> None:
        for name, value in {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": str(columns)}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("NO_COLOR", raising=False)

    return of_width


def test_on_a_terminal_tables_are_drawn_in_colour(
    engine: Engine, read: Read, terminal: Callable[[int], None]
) -> None:
    """Sentences are wrapped, ids and other words are not."""
    terminal(80)
    record(engine, [scan(0), failed(1, message="no " * 50)])

    printed = read(2, as_json=False)
    assert "───" in printed
    assert "\x1b[31mfailing\x1b[0m" in printed
    assert printed.count(TARGET.account_id) == 2
    assert max(len(re.sub(r"\x1b[^m]*m", "", line)) for line in printed.splitlines()) <= 80


def test_a_narrow_terminal_gets_plain_lines(
    engine: Engine, read: Read, terminal: Callable[[int], None]
) -> None:
    """Better than ids in pieces."""
    terminal(40)
    store(engine, scan(0, task("a")))

    assert "\n111122223333  eu-west-1  import-ami-a  " in read(2, as_json=False)


def test_an_empty_warehouse_says_that_there_is_nothing(read: Read) -> None:
    """Nothing was looked at yet."""
    nothing = ["Targets: none", "Outages: none", "Imports in flight: none"]
    assert read(0, as_json=False).split("\n\n") == [*nothing, ""]
    assert read(0) == {"targets": [], "tasks": [], "outages": []}


def test_a_database_that_was_never_migrated_is_an_error(empty_database_url: str) -> None:
    """The mend is said; nothing is made."""
    settings = Settings.model_construct(database_url=SecretStr(empty_database_url))

    with pytest.raises(WarehouseError, match="collector migrate"):
        status(settings, accounts=(), as_json=False)
