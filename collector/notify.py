"""Tells systemd how we are, when it started us (``Type=notify``, sd_notify(3)); silent otherwise."""

import os
import socket
from contextlib import suppress


def notify(*states: str) -> None:
    """Send assignments such as ``READY=1``; nothing happens where nobody listens."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address or not hasattr(socket, "AF_UNIX"):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]  # an abstract socket, which has no file
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.setblocking(False)
        channel.sendto("\n".join(states).encode(), address)
