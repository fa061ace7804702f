"""The configuration: which source wins, and every fault at once, each with its key and without a secret."""

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from collector.aws.regions import known_regions
from collector.config import Settings, default_data_dir, load
from collector.errors import UsageError
from collector.redaction import redacted
from tests.commands import Shell

URL = "postgresql://user:hunter2@db.example.org/{}"


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """A place to run the command in."""
    return Shell(tmp_path)


@pytest.fixture(autouse=True)
def _nothing_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Be in an empty folder, without variables of ours."""
    for name in [name for name in os.environ if name.startswith("COLLECTOR_") or name == "DATABASE_URL"]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def read(file: Path | None = None, **flags: Any) -> Settings:
    """Read the configuration as a command does."""
    return load(flags, file=file, known_regions=known_regions)


def faults(file: Path | None = None, **flags: Any) -> list[str]:
    """Return what is wrong with the configuration; nothing of it may be a secret."""
    with pytest.raises(UsageError) as caught:
        read(file, **flags)
    assert "hunter2" not in str(caught.value)
    return list(caught.value.faults)


def toml(text: str, name: str = "collector.toml") -> Path:
    """Write a file into the folder that we are in."""
    path = Path(name)
    path.write_text(text, encoding="utf-8")
    return path


def database_of(settings: Settings) -> str | None:
    """Return the name at the end of ``database_url``."""
    url = settings.database_url
    return url.get_secret_value().rpartition("/")[2] if url else None


# Who wins


def test_defaults() -> None:
    """Without any source there are the defaults of the contract."""
    assert read() == Settings(
        database_url=None,
        direct_database_url=None,
        data_dir=default_data_dir(),
        spool_limit="1GiB",  # type: ignore[arg-type] # as it is written in a file
        accounts=[],
        organization=None,
        regions=["all"],
        exclude_regions=[],
        interval="60s",  # type: ignore[arg-type] # as above
        idle_interval="15m",  # type: ignore[arg-type] # as above
        concurrency=64,
        target_deadline="60s",  # type: ignore[arg-type] # as above
        listen="127.0.0.1:8080",  # type: ignore[arg-type] # as above
    )


def test_environment_over_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable wins over the file, key by key."""
    toml('interval = "2m"\nconcurrency = 3\nregions = ["eu-west-1"]')
    monkeypatch.setenv("COLLECTOR_INTERVAL", "3m")
    monkeypatch.setenv("COLLECTOR_CONCURRENCY", "")

    settings = read()

    assert (settings.interval, settings.concurrency) == (timedelta(minutes=3), 3)
    assert settings.regions == ["eu-west-1"]


def test_flags_over_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flag wins over a variable, which is not even looked at."""
    monkeypatch.setenv("COLLECTOR_REGIONS", "nowhere-1")

    assert read(regions=["us-*"]).regions == ["us-*"]


def test_which_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """``--config`` wins over COLLECTOR_CONFIG, which wins over the folder's own; only one is read."""
    toml("concurrency = 1\ntarget_deadline = '9s'")
    assert read().concurrency == 1

    monkeypatch.setenv("COLLECTOR_CONFIG", str(toml("concurrency = 2", "two.toml")))
    assert read().concurrency == 2

    settings = read(toml("concurrency = 3", "three.toml"))
    assert (settings.concurrency, settings.target_deadline) == (3, timedelta(seconds=60))


def test_common_database_url(monkeypatch: pytest.MonkeyPatch) -> None:
    """DATABASE_URL, which other software sets too, counts only where nothing else does."""
    monkeypatch.setenv("DATABASE_URL", URL.format("common"))
    assert database_of(read()) == "common"

    toml(f'database_url = "{URL.format("file")}"')
    assert database_of(read()) == "file"

    monkeypatch.setenv("COLLECTOR_DATABASE_URL", URL.format("ours"))
    assert database_of(read()) == "ours"


