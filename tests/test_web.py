"""Health, metrics and the status page, over real sockets: what they say, and to whom they do not listen."""

import html
import json
import os
import re
import signal
import socket
import subprocess
import threading
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from hashlib import sha256
from html.parser import HTMLParser
from http.client import HTTPConnection
from pathlib import Path
from time import monotonic, sleep
from urllib.request import urlopen

import psutil
import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families
from starlette.types import Receive, Scope, Send

from collector import __version__
from collector.domain import Failure, Target
from collector.errors import UsageError
from collector.outcomes import Tally
from collector.state import DaemonState, TargetState
from collector.web.app import make_app
from collector.web.metrics import Metrics
from collector.web.page import ROWS
from collector.web.server import _MOST_CONNECTIONS, _MOST_REQUESTS, WebServer
from tests.factories import TARGET, at, scan, task

NOW = at(60)
WELL = DaemonState(alive=True, leading=True, database=None)
OTHER = Target("444455556666", "us-east-1")
SCRIPT = "<script>alert('<b>')</script>"
CHROMIUM = Path("/usr/bin/chromium")
_PATIENCE = 20.0


@dataclass(slots=True)
class Answer:
    """What the server said."""

    status: int
    headers: dict[str, str]
    body: str


class Site:
    """A server on a free port, whose daemon's state is what a test says it is."""

    def __init__(self) -> None:
        self.server = WebServer(self, "127.0.0.1", 0)
        self.begin()

    def begin(self) -> None:
        """Let the application begin anew."""
        self.state = WELL
        self.metrics = Metrics()
        self._app = make_app(lambda: self.state, self.metrics, lambda: NOW)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Be the application that serves now."""
        await self._app(scope, receive, send)

    def ask(self, path: str, method: str = "GET", **headers: str) -> Answer:
        """Ask once."""
        with closing(HTTPConnection("127.0.0.1", self.server.port, timeout=_PATIENCE)) as connection:
            connection.request(method, path, headers=headers)
            response = connection.getresponse()
            names = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, names, response.read().decode())

    def connect(self) -> socket.socket:
        """Open a connection and say nothing."""
        return socket.create_connection(("127.0.0.1", self.server.port), timeout=_PATIENCE)

    def page(self, *targets: TargetState) -> "Page":
        """Return the status page about targets."""
        self.state = replace(self.state, targets=targets)
        return Page(self.ask("/").body)

    def samples(self) -> dict[str, float]:
        """Return the metrics as ``name{label=value}`` and value."""
        return flat(text_string_to_metric_families(self.ask("/metrics").body))


def flat(metrics: Iterable[Metric]) -> dict[str, float]:
    """Write every sample on a line; one that comes twice is a fault."""
    lines: dict[str, float] = {}
    for sample in (sample for metric in metrics for sample in metric.samples):
        labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
        line = f"{sample.name}{{{labels}}}" if labels else sample.name
        assert line not in lines
        lines[line] = sample.value
    return lines


class Page(HTMLParser):
    """A page taken apart: balanced or refused, with its tables as rows of text."""

    VOID = frozenset({"meta", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.source = text
        self.text = ""
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self._open: list[str] = []
        self._rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)
        if tag == "caption":
            self._rows = self.tables[dict(attrs)["id"] or ""] = []
        elif tag == "tr":
            self._rows.append([])
        elif tag in {"td", "th"}:
            self._rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        """Refuse what closes nothing."""
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Note text."""
        if "style" not in self._open:
            self.text += data
        if {"td", "th"} & set(self._open):
            self._rows[-1][-1] += data

    def rows(self, table: str) -> list[list[str]]:
        """Return the rows of a table's body."""
        return [[" ".join(cell.split()) for cell in row] for row in self.tables[table][1:]]

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Return the attributes of each such element."""
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def shared_site() -> Iterator[Site]:
    """A running server."""
    site = Site()
    with site.server:
        yield site


@pytest.fixture
def site(shared_site: Site) -> Site:
    """A running server, whose application has just begun."""
    shared_site.begin()
    return shared_site


@pytest.fixture
def own_site() -> Iterator[Site]:
    """A running server of this test's own, to be crowded and kept waiting."""
    site = Site()
    with site.server:
        yield site


