"""The address that the web server listens on: how people write it, and what may be wrong with it."""

import errno
import os
import socket

from collector.errors import UsageError


def place(host: str, port: int) -> str:
    """Return an address as people write it, IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens; ``::`` listens to IPv4 as well.

    Raises:
        UsageError: the address is in use, not permitted, or none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = host == "::" and socket.has_dualstack_ipv6()
    try:
        *_, address = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)[0]
        return socket.create_server(address, family=family, dualstack_ipv6=both)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"listen: {_fault(host, port, error)}") from error


def _fault(host: str, port: int, error: OSError | UnicodeError) -> str:
    if isinstance(error, UnicodeError | socket.gaierror):
        return f"{host!r} has no address: name one of this machine, such as 127.0.0.1"
    where = place(host, port)
    if error.errno == errno.EADDRINUSE:
        return f"{where} is in use: stop what listens there, or name another port (0 takes a free one)"
    if error.errno == errno.EACCES:
        return f"{where} is not permitted: name a port from 1024 on"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{host} is no address of this machine: name one that is, such as 127.0.0.1"
    return f"{where} cannot be listened on ({os.strerror(error.errno or 0)}): name another address or port"
