"""AWS's JSON protocol 1.1 of Organizations and CloudTrail: an object in, an object out. Knows no action."""

import json
from collections.abc import Mapping
from typing import Any

from collector.simulator.protocol import ApiError

CONTENT_TYPE = "application/x-amz-json-1.1"


def read_json(body: str, target: str) -> tuple[str, dict[str, Any]]:
    """Read a request: the action, which stands behind the service in ``X-Amz-Target``, and its parameters."""
    try:
        members = json.loads(body)
    except ValueError as error:
        raise ApiError("SerializationException", f"The body is not JSON: {error}") from error
    if not isinstance(members, dict):
        raise ApiError("SerializationException", "The body is not a JSON object")
    return target.rpartition(".")[2], members


def json_answer(_action: str, result: Mapping[str, Any], _request_id: str) -> bytes:
    """Write a result; action and request id are not part of the body."""
    return json.dumps(result).encode()


def json_error(error: ApiError, _request_id: str) -> bytes:
    """Write an error."""
    return json.dumps({"__type": error.code, "Message": error.message}).encode()