def test_common_database_url_of_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """A DATABASE_URL of MySQL's is a fault where it would count, and nobody's business elsewhere."""
    monkeypatch.setenv("DATABASE_URL", "mysql://root:hunter2@localhost/shop")
    (fault,) = faults()
    assert fault.startswith("database_url: ")
    assert "DATABASE_URL" in fault

    monkeypatch.setenv("COLLECTOR_DATABASE_URL", URL.format("ours"))
    assert database_of(read()) == "ours"


def test_lists_in_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable's list is separated by commas."""
    monkeypatch.setenv("COLLECTOR_REGIONS", "eu-*, us-east-1,")

    assert read().regions == ["eu-*", "us-east-1"]


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("30s", timedelta(seconds=30)),
        ("15m", timedelta(minutes=15)),
        ("24h", timedelta(hours=24)),
        ("1d", timedelta(days=1)),
        (" 90s ", timedelta(seconds=90)),
    ],
)
def test_durations(text: str, duration: timedelta) -> None:
    """Durations are a number and a unit."""
    assert read(toml(f'idle_interval = "{text}"')).idle_interval == duration


@pytest.mark.parametrize(
    ("text", "size"),
    [("500MiB", 500 * 2**20), ("1 GiB", 2**30), ("2TiB", 2**41), ("1048576", 2**20), ("1048576B", 2**20)],
)
def test_sizes(text: str, size: int) -> None:
    """Sizes are a number and, unless it is bytes, a unit."""
    assert read(toml(f'spool_limit = "{text}"')).spool_limit == size


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("0.0.0.0:80", ("0.0.0.0", 80)),  # noqa: S104 - nobody listens there
        ("collector.example.org:0", ("collector.example.org", 0)),
        ("[::1]:8080", ("::1", 8080)),
    ],
)
def test_addresses(monkeypatch: pytest.MonkeyPatch, text: str, address: tuple[str, int]) -> None:
    """Where to listen is a host and a port, in a variable too."""
    monkeypatch.setenv("COLLECTOR_LISTEN", text)

    assert read().listen == address


def test_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder may begin at the user's home, wherever no shell reads it."""
    monkeypatch.setenv("HOME", "/home/somebody")

    assert read(toml('data_dir = "~/collector"')).data_dir == Path("/home/somebody/collector")


# Accounts


ARN = "arn:aws:iam::111122223333:role/collector"
OTHER_ARN = "arn:aws-us-gov:iam::444455556666:role/path/to/collector"


def test_accounts() -> None:
    """Each has a role or is the credentials' own, and may have Regions of its own."""
    settings = read(
        toml(f"""
            [[accounts]]
            role_arn = "{ARN}"
            external_id = "sesame-4711"
            regions = ["eu-*"]
            [[accounts]]
            role_arn = "{OTHER_ARN}"
            [[accounts]]
        """)
    )

    first, second, own = settings.accounts
    assert (first.role_arn, second.role_arn, own.role_arn) == (ARN, OTHER_ARN, None)
    assert first.external_id is not None
    assert first.external_id.get_secret_value() == "sesame-4711"
    assert (first.regions, second.regions) == (["eu-*"], [])
    assert "sesame-4711" not in repr(settings) + str(settings)


def test_an_external_id_is_kept_out_of_logs() -> None:
    """As passwords are, wherever it turns up."""
    read(accounts=[{"role_arn": ARN, "external_id": "sesame-4711"}])

    assert redacted("external id sesame-4711") == "external id ***"


def test_accounts_in_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are JSON there."""
    monkeypatch.setenv("COLLECTOR_ACCOUNTS", f'[{{"role_arn": "{ARN}", "regions": ["us-east-1"]}}, {{}}]')

    assert [(one.role_arn, one.regions) for one in read().accounts] == [(ARN, ["us-east-1"]), (None, [])]


def test_an_organization(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a file or, as JSON, in a variable."""
    toml('[organization]\nrole_name = "path/collector"\nexclude = ["000000000001"]')
    organization = read().organization
    assert organization is not None
    assert (organization.role_name, organization.exclude) == ("path/collector", ["000000000001"])

    monkeypatch.setenv("COLLECTOR_ORGANIZATION", '{"role_name": "other"}')
    organization = read().organization
    assert organization is not None
    assert organization.role_name == "other"


# Faults


