"""The socket: uvicorn in a thread of its own, bounded in connections, patience and the time it takes to stop.

It must not hold the daemon up, whatever its clients do: those that never finish a request and those that
never read the answer are cut off.
"""

import asyncio
import ipaddress
import logging
import socket
import threading
from types import TracebackType
from typing import Self

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from collector.web.listening import bind, place

_KEEP_ALIVE = 5
"""Seconds that an idle connection is kept."""

_PATIENCE = 30.0
"""Seconds that a client has to finish its request and read the answer."""

_MOST_REQUESTS = 64
"""Connections from which on requests are answered with 503."""

_MOST_CONNECTIONS = 128
"""Connections from which on new ones are closed: each costs one of the files that polling needs, too."""

_GRACE = 1.0
"""Seconds that requests in hand have to end when the server stops."""

_STOP_LIMIT = 2.0

log = logging.getLogger(__name__)


class WebServer:
    """Serves an application at an address of this machine while the ``with`` block lasts.

    Entering it binds the address, so that a request made from then on is answered; port 0 takes a free one.
    """

    def __init__(self, app: ASGIApp, host: str, port: int) -> None:
        self._wanted = host, port
        self._socket: socket.socket | None = None
        self._server = _Server(
            uvicorn.Config(
                app,
                loop="asyncio",
                http=_Connection,
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                limit_concurrency=_MOST_REQUESTS,
                timeout_keep_alive=_KEEP_ALIVE,
            )
        )
        self._thread = threading.Thread(target=self._serve, name="web", daemon=True)

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._address()[1]

    @property
    def url(self) -> str:
        """Where a browser on this machine finds it."""
        host, port = self._address()
        if ipaddress.ip_address(host).is_unspecified:
            host = "localhost"
        return f"http://{place(host, port)}"

    def __enter__(self) -> Self:
        self._socket = bind(*self._wanted)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join(_STOP_LIMIT)
        if self._thread.is_alive():
            log.error("the web server does not stop: a request is still in hand")

    def _serve(self) -> None:
        assert self._socket is not None  # noqa: S101 - for the type checker
        with self._socket:
            self._server.run(sockets=[self._socket])

    def _address(self) -> tuple[str, int]:
        if self._socket is None:
            raise RuntimeError("the web server is not running")
        host, port, *_ = self._socket.getsockname()
        return host, port


class _Server(uvicorn.Server):
    """Waits for the requests in hand when it stops, but not for ever."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close idle connections, wait for the others, and cut off what is left."""
        cut = asyncio.get_running_loop().call_later(_GRACE, self._cut_off)
        await super().shutdown(sockets)
        cut.cancel()

    def _cut_off(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()


class _Connection(H11Protocol):
    """A connection whose client must get on with it: uvicorn itself sets no limit but to idleness."""

    _limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as the library
        """Begin to wait for a request, unless too many do."""
        super().connection_made(transport)
        self._be_patient()
        if len(self.connections) > _MOST_CONNECTIONS:
            transport.abort()

    def on_response_complete(self) -> None:
        """Begin to wait for the answer to be read and the next request."""
        super().on_response_complete()
        self._be_patient()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        super().connection_lost(exc)
        if self._limit is not None:
            self._limit.cancel()

    def _be_patient(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
        self._limit = self.loop.call_later(_PATIENCE, self.transport.abort)
