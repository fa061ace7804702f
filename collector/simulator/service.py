"""From a request's bytes to a reply: who asks, which faults they meet, what the answer is. No sockets."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from threading import Lock

from collector.simulator import actions, cloudtrail, json_protocol, organizations, protocol, sts
from collector.simulator.faults import Call, ErrorAnswer, Fault, Faults, Latency, Misbehaviour
from collector.simulator.paging import START
from collector.simulator.protocol import ApiError, Credential
from collector.simulator.request import Request, Result, World

XML = "text/xml;charset=UTF-8"
NOBODY = Call(action="", account_id="", region="")


Asked = tuple[str, str, str]
"""What requests are counted by: action, account id, Region."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a service is asked, who answers, and in which form."""

    read: Callable[[str, str], tuple[str, Result]]
    answer: Callable[[World, Request], Result]
    write: Callable[[str, Result, str], bytes]
    write_error: Callable[[ApiError, str], bytes]
    content_type: str = XML


EC2 = Dialect(protocol.read_query, actions.answer, protocol.ec2_answer, protocol.ec2_error)
STS = Dialect(protocol.read_query, sts.answer, protocol.sts_answer, protocol.sts_error)
ORGANIZATIONS = Dialect(
    json_protocol.read_json,
    organizations.answer,
    json_protocol.json_answer,
    json_protocol.json_error,
    json_protocol.CONTENT_TYPE,
)
CLOUDTRAIL = replace(ORGANIZATIONS, answer=cloudtrail.answer)
DIALECTS = {"cloudtrail": CLOUDTRAIL, "organizations": ORGANIZATIONS, "sts": STS}
"""By the credential's scope; every other one is taken for EC2's."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What to send, and how badly."""

    call: Call
    status: int
    body: bytes
    request_id: str
    latency: float = 0.0
    misbehaviour: Misbehaviour | None = None
    content_type: str = XML


class Traffic:
    """Counts requests, and how many to EC2 were in the works at once, by account and Region. Thread-safe."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._requests: Counter[Asked] = Counter()
        self._running: Counter[tuple[str, str]] = Counter()
        self._peaks: dict[tuple[str, str], int] = {}

    def begin(self, call: Call) -> None:
        """A request has come."""
        where = (call.account_id, call.region)
        with self._lock:
            self._requests[call.action, *where] += 1
            if call.service != "ec2":
                return
            self._running[where] += 1
            self._peaks[where] = max(self._peaks.get(where, 0), self._running[where])

    def end(self, call: Call) -> None:
        """Its answer is on the way."""
        if call.service != "ec2":
            return
        with self._lock:
            self._running[call.account_id, call.region] -= 1

    def requests(self) -> Counter[Asked]:
        """How many requests of each kind came."""
        with self._lock:
            return Counter(self._requests)

    def peaks(self) -> dict[tuple[str, str], int]:
        """The most requests to EC2 at once, by account and Region."""
        with self._lock:
            return dict(self._peaks)


class Service:
    """EC2, STS, Organizations and CloudTrail behind one door, told apart by the credential's scope."""

    def __init__(self, world: World, faults: Faults) -> None:
        self.world = world
        self.faults = faults
        self.traffic = Traffic()

    def reply(self, authorization: str | None, body: str, target: str = "") -> Reply:
        """Answer one request. Counts it as begun; the caller ends it."""
        request_id = protocol.new_request_id()
        dialect = EC2
        try:
            credential = protocol.parse_credential(authorization)
            dialect = DIALECTS.get(credential.service, EC2)
            request = self._request(credential, *dialect.read(body, target))
        except ApiError as error:
            self.traffic.begin(NOBODY)
            answer = dialect.write_error(error, request_id)
            return Reply(NOBODY, error.status, answer, request_id, content_type=dialect.content_type)
        call = _call(request, credential.service)
        self.traffic.begin(call)
        faults = self.faults.met_by(call)
        status, answer = self._answer(dialect, request, faults, request_id)
        return Reply(
            call=call,
            status=status,
            body=answer,
            request_id=request_id,
            latency=sum(fault.seconds for fault in faults if isinstance(fault, Latency)),
            misbehaviour=next((fault for fault in faults if isinstance(fault, Misbehaviour)), None),
            content_type=dialect.content_type,
        )

    def _request(self, credential: Credential, action: str, params: Result) -> Request:
        return Request(
            action=action,
            account=self.world.callers.account_of(credential.access_key_id),
            region=credential.region,
            params=params,
            expired=self.world.callers.expired(credential.access_key_id),
        )

    def _answer(
        self, dialect: Dialect, request: Request, faults: list[Fault], request_id: str
    ) -> tuple[int, bytes]:
        try:
            for fault in faults:
                if isinstance(fault, ErrorAnswer):
                    raise fault.error()
            result = dialect.answer(self.world, request.meeting(faults))
        except ApiError as error:
            if dialect is EC2:
                cloudtrail.record_refusal(self.world, request, error)
            return error.status, dialect.write_error(error, request_id)
        return 200, dialect.write(request.action, result, request_id)


def _call(request: Request, service: str) -> Call:
    """What the rules may look at; a token that nobody can read counts as a first page."""
    try:
        page = request.token().page
    except ApiError:
        page = START.page
    account = sts.role_account(request) or request.account
    lookup = "ImportTaskId" in request.params or "ImportTaskIds" in request.params
    service = service if service in DIALECTS else "ec2"
    return Call(request.action, account, request.region, page, lookup, service)
