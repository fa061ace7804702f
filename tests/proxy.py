"""A network that fails on demand: a TCP proxy before PostgreSQL, in a thread of this process.

It is whole until told otherwise. What a fault cut off stays cut off: no stream with a hole in it goes on.
"""

import asyncio
import ctypes
import socket
import struct
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import psycopg
from sqlalchemy import make_url

CAN_LOSE = sys.platform == "linux"
"""Whether packets can be lost here: Linux alone lets a program make its own sockets deaf."""

_RESET_ON_CLOSE = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
_ATTACH_FILTER, _DETACH_FILTER = 26, 27
_DROP_ALL = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))  # BPF_RET | BPF_K: keep 0 bytes
_FILTER = struct.pack("@HP", 1, ctypes.addressof(_DROP_ALL))


class Proxy:
    """Passes connections on to the server of a URL while the ``with`` block lasts.

    ``url`` leads through it. ``connections`` counts those that were made, ``resets`` those that were reset.
    """

    def __init__(self, url: str) -> None:
        self._server = _address(url)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._port = self._listener.getsockname()[1]
        self.url = (
            make_url(url)
            .difference_update_query(["host", "port"])
            .set(host="127.0.0.1", port=self._port)
            .update_query_dict({"connect_timeout": "2"})  # faults are many, and each waits for it
            .render_as_string(hide_password=False)
        )
        self.connections = 0
        self.resets = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._passes = asyncio.Event()
        self._passes.set()
        self._resets_answer = False
        self._accepting: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy")

    @property
    def over_tcp(self) -> bool:
        """Whether the server is reached over TCP, where alone it notices that packets are lost."""
        return not isinstance(self._server, str)

    def refuse(self) -> None:
        """Refuse connections, and reset those that are there."""
        self._do(self._refuse)

    def swallow(self) -> None:
        """Accept connections, and whatever is sent over any of them, and never say a word."""
        self._do(self._passes.clear)

    def lose(self) -> None:
        """Lose every packet in both directions, as a network does that is cut: nothing is acknowledged."""
        self._do(self._lose)

    def reset(self) -> None:
        """Reset the connections that are there."""
        self._do(self._reset)

    def reset_in_answer(self) -> None:
        """Reset the connection over which the server says something next, when half of it is passed on."""
        self._resets_answer = True

    def resume(self) -> None:
        """Let connections through again; packets that were lost meanwhile are sent again by their kernels."""
        self._do(self._resume)

    def __enter__(self) -> Self:
        self._thread.start()
        self._do(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._do(self._refuse)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        self._loop.close()

    def _do(self, action: Callable[[], Any]) -> None:
        """Do something in the thread that has the sockets, and wait until it is done."""

        async def act() -> None:
            result = action()
            if asyncio.iscoroutine(result):
                await result

        asyncio.run_coroutine_threadsafe(act(), self._loop).result(timeout=10)

    # In the thread that has the sockets

    async def _accept(self) -> None:
        if self._accepting is None:
            self._accepting = await asyncio.start_server(self._serve, sock=self._listener)

    async def _refuse(self) -> None:
        if self._accepting is not None:
            self._accepting.close()
            self._accepting = None
        self._reset()
        while self._serving:
            await asyncio.wait(set(self._serving))

    async def _resume(self) -> None:
        if not self._passes.is_set():
            self._reset()
        self._passes.set()
        self._resets_answer = False
        if self._accepting is None:
            self._listener = socket.create_server(("127.0.0.1", self._port))
        for each in (self._listener, *map(_socket, self._writers)):
            _hear(each)
        await self._accept()

    def _lose(self) -> None:
        for each in (self._listener, *map(_socket, self._writers)):
            _deafen(each)

    def _reset(self) -> None:
        for writer in self._writers:
            self._cut(writer)
        for task in self._serving:
            task.cancel()

    async def _serve(self, from_client: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        """Pass one connection on in both directions, until either end is gone."""
        task = asyncio.current_task()
        assert task is not None
        self.connections += 1
        self._serving.add(task)
        ends = {client}
        self._writers |= ends
        ways: list[asyncio.Task[None]] = []
        try:
            from_server, server = await self._connect()
            ends.add(server)
            self._writers |= ends
            ways.append(asyncio.create_task(self._pass_on(from_client, server)))
            ways.append(asyncio.create_task(self._pass_on(from_server, client, answers=True)))
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            pass  # it was reset
        except OSError:
            self._cut(client)  # the server refuses, and so do we
        finally:
            for way in ways:
                way.cancel()
            for writer in ends:
                writer.close()
            self._writers -= ends
            self._serving.discard(task)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self._server, str):
            return await asyncio.open_unix_connection(self._server)
        return await asyncio.open_connection(*self._server)

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool = False
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(2**16):
                if not self._passes.is_set():
                    continue
                if answers and self._resets_answer:
                    self._resets_answer = False
                    writer.write(data[: len(data) // 2])
                    self._cut(writer)
                    return
                writer.write(data)
                await writer.drain()
        await self._passes.wait()  # a black hole does not tell that an end is gone either

    def _cut(self, writer: asyncio.StreamWriter) -> None:
        """End a connection with a reset, as a firewall does that forgot it."""
        self.resets += 1
        with suppress(OSError):
            _socket(writer).setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        writer.transport.abort()


def _address(url: str) -> tuple[str, int] | str:
    """Return where a server listens; a path for one that does so on a socket in the file system."""
    with psycopg.connect(url) as connection:
        host, port = connection.info.host, connection.info.port
    return f"{host}/.s.PGSQL.{port}" if host.startswith("/") else (host, port)


def _socket(writer: asyncio.StreamWriter) -> socket.socket:
    found: socket.socket = writer.get_extra_info("socket")
    return found


def _deafen(each: socket.socket) -> None:
    """Let the kernel drop whatever comes for a socket, unacknowledged."""
    each.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, _FILTER)


def _hear(each: socket.socket) -> None:
    with suppress(OSError):  # it was never deaf
        each.setsockopt(socket.SOL_SOCKET, _DETACH_FILTER, 0)
