"""The socket: a simulated EC2 at an address of this machine, and the ways in which connections misbehave."""

import struct
import sys
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from socket import MSG_PEEK, SHUT_RDWR, SO_LINGER, SOL_SOCKET, socket
from socketserver import TCPServer
from threading import Event, Lock, Thread
from time import monotonic, time
from types import TracebackType
from typing import Any, Self, cast
from urllib.parse import urlsplit

from collector.simulator.callers import Callers
from collector.simulator.clock import SimulatedClock
from collector.simulator.faults import Drip, Faults, HtmlPage, Reset, Stall, TruncatedXml
from collector.simulator.fleet import Fleet
from collector.simulator.regions import Enabled, Regions
from collector.simulator.request import World
from collector.simulator.service import Asked, Reply, Service

RESET_ON_CLOSE = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)

XHTML_PAGE = b"""<?xml version="1.0" encoding="UTF-8"?>
<html xmlns="http://www.w3.org/1999/xhtml"><head><title>Sign in to the network</title></head>
<body><h1>Sign in to the network</h1><p>Your session has expired.</p></body></html>
"""
HTML_PAGE = b"""<!doctype html>
<html><head><meta charset=utf-8><title>Sign in to the network</title>
<body><h1>Sign in to the network</h1><p>Your session has expired.<br>Please sign in &nbsp; again.
"""


