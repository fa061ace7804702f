"""Whose account the server runs as, and how a command is run as that account.

PostgreSQL refuses to run as root, so root lends it an unprivileged account that exists already. No account
is ever added, and no folder that we did not make changes its owner or mode.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collector.errors import EmbeddedPostgresError

if sys.platform != "win32":
    import pwd

_FALLBACKS = ("postgres", "nobody")
_MEND = "choose another data_dir (COLLECTOR_DATA_DIR), for example /var/lib/vm-import-collector"
# All that the server's programs may see of our environment: no PG* that would redirect them, and no AWS
# secret that another process of the same account could read. LD_PRELOAD with nss_wrapper is how containers
# give a bare uid a name.
_PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "LD_PRELOAD", "NSS_WRAPPER_PASSWD", "NSS_WRAPPER_GROUP")
_FIRST_BLOCKED = 'for each; do test -x "$each" || { printf %s "$each"; exit 1; }; done'


@dataclass(frozen=True, slots=True)
class Account:
    """The account that owns the cluster and runs its programs."""

    uid: int
    gid: int
    dropped: bool
    """Whether we are root and give up its power for every command."""

    @property
    def name(self) -> str:
        """The account's name, or its number where it has none."""
        return _name(self.uid)

    def run(
        self,
        *command: str | Path,
        cwd: Path | str = "/",
        pass_fds: Sequence[int] = (),
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end with nothing of our terminal, our environment or our open files.

        A session of its own keeps a Ctrl-C meant for us away from a server that others still use.
        """
        drop: dict[str, Any] = (
            {"user": self.uid, "group": self.gid, "extra_groups": []} if self.dropped else {}
        )
        return subprocess.run(  # noqa: S603 - fixed argument list, no shell
            [str(part) for part in command],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            cwd=cwd,
            env={key: os.environ[key] for key in _PASSED_ON if key in os.environ} | {"LC_ALL": "C"},
            start_new_session=True,
            pass_fds=pass_fds,
            **drop,
        )

    def run_shell(
        self, script: str, *arguments: str | Path, cwd: Path | str = "/"
    ) -> subprocess.CompletedProcess[str]:
        """Run a fixed script of ours; its arguments are ``$1`` and on, so nothing in them is interpreted."""
        return self.run("/bin/sh", "-c", script, "sh", *arguments, cwd=cwd)


def ourselves() -> Account:
    """The account that this process runs as."""
    return Account(os.geteuid(), os.getegid(), dropped=False)


def choose_account(folder: Path, data: Path) -> Account:
    """The account for the cluster ``data`` in our ``folder``, either of which may not exist yet."""
    us = ourselves()
    owners = {path: path.stat().st_uid for path in (folder, data) if os.path.exists(path)}  # noqa: PTH110 - Path.exists raises where a parent may not be passed
    if us.uid != 0:
        for path, owner in owners.items():
            if owner != us.uid:
                raise EmbeddedPostgresError(
                    f"{path} belongs to {_name(owner)}, and you are {us.name}: "
                    f"run the collector as {_name(owner)}, or {_MEND}."
                )
        return us
    if owners.get(data) == 0:
        raise EmbeddedPostgresError(
            f"{data} belongs to root, as whom PostgreSQL does not run: "
            f"give it back to the account that made it (chown -R), or {_MEND}."
        )
    return _unprivileged(owners.get(data) or owners.get(folder) or None)


def make_folder(folder: Path, account: Account) -> None:
    """Make ``folder`` and its missing parents so that the account gets there; leave existing ones alone."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    _refuse_blocked([path for path in reversed((folder, *folder.parents)) if path not in missing], account)
    for path in reversed(missing):
        try:
            path.mkdir()
        except FileExistsError:
            continue  # another process made it just now
        if account.dropped:
            path.chmod(0o755)  # whatever the umask: the account must pass
        elif path == folder:
            path.chmod(0o700)
    if not folder.is_dir():
        raise EmbeddedPostgresError(f"{folder} is not a folder: move it away, or {_MEND}.")


def _refuse_blocked(ancestors: list[Path], account: Account) -> None:
    """Ask the account itself whether it can pass, which also knows about ACLs and the like."""
    if not account.dropped:
        return
    try:
        walk = account.run_shell(_FIRST_BLOCKED, *ancestors)
    except OSError as error:
        raise EmbeddedPostgresError(
            f"Root may not become {account.name} here ({error}): "
            "run the collector as an ordinary user, or configure database_url."
        ) from error
    if walk.returncode:
        raise EmbeddedPostgresError(
            f"The embedded PostgreSQL runs as {account.name}, because it refuses root, "
            f"and {account.name} cannot pass {walk.stdout}: {_MEND}."
        )


def _unprivileged(owner: int | None) -> Account:
    """The owner of what exists; else an account that every system has."""
    if owner is not None:
        try:
            return Account(owner, pwd.getpwuid(owner).pw_gid, dropped=True)
        except KeyError:
            return Account(owner, owner, dropped=True)
    for name in _FALLBACKS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid != 0:
            return Account(entry.pw_uid, entry.pw_gid, dropped=True)
    raise EmbeddedPostgresError(
        "PostgreSQL refuses to run as root, and there is no account postgres or nobody to run it as: "
        "run the collector as an ordinary user, or configure database_url."
    )


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
