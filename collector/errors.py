"""The few errors there are. Each carries a sentence for people: the thing at fault and the mend.

``exit_code`` is what a command ends with when the error reaches the top (see ``collector --help``).
"""

from typing import ClassVar


class CollectorError(Exception):
    """Something failed that the user should read about; its text is the whole message."""

    exit_code: ClassVar[int] = 1


class UsageError(CollectorError):
    """Wrong usage or configuration. Carries every fault found, one line each."""

    exit_code: ClassVar[int] = 2

    def __init__(self, *faults: str) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class MalformedTaskError(CollectorError):
    """A task that cannot be stored as it came; the text names the task and the member."""


class WarehouseError(CollectorError):
    """The database is unreachable, too old, read-only, or behind in migrations."""


class WarehouseAwayError(WarehouseError):
    """The database cannot be reached or cannot work just now; the same may well succeed later."""


class EmbeddedPostgresError(CollectorError):
    """The embedded server cannot be installed, started or reached; the text says what to do."""


class SpoolError(CollectorError):
    """The disk refuses what waits for the database; the text names the folder and the cause."""
