"""What became of scans: one by one, and added up."""

from dataclasses import dataclass, field
from enum import StrEnum

from collector.domain import Failure, Scan


class Effect(StrEnum):
    """What a scan did to the warehouse."""

    CHANGED = "changed"
    UNCHANGED = "unchanged"
    REPEATED = "repeated"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one scan.

    Counts are of tasks newly known, versions inserted, versions cut in two by late data, versions that ended,
    and tasks that left the list finished (``expired``) or unfinished (``vanished``). ``examples`` spell the
    first few changes out; ``refusal`` says why nothing was stored.
    """

    scan: Scan
    effect: Effect
    new_tasks: int = 0
    inserted: int = 0
    cut: int = 0
    closed: int = 0
    expired: int = 0
    vanished: int = 0
    examples: tuple[str, ...] = ()
    refusal: str | None = None


@dataclass(slots=True)
class Tally:
    """What a number of scans, failures and pieces of evidence amounted to; see ``Outcome`` for the counts.

    ``not_loaded`` are saved files that could not be understood, a line each.
    """

    scans: int = 0
    unchanged: int = 0
    repeated: int = 0
    new_tasks: int = 0
    inserted: int = 0
    cut: int = 0
    closed: int = 0
    expired: int = 0
    vanished: int = 0
    events: int = 0
    known_events: int = 0
    refused: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    not_loaded: list[str] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """Count one scan's outcome."""
        if outcome.effect is Effect.REFUSED:
            self.refused.append(outcome.refusal or "")
            return
        self.scans += 1
        self.unchanged += outcome.effect is Effect.UNCHANGED
        self.repeated += outcome.effect is Effect.REPEATED
        self.new_tasks += outcome.new_tasks
        self.inserted += outcome.inserted
        self.cut += outcome.cut
        self.closed += outcome.closed
        self.expired += outcome.expired
        self.vanished += outcome.vanished

    @property
    def exit_code(self) -> int:
        """0 all well; 3 some targets or files failed and the rest is stored; 1 nothing went well."""
        if not (self.refused or self.failures or self.not_loaded):
            return 0
        return 3 if self.scans or self.events or self.known_events else 1
