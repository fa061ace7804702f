"""One call and the world it is made in: what every action gets."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from collector.simulator.callers import Callers
from collector.simulator.faults import Drip, Fault, Misbehaviour
from collector.simulator.fleet import Fleet
from collector.simulator.paging import Token, decode
from collector.simulator.protocol import ApiError
from collector.simulator.rate import Rate
from collector.simulator.regions import Regions

Result = dict[str, Any]


@dataclass(slots=True)
class World:
    """What the actions work on; ``Simulator`` says what each member means."""

    fleet: Fleet
    regions: Regions
    callers: Callers
    page_size: int | None = None
    organization: dict[str, str] | None = None
    external_ids: dict[str, str] = field(default_factory=dict)
    role_lifetime: timedelta | None = None
    expired_code: str = "ExpiredToken"
    lookups: Rate = field(default_factory=lambda: Rate(2.0))


@dataclass(frozen=True, slots=True)
class Request:
    """One call: who, where, what. ``params`` is the form as a tree; ``expired`` are the credentials."""

    action: str
    account: str
    region: str
    params: dict[str, Any] = field(default_factory=dict)
    faults: Sequence[Fault] = ()
    expired: bool = False

    def meeting(self, faults: Sequence[Fault]) -> "Request":
        """The same request, meeting these faults."""
        return replace(self, faults=faults)

    @property
    def spoiled(self) -> bool:
        """Whether the answer will not reach the caller whole; one that drips does, if he waits."""
        return any(isinstance(fault, Misbehaviour) and not isinstance(fault, Drip) for fault in self.faults)

    @property
    def scope(self) -> str:
        """What a page token is good for."""
        return f"{self.account}/{self.region}/{self.action}"

    def text(self, name: str) -> str | None:
        """A scalar parameter."""
        value = self.params.get(name)
        if value is not None and not isinstance(value, str):
            raise ApiError("InvalidParameterValue", f"The parameter {name} is not a value")
        return value

    def flag(self, name: str) -> bool:
        """A boolean parameter; absent is false. Some actions write its name with a small first letter."""
        value = self.text(name) or self.text(name[0].lower() + name[1:]) or "false"
        if value.lower() not in {"true", "false"}:
            raise ApiError("InvalidParameterValue", f"Invalid value '{value}' for {name}")
        return value.lower() == "true"

    def items(self, *names: str) -> list[Any]:
        """A list parameter, under whichever of its names it came."""
        found: Any = next((self.params[name] for name in names if name in self.params), [])
        if not isinstance(found, list):
            raise ApiError("InvalidParameterValue", f"The parameter {names[0]} is not a list")
        return found

    def filters(self) -> dict[str, list[str]]:
        """The filters by name."""
        filters = self.items("Filter", "Filters")
        return {str(item.get("Name")): item.get("Value", item.get("Values", [])) for item in filters}

    def page_limit(self, default: int | None) -> int | None:
        """``MaxResults``, at most the default."""
        text = self.text("MaxResults")
        if text is None:
            return default
        if not text.isdecimal() or int(text) < 1:
            raise ApiError("InvalidParameterValue", f"Value ( {text} ) for parameter maxResults is invalid.")
        return int(text) if default is None else min(int(text), default)

    def token(self) -> Token:
        """Where this page begins."""
        try:
            return decode(self.text("NextToken"), self.scope)
        except ValueError:
            raise ApiError("InvalidNextToken", "The token is invalid or expired.") from None
