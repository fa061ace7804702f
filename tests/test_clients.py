"""The clients: where their requests go, in whose name, and over how many connections."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import urlsplit

import pytest
from botocore.awsrequest import AWSRequest, AWSResponse
from botocore.credentials import Credentials
from botocore.httpsession import URLLib3Session

from collector.aws.clients import Clients, acting_as
from collector.aws.connections import fit_botocore
from collector.aws.deadline import Deadlines
from tests.simulation import eventually

KEYS = Credentials("AKIAIOSFODNN7EXAMPLE", "x" * 40)
EMPTY = b"<DescribeImportImageTasksResponse><importImageTaskSet/></DescribeImportImageTasksResponse>"


class Answer(AWSResponse):  # type: ignore[misc] # botocore has no types
    """An answer that never was on the wire."""

    content = EMPTY


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[AWSRequest]]:
    """Collect what would be sent to AWS's own endpoints."""
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    requests: list[AWSRequest] = []

    def answer(request: Any, **_: Any) -> AWSResponse:
        requests.append(request)
        return Answer(request.url, 200, {}, None)

    clients = Clients(connections=2, patience=timedelta(seconds=5))
    ec2 = clients.client("ec2")
    ec2.meta.events.register("before-send", answer)
    for region in ("eu-west-1", "cn-north-1", "us-gov-west-1"):
        with acting_as(KEYS, region):
            ec2.describe_import_image_tasks()
    with acting_as(KEYS):
        ec2.describe_import_image_tasks()
    yield requests
    clients.close()


def test_one_client_asks_every_region(asked: list[AWSRequest]) -> None:
    """At its own endpoint, also in another partition, and signed for it; by default the home Region."""
    where = [urlsplit(request.url).hostname for request in asked]
    assert where == [
        "ec2.eu-west-1.amazonaws.com",
        "ec2.cn-north-1.amazonaws.com.cn",
        "ec2.us-gov-west-1.amazonaws.com",
        "ec2.eu-central-1.amazonaws.com",
    ]
    scopes = [request.headers["Authorization"].decode().split("/")[2] for request in asked]
    assert scopes == ["eu-west-1", "cn-north-1", "us-gov-west-1", "eu-central-1"]


def test_requests_say_who_makes_them(asked: list[AWSRequest]) -> None:
    """CloudTrail shows it to whoever wonders."""
    assert all(request.headers["User-Agent"].startswith(b"vm-import-collector/") for request in asked)


class Counting(BaseHTTPRequestHandler):
    """Counts connections."""

    protocol_version = "HTTP/1.1"
    connections: ClassVar[list[str]] = []

    def setup(self) -> None:
        """Count one."""
        super().setup()
        self.connections.append(str(self.server.server_address))

    def do_GET(self) -> None:
        """Answer."""
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def serving(host: str) -> Iterator[str]:
    """Serve on one of the many addresses of the loopback interface."""
    server = ThreadingHTTPServer((host, 0), Counting)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://{host}:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_connections_are_kept_for_every_region() -> None:
    """urllib3 alone would keep those of ten hosts, and there are more Regions than that."""
    fit_botocore()
    Counting.connections.clear()
    with ExitStack() as stack:
        urls = [stack.enter_context(serving(f"127.0.0.{number}")) for number in range(1, 41)]
        session = URLLib3Session()
        stack.callback(session.close)
        for url in urls * 2:
            assert session.send(AWSRequest("GET", url).prepare()).status_code == 200
    assert len(Counting.connections) == len(urls)


def test_the_thread_that_enforces_deadlines_is_there_only_while_there_are_any() -> None:
    """One for all of them."""

    def threads() -> int:
        return sum(thread.name == "deadlines" for thread in threading.enumerate())

    deadlines = Deadlines()
    before = threads()
    with deadlines.limit(10), deadlines.limit(10):
        assert threads() == before + 1
    eventually(lambda: threads() == before)
    with deadlines.limit(10):
        assert threads() == before + 1
        deadlines.end()
        eventually(lambda: threads() == before)