DURATION = "must be a duration such as 30s, 15m, 24h or 7d"
BOUNDS = "must be between 1s and 24h: EC2 forgets a task seven days after its end"
READS = "must read postgresql://user:password@host:port/database"
SIZE = "must be a size such as 500MiB or 1GiB, and at least 1MiB"
ADDRESS = "must read HOST:PORT, such as 127.0.0.1:8080; port 0 takes a free one"
ROLE = "must read arn:aws:iam::ACCOUNT:role/NAME, the account with 12 digits"
FAULTY_FILES = {
    "unknown key": ('colour = "blue"', ["colour: no such key"]),
    "misspelt key": ('intervall = "1m"', ["intervall: no such key; did you mean interval?"]),
    "misspelt URL": (
        'databse_url = "postgresql://user:hunter2@x/y"',
        ["databse_url: no such key; did you mean database_url?"],
    ),
    "a table": ("[settings]\ninterval = '1m'", ["settings: no such key"]),
    "later keys": (
        "executor = 'threads'\nretention = '7d'\nscan_horizon = '30d'",
        [
            f"{key}: no such key: it belongs to a later release"
            for key in ("executor", "retention", "scan_horizon")
        ],
    ),
    "unknown Region": (
        'regions = ["ap-south1"]',
        ["regions: no Region is called 'ap-south1'; did you mean ap-south-1?"],
    ),
    "glob without a match": ('regions = ["mars-*"]', ["regions: no Region is called 'mars-*'"]),
    "excluded unknown": ('exclude_regions = ["x"]', ["exclude_regions: no Region is called 'x'"]),
    "two unknown": (
        'regions = ["x", "eu-west-1", "y"]',
        ["regions: no Region is called 'x'; no Region is called 'y'"],
    ),
    "no Regions": ("regions = []", ["regions: list should have at least 1 item after validation, not 0"]),
    "above 24 h": ('interval = "25h"', [f"interval: {BOUNDS}"]),
    "above 24 h in days": ('idle_interval = "7d"', [f"idle_interval: {BOUNDS}"]),
    "no time at all": ('interval = "0s"', [f"interval: {BOUNDS}"]),
    "number without unit": ("interval = 60", [f"interval: {DURATION}"]),
    "fraction": ('interval = "1.5m"', [f"interval: {DURATION}"]),
    "negative": ('interval = "-1m"', [f"interval: {DURATION}"]),
    "huge": ('interval = "99999999999999d"', [f"interval: {DURATION}"]),
    "deadline": ('target_deadline = "2h"', ["target_deadline: must be between 1s and 1h"]),
    "concurrency": ("concurrency = 0", ["concurrency: input should be greater than or equal to 1"]),
    "bad URL": ('database_url = "mysql://root:hunter2@x/y"', ["database_url: " + READS]),
    "no URL": ('direct_database_url = "hunter2"', ["direct_database_url: " + READS]),
    "URL of another type": ("database_url = 5432", ["database_url: " + READS]),
    "nobody's home": (
        'data_dir = "~nobody-of-that-name/x"',
        ["data_dir: nobody knows whose home folder ~ is"],
    ),
    "small limit": ('spool_limit = "1023KiB"', [f"spool_limit: {SIZE}"]),
    "limit of another unit": ('spool_limit = "1GB"', [f"spool_limit: {SIZE}"]),
    "no limit": ("spool_limit = true", [f"spool_limit: {SIZE}"]),
    "port alone": ("listen = 8080", [f"listen: {ADDRESS}"]),
    "host alone": ('listen = "127.0.0.1"', [f"listen: {ADDRESS}"]),
    "high port": ('listen = "127.0.0.1:65536"', [f"listen: {ADDRESS}"]),
    "bare IPv6": ('listen = "::1"', [f"listen: {ADDRESS}"]),
    "nested keys": (
        f'[[accounts]]\n[[accounts]]\nrole_arm = "{ARN}"\nexternal-id = "hunter2"',
        [
            "accounts.1.external-id: no such key; did you mean external_id?",
            "accounts.1.role_arm: no such key; did you mean role_arn?",
        ],
    ),
    "nested keys of an organization": (
        '[organization]\nrole = "x"\nexclud = []',
        [
            "organization.exclud: no such key; did you mean exclude?",
            "organization.role: no such key",
            "organization.role_name: field required",
        ],
    ),
    "no role": ('[[accounts]]\nrole_arn = "hunter2"', [f"accounts.0.role_arn: {ROLE}"]),
    "a user for a role": (
        '[[accounts]]\nrole_arn = "arn:aws:iam::111122223333:user/x"',
        [f"accounts.0.role_arn: {ROLE}"],
    ),
    "short account": (
        '[[accounts]]\nrole_arn = "arn:aws:iam::1111:role/x"',
        [f"accounts.0.role_arn: {ROLE}"],
    ),
    "external id of nobody": (
        '[[accounts]]\nexternal_id = "hunter2"',
        ["accounts.0: external_id needs role_arn: the credentials' own account is not assumed"],
    ),
    "external id of another type": (
        f'[[accounts]]\nrole_arn = "{ARN}"\nexternal_id = ["hunter2"]',
        ["accounts.0.external_id: input should be a valid string"],
    ),
    "unknown Region of an account": (
        '[[accounts]]\nregions = ["eu-wst-1"]',
        ["accounts.0.regions: no Region is called 'eu-wst-1'; did you mean eu-west-1?"],
    ),
    "one table for many": (f'[accounts]\nrole_arn = "{ARN}"', ["accounts: input should be a valid list"]),
    "account twice": (
        f'[[accounts]]\nrole_arn = "{ARN}"\n[[accounts]]\nrole_arn = "{ARN}2"',
        ["accounts: named twice: 111122223333"],
    ),
    "own account twice": ("[[accounts]]\n[[accounts]]", ["accounts: named twice: the credentials' own"]),
    "accounts and organization": (
        '[[accounts]]\n[organization]\nrole_name = "x"',
        ["organization: accounts and organization exclude each other: configure one of them"],
    ),
    "an ARN for a name": (
        f'[organization]\nrole_name = "{ARN}"',
        ["organization.role_name: string should match"],
    ),
    "excluded number": (
        '[organization]\nrole_name = "x"\nexclude = [111122223333]',
        ["organization.exclude.0: must be an account's 12 digits, in quotes"],
    ),
}