class Simulator:
    """A simulated EC2, STS, Organizations and CloudTrail on a loopback port, while the ``with`` block lasts.

    ``latency`` and ``date_skew`` (how far the ``Date`` of answers is ahead of the real clock), and what the
    properties name, may be changed at any time.

    Args:
        fleet: the imports; an empty one, standing still at this moment, if not given.
        faults: what goes wrong; nothing if not given.
        accounts: access key id to account id.
        default_account: the account of all other access keys, but those of assumed roles.
        regions: the enabled Regions, of all accounts or by account id.
        page_size: the most that one page shows, whatever ``MaxResults`` says.
        latency: seconds before every answer.
        port: the port to listen on; 0 takes a free one.
        organization: account id to ``ACTIVE``, ``SUSPENDED`` or ``PENDING_CLOSURE``; none if not given.
    """

    def __init__(
        self,
        fleet: Fleet | None = None,
        faults: Faults | None = None,
        *,
        accounts: Mapping[str, str] | None = None,
        default_account: str = "111122223333",
        regions: Enabled | None = None,
        page_size: int | None = None,
        latency: float = 0.0,
        port: int = 0,
        organization: Mapping[str, str] | None = None,
    ) -> None:
        self.fleet = fleet or Fleet(SimulatedClock(datetime.now(UTC)))
        self.faults = faults or Faults()
        self.latency = latency
        self.date_skew = timedelta(0)
        callers = Callers(accounts or {}, default_account)
        self._world = World(self.fleet, Regions(regions), callers, page_size)
        self.organization = organization
        self._service = Service(self._world, self.faults)
        self._wanted_port = port
        self._listener: _Listener | None = None
        self._thread: Thread | None = None

    @property
    def url(self) -> str:
        """Where it listens, for ``endpoint_url`` or ``AWS_ENDPOINT_URL``."""
        if self._listener is None:
            raise RuntimeError("the simulator is not running")
        return f"http://127.0.0.1:{self._listener.server_address[1]}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables that lead boto3 and the AWS CLI here."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "AKIASIMULATEDEXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "simulated-secret-key",
            "AWS_DEFAULT_REGION": self._world.regions.enabled(self._world.callers.default_account)[0],
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @property
    def page_size(self) -> int | None:
        """The most that one page shows."""
        return self._world.page_size

    @page_size.setter
    def page_size(self, size: int | None) -> None:
        self._world.page_size = size

    @property
    def organization(self) -> dict[str, str] | None:
        """The accounts that ``ListAccounts`` shows, and their states; without one it is refused."""
        return self._world.organization

    @organization.setter
    def organization(self, states: Mapping[str, str] | None) -> None:
        self._world.organization = None if states is None else dict(states)

    @property
    def external_ids(self) -> dict[str, str]:
        """By account id, the ``ExternalId`` without which its roles cannot be assumed."""
        return self._world.external_ids

    @property
    def role_lifetime(self) -> timedelta | None:
        """The longest that role credentials last from now on, by the real clock; ``None`` sets no limit."""
        return self._world.role_lifetime

    @role_lifetime.setter
    def role_lifetime(self, lifetime: timedelta | None) -> None:
        self._world.role_lifetime = lifetime

    @property
    def expired_code(self) -> str:
        """What EC2 says of expired role credentials: ``ExpiredToken``; ``RequestExpired`` is seen as well."""
        return self._world.expired_code

    @expired_code.setter
    def expired_code(self, code: str) -> None:
        self._world.expired_code = code

    @property
    def cloudtrail_rate(self) -> float | None:
        """How many ``LookupEvents`` a second each account has in a Region; ``None`` sets no limit."""
        return self._world.lookups.per_second

    @cloudtrail_rate.setter
    def cloudtrail_rate(self, per_second: float | None) -> None:
        self._world.lookups.per_second = per_second

    def revoke(self, account_id: str) -> None:
        """Let all role credentials that were given out for an account be expired."""
        self._world.callers.revoke(account_id)

    @property
    def requests(self) -> Counter[Asked]:
        """How many requests came, by (action, account id, Region); ``AssumeRole`` by the role's account."""
        return self._service.traffic.requests()

    @property
    def peaks(self) -> dict[tuple[str, str], int]:
        """The most requests to EC2 at once, by (account id, Region), from arrival to the sent answer."""
        return self._service.traffic.peaks()

    def count(
        self, *, action: str | None = None, account: str | None = None, region: str | None = None
    ) -> int:
        """How many requests of a kind came."""
        return sum(
            number
            for asked, number in self.requests.items()
            if all(want in (None, have) for want, have in zip((action, account, region), asked, strict=True))
        )

    def start(self) -> None:
        """Listen."""
        if self._listener is not None:
            raise RuntimeError("the simulator is running already")
        self._listener = _Listener(self, self._service, self._wanted_port)
        self._thread = Thread(
            target=self._listener.serve_forever, args=(0.02,), name="simulator", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Close every socket and end every thread; stopping twice is no error."""
        if self._listener is None or self._thread is None:
            return
        self._listener.stop()
        self._thread.join()
        self._listener = self._thread = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class _Listener(HTTPServer):
    """Serves every connection in a thread of its own, and knows them all, so that it can end them."""

    request_queue_size = 1024
    allow_reuse_address = True

    def __init__(self, simulator: Simulator, service: Service, port: int) -> None:
        self.simulator = simulator
        self.service = service
        self.stopping = Event()
        self._lock = Lock()
        self._connections: dict[socket, Thread] = {}
        super().__init__(("127.0.0.1", port), _Handler)

    def server_bind(self) -> None:
        """Bind without the name look-up of ``HTTPServer``, which can take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = "127.0.0.1", self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection."""
        thread = Thread(target=self._serve, args=(request, client_address), daemon=True)
        with self._lock:
            self._connections[request] = thread
        thread.start()

    def stop(self) -> None:
        """Stop listening, and end what is under way."""
        self.stopping.set()
        self.shutdown()
        self.server_close()
        with self._lock:
            connections = dict(self._connections)
            for connection in connections:
                _shut(connection)
        for thread in connections.values():
            thread.join()

    def _serve(self, request: socket, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except OSError:
            pass  # the client, or stop(), ended the connection
        finally:
            with self._lock:
                del self._connections[request]
                request.close()


def _shut(connection: socket) -> None:
    try:
        connection.shutdown(SHUT_RDWR)
    except OSError:
        return  # the client was faster


class _Handler(BaseHTTPRequestHandler):
    """One connection: reads requests, and delivers replies well or badly."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # head and body leave together

    def do_POST(self) -> None:
        """Answer a form, or JSON."""
        length = self.headers.get("Content-Length") or "0"
        if not length.isdecimal():
            self.send_error(400)
            return
        self._handle(self.rfile.read(int(length)).decode("utf-8", "replace"))

    def do_GET(self) -> None:
        """Answer a query string, which EC2 takes as well."""
        self._handle(urlsplit(self.path).query)

    def version_string(self) -> str:
        """Say what EC2 says in ``Server``."""
        return "AmazonEC2"

    def date_time_string(self, timestamp: float | None = None) -> str:
        """Tell the time as a server does whose clock is not ours."""
        skew = self._listener.simulator.date_skew.total_seconds()
        return super().date_time_string(time() + skew if timestamp is None else timestamp)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name that http.server gives it
        """Say nothing: requests are counted, not logged."""

    @property
    def _listener(self) -> _Listener:
        return cast("_Listener", self.server)

    def _handle(self, form: str) -> None:
        service = self._listener.service
        target = self.headers.get("X-Amz-Target", "")
        reply = service.reply(self.headers.get("Authorization"), form, target)
        if latency := self._listener.simulator.latency + reply.latency:
            self._listener.stopping.wait(latency)
        misbehaves = isinstance(reply.misbehaviour, Reset | Stall | Drip)
        if not misbehaves:
            # Before the client can have read it: its next request must not seem to run beside this one.
            service.traffic.end(reply.call)
        try:
            self._deliver(reply)
        finally:
            if misbehaves:
                service.traffic.end(reply.call)

    def _deliver(self, reply: Reply) -> None:
        match reply.misbehaviour:
            case Reset(after_half=after_half):
                if after_half:
                    self._send(reply, reply.body[: len(reply.body) // 2], of=len(reply.body))
                self.connection.setsockopt(SOL_SOCKET, SO_LINGER, RESET_ON_CLOSE)
                self.close_connection = True
            case Stall(seconds=seconds):
                self._stall(seconds)
                self.close_connection = True
            case Drip(every=every):
                self._drip(reply, every)
            case TruncatedXml():
                self._send(reply, reply.body[: len(reply.body) // 2])
            case HtmlPage(well_formed=well_formed):
                self._send(reply, XHTML_PAGE if well_formed else HTML_PAGE, html=True)
            case _:
                self._send(reply, reply.body)

    def _send(self, reply: Reply, body: bytes, *, of: int | None = None, html: bool = False) -> None:
        self.send_response(200 if html else reply.status)
        self.send_header("Content-Type", "text/html;charset=UTF-8" if html else reply.content_type)
        self.send_header("Content-Length", str(len(body) if of is None else of))
        if not html:
            self.send_header("x-amzn-RequestId", reply.request_id)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def _drip(self, reply: Reply, every: float) -> None:
        self._send(reply, b"", of=len(reply.body))
        for number in range(len(reply.body)):
            if self._listener.stopping.wait(every):
                self.close_connection = True
                return
            self.wfile.write(reply.body[number : number + 1])
            self.wfile.flush()

    def _stall(self, seconds: float | None) -> None:
        until = None if seconds is None else monotonic() + seconds
        while not self._client_is_gone() and (until is None or monotonic() < until):
            if self._listener.stopping.wait(0.02):
                return

    def _client_is_gone(self) -> bool:
        """Look without waiting; ``MSG_DONTWAIT`` would do it in one call, but not on Windows."""
        self.connection.settimeout(0)
        try:
            return not self.connection.recv(1, MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        finally:
            self.connection.settimeout(None)