def failed(target: Target = TARGET, message: str = "not authorised") -> Failure:
    """Return a failure a minute ago."""
    return Failure(target.account_id, target.region, at(59), "UnauthorizedOperation", message)


def many(number: int) -> tuple[TargetState, ...]:
    """Return as many targets that are well, each with an import in flight."""
    return tuple(
        TargetState(Target(f"{index:012}", "eu-west-1"), at(59), {"active": 1}, (task(f"{index:05}"),))
        for index in range(number)
    )


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    deadline = monotonic() + _PATIENCE
    while not condition():
        assert monotonic() < deadline
        sleep(0.02)


# Health


def test_healthz_says_alive(site: Site) -> None:
    """A daemon that ticks is alive, whatever its database does."""
    site.state = DaemonState(alive=True, leading=None, database="connection refused")
    answer = site.ask("/healthz")
    assert (answer.status, answer.body) == (200, "alive\n")


def test_healthz_without_ticks(site: Site) -> None:
    """A daemon whose ticks do not happen wants a restart."""
    site.state = replace(WELL, alive=False)
    assert site.ask("/healthz").status == 503


def test_readyz_says_ready(site: Site) -> None:
    """A standby is ready, too: what is to be seen is stored by the process that leads."""
    site.state = replace(WELL, leading=False, spool_files=2)
    answer = site.ask("/readyz")
    assert answer.status == 200
    assert json.loads(answer.body) == {"ready": True, "leading": False, "database": None, "spool_files": 2}


def test_readyz_names_the_trouble(site: Site) -> None:
    """Without the database it is not ready, and says what is wrong."""
    site.state = replace(WELL, leading=None, database="connection refused")
    answer = site.ask("/readyz")
    assert answer.status == 503
    assert json.loads(answer.body) == {
        "ready": False,
        "leading": None,
        "database": "connection refused",
        "spool_files": 0,
    }


# HTTP


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/metrics", "/nothing"])
def test_every_answer_is_kept_in_bounds(site: Site, path: str) -> None:
    """No answer is cached, sniffed, framed, or may load anything."""
    headers = site.ask(path).headers
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-security-policy"].startswith("default-src 'none'; style-src 'sha256-")
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "server" not in headers


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz"])
def test_head(site: Site, path: str) -> None:
    """HEAD tells the length of what GET brings."""
    answer = site.ask(path, "HEAD")
    assert (answer.status, answer.body) == (200, "")
    assert answer.headers["content-length"] == str(len(site.ask(path).body.encode()))


def test_nothing_can_be_changed(site: Site) -> None:
    """Only reading is served."""
    answer = site.ask("/", "POST")
    assert answer.status == 405
    assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD"}


@pytest.mark.parametrize("path", ["/nothing", "/healthz/", "/..%2fapp.py"])
def test_unknown_paths(site: Site, path: str) -> None:
    """What is not there is said in plain text, without a redirect."""
    answer = site.ask(path)
    assert (answer.status, answer.headers["content-type"]) == (404, "text/plain; charset=utf-8")


# Metrics


def test_polls_are_counted(site: Site) -> None:
    """Looks are counted by target and outcome, failures by code; durations by outcome alone."""
    site.metrics.looked(TARGET, scan(0), 0.2)
    site.metrics.looked(TARGET, scan(1), 0.3)
    site.metrics.looked(TARGET, scan(2, complete=False), 0.2)
    site.metrics.looked(OTHER, failed(OTHER), 1.0)
    site.metrics.looked(OTHER, None, 0.0)
    assert {
        "collector_polls_total{account=111122223333,outcome=complete,region=eu-west-1}": 2,
        "collector_polls_total{account=111122223333,outcome=partial,region=eu-west-1}": 1,
        "collector_polls_total{account=444455556666,outcome=failed,region=us-east-1}": 1,
        "collector_polls_total{account=444455556666,outcome=busy,region=us-east-1}": 1,
        "collector_poll_failures_total{account=444455556666,code=UnauthorizedOperation,region=us-east-1}": 1,
        "collector_poll_duration_seconds_count{outcome=complete}": 2,
        "collector_poll_duration_seconds_sum{outcome=complete}": 0.5,
        "collector_poll_duration_seconds_bucket{le=0.25,outcome=complete}": 1,
    }.items() <= site.samples().items()


