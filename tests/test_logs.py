"""Log lines: one per event, valid where they are JSON, and without secrets, whoever writes them."""

import json
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any, Literal
from urllib.parse import quote, quote_plus

import pytest
import structlog

from collector import logs
from collector.redaction import HIDDEN, keep_secret, keep_secrets_of_url, redacted, redacted_field

PASSWORD = "p@ss/w+rd '1\" ü%"  # noqa: S105 - of nobody
URL = f"postgresql://someone:{quote(PASSWORD, safe='')}@db.example/aws"
ENVIRONMENT = {
    "COLLECTOR_DATABASE_URL": URL,
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG",
    "AWS_SESSION_TOKEN": "IQoJb3JpZ2luX2VjEXAMPLE==",
}

Format = Literal["text", "json"]
FORMATS: list[Format] = ["text", "json"]

log = structlog.stdlib.get_logger("collector.test")
foreign = logging.getLogger("library")


class Written:
    """Standard error, with logs configured as commands configure them."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def lines(
        self, write: Callable[[], object], format_: Format = "json", *, verbose: bool = False
    ) -> list[str]:
        """Return the lines that are written."""
        logs.configure(format_, verbose=verbose)
        write()
        return self._capsys.readouterr().err.splitlines()

    def line(self, write: Callable[[], object], format_: Format = "json") -> str:
        """Return the one line that is written."""
        (line,) = self.lines(write, format_)
        return line

    def event(self, write: Callable[[], object]) -> dict[str, Any]:
        """Return the fields of the one line that is written."""
        event = json.loads(self.line(write))
        assert isinstance(event, dict)
        return event


@pytest.fixture
def written(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Written]:
    """Standard error of a process whose environment holds secrets; logging is as before afterwards."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    ours, root = logging.getLogger("collector"), logging.getLogger()
    before = root.handlers, root.level, ours.level
    yield Written(capsys)
    structlog.reset_defaults()
    root.handlers = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])


def _raise(message: str) -> None:
    raise RuntimeError(message)


def _fail(logger: Any, message: str) -> None:
    """Log an exception with its traceback."""
    try:
        _raise(message)
    except RuntimeError:
        logger.exception("failed")


# Secrets, by their value


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize(
    "write",
    [
        lambda: log.warning(PASSWORD),
        lambda: log.warning("x", error=PASSWORD),
        lambda: log.warning("x", error=ValueError(PASSWORD)),
        lambda: log.warning("x", nested={"a": [(PASSWORD,)]}),
        lambda: log.warning("x", nested={PASSWORD: 1}),
        lambda: log.warning("x", options=f"--url={URL}"),
        lambda: log.warning("x", body=PASSWORD.encode()),
        lambda: foreign.warning("a %s", PASSWORD),
        lambda: foreign.warning(URL),
        lambda: _fail(log, f"no {PASSWORD} in {URL}"),
        lambda: _fail(foreign, f"no {PASSWORD} in {URL}"),
        lambda: log.warning("wJalrXUtnFEMI/K7MDENG"),
        lambda: foreign.error("of IQoJb3JpZ2luX2VjEXAMPLE== and wJalrXUtnFEMI%2fK7MDENG"),
    ],
)
def test_no_secret_is_logged(written: Written, write: Callable[[], object], format_: Format) -> None:
    """In the event, a field, an exception or a traceback, of ours and of libraries."""
    line = written.line(write, format_)
    assert [part for part in ("p@ss", "p%40ss", "w+rd", "wJalr", "IQoJ") if part in line] == []
    assert HIDDEN in line or "db.example" in line


def test_a_line_that_cannot_be_written_does_not_show_its_arguments(written: Written) -> None:
    """The library itself would print them."""
    event = written.event(lambda: foreign.warning("%d tasks", PASSWORD))
    assert event["event"].startswith("a log line was lost (")
    assert event["event"].endswith("): TypeError")


@pytest.mark.parametrize(
    "written",
    [
        PASSWORD,
        quote(PASSWORD),
        quote(PASSWORD, safe=""),
        quote_plus(PASSWORD),
        quote(PASSWORD, safe="").lower(),
        quote(PASSWORD, safe="@'\""),
        json.dumps(PASSWORD, ensure_ascii=False)[1:-1],
        repr(PASSWORD)[1:-1],
    ],
)
def test_a_secret_is_known_however_it_is_written(written: str) -> None:
    """Percent-encoded wholly or in part, in either case, or with its quotes escaped."""
    keep_secret(PASSWORD)
    assert redacted(f"a {written} b") == f"a {HIDDEN} b"


@pytest.mark.parametrize("value", ["", "a", "abc"])
def test_short_values_are_no_secrets(value: str) -> None:
    """Ordinary text would be destroyed."""
    keep_secret(value)
    assert redacted("abc a b") == "abc a b"


def test_a_secret_that_begins_with_another_goes_as_a_whole() -> None:
    """In whichever order they were told."""
    for secret in ("long-secret-1", "long-secret-1-and-more", "long-secret"):
        keep_secret(secret)
    assert redacted("long-secret-1-and-more, long-secret-1") == f"{HIDDEN}, {HIDDEN}"