@pytest.mark.parametrize(("text", "expected"), FAULTY_FILES.values(), ids=FAULTY_FILES.keys())
def test_faulty_file(text: str, expected: list[str]) -> None:
    """Each fault names its key and, where there is one, the nearest that exists."""
    found = sorted(faults(toml(text)))

    assert len(found) == len(expected)
    assert all(line.startswith(wanted) for line, wanted in zip(found, expected, strict=True))


UNREADABLE = {
    "malformed": (b"interval = ", "collector.toml: not TOML: Invalid value (at end of document)"),
    "key twice": (b"concurrency = 1\nconcurrency = 2", "collector.toml: not TOML: "),
    "latin-1": ("# für".encode("latin-1"), "collector.toml: not UTF-8 text"),
    "UTF-16": ("concurrency = 1".encode("utf-16"), "collector.toml: not UTF-8 text"),
    "NULs": (b"\x00\x00", "collector.toml: not TOML: "),
    "nested deeply": (b"a = " + b"[" * 100_000, "collector.toml: not TOML: "),
    "a huge integer": (b"concurrency = " + b"1" * 5000, "collector.toml: not TOML: "),
}


@pytest.mark.parametrize(("content", "fault"), UNREADABLE.values(), ids=UNREADABLE.keys())
def test_unreadable_file(content: bytes, fault: str) -> None:
    """A file that is no TOML is named."""
    Path("collector.toml").write_bytes(content)

    (found,) = faults()
    assert found.startswith(fault)