def test_recordings_are_counted(site: Site) -> None:
    """A tally's numbers are added up; a scan has one effect."""
    tally = Tally(
        scans=5, unchanged=2, repeated=1, new_tasks=3, inserted=7, closed=4, vanished=1, refused=["twice"]
    )
    site.metrics.recorded(tally, 0.5)
    site.metrics.recorded(tally, 0.5)
    samples = site.samples()
    assert {
        "collector_scans_total{effect=changed}": 4,
        "collector_scans_total{effect=unchanged}": 4,
        "collector_scans_total{effect=repeated}": 2,
        "collector_scans_total{effect=refused}": 2,
        "collector_tasks_new_total": 6,
        "collector_tasks_gone_total{how=vanished}": 2,
        "collector_tasks_gone_total{how=expired}": 0,
        "collector_versions_inserted_total": 14,
        "collector_versions_closed_total": 8,
        "collector_recording_duration_seconds_count": 2,
        "collector_recording_duration_seconds_sum": 1,
    }.items() <= samples.items()


def test_counters_begin_at_zero(site: Site) -> None:
    """The first refusal is a rise from 0, which an alert sees."""
    assert site.samples()["collector_scans_total{effect=refused}"] == 0


def test_the_state_is_measured(site: Site) -> None:
    """Gauges tell the state at the scrape, in base units."""
    site.state = DaemonState(
        alive=True,
        leading=False,
        database="refused",
        spool_files=3,
        spool_bytes=4096,
        spool_full=True,
        schedule_lag=12.5,
        missed_ticks=4,
        targets=(
            TargetState(TARGET, at(0), {"active": 2, "completed": 1}, failing=failed(), failures=2),
            TargetState(OTHER, NOW - timedelta(days=6)),
            TargetState(Target("777788889999", "us-east-1")),
        ),
    )
    samples = site.samples()
    assert {
        "collector_alive": 1,
        "collector_ready": 0,
        "collector_database_up": 0,
        "collector_leading": 0,
        "collector_spool_files": 3,
        "collector_spool_bytes": 4096,
        "collector_spool_full": 1,
        "collector_schedule_lag_seconds": 12.5,
        "collector_ticks_missed_total": 4,
        "collector_targets": 3,
        "collector_targets_failing": 1,
        "collector_targets_nearly_forgotten": 1,
        "collector_targets_unseen": 1,
        "collector_last_success_timestamp_seconds{account=111122223333,region=eu-west-1}": at(0).timestamp(),
        "collector_tasks{account=111122223333,region=eu-west-1,status=active}": 2,
        "collector_tasks{account=111122223333,region=eu-west-1,status=completed}": 1,
    }.items() <= samples.items()


def test_unknown_is_no_number(site: Site) -> None:
    """Who leads is not said before it is known, nor a good look that never was."""
    site.state = DaemonState(alive=True, leading=None, database=None, targets=(TargetState(TARGET),))
    assert not [
        name for name in site.samples() if name.startswith(("collector_leading", "collector_last_success"))
    ]


def test_a_gone_target_leaves_no_gauges(site: Site) -> None:
    """What is polled no more does not look stale for ever."""
    site.state = replace(WELL, targets=(TargetState(TARGET, at(0), {"active": 1}),))
    assert any("account=" in name for name in site.samples())
    site.state = WELL
    assert not any("account=" in name for name in site.samples())


def test_the_program_is_described(site: Site) -> None:
    """The version and the process are among the metrics."""
    samples = site.samples()
    assert [name for name in samples if name.startswith("collector_build_info{python=3.")]
    assert [name for name in samples if f"version={__version__}" in name]
    assert samples["process_resident_memory_bytes"] > 0


