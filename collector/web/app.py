"""The four addresses: ``/healthz``, ``/readyz``, ``/metrics`` and the status page at ``/``.

Nothing here waits, so everything runs on the server's one thread: no request can pile up threads, and no slow
client holds another up.
"""

from collections.abc import Callable
from datetime import datetime

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from collector.state import DaemonState
from collector.web.metrics import Metrics
from collector.web.page import STYLE_HASH, render

_HEADERS = [
    (b"cache-control", b"no-store"),
    (
        b"content-security-policy",
        f"default-src 'none'; style-src '{STYLE_HASH}'; base-uri 'none'; form-action 'none';"
        " frame-ancestors 'none'".encode(),
    ),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]


def make_app(state: Callable[[], DaemonState], metrics: Metrics, now: Callable[[], datetime]) -> Starlette:
    """Return the application.

    ``state`` is asked at each request, on the server's thread: it must be quick and wait for nothing. ``now``
    is the clock (UTC) that tells the age of what the state says.
    """

    async def healthz(_request: Request) -> Response:
        if state().alive:
            return PlainTextResponse("alive\n")
        return PlainTextResponse("ticks do not happen\n", status_code=503)

    async def readyz(_request: Request) -> Response:
        present = state()
        body = {
            "ready": present.ready,
            "leading": present.leading,
            "database": present.database,
            "spool_files": present.spool_files,
        }
        return JSONResponse(body, status_code=200 if present.ready else 503)

    async def exposition(request: Request) -> Response:
        accept = request.headers.get("accept", "")
        body, content_type = metrics.exposition(state(), now(), accept)
        return Response(body, headers={"content-type": content_type, "vary": "accept"})

    async def page(_request: Request) -> Response:
        return HTMLResponse(render(state(), now()))

    app = Starlette(
        routes=[
            Route("/", page),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/metrics", exposition),
        ],
        middleware=[Middleware(_WithHeaders)],
    )
    app.router.redirect_slashes = False  # the redirect would lead wherever the client's Host header says
    return app


class _WithHeaders:
    """Gives every answer, the refusals too, the headers that keep it out of caches, frames and scripts."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        await self._app(scope, receive, send_with_headers)
