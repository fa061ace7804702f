"""``collector check``: a line for each thing that must work, the mend where it does not, the exit code."""

import re
import socket
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, make_url

from collector.commands.check import check
from collector.commands.composition import spool_of
from collector.config import load
from collector.domain import Failure
from collector.errors import UsageError
from collector.simulator import Simulator
from collector.simulator.faults import Denied, HtmlPage
from collector.warehouse.engine import connect_to_url
from collector.warehouse.probes import GROUPS, keeps_sessions
from tests.commands import Shell
from tests.conftest import drop_database
from tests.factories import at, scan
from tests.simulation import ACCOUNT, OTHER_REGION, REGION, lead_here, make_simulator

OTHER_ACCOUNT = "444455556666"
ROLE = f"arn:aws:iam::{OTHER_ACCOUNT}:role/collector"
OWN_AND_ANOTHER = [{}, {"role_arn": ROLE}]
LISTING = "ec2:DescribeImportImageTasks"
EVIDENCE = ("ec2:DescribeImages", "cloudtrail:LookupEvents")


@pytest.fixture
def simulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Simulator]:
    """An EC2 without faults, which boto3 is led to."""
    with make_simulator() as simulator:
        lead_here(monkeypatch, simulator)
        yield simulator


class Checked:
    """What the command printed, and its exit code."""

    def __init__(self, code: int, printed: str) -> None:
        self.code = code
        self.printed = printed
        self.lines = printed.splitlines()

    def of(self, subject: str) -> list[tuple[str, str]]:
        """Return verdict and text of the lines about something."""
        found = [re.fullmatch(rf"(\w+) +{re.escape(subject)}: (.*)", line) for line in self.lines]
        return [(match[1], match[2]) for match in found if match]

    def verdict(self, subject: str) -> str:
        """Return the verdict of the one line about something."""
        ((verdict, _),) = self.of(subject)
        return verdict

    @property
    def failed(self) -> list[str]:
        """What failed, by subject."""
        return [
            line.split(maxsplit=1)[1].partition(": ")[0] for line in self.lines if line.startswith("fail")
        ]


Check = Callable[..., Checked]


@pytest.fixture
def run(database_url: str, tmp_path: Path, simulator: Simulator, capsys: pytest.CaptureFixture[str]) -> Check:
    """The command, on a migrated database, without a terminal."""
    assert simulator

    def run(*, only: Sequence[str] = (), **flags: Any) -> Checked:
        defaults = {"database_url": database_url, "data_dir": tmp_path, "listen": "127.0.0.1:0"}
        code = check(load({**defaults, **flags}), accounts=only)
        return Checked(code, capsys.readouterr().out)

    return run


# All together


def test_all_well(run: Check) -> None:
    """Each line says what was found, and nothing is to be mended."""
    checked = run()

    assert checked.code == 0
    assert {line.split()[0] for line in checked.lines} <= {"ok", "info"}
    assert checked.of("credentials") == [
        ("ok", f"arn:aws:iam::{ACCOUNT}:user/simulated of account {ACCOUNT}")
    ]
    assert checked.of(f"account {ACCOUNT}, Regions") == [("ok", "2 enabled, 2 to look at")]
    for action in (LISTING, *EVIDENCE):
        assert checked.of(f"account {ACCOUNT}, {action}") == [("ok", "allowed in 2 Regions")]
    assert [checked.verdict(name) for name in ("database", "rights", "schema", "spool", "listen")] == [
        "ok"
    ] * 5


def test_it_changes_and_reads_nothing(
    run: Check, simulator: Simulator, engine: Engine, tmp_path: Path
) -> None:
    """No task is listed, no lock is left, no folder made."""
    run()

    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM vm_import.targets").scalar() == 0
    assert list(tmp_path.iterdir()) == []
    assert simulator.fleet.ledger == []


def test_the_command(tmp_path: Path, database_url: str, simulator: Simulator) -> None:
    """It ends with the code, in plain lines, and without a word on standard error."""
    shell = Shell(tmp_path, **simulator.environment)
    simulator.faults.add(Denied(), region=OTHER_REGION)

    ended = shell("check", COLLECTOR_DATABASE_URL=database_url, COLLECTOR_DATA_DIR=str(tmp_path / "data"))

    assert (ended.code, ended.err) == (3, "")
    assert f"fail  account {ACCOUNT}, {LISTING}: UnauthorizedOperation in {OTHER_REGION}: " in ended.out
    assert "\x1b" not in ended.out