def test_every_metric_is_explained(site: Site) -> None:
    """All of ours have a help text and a kind, and no series tells its birth."""
    site.metrics.looked(TARGET, failed(), 1)
    text = site.ask("/metrics").body
    ours = [family for family in text_string_to_metric_families(text) if family.name.startswith("collector_")]
    assert len(ours) > 20
    assert [family.name for family in ours if not family.documentation or family.type == "unknown"] == []
    assert "_created" not in text


def test_strange_labels(site: Site) -> None:
    """Text that breaks lines and quotes comes back as it was."""
    code = 'quote " backslash \\ line\nend'
    site.metrics.looked(TARGET, replace(failed(), code=code), 1)
    name = f"collector_poll_failures_total{{account=111122223333,code={code},region=eu-west-1}}"
    assert site.samples()[name] == 1


def test_openmetrics_if_asked(site: Site) -> None:
    """Prometheus's newer format is there for who asks for it, with the same numbers."""
    site.metrics.looked(TARGET, scan(0), 0.2)
    answer = site.ask("/metrics", Accept="application/openmetrics-text; version=1.0.0, text/plain;q=0.5")
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    samples = flat(parse_openmetrics(answer.body))  # type: ignore[no-untyped-call]
    assert samples["collector_polls_total{account=111122223333,outcome=complete,region=eu-west-1}"] == 1
    assert site.ask("/metrics").headers["content-type"].startswith("text/plain; version=0.0.4")


@pytest.mark.parametrize(
    "accept", ["application/openmetrics-text; version=new", "text/plain; version=x", ","]
)
def test_odd_wishes_are_no_fault(site: Site, accept: str) -> None:
    """A format that nobody knows is answered in one that everybody does."""
    assert site.ask("/metrics", Accept=accept).status == 200


def test_metrics_are_fed_from_many_threads(site: Site) -> None:
    """No look is lost, and no scrape fails meanwhile."""

    def feed() -> None:
        for _ in range(500):
            site.metrics.looked(TARGET, None, 0)

    feeders = [threading.Thread(target=feed) for _ in range(4)]
    for feeder in feeders:
        feeder.start()
    while any(feeder.is_alive() for feeder in feeders):
        assert site.ask("/metrics").status == 200
    for feeder in feeders:
        feeder.join()
    name = "collector_polls_total{account=111122223333,outcome=busy,region=eu-west-1}"
    assert site.samples()[name] == 2000


# The page


def test_imports_in_flight(site: Site) -> None:
    """An import shows where it is, what it is called, and how far it has come."""
    booting = task("1", StatusMessage="booting", Progress="39", Tags=[{"Key": "Name", "Value": "web"}])
    page = site.page(TargetState(TARGET, at(59), {"active": 1}, (booting,)))
    assert page.rows("imports") == [
        ["111122223333", "eu-west-1", "import-ami-1", "web", "booting", "39 %"],
    ]
    assert [(bar["value"], bar["max"]) for bar in page.all("progress")] == [("39.0", "100")]


@pytest.mark.parametrize("progress", ["", "soon", "101", "nan", "-1", "1e1"])
def test_odd_progress_is_no_bar(site: Site, progress: str) -> None:
    """What is no percentage is shown as it came."""
    page = site.page(TargetState(TARGET, at(59), {}, (task("1", Progress=progress),)))
    assert page.rows("imports")[0][-1] == progress
    assert page.all("progress") == []


def test_targets(site: Site) -> None:
    """A target shows its freshness, its tasks and what fails."""
    state = TargetState(TARGET, at(-90), {"completed": 5, "active": 2}, failing=failed(), failures=3)
    row = site.page(state).rows("targets")[0]
    assert row[:5] == [
        "111122223333",
        "eu-west-1",
        "2025-12-31 22:30:00",
        "2 h 30 min",
        "2 active, 5 completed",
    ]
    assert row[5:] == ["2026-01-01 00:59:00 3 in a row", "UnauthorizedOperation: not authorised"]


