"""An EC2 that answers every request with the same listing after a fixed latency, in a process of its own.

Each account and Region has tasks with ids of its own; only the request id differs between two answers, as it
does at AWS. It costs so little that what is measured against it is the client. Run as
``python -m benchmarks.canned TASKS SECONDS``; it prints its port.
"""

import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from zlib import crc32

from collector.simulator.protocol import CREDENTIAL, ec2_answer

_PLACE = "0123abcd"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_AUTHORIZATION = re.compile(rb"\r\nauthorization: *([^\r]+)", re.IGNORECASE)
_REQUEST_ID = "00000000-0000-4000-8000-000000000000"


@contextmanager
def serving(tasks: int, latency: float) -> Iterator[int]:
    """Serve so many tasks a listing, after so many seconds; the port, on loopback."""
    command = [sys.executable, "-m", "benchmarks.canned", str(tasks), str(latency)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:  # noqa: S603 - ours
        assert server.stdin is not None  # noqa: S101 - it was asked for
        assert server.stdout is not None  # noqa: S101 - as above
        with server.stdin:
            yield int(server.stdout.readline())


def task(number: int) -> dict[str, Any]:
    """Return a finished import with two disks and three tags, as boto3 would parse it."""
    return {
        "Architecture": "x86_64",
        "Description": f"erp-db-{number} wave 7",
        "ImportTaskId": f"import-ami-{_PLACE}{number:09x}",
        "ImageId": f"ami-{_PLACE}{number:09x}",
        "LicenseType": "BYOL",
        "Platform": "Linux",
        "Status": "completed",
        "SnapshotDetails": [
            {
                "DeviceName": f"/dev/sd{disk}",
                "DiskImageSize": 22724793856.0,
                "Format": "VMDK",
                "SnapshotId": f"snap-{_PLACE}{number:08x}{disk}",
                "Status": "completed",
                "UserBucket": {"S3Bucket": "migration-wave-7", "S3Key": f"exports/erp-{number}{disk}.ova"},
            }
            for disk in "ab"
        ],
        "Tags": [{"Key": key, "Value": f"{key} {number}"} for key in ("Name", "Owner", "Wave")],
        "BootMode": "uefi",
    }


class _Connection(asyncio.Protocol):
    """Reads whole requests and answers each when its time has come."""

    def __init__(self, template: bytes, latency: float) -> None:
        self._template = template
        self._latency = latency
        self._received = b""
        self._number = 0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not end or len(body) < (int(length[1]) if length else 0):
            return
        self._received = b""
        authorization = _AUTHORIZATION.search(head)
        place = _place(authorization[1].partition(b", SignedHeaders")[0] if authorization else b"")
        asyncio.get_running_loop().call_later(self._latency, self._answer, place)

    def _answer(self, place: bytes) -> None:
        self._number += 1
        unique = f"{id(self) & 0xFFFFFFFF:08x}-0000-4000-8000-{self._number:012x}".encode()
        body = self._template.replace(_PLACE.encode(), place).replace(_REQUEST_ID.encode(), unique)
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/xml;charset=UTF-8\r\nContent-Length: %d\r\n\r\n"
        self._transport.write(head % len(body) + body)


@lru_cache(maxsize=10_000)
def _place(authorization: bytes) -> bytes:
    """Name an account and a Region by what they sign with."""
    scope = CREDENTIAL.search(authorization.decode())
    return b"%08x" % crc32(" ".join(scope.groups()).encode() if scope else authorization)


async def _serve(tasks: int, latency: float) -> None:
    listing = {"ImportImageTasks": [task(number) for number in range(tasks)]}
    template = ec2_answer("DescribeImportImageTasks", listing, _REQUEST_ID)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(template, latency), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)  # until whoever started it closes it, or is no more


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), float(sys.argv[2])))
