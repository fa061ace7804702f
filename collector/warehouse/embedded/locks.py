"""Advisory locks on files that the kernel frees when their last holder is gone, even by kill -9.

A lock belongs to an open file: two objects in one process exclude each other like two processes do, and a
child that inherits the open file keeps the lock alive.
"""

import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

if sys.platform != "win32":
    import fcntl

_PAUSE = 0.02


class Lock:
    """A held lock; closing it lets go, unless a child inherited it and still lives."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def close(self) -> None:
        """Let go. Only ever by closing: unlocking would also free it for a process that we forked."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def try_lock(path: Path, *, shared: bool = False) -> Lock | None:
    """Take the lock at once, or return None because somebody else has it."""
    lock = Lock(_open(path))
    try:
        fcntl.flock(lock.descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    except BaseException:
        lock.close()
        raise
    return lock


def wait_lock(path: Path, timeout: float, *, shared: bool = False) -> Lock:
    """Take the lock, waiting up to ``timeout`` seconds before a TimeoutError."""
    deadline = time.monotonic() + timeout
    while (lock := try_lock(path, shared=shared)) is None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path} has been locked by another process for {timeout:.0f} s")
        time.sleep(_PAUSE)
    return lock


def give_to_owner_of(folder: Path, descriptor: int) -> None:
    """As root, hand a file that we just made to the folder's owner, who must be able to use it later."""
    if os.geteuid() == 0:
        owner = folder.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


def _open(path: Path) -> int:
    """Open the lock's file, which belongs to its folder's owner whoever makes it; never through a symlink."""
    with suppress(FileNotFoundError):
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileExistsError:  # another process made it just now
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    give_to_owner_of(path.parent, descriptor)
    return descriptor
