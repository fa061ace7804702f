"""A plain socket server in a process of its own, which answers for EC2 and STS out of what it made before.

It costs little, so that what is measured is whoever asks. Every account and Region has imports of its own;
they stand still, and only the request's id differs from answer to answer. Unlike ``page_server`` it lets
roles be assumed, which a daemon with many accounts needs.
"""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from hashlib import blake2b
from itertools import count
from typing import Any
from urllib.parse import parse_qs

from collector.simulator.protocol import CREDENTIAL, ec2_answer, sts_answer

ACCOUNT = "111122223333"
"""Whose the caller's own credentials are."""

_PLACE = re.compile(CREDENTIAL.pattern.encode())
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_REQUEST_ID = "00000000-0000-0000-0000-000000000000"


@contextmanager
def canned(*, tasks: int, latency: float) -> Iterator[Mapping[str, str]]:
    """Serve so many tasks in every account and Region, and yield the variables that lead boto3 there."""
    command = [sys.executable, "-m", "benchmarks.canned", str(tasks), str(latency)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:  # noqa: S603 - ourselves
        try:
            assert server.stdout is not None  # noqa: S101 - for the type checker
            yield {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{int(server.stdout.readline())}",
                "AWS_ACCESS_KEY_ID": f"AKIA{ACCOUNT}",
                "AWS_SECRET_ACCESS_KEY": "canned",
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_CONFIG_FILE": os.devnull,
                "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
                "NO_PROXY": "127.0.0.1",
            }
        finally:
            server.terminate()


class _Connection(asyncio.Protocol):
    """One request after the other, each answered after the latency."""

    transport: asyncio.Transport

    def __init__(self, tasks: int, latency: float, numbers: Iterator[int]) -> None:
        self._tasks = tasks
        self._latency = latency
        self._numbers = numbers
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep it, to answer."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - for the type checker
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer as soon as the request is whole."""
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if end and len(body) >= (int(length[1]) if length else 0):
            self._received = b""
            self._answer_later(head, body)

    def _answer_later(self, head: bytes, body: bytes) -> None:
        place = _PLACE.search(head)
        account, region = (place[1].decode()[4:], place[2].decode()) if place else (ACCOUNT, "")
        form = parse_qs(body.decode())
        answer = _answer(form["Action"][0], account, region, form.get("RoleArn", [""])[0], self._tasks)
        answer = answer.replace(_REQUEST_ID.encode(), b"%036d" % next(self._numbers), 1)
        asyncio.get_running_loop().call_later(self._latency, self._send, answer)

    def _send(self, answer: bytes) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nContent-Length: %d\r\n\r\n" % len(answer)
        self.transport.write(head + answer)


@cache
def _answer(action: str, account: str, region: str, role: str, tasks: int) -> bytes:
    if action == "DescribeImportImageTasks":
        listed = [_task(account, region, number) for number in range(tasks)]
        return ec2_answer(action, {"ImportImageTasks": listed}, _REQUEST_ID)
    if action == "AssumeRole":
        credentials = {
            "AccessKeyId": f"AKIA{role.split(':')[4]}",
            "SecretAccessKey": "canned",
            "SessionToken": "canned",
            "Expiration": "2099-01-01T00:00:00Z",
        }
        return sts_answer(action, {"Credentials": credentials}, _REQUEST_ID)
    identity = {"Arn": f"arn:aws:iam::{account}:user/canned", "UserId": "canned", "Account": account}
    return sts_answer(action, identity, _REQUEST_ID)


def _task(account: str, region: str, number: int) -> dict[str, Any]:
    """Return an import with two disks and three tags; the first of a target is under way."""
    name = blake2b(f"{account} {region} {number}".encode(), digest_size=9).hexdigest()[:17]
    status, progress = ("active", "30") if number == 0 else ("completed", None)
    return {
        "Architecture": "x86_64",
        "Description": f"server {name}",
        "ImageId": f"ami-{name}",
        "ImportTaskId": f"import-ami-{name}",
        "LicenseType": "BYOL",
        "Platform": "Linux",
        "Progress": progress,
        "SnapshotDetails": [
            {
                "DeviceName": f"/dev/sd{disk}",
                "DiskImageSize": 1e10 + number,
                "Format": "VMDK",
                "SnapshotId": f"snap-{name}{disk}",
                "Status": status,
                "UserBucket": {"S3Bucket": "images-to-import", "S3Key": f"{name}/{disk}.vmdk"},
            }
            for disk in "ab"
        ],
        "Status": status,
        "Tags": [{"Key": key, "Value": f"{key} {name}"} for key in ("Name", "Owner", "Wave")],
    }


async def _serve(tasks: int, latency: float) -> None:
    numbers = count()
    server = await asyncio.get_running_loop().create_server(
        lambda: _Connection(tasks, latency, numbers), "127.0.0.1", 0, backlog=1024
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), float(sys.argv[2])))