def test_passwords_among_a_urls_parameters() -> None:
    """As libpq reads them: a plus sign is one."""
    keep_secrets_of_url("postgresql:///aws?host=/tmp&password=query+s3cret&sslpassword=key%20s3cret")
    assert redacted("query+s3cret, key s3cret, /tmp") == f"{HIDDEN}, {HIDDEN}, /tmp"


@pytest.mark.parametrize("url", ["", "postgresql://[", "postgresql://host/aws", "host=here password=x"])
def test_a_url_without_a_password_keeps_nothing(url: str) -> None:
    """Nor does one that cannot be read; whoever connects to it says so."""
    keep_secrets_of_url(url)
    assert redacted("postgresql host here aws") == "postgresql host here aws"


def test_secrets_told_by_many_threads_are_all_kept() -> None:
    """None is lost between two."""
    secrets = [f"of-thread-{number}-" for number in range(50)]
    threads = [threading.Thread(target=keep_secret, args=(secret,)) for secret in secrets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {redacted(secret) for secret in secrets} == {HIDDEN}


# Secrets, by their name


@pytest.mark.parametrize(
    "name",
    [
        "password",
        "db_password",
        "client_secret",
        "SessionToken",
        "Authorization",
        "external_id",
        "ExternalId",
        "external-id",
        "direct_database_url",
        "aws_secret_access_key",
        "SecretAccessKey",
    ],
)
def test_fields_with_secret_names_are_hidden_at_every_level(name: str) -> None:
    """Whatever they hold."""
    for value in ("x", 7, ["x"], {"a": "x"}):
        assert redacted_field(name, value) == HIDDEN
        assert redacted_field("options", [{"sub": {name: value}}]) == [{"sub": {name: HIDDEN}}]


@pytest.mark.parametrize("name", ["account", "tokens_left", "access_key_id", "key", "event", "secretary"])
def test_other_fields_stay(name: str) -> None:
    """A word within a name makes no secret."""
    assert redacted_field(name, "x") == "x"


def test_a_secret_that_is_not_there_is_not_hidden() -> None:
    """That there is none is worth knowing."""
    assert redacted_field("external_id", None) is None


def test_secret_names_of_logged_fields(written: Written) -> None:
    """Through the whole pipeline."""
    event = written.event(lambda: log.warning("x", role={"role_arn": "arn", "external_id": "of-ours"}))
    assert event["role"] == {"role_arn": "arn", "external_id": HIDDEN}


# Lines

_FORGED = "a\n2026-01-01T00:00:00Z [error] forged\r\v\f\x1b[2J\x85\u2028\u2029b"


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize(
    "write",
    [
        lambda: log.warning(_FORGED),
        lambda: log.warning("x", cause=_FORGED),
        lambda: log.warning("x", cause="\x1b[2J\x85"),
        lambda: log.warning("x", nested=[{_FORGED: _FORGED}]),
        lambda: foreign.warning("%s", _FORGED),
        lambda: _fail(log, _FORGED),
        lambda: _fail(foreign, _FORGED),
        lambda: foreign.error("x", stack_info=True),
    ],
)
def test_an_event_is_one_line(written: Written, write: Callable[[], object], format_: Format) -> None:
    """Nobody's text begins another, or steers the terminal; a traceback is in it too."""
    assert written.line(write, format_).isprintable()


@pytest.mark.parametrize(
    ("value", "logged"),
    [
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (1.5, 1.5),
        (True, True),
        (None, None),
        ({(1, 2): {3}}, {"(1, 2)": [3]}),
        ("\ud83d", "\ud83d"),
        (object, "<class 'object'>"),
        ((1, "a"), [1, "a"]),
    ],
)
def test_json_lines_are_json(written: Written, value: object, logged: object) -> None:
    """Whatever is logged; JSON itself has no nan, and no keys but text."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    line = written.line(lambda: log.warning("x", value=value))
    assert json.loads(line, parse_constant=refuse)["value"] == logged


def test_what_contains_itself_ends(written: Written) -> None:
    """Somewhere."""
    endless: list[object] = []
    endless.append(endless)
    assert "…" in str(written.event(lambda: log.warning("x", value=endless))["value"])


def test_text_is_for_people(written: Written) -> None:
    """Time, level, sentence, fields."""
    line = written.line(lambda: log.warning("look failed", region="eu-west-1", cause="no answer"), "text")
    time, rest = line.split(maxsplit=1)
    assert time.endswith("Z")
    assert rest.split() == ["[warning", "]", "look", "failed", "region=eu-west-1", "cause='no", "answer'"]


def test_verbose_adds_our_own_details_alone(written: Written) -> None:
    """Libraries' go on telling warnings only."""

    def write() -> None:
        log.info("info")
        log.debug("debug")
        foreign.info("info")
        foreign.warning("warning")

    assert [json.loads(line)["event"] for line in written.lines(write)] == ["info", "warning"]
    told = written.lines(write, verbose=True)
    assert [json.loads(line)["event"] for line in told] == ["info", "debug", "warning"]