def test_trouble_comes_first(site: Site) -> None:
    """Nearly forgotten, failing, never seen, well; each by account and Region."""
    names = ["well", "failing", "forgotten", "unseen", "also failing"]
    good = {"well": at(59), "failing": at(59), "also failing": at(59), "forgotten": NOW - timedelta(days=6)}
    states = [
        TargetState(
            Target(name, "eu-west-1"), good.get(name), failing=failed() if "failing" in name else None
        )
        for name in names
    ]
    page = site.page(*states)
    assert [row[0] for row in page.rows("targets")] == [
        "forgotten",
        "also failing",
        "failing",
        "unseen",
        "well",
    ]
    assert page.rows("targets")[0][3] == "6 d 0 h nearly forgotten"
    assert "5, 2 failing, 1 nearly forgotten, 1 without a good look yet" in " ".join(page.text.split())


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        (WELL, "leading: this process polls"),
        (replace(WELL, leading=False), "standing by: another process polls"),
        (replace(WELL, leading=None), "not yet known: the database could not be asked"),
        (replace(WELL, alive=False), "stopped: ticks do not happen"),
        (replace(WELL, database="connection refused"), "connection refused"),
        (replace(WELL, spool_files=1, spool_bytes=2048), "1 file waits (2.0 KiB)"),
        (replace(WELL, spool_files=2, spool_full=True), "full, polling has stopped: 2 files wait"),
        (replace(WELL, schedule_lag=75, missed_ticks=1), "waiting for 1 min 15 s; 1 tick missed"),
    ],
)
def test_the_daemon_itself(site: Site, state: DaemonState, sentence: str) -> None:
    """The page says in words what the process is at."""
    site.state = state
    assert sentence in " ".join(Page(site.ask("/").body).text.split())


def test_strangers_text_is_escaped(site: Site) -> None:
    """Text from AWS is shown, never obeyed."""
    site.state = replace(WELL, database=SCRIPT)
    tags = [{"Key": "Name", "Value": SCRIPT}]
    hostile = task('"><i>', StatusMessage=SCRIPT, Progress=SCRIPT, Tags=tags)
    named = task('"><i>2', Progress="5")
    place = Target(SCRIPT, SCRIPT)
    page = site.page(
        TargetState(
            place, at(59), {SCRIPT: 1}, (hostile, named), replace(failed(), code=SCRIPT, message=SCRIPT)
        )
    )
    assert not page.all("script") + page.all("i") + page.all("b")
    assert page.rows("imports")[0][3:] == [SCRIPT, SCRIPT, SCRIPT]
    assert page.rows("targets")[0][-1] == f"{SCRIPT}: {SCRIPT}"
    assert page.all("progress")[0]["aria-label"] == 'Progress of import-ami-"><i>2'
    assert html.escape(SCRIPT, quote=False).split("'")[0] in page.source


def test_thousands_of_targets(site: Site) -> None:
    """Tables end at 500 rows and say how much more there is; numbers are of all, and trouble is shown."""
    targets = many(3001)
    last = replace(targets[-1], failing=failed(), failures=1)
    page = site.page(*targets[:-1], last)
    assert len(page.rows("imports")) == len(page.rows("targets")) == ROWS == 500
    assert page.rows("targets")[0][0] == last.target.account_id
    text = " ".join(page.text.split())
    assert "2501 more imports are not shown" in text
    assert "2501 more targets are not shown" in text
    assert "3001, 1 failing" in text
    assert "3001 active" in text


def test_nothing_is_no_fault(site: Site) -> None:
    """Before the first look both tables say that there is nothing."""
    page = site.page()
    assert page.rows("imports") == page.rows("targets") == [["None."]]
    assert "not shown" not in page.text


def test_the_page_is_plain_and_complete(site: Site) -> None:
    """Tables are named, headings scoped, nothing else is loaded, and it refreshes itself."""
    page = site.page(*many(2))
    assert page.source.startswith("<!doctype html>\n<html lang=")
    assert [len(page.all(tag)) for tag in ("caption", "h1", "main", "title")] == [2, 1, 1, 1]
    assert {heading.get("scope") for heading in page.all("th")} == {"col", "row"}
    assert {"http-equiv": "refresh", "content": "30"} in page.all("meta")
    assert "color-scheme: light dark" in page.source
    assert not [name for name, _ in page.elements if name in {"script", "link", "img", "iframe"}]
    assert not re.search(r"url\(|@import|https?:|\bon\w+=", page.source)


