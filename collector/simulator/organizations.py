"""The action of Organizations that names the accounts."""

from collector.simulator.faults import ErrorAnswer
from collector.simulator.paging import Token
from collector.simulator.protocol import ApiError
from collector.simulator.request import Request, Result, World

ORGANIZATION_ID = "o-simulated0"
LARGEST_PAGE = 20
"""The most that AWS shows at once; other than elsewhere, pages are also cut where nobody asks for them."""


def answer(world: World, request: Request) -> Result:
    """Answer as Organizations."""
    if request.expired:
        raise ErrorAnswer("ExpiredTokenException").error()
    if request.action != "ListAccounts":
        raise ApiError("UnknownOperationException", f"The operation {request.action} is not known")
    return _list_accounts(world, request)


def _list_accounts(world: World, request: Request) -> Result:
    """List the organization's accounts, also those that are closed or about to be."""
    if world.organization is None:
        raise ApiError(
            "AWSOrganizationsNotInUseException", "Your account is not a member of an organization."
        )
    members = list(world.organization.items())
    token = _token(request)
    begin = token.after + 1
    end = begin + _page_limit(world, request)
    management = world.callers.default_account
    result: Result = {"Accounts": [_account(management, *member) for member in members[begin:end]]}
    if end < len(members):
        result["NextToken"] = Token(end - 1, token.page + 1).encode(request.scope)
    return result


def _account(management: str, account: str, state: str) -> Result:
    return {
        "Id": account,
        "Arn": f"arn:aws:organizations::{management}:account/{ORGANIZATION_ID}/{account}",
        "Email": f"aws+{account}@example.com",
        "Name": f"account {account}",
        "Status": state,
        "State": state,
    }


def _token(request: Request) -> Token:
    try:
        return request.token()
    except ApiError as error:
        raise ApiError("InvalidInputException", "You specified an invalid pagination token.") from error


def _page_limit(world: World, request: Request) -> int:
    """Read ``MaxResults``, a number here, and the simulator's own limit."""
    wanted = request.params.get("MaxResults", LARGEST_PAGE)
    if not isinstance(wanted, int) or not 1 <= wanted <= LARGEST_PAGE:
        raise ApiError("InvalidInputException", f"MaxResults is from 1 to {LARGEST_PAGE}, not {wanted}.")
    return min(wanted, world.page_size or LARGEST_PAGE)
