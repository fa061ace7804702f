"""botocore's connections, fitted: under the deadlines of looks, and kept for as many hosts as Regions.

The pool classes and their makers are module attributes of botocore and urllib3; without a deadline the
connections behave as ever.
"""

import socket
from functools import partial
from typing import Any

from botocore import httpsession
from botocore.awsrequest import (
    AWSHTTPConnection,
    AWSHTTPConnectionPool,
    AWSHTTPSConnection,
    AWSHTTPSConnectionPool,
)
from urllib3.poolmanager import PoolManager, proxy_from_url

from collector.aws import deadline

_HOSTS = 1000
"""Hosts to which connections are kept open; urllib3 keeps ten, and one client asks every Region."""


class _Guarded:
    """Mixin for botocore's connections: each request's socket comes under the thread's deadline."""

    sock: socket.socket

    def request(self, *arguments: Any, **options: Any) -> Any:
        result = super().request(*arguments, **options)  # type: ignore[misc]
        if limit := deadline.current():
            limit.guard(self.sock)
        return result


class _GuardedHTTPConnection(_Guarded, AWSHTTPConnection):  # type: ignore[misc]
    pass


class _GuardedHTTPSConnection(_Guarded, AWSHTTPSConnection):  # type: ignore[misc]
    pass


def fit_botocore() -> None:
    """Fit whatever botocore opens from now on."""
    AWSHTTPConnectionPool.ConnectionCls = _GuardedHTTPConnection
    AWSHTTPSConnectionPool.ConnectionCls = _GuardedHTTPSConnection
    httpsession.PoolManager = partial(PoolManager, num_pools=_HOSTS)
    httpsession.proxy_from_url = partial(proxy_from_url, num_pools=_HOSTS)