def test_every_row_is_as_wide_as_its_headings(site: Site) -> None:
    """Cells stand below their headings, whether a target fails or not."""
    page = site.page(*many(1), TargetState(TARGET, failing=failed(), failures=1))
    for rows in page.tables.values():
        assert len({len(row) for row in rows}) == 1


def test_the_policy_admits_the_style(site: Site) -> None:
    """The hash in the policy is that of the style in the page."""
    answer = site.ask("/")
    style = re.search(r"<style>(.*)</style>", answer.body, re.DOTALL)
    assert style
    digest = b64encode(sha256(style[1].encode()).digest()).decode()
    assert f"'sha256-{digest}'" in answer.headers["content-security-policy"]


# The server


def test_an_address_in_use(site: Site) -> None:
    """The fault names the key, the address and the mend."""
    second = WebServer(make_app(lambda: WELL, Metrics(), lambda: NOW), "127.0.0.1", site.server.port)
    with (
        pytest.raises(UsageError, match=rf"^listen: 127\.0\.0\.1:{site.server.port} is in use: stop .*"),
        second,
    ):
        pytest.fail("two servers have one address")


@pytest.mark.parametrize(
    ("host", "fault"),
    [
        ("192.0.2.1", "192.0.2.1 is no address of this machine: name one that is"),
        ("no.such.host.invalid", "'no.such.host.invalid' has no address: name one of this machine"),
        ("a..b", "'a..b' has no address"),
    ],
)
def test_no_address_of_this_machine(host: str, fault: str) -> None:
    """An address that cannot be had is a fault of the configuration."""
    server = WebServer(make_app(lambda: WELL, Metrics(), lambda: NOW), host, 0)
    with pytest.raises(UsageError, match=f"^listen: {re.escape(fault)}"), server:
        pytest.fail("an address of somewhere else was bound")


def has_ipv6() -> bool:
    """Say whether this machine can talk to itself by IPv6."""
    with suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_ipv6() -> None:
    """An address of the other family is served, and its URL can be opened."""
    with WebServer(make_app(lambda: WELL, Metrics(), lambda: NOW), "::1", 0) as server:
        assert server.url == f"http://[::1]:{server.port}"
        with urlopen(f"{server.url}/healthz", timeout=_PATIENCE) as response:  # noqa: S310 - our own address
            assert response.read() == b"alive\n"


def test_it_answers_from_the_first_moment_and_ends_its_thread() -> None:
    """Whoever is in the block is served; after it nobody is, and nothing is left."""
    before = threading.active_count()
    site = Site()
    with site.server:
        assert site.ask("/healthz").status == 200
        address = ("127.0.0.1", site.server.port)
    assert threading.active_count() == before
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


def test_a_block_that_ends_at_once() -> None:
    """Stopping does not overtake starting."""
    before = threading.active_count()
    with Site().server:
        pass
    assert threading.active_count() == before


def test_signals_stay_with_the_daemon(site: Site) -> None:
    """The server takes no signal for itself."""
    assert site.ask("/healthz").status == 200
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def says_nothing(connection: socket.socket) -> None:
    """Connect, and that is all."""
    del connection


def never_finishes(connection: socket.socket) -> None:
    """Begin a request."""
    connection.sendall(b"GET / HTTP/1.1\r\nHost: slow\r\nX-")


def never_reads(connection: socket.socket) -> None:
    """Ask again and again for much, and read nothing of it."""
    connection.sendall(b"GET / HTTP/1.1\r\nHost: deaf\r\n\r\n" * 20)


def never_ends_its_body(connection: socket.socket) -> None:
    """Promise a body that does not come."""
    connection.sendall(b"POST / HTTP/1.1\r\nHost: slow\r\nContent-Length: 1000000\r\n\r\nx")


CLIENTS = [says_nothing, never_finishes, never_reads, never_ends_its_body]


