"""EC2's Query protocol, and STS's: forms in, XML out. Knows no action and no task."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qsl
from uuid import uuid4
from xml.sax.saxutils import escape

EC2_NAMESPACE = "http://ec2.amazonaws.com/doc/2016-11-15/"
STS_NAMESPACE = "https://sts.amazonaws.com/doc/2011-06-15/"
DECLARATION = '<?xml version="1.0" encoding="UTF-8"?>\n'

WIRE_NAMES = {
    "BlockDeviceMappings": "blockDeviceMapping",
    "Endpoint": "regionEndpoint",
    "Images": "imagesSet",
    "ImportImageTasks": "importImageTaskSet",
    "Regions": "regionInfo",
    "SnapshotDetails": "snapshotDetailSet",
    "Tags": "tagSet",
}
"""Members whose name on the wire is not their own with a small first letter."""

WIRE_NAMES_WITHIN = {"imagesSet": {"OwnerId": "imageOwnerId", "Public": "isPublic", "State": "imageState"}}
"""Members that are called otherwise within one list."""

CREDENTIAL = re.compile(r"Credential=([^/,\s]+)/\d{8}/([^/]+)/([^/]+)/aws4_request")


class ApiError(Exception):
    """An error answer of an AWS service."""

    def __init__(self, code: str, message: str, *, status: int = 400) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message, self.status = code, message, status


@dataclass(frozen=True, slots=True)
class Credential:
    """What the Authorization header says of the caller; nobody checks the signature."""

    access_key_id: str
    region: str
    service: str


def parse_credential(authorization: str | None) -> Credential:
    """Read the credential scope of a signature of version 4."""
    if not authorization:
        raise ApiError("MissingAuthenticationToken", "Request is missing Authentication Token", status=403)
    if (match := CREDENTIAL.search(authorization)) is None:
        message = "AWS was not able to validate the provided access credentials"
        raise ApiError("AuthFailure", message, status=401)
    return Credential(*match.groups())


def read_query(body: str, _target: str) -> tuple[str, dict[str, Any]]:
    """Read a request: the action, and all parameters."""
    params = parse_form(body)
    action = params.get("Action")
    return action if isinstance(action, str) else "", params


def parse_form(body: str) -> dict[str, Any]:
    """Read a form as a tree: ``Filters.1.Value.2=x`` is a list of dicts of lists."""
    tree: dict[str, Any] = {}
    for name, value in parse_qsl(body, keep_blank_values=True):
        *path, last = name.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise ApiError(
                    "MalformedQueryString", f"The parameter {name} is both a value and a structure"
                )
        if last in node:
            raise ApiError("MalformedQueryString", f"The parameter {name} occurs twice")
        node[last] = value
    return {name: _listed(value) for name, value in tree.items()}


def _listed(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if value and all(key.isdecimal() for key in value):
        return [_listed(value[key]) for key in sorted(value, key=int)]
    return {key: _listed(inner) for key, inner in value.items()}


def new_request_id() -> str:
    """An id for one answer."""
    return str(uuid4())


def ec2_answer(action: str, result: Mapping[str, Any], request_id: str) -> bytes:
    """Write a result, given in boto3's form, as EC2 does."""
    members = "".join(_element(name, value, WIRE_NAMES) for name, value in result.items())
    text = (
        f'{DECLARATION}<{action}Response xmlns="{EC2_NAMESPACE}">'
        f"<requestId>{request_id}</requestId>{members}</{action}Response>"
    )
    return text.encode()


def ec2_error(error: ApiError, request_id: str) -> bytes:
    """Write an error as EC2 does."""
    text = (
        f"{DECLARATION}<Response><Errors><Error><Code>{_escaped(error.code)}</Code>"
        f"<Message>{_escaped(error.message)}</Message></Error></Errors>"
        f"<RequestID>{request_id}</RequestID></Response>"
    )
    return text.encode()


def sts_answer(action: str, result: Mapping[str, Any], request_id: str) -> bytes:
    """Write a result as STS does: names as they are, in an envelope."""
    members = "".join(_verbatim(name, value) for name, value in result.items())
    text = (
        f'<{action}Response xmlns="{STS_NAMESPACE}"><{action}Result>{members}</{action}Result>'
        f"<ResponseMetadata><RequestId>{request_id}</RequestId></ResponseMetadata></{action}Response>"
    )
    return text.encode()


def sts_error(error: ApiError, request_id: str) -> bytes:
    """Write an error as STS does."""
    side = "Receiver" if error.status >= 500 else "Sender"  # noqa: PLR2004 - HTTP's own border of classes
    text = (
        f'<ErrorResponse xmlns="{STS_NAMESPACE}"><Error><Type>{side}</Type>'
        f"<Code>{_escaped(error.code)}</Code><Message>{_escaped(error.message)}</Message></Error>"
        f"<RequestId>{request_id}</RequestId></ErrorResponse>"
    )
    return text.encode()


def _element(name: str, value: Any, names: Mapping[str, str]) -> str:
    tag = names.get(name) or name[0].lower() + name[1:]
    if isinstance(value, dict):
        inner = "".join(_element(key, member, names) for key, member in value.items())
    elif isinstance(value, list):
        within = {**WIRE_NAMES, **WIRE_NAMES_WITHIN.get(tag, {})}
        inner = "".join(_item(item, within) for item in value)
    else:
        inner = "" if value is None else _escaped(scalar(value))
    return f"<{tag}>{inner}</{tag}>" if inner else f"<{tag}/>"


def _item(item: Any, names: Mapping[str, str]) -> str:
    if not isinstance(item, dict):
        return f"<item>{_escaped(scalar(item))}</item>"
    return f"<item>{''.join(_element(key, value, names) for key, value in item.items())}</item>"


def _verbatim(name: str, value: Any) -> str:
    if isinstance(value, dict):
        return f"<{name}>{''.join(_verbatim(key, inner) for key, inner in value.items())}</{name}>"
    return f"<{name}>{_escaped(scalar(value))}</{name}>"


def scalar(value: Any) -> str:
    """Write a value as EC2's Java does: ``true``, and ``1.073741824E10`` for a double."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return java_double(value) if isinstance(value, float) else str(value)


def java_double(value: float) -> str:
    """Write a finite double as ``Double.toString`` does: in scientific form from 10,000,000 on."""
    if value == 0 or 1e-3 <= abs(value) < 1e7:  # noqa: PLR2004 - the limits that Java documents
        return format(Decimal(repr(value)), "f")
    sign, digits, _ = Decimal(repr(value)).as_tuple()
    text = "".join(map(str, digits)).rstrip("0")
    exponent = Decimal(repr(value)).adjusted()
    return f"{'-' if sign else ''}{text[0]}.{text[1:] or '0'}E{exponent}"


def _escaped(text: str) -> str:
    """Escape text; a carriage return would otherwise be read as a line feed."""
    return escape(text, {"\r": "&#13;"})
