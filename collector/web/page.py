"""The status page: the daemon's state as plain HTML, readable without style and working without scripts.

What comes from AWS (tags, messages) is text of strangers; the template escapes everything.
"""

import re
from base64 import b64encode
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from collector.domain import FORGOTTEN_AFTER, ImportTask, Target
from collector.state import NEARLY_FORGOTTEN, DaemonState, TargetState

ROWS = 500
"""The most rows that a table shows: a browser should not have to lay out thousands."""

_FOLDER = Path(__file__).parent
_STYLE = (_FOLDER / "page.css").read_text(encoding="utf-8")

STYLE_HASH = f"sha256-{b64encode(sha256(_STYLE.encode()).digest()).decode()}"
"""What a content security policy calls the page's own style."""


@dataclass(frozen=True, slots=True)
class Import:
    """One import in flight, as a row of its table."""

    target: Target
    task: ImportTask

    @property
    def name(self) -> str | None:
        """The value of the tag ``Name``."""
        return next((tag.value for tag in self.task.tags if tag.key == "Name"), None)

    @property
    def percent(self) -> float | None:
        """The progress as a number from 0 to 100, where AWS's text is one."""
        if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]+)?", self.task.progress or ""):
            return None
        percent = float(self.task.progress or "")
        return percent if percent <= 100 else None  # noqa: PLR2004 - per cent


def render(state: DaemonState, now: datetime) -> str:
    """Return the page about a state at the instant ``now``."""
    targets = sorted(state.targets, key=lambda target: (_rank(target, now), target.target))
    imports = [
        Import(target.target, task)
        for target in sorted(state.targets, key=lambda target: target.target)
        for task in target.in_flight
    ]
    return _TEMPLATE.render(
        state=state,
        now=now,
        targets=targets,
        imports=imports,
        forgotten=state.nearly_forgotten(now),
        statuses=_sum(targets),
    )


def _rank(target: TargetState, now: datetime) -> int:
    """Order targets by how much they need somebody."""
    if target.nearly_forgotten(now):
        return 0
    if target.failing is not None:
        return 1
    return 2 if target.last_good_at is None else 3


def _sum(targets: list[TargetState]) -> Counter[str]:
    total = Counter[str]()
    for target in targets:
        total.update(target.statuses)
    return total


def _instant(instant: datetime) -> Markup:
    utc = instant.astimezone(UTC)
    return Markup('<time datetime="{}">{}</time>').format(
        f"{utc:%Y-%m-%dT%H:%M:%SZ}", f"{utc:%Y-%m-%d %H:%M:%S}"
    )


def _age(instant: datetime, now: datetime) -> str:
    return _duration((now - instant).total_seconds())


def _duration(seconds: float) -> str:
    """Say a duration in its two largest units; a negative one, of a clock set back, is none."""
    minutes, second = divmod(max(0, int(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days} d {hour} h"
    if hours:
        return f"{hours} h {minute} min"
    return f"{minutes} min {second} s" if minutes else f"{second} s"


def _listing(statuses: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {status}" for status, number in sorted(statuses.items()) if number)


def _counted(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "instant": _instant,
        "age": _age,
        "duration": _duration,
        "listing": _listing,
        "counted": _counted,
    }
    environment.globals |= {
        "style": Markup(_STYLE),  # noqa: S704 - our own file
        "rows": ROWS,
        "nearly_forgotten_after": NEARLY_FORGOTTEN,
        "forgotten_after": FORGOTTEN_AFTER,
    }
    return environment


_TEMPLATE = _environment().get_template("page.html")