@pytest.mark.parametrize("misbehave", CLIENTS)
def test_it_stops_whatever_its_clients_do(misbehave: Callable[[socket.socket], None]) -> None:
    """Nobody holds the daemon up for more than two seconds."""
    before = threading.active_count()
    site = Site()
    site.state = replace(WELL, targets=many(ROWS))
    with ExitStack() as stack:
        with site.server:
            for _ in range(3):
                misbehave(stack.enter_context(site.connect()))
            assert site.ask("/healthz").status == 200
            began = monotonic()
        assert monotonic() - began < 2
        assert threading.active_count() == before


@pytest.mark.parametrize("misbehave", CLIENTS)
def test_its_patience_ends(
    own_site: Site, misbehave: Callable[[socket.socket], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that does not get on with it is cut off: it must not take the place of others."""
    monkeypatch.setattr("collector.web.server._PATIENCE", 0.3)  # half a minute, which no test should wait for
    own_site.state = replace(WELL, targets=many(ROWS))
    with own_site.connect() as connection:
        misbehave(connection)
        wait_for(lambda: not is_served(connection))
    assert own_site.ask("/healthz").status == 200


def is_served(client: socket.socket) -> bool:
    """Say whether our process still holds the other end; a client that does not read cannot tell."""
    return any(end.raddr == client.getsockname() for end in psutil.Process().net_connections("tcp4"))


def test_a_crowd_is_told_to_come_back(own_site: Site) -> None:
    """Requests beyond what is served at once get a 503, until the crowd is gone."""
    with ExitStack() as stack:
        for _ in range(_MOST_REQUESTS):
            stack.enter_context(own_site.connect())
        assert own_site.ask("/healthz").status == 503
    wait_for(lambda: own_site.ask("/healthz").status == 200)


def test_connections_are_bounded(own_site: Site) -> None:
    """No crowd takes all the files that the process may open."""
    with ExitStack() as stack:
        crowd = [stack.enter_context(own_site.connect()) for _ in range(_MOST_CONNECTIONS + 1)]
        assert crowd[-1].recv(1) == b""
        assert is_served(crowd[0])


def test_nonsense_is_refused(site: Site) -> None:
    """What is no HTTP ends its own connection alone."""
    with site.connect() as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 400 ")
    assert site.ask("/healthz").status == 200


def test_endless_headers_are_refused(site: Site) -> None:
    """The memory that a request may take has a bound."""
    with site.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nX-Long: " + b"x" * 100_000)
        assert connection.recv(100).startswith(b"HTTP/1.1 400 ")


def test_a_fault_of_ours_is_one_answer(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """A state that cannot be had is a plain 500 and a line in the log; the next request is served."""
    state = site.state
    del site.state
    assert (site.ask("/").status, site.ask("/").body) == (500, "Internal Server Error")
    assert "AttributeError" in caplog.text
    site.state = state
    assert site.ask("/").status == 200


# A browser


@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no {CHROMIUM}")
def test_a_browser_shows_it(site: Site, tmp_path: Path) -> None:
    """Chromium finds both tables, runs nothing, and its console has no complaint about the policy."""
    hostile = task("1", Progress="39", Tags=[{"Key": "Name", "Value": SCRIPT}])
    site.state = replace(WELL, targets=(TargetState(TARGET, at(59), {"active": 1}, (hostile,)),))
    dom, console = browse(tmp_path, "--dump-dom", site.server.url)
    page = Page(dom)
    assert page.rows("imports")[0][2:4] == ["import-ami-1", SCRIPT]
    assert page.rows("targets")[0][:2] == ["111122223333", "eu-west-1"]
    assert "Content Security Policy" not in console


def browse(folder: Path, *arguments: str) -> tuple[str, str]:
    """Run Chromium to its end, and return what it printed and its log; nothing of it is left running."""
    flags = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
    flags += " disable-component-update disable-sync disable-dev-shm-usage enable-logging=stderr"
    command = [str(CHROMIUM), *(f"--{flag}" for flag in flags.split()), f"--user-data-dir={folder}"]
    environment = os.environ | {"HOME": str(folder)}
    with subprocess.Popen(
        [*command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    ) as browser:
        try:
            return browser.communicate(timeout=120)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(browser.pid, signal.SIGKILL)
