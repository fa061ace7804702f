"""From a request's bytes to a reply: who asks, which faults they meet, what the answer is. No sockets."""

from collections import Counter
from dataclasses import dataclass
from threading import Lock

from collector.simulator import actions, protocol, sts
from collector.simulator.faults import Call, ErrorAnswer, Fault, Faults, Latency, Misbehaviour
from collector.simulator.paging import START
from collector.simulator.protocol import ApiError, Credential
from collector.simulator.request import Request, Result, World

XML = "text/xml;charset=UTF-8"
NOBODY = Call(action="", account_id="", region="")


Asked = tuple[str, str, str]
"""What requests are counted by: action, account id, Region."""


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
    """Counts requests, and how many of one account and Region were in the works at once. Thread-safe."""

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
            self._running[where] += 1
            self._peaks[where] = max(self._peaks.get(where, 0), self._running[where])

    def end(self, call: Call) -> None:
        """Its answer is on the way."""
        with self._lock:
            self._running[call.account_id, call.region] -= 1

    def requests(self) -> Counter[Asked]:
        """How many requests of each kind came."""
        with self._lock:
            return Counter(self._requests)

    def peaks(self) -> dict[tuple[str, str], int]:
        """The most requests at once, by account and Region."""
        with self._lock:
            return dict(self._peaks)


class Service:
    """EC2 and STS behind one door, told apart by the credential's scope."""

    def __init__(self, world: World, faults: Faults) -> None:
        self.world = world
        self.faults = faults
        self.traffic = Traffic()

    def reply(self, authorization: str | None, body: str) -> Reply:
        """Answer one request. Counts it as begun; the caller ends it."""
        request_id = protocol.new_request_id()
        try:
            credential = protocol.parse_credential(authorization)
            params = protocol.parse_form(body)
        except ApiError as error:
            self.traffic.begin(NOBODY)
            return Reply(NOBODY, error.status, protocol.ec2_error(error, request_id), request_id)
        request = self._request(credential, params)
        call = _call(request)
        self.traffic.begin(call)
        faults = self.faults.met_by(call)
        status, answer = self._answer(credential, request, faults, request_id)
        return Reply(
            call=call,
            status=status,
            body=answer,
            request_id=request_id,
            latency=sum(fault.seconds for fault in faults if isinstance(fault, Latency)),
            misbehaviour=next((fault for fault in faults if isinstance(fault, Misbehaviour)), None),
        )

    def _request(self, credential: Credential, params: Result) -> Request:
        action = params.get("Action")
        return Request(
            action=action if isinstance(action, str) else "",
            account=self.world.account_of(credential.access_key_id),
            region=credential.region,
            params=params,
        )

    def _answer(
        self, credential: Credential, request: Request, faults: list[Fault], request_id: str
    ) -> tuple[int, bytes]:
        is_sts = credential.service == "sts"
        try:
            for fault in faults:
                if isinstance(fault, ErrorAnswer):
                    raise fault.error()
            request = request.meeting(faults)
            result = (sts if is_sts else actions).answer(self.world, request)
        except ApiError as error:
            write_error = protocol.sts_error if is_sts else protocol.ec2_error
            return error.status, write_error(error, request_id)
        write = protocol.sts_answer if is_sts else protocol.ec2_answer
        return 200, write(request.action, result, request_id)


def _call(request: Request) -> Call:
    """What the rules may look at; a token that nobody can read counts as a first page."""
    try:
        page = request.token().page
    except ApiError:
        page = START.page
    lookup = "ImportTaskId" in request.params or "ImportTaskIds" in request.params
    return Call(request.action, request.account, request.region, page, lookup)
