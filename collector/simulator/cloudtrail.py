"""The action of CloudTrail that looks events up: who asked for imports, and for their end.

Other than in AWS, where an event is found some minutes after its request, it is found at once.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

from collector.simulator.faults import AlteredListing, ErrorAnswer
from collector.simulator.paging import START, Listing, Token
from collector.simulator.protocol import ApiError
from collector.simulator.request import Request, Result, World
from collector.simulator.trail import Recorded, event_of

RECORDED = frozenset({"ImportImage", "CancelImportTask"})
"""The actions of which events are kept."""

KEPT_FOR = timedelta(days=90)
LARGEST_PAGE = 50

_UNKNOWN_CALLER = frozenset({"AuthFailure", "ExpiredToken", "InvalidClientTokenId", "RequestExpired"})
_SERVER_ERROR = 500


def answer(world: World, request: Request) -> Result:
    """Answer as CloudTrail."""
    if request.expired:
        raise ErrorAnswer("ExpiredTokenException").error()
    if request.region not in world.regions.enabled(request.account):
        message = "The security token included in the request is invalid."
        raise ApiError("UnrecognizedClientException", message)
    if request.action != "LookupEvents":
        raise ApiError("UnknownOperationException", f"The operation {request.action} is not known")
    if not world.lookups.allows((request.account, request.region)):
        raise ErrorAnswer("ThrottlingException").error()
    return _lookup_events(world, request)


def record_refusal(world: World, request: Request, error: ApiError) -> None:
    """Keep a request that EC2 refused, if it is of a kind that is kept and EC2 knew who asked."""
    if request.action in RECORDED and error.code not in _UNKNOWN_CALLER:
        side = "Server" if error.status >= _SERVER_ERROR else "Client"
        where = (request.account, request.region)
        params = {name: value for name, value in request.params.items() if name[:1].isupper()}
        for name in ("Action", "Version"):
            params.pop(name, None)
        world.fleet.refuse(*where, f"{side}.{error.code}", error.message, action=request.action, **params)


def _lookup_events(world: World, request: Request) -> Result:
    """Show the events of an action between two instants, the newest first."""
    action = _action(request)
    limit = _page_limit(world, request)
    token = _token(request)
    now, recorded = world.fleet.recorded(request.account, request.region)
    begin, end = _span(request, now)
    found = [one for one in recorded if action in (None, one.action) and begin <= one.at <= end]
    found.sort(key=_order, reverse=True)
    if token.after != START.after:
        last = [_order(one) for one in recorded[token.after : token.after + 1]]
        found = [one for one in found if [_order(one)] < last]
    page = found[:limit]
    listing = Listing(
        tasks=[event_of(one, request.account, request.region) for one in page],
        page=token.page,
        lookup=False,
        next_token=Token(page[-1].number, token.page + 1) if len(found) > len(page) else None,
    )
    for fault in request.faults:
        if isinstance(fault, AlteredListing):
            fault.alter(listing)
    result: Result = {"Events": listing.tasks}
    if listing.next_token is not None:
        result["NextToken"] = listing.next_token.encode(request.scope)
    return result


def _order(recorded: Recorded) -> tuple[datetime, int]:
    return recorded.at, recorded.number


def _action(request: Request) -> str | None:
    """Read the one attribute that may be given; of those that AWS has, only ``EventName`` is known here."""
    attributes = request.items("LookupAttributes")
    names = [one.get("AttributeKey") if isinstance(one, dict) else None for one in attributes]
    if len(attributes) > 1 or names not in ([], ["EventName"]):
        message = "You can use only one attribute for each lookup, here EventName."
        raise ApiError("InvalidLookupAttributesException", message)
    return str(attributes[0].get("AttributeValue")) if attributes else None


def _span(request: Request, now: datetime) -> tuple[datetime, datetime]:
    """Read the two instants, both included; events tell their time in whole seconds."""
    begin = _instant(request.params.get("StartTime"), now - KEPT_FOR)
    end = _instant(request.params.get("EndTime"), now)
    if begin > end:
        raise ApiError("InvalidTimeRangeException", "The start time is after the end time.")
    oldest, latest = now - KEPT_FOR, end.replace(microsecond=0) + timedelta(microseconds=999_999)
    return max(begin, oldest), min(latest, now)


def _instant(value: Any, default: datetime) -> datetime:
    if value is None:
        return default
    try:
        return datetime.fromtimestamp(value, UTC)
    except (OSError, OverflowError, TypeError, ValueError):
        raise ApiError("SerializationException", f"{value!r} is no timestamp") from None


def _page_limit(world: World, request: Request) -> int:
    """Read ``MaxResults``, a number here, and the simulator's own limit."""
    wanted = request.params.get("MaxResults", LARGEST_PAGE)
    if not isinstance(wanted, int) or not 1 <= wanted <= LARGEST_PAGE:
        raise ApiError("InvalidMaxResultsException", f"MaxResults is from 1 to {LARGEST_PAGE}, not {wanted}.")
    return min(wanted, world.page_size or LARGEST_PAGE)


def _token(request: Request) -> Token:
    try:
        return request.token()
    except ApiError as error:
        raise ApiError("InvalidNextTokenException", "The token is invalid or expired.") from error