def test_colours_are_for_terminals(run: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rich takes FORCE_COLOR for one."""
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm-256color"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)

    assert "\x1b[32mok  \x1b[0m  credentials: arn:" in run().printed


# Credentials and the clock


def test_without_credentials_nothing_works_but_the_rest_is_tried(
    run: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database's faults are told in the same run."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")

    checked = run()

    assert (checked.code, checked.failed) == (1, ["credentials"])
    assert "NoCredentials" in checked.printed
    assert "AWS_PROFILE" in checked.printed
    assert checked.verdict("database") == "ok"


@pytest.mark.parametrize(
    ("seconds", "code", "verdict", "text"),
    [
        (90, 0, "warn", "90 s behind AWS's"),
        (-90, 0, "warn", "90 s ahead of AWS's"),
        (3600, 1, "fail", "3600 s behind AWS's"),
    ],
)
def test_a_clock_that_is_wrong(
    run: Check, simulator: Simulator, seconds: int, code: int, verdict: str, text: str
) -> None:
    """A minute is worth a word, five make AWS refuse all."""
    simulator.date_skew = timedelta(seconds=seconds)

    checked = run(regions=[REGION])

    ((found, said),) = checked.of("clock")
    assert (checked.code, found) == (code, verdict)
    counted, expected = (int(re.sub(r" s .*", "", words)) for words in (said, text))
    assert abs(counted - expected) <= 2  # the header knows seconds, and the machine is busy
    assert said.partition(" s ")[2].startswith(text.partition(" s ")[2])


def test_a_refusal_tells_the_time_as_well(run: Check, simulator: Simulator) -> None:
    """With a wrong clock, refusals are all that there is."""
    simulator.faults.add(Denied("SignatureDoesNotMatch"), action="GetCallerIdentity")
    simulator.date_skew = timedelta(hours=-1)

    checked = run()

    assert (checked.code, checked.failed) == (1, ["credentials", "clock"])


# Accounts


def test_a_role_that_cannot_be_assumed_costs_its_account(run: Check, simulator: Simulator) -> None:
    """The others work; the external id is nowhere to be read."""
    simulator.external_ids[OTHER_ACCOUNT] = "something else"

    checked = run(accounts=[{}, {"role_arn": ROLE, "external_id": "hunter2"}])

    assert (checked.code, checked.failed) == (3, [f"account {OTHER_ACCOUNT}"])
    assert "no credentials: AccessDenied: " in checked.printed
    assert "`collector iam-policy --hub`" in checked.printed
    assert "hunter2" not in checked.printed


def test_when_no_account_works_nothing_does(run: Check, simulator: Simulator) -> None:
    """The code says so."""
    simulator.faults.add(Denied("AccessDenied"), action="AssumeRole")

    assert run(accounts=[{"role_arn": ROLE}]).code == 1


def test_equal_refusals_of_an_account_are_one_line(run: Check, simulator: Simulator) -> None:
    """It names the Regions, and the mend; the other account is well."""
    simulator.faults.add(Denied(), account=OTHER_ACCOUNT)

    checked = run(accounts=OWN_AND_ANOTHER)

    ((verdict, text),) = checked.of(f"account {OTHER_ACCOUNT}, {LISTING}")
    assert (checked.code, verdict) == (3, "fail")
    assert text.startswith(f"UnauthorizedOperation in {REGION}, {OTHER_REGION}: You are not authorized")
    assert "`collector iam-policy`" in text
    assert checked.verdict(f"account {ACCOUNT}, {LISTING}") == "ok"


def test_a_region_that_is_not_enabled(run: Check) -> None:
    """It is named, and the account's others work."""
    checked = run(regions=[REGION, "me-south-1"])

    assert checked.code == 3
    (refused, allowed) = checked.of(f"account {ACCOUNT}, {LISTING}")
    assert refused[1].startswith("AuthFailure in me-south-1: ")
    assert "enable the Region" in refused[1]
    assert allowed == ("ok", "allowed in 1 Region")


@pytest.mark.parametrize("action", EVIDENCE)
def test_evidence_that_cannot_be_asked_for_is_a_doubt(run: Check, simulator: Simulator, action: str) -> None:
    """The daemon does without."""
    simulator.faults.add(Denied("AccessDeniedException"), action=action.partition(":")[2])

    checked = run(regions=[REGION])

    ((verdict, text),) = checked.of(f"account {ACCOUNT}, {action}")
    assert (checked.code, verdict) == (0, "warn")
    assert text.startswith(f"AccessDeniedException in {REGION}: ")
    assert "only `collector backfill` needs it; allow it: `collector iam-policy`" in text


def test_regions_that_cannot_be_asked_for(run: Check, simulator: Simulator) -> None:
    """Only where somebody must ask: named Regions need no permission."""
    simulator.faults.add(Denied(), action="DescribeRegions")

    checked = run()
    assert (checked.code, checked.failed) == (1, [f"account {ACCOUNT}, Regions"])
    assert "or name them in regions" in checked.printed

    assert run(regions=[REGION]).code == 0


def test_regions_that_leave_nothing(run: Check) -> None:
    """Patterns and exclusions are told apart from refusals."""
    checked = run(regions=["eu-*"], exclude_regions=["eu-west-*"])

    assert checked.of(f"account {ACCOUNT}, Regions") == [
        ("fail", "2 enabled, 0 to look at; let regions and exclude_regions leave one")
    ]


def test_an_answer_that_is_not_awss(run: Check, simulator: Simulator) -> None:
    """A proxy's page with status 200 allows nothing."""
    simulator.faults.add(HtmlPage())

    checked = run(regions=[REGION], target_deadline="1s")

    ((verdict, text),) = checked.of(f"account {ACCOUNT}, {LISTING}")
    assert (checked.code, verdict) == (1, "fail")
    assert "HTTPS_PROXY" in text


def test_an_organization(run: Check, simulator: Simulator) -> None:
    """Its active accounts are tried, by a role in each."""
    simulator.organization = {ACCOUNT: "ACTIVE", OTHER_ACCOUNT: "ACTIVE", "777788889999": "SUSPENDED"}

    checked = run(organization={"role_name": "collector"}, regions=[REGION])

    assert checked.code == 0
    assert checked.of("organization") == [("ok", "2 accounts to look at, by the role collector")]
    assert checked.of(f"account {OTHER_ACCOUNT}") == [("ok", f"role {ROLE} can be assumed")]


def test_an_organization_that_does_not_tell(run: Check) -> None:
    """Without accounts nothing works."""
    checked = run(organization={"role_name": "collector"})

    assert (checked.code, checked.failed) == (1, ["organization"])
    assert "management account" in checked.printed


def test_only_the_accounts_that_are_named(run: Check) -> None:
    """One that there is not is a mistake of the caller's."""
    checked = run(only=[OTHER_ACCOUNT], accounts=OWN_AND_ANOTHER, regions=[REGION])
    assert (checked.code, checked.of(f"account {ACCOUNT}")) == (0, [])

    with pytest.raises(UsageError, match="--account: 999999999999"):
        run(only=["999999999999"])


# The database


def test_a_database_that_is_not_there(run: Check) -> None:
    """Nothing can be stored; the password is nowhere to be read."""
    checked = run(database_url="postgresql://someone:hunter2@127.0.0.1:1/x", regions=[REGION])

    assert (checked.code, checked.failed) == (1, ["database"])
    assert "cannot be reached" in checked.printed
    assert "hunter2" not in checked.printed


def test_a_database_that_was_never_migrated(run: Check, empty_database_url: str) -> None:
    """The mend is a command; no right is missed before there is a table."""
    checked = run(database_url=empty_database_url, regions=[REGION])

    assert (checked.code, checked.failed, checked.of("rights")) == (1, ["schema"], [])
    assert "run `collector migrate`" in checked.printed


def test_a_database_in_another_encoding(run: Check, server_url: str) -> None:
    """It is said once, and nothing else is asked of it."""
    name = f"ascii_{uuid.uuid4().hex}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        create = f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'"
        connection.execute(create.encode())
    url = make_url(server_url).set(database=name).render_as_string(hide_password=False)
    try:
        checked = run(database_url=url, regions=[REGION])
    finally:
        drop_database(server_url, name)
    assert (checked.code, checked.failed, checked.of("schema")) == (1, ["database"], [])
    assert "create one with ENCODING 'UTF8'" in checked.printed


def test_a_database_that_is_read_only(run: Check, database_url: str) -> None:
    """As a replica is."""
    url = make_url(database_url).update_query_dict({"options": "-cdefault_transaction_read_only=on"})

    checked = run(database_url=url.render_as_string(hide_password=False), regions=[REGION])

    assert (checked.code, checked.failed) == (1, ["database"])
    assert "point database_url at the primary" in checked.printed


@pytest.fixture
def writer_url(database_url: str) -> Iterator[str]:
    """The URL as a role that may do what ``roles.sql`` grants to writers.

    The group roles belong to the whole server, so the script makes others of this test's own.
    """
    suffix = uuid.uuid4().hex
    script = files("collector.warehouse").joinpath("roles.sql").read_text(encoding="utf-8")
    groups = {group: f"{group}_{suffix}" for group in GROUPS}
    for group, own in groups.items():
        script = script.replace(group, own)
    roles = [f"login_{suffix}", *groups.values()]
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(script.encode())
        connection.execute(f"CREATE ROLE {roles[0]} LOGIN PASSWORD '{suffix}' IN ROLE {roles[1]}".encode())
        yield (
            make_url(database_url)
            .set(username=roles[0], password=suffix)
            .render_as_string(hide_password=False)
        )
        connection.execute(f"DROP OWNED BY {', '.join(roles)}".encode())
        connection.execute(f"DROP ROLE {', '.join(roles)}".encode())


def test_a_writer_has_the_rights_that_it_needs(run: Check, writer_url: str) -> None:
    """What ``roles.sql`` grants is enough."""
    checked = run(database_url=writer_url, regions=[REGION])

    assert (checked.code, checked.verdict("rights")) == (0, "ok")


@pytest.mark.parametrize(
    ("taken", "lacks"),
    [
        ("UPDATE (valid_to) ON vm_import.task_versions", "UPDATE on task_versions"),
        ("INSERT, SELECT ON vm_import.scans", "INSERT, SELECT on scans"),
        ("USAGE ON SCHEMA vm_import", "USAGE on schema vm_import"),
    ],
)
def test_a_role_that_lacks_a_right(
    run: Check, database_url: str, writer_url: str, taken: str, lacks: str
) -> None:
    """The right is named."""
    group = f"collector_writer_{make_url(writer_url).password}"
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(f"REVOKE {taken} FROM {group}".encode())

    checked = run(database_url=writer_url, regions=[REGION])

    assert (checked.code, checked.failed[0]) == (1, "rights")
    assert f"the role lacks {lacks}; " in checked.printed


def test_connections_that_share_a_session_keep_no_lock(database_url: str) -> None:
    """As a transaction pooler's do; the lock that was taken is given back."""
    connect = connect_to_url(database_url)
    assert keeps_sessions(connect)

    with connect() as other:
        shared = connect()
        assert not keeps_sessions(lambda: shared)
        locks = """SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database
            WHERE l.locktype = 'advisory' AND d.datname = current_database()"""
        assert other.execute(locks).fetchone() == (0,)


# This machine


def test_what_waits_on_disk(run: Check, tmp_path: Path) -> None:
    """It is counted; what is damaged is a doubt."""
    settings = load({"data_dir": tmp_path})
    spool_of(settings).append([Failure(ACCOUNT, REGION, at(0), "Throttling", "slow down")])
    ((verdict, text),) = run(regions=[REGION]).of("spool")
    assert (verdict, text.partition(" (")[0]) == ("ok", "1 look")

    (waiting,) = tmp_path.rglob("*.look")
    waiting.write_bytes(b"half of it")
    assert spool_of(settings).waiting(1) == []
    ((verdict, text),) = run(regions=[REGION]).of("spool")
    assert (verdict, text.partition("; ")[0][-14:]) == ("warn", "1 file damaged")


def test_a_full_spool_is_left_as_it_is(run: Check, tmp_path: Path) -> None:
    """To thin it is the daemon's."""
    spool_of(load({"data_dir": tmp_path})).append(scan(minutes) for minutes in range(300))
    ((verdict, text),) = run(regions=[REGION], spool_limit="1MiB").of("spool")
    assert (verdict, text.partition(" (")[0]) == ("fail", "full: 300 looks")


def test_a_folder_that_cannot_be_made(run: Check, tmp_path: Path) -> None:
    """Nothing seen would outlive an outage of the database."""
    (tmp_path / "file").touch()

    checked = run(data_dir=tmp_path / "file", regions=[REGION])

    assert (checked.code, checked.failed) == (1, ["spool"])


def test_a_port_that_is_taken(run: Check) -> None:
    """By the daemon, perhaps, which is as it should be."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        checked = run(listen=f"127.0.0.1:{taken.getsockname()[1]}", regions=[REGION])

    assert (checked.code, checked.verdict("listen")) == (0, "info")


def test_an_address_that_is_not_ours(run: Check) -> None:
    """The daemon would not start."""
    checked = run(listen="192.0.2.1:8080", regions=[REGION])

    assert (checked.code, checked.failed) == (1, ["listen"])