def test_no_such_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that was named must be there, whoever named it."""
    assert faults(Path("x.toml")) == ["--config: there is no file x.toml"]

    monkeypatch.setenv("COLLECTOR_CONFIG", "y.toml")
    assert faults() == ["COLLECTOR_CONFIG: there is no file y.toml"]


def test_folder_for_a_file() -> None:
    """A folder cannot be read, and that is said."""
    assert faults(Path()) == [".: cannot be read: Is a directory"]


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("COLLECTOR_INTERVAL_S", "no such variable; did you mean COLLECTOR_INTERVAL?"),
        ("COLLECTOR_DATABSE_URL", "no such variable; did you mean COLLECTOR_DATABASE_URL?"),
        ("COLLECTOR_X", "no such variable"),
        ("COLLECTOR_SCAN_HORIZON", "no such variable: it belongs to a later release"),
        ("COLLECTOR_ORGANIZATION__ROLE_NAME", "no such variable; did you mean COLLECTOR_ORGANIZATION?"),
    ],
)
def test_unknown_variable(monkeypatch: pytest.MonkeyPatch, name: str, fault: str) -> None:
    """A variable with our prefix that nobody reads is a mistake."""
    monkeypatch.setenv(name, "hunter2")

    assert faults() == [f"{name}: {fault}"]


@pytest.mark.parametrize("text", ["hunter2", '[{"external_id": "hunter2"}', "[" * 100_000])
def test_a_variable_that_is_no_json(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """It is one fault among others, and is not quoted."""
    monkeypatch.setenv("COLLECTOR_ACCOUNTS", text)
    monkeypatch.setenv("COLLECTOR_ORGANIZATION", text)

    assert sorted(faults(concurrency=0)) == [
        "accounts: must be JSON; a TOML file is the easier place for it",
        "concurrency: input should be greater than or equal to 1",
        "organization: must be JSON; a TOML file is the easier place for it",
    ]


# The command


def test_all_faults_at_once(shell: Shell) -> None:
    """A command names every fault of every source, ends with 2, and prints no secret."""
    text = 'intervall = "1m"\nidle_interval = "8d"\ndirect_database_url = "mysql://u:hunter2@x/y"'
    accounts = '[[accounts]]\nexternal_id = "hunter2"\n[[accounts]]\nrole_arm = "hunter2"'
    shell.write("collector.toml", f"{text}\n{accounts}")
    variables = {
        "COLLECTOR_DATABASE_URL": "hunter2",
        "COLLECTOR_CONCURENCY": "hunter2",
        "COLLECTOR_LISTEN": ":80",
    }

    ended = shell("migrate", "--region", "eu-wst-1", **variables)

    assert (ended.code, ended.out) == (2, "")
    assert "hunter2" not in ended.err
    keys = [line.split(": ")[1] for line in ended.err.splitlines()]
    assert sorted(keys) == [
        "COLLECTOR_CONCURENCY",
        "accounts.0",
        "accounts.1.role_arm",
        "database_url",
        "direct_database_url",
        "idle_interval",
        "intervall",
        "listen",
        "regions",
    ]


@pytest.mark.parametrize(
    "url",
    ["postgresql://u:%ZZhunter2@localhost/db", "postgresql://u:x%20hunter2@localhost:1/db?sslmode=x"],
)
def test_no_secret_of_a_broken_url(shell: Shell, url: str) -> None:
    """Whatever is wrong with a URL, its password is not quoted."""
    ended = shell("migrate", "--check", COLLECTOR_DATABASE_URL=url)

    assert ended.code in {1, 2}
    assert "hunter2" not in ended.err + ended.out


def test_sources_of_the_command(shell: Shell) -> None:
    """The command reads the same sources, in the same order."""
    shell.write("collector.toml", 'database_url = "postgresql://127.0.0.1:1/x"')
    shell.write("other.toml", 'database_url = "postgresql://127.0.0.1:2/x"')

    def port(*arguments: str, **variables: str) -> str:
        ended = shell("migrate", "--check", *arguments, **variables)
        assert ended.code == 1
        return ended.err.partition("port ")[2][:1]

    assert port(DATABASE_URL="postgresql://127.0.0.1:4/x") == "1"
    assert port("--config", "other.toml") == "2"
    assert port("--config", "other.toml", COLLECTOR_DATABASE_URL="postgresql://127.0.0.1:3/x") == "3"
