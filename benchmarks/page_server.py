"""A plain socket server that answers every request with the same page of tasks after a while.

It runs in a process of its own, so that its CPU does not count as ours; boto3 is led to it.
"""

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any
from unittest.mock import patch

from benchmarks.load import wire
from collector.simulator.protocol import ec2_answer

_REQUEST_ID = "00000000-0000-0000-0000-000000000000"


@contextmanager
def serving(*, tasks: int, latency: float) -> Iterator[int]:
    """Serve a page of so many tasks, each answer so many seconds late; yield the port."""
    receiver, sender = get_context("spawn").Pipe(duplex=False)
    process = get_context("spawn").Process(target=_serve, args=(sender, tasks, latency), daemon=True)
    process.start()
    sender.close()  # else its end would go unnoticed
    try:
        port = receiver.recv()
        with patch.dict(os.environ, _environment(port), clear=True):
            yield port
    finally:
        process.kill()
        process.join()


def _environment(port: int) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return ours | {
        "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "NO_PROXY": "127.0.0.1",
    }


def _serve(told: Connection, tasks: int, latency: float) -> None:
    asyncio.run(_listen(told, tasks, latency))


async def _listen(told: Connection, tasks: int, latency: float) -> None:
    result = {"ImportImageTasks": [wire(number) for number in range(tasks)]}
    page = ec2_answer("DescribeImportImageTasks", result, _REQUEST_ID)
    numbers = count()

    def answer() -> bytes:
        body = page.replace(_REQUEST_ID.encode(), b"%036d" % next(numbers), 1)
        return b"HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nContent-Length: %d\r\n\r\n" % len(body) + body

    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(answer, latency), "127.0.0.1", 0, backlog=1024)
    told.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()


class _Connection(asyncio.Protocol):
    """One request after the other, each with a ``Content-Length``."""

    transport: asyncio.Transport

    def __init__(self, answer: Any, latency: float) -> None:
        self._answer = answer
        self._latency = latency
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - for the type checker
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, blank, body = self._received.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        if blank and len(body) >= int(length):
            self._received = b""
            asyncio.get_running_loop().call_later(self._latency, self._send)

    def _send(self) -> None:
        self.transport.write(self._answer())
