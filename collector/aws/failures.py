"""What went wrong with AWS, as a code and a sentence that are safe to log and store.

A ``ResponseParserError`` carries the whole body in its message, and any message may quote a URL, so nothing
of botocore's passes unread.
"""

from typing import Final

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
)
from botocore.parsers import ResponseParserError

from collector.aws.deadline import DeadlineExceededError
from collector.aws.transform import storable
from collector.errors import MalformedTaskError
from collector.redaction import redacted

_LONGEST_MESSAGE = 500

_TRANSIENT_CODES: Final = frozenset(
    {
        "InternalError",
        "InternalFailure",
        "RequestLimitExceeded",
        "RequestThrottled",
        "ServiceUnavailable",
        "Throttling",
        "ThrottlingException",
        "Unavailable",
    }
)
_BROKEN_LISTING_CODES: Final = frozenset({"InvalidNextToken", "InvalidNextTokenException", "RequestExpired"})
_SERVER_ERROR = 500


class UnusableAnswerError(Exception):
    """EC2's answer is not one: the listing must be read anew. The text says what is wrong with it."""

    code = "UnusableAnswer"


class EndlessListingError(Exception):
    """The pages of a listing have no end."""

    code = "EndlessListing"


def code_of(error: BaseException) -> str:
    """Return AWS's error code, or a name of ours for what is not AWS's error."""
    if isinstance(error, ClientError):
        return storable(str(error.response.get("Error", {}).get("Code", ""))) or "Unknown"
    if isinstance(error, DeadlineExceededError):
        return "DeadlineExceeded"
    if isinstance(error, ResponseParserError):
        return UnusableAnswerError.code
    if isinstance(error, UnusableAnswerError | EndlessListingError):
        return error.code
    return type(error).__name__.removesuffix("Error")


def message_of(error: BaseException) -> str:
    """Return a sentence for people, without credentials and without bodies."""
    match error:
        case ClientError():
            text = str(error.response.get("Error", {}).get("Message") or "no message")
        case ResponseParserError():
            text = "the answer is not EC2's XML; a proxy in between, or a connection cut short?"
        case DeadlineExceededError():
            text = "the time for this look was over (target_deadline)"
        case NoCredentialsError() | PartialCredentialsError():
            text = "no AWS credentials were found; configure them as for the AWS CLI"
        case UnusableAnswerError() | EndlessListingError() | MalformedTaskError() | BotoCoreError():
            text = str(error)
        case _:
            text = f"unexpected: {error}"
    text = redacted(storable(" ".join(text.split())) or "no message")
    return text if len(text) <= _LONGEST_MESSAGE else text[:_LONGEST_MESSAGE] + "…"


def is_transient(error: BaseException) -> bool:
    """Whether the same request may well succeed a moment later."""
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return status >= _SERVER_ERROR or code_of(error) in _TRANSIENT_CODES
    return isinstance(error, HTTPClientError | EndpointConnectionError | ConnectTimeoutError)


def breaks_listing(error: BaseException) -> bool:
    """Whether the listing must be read from its first page again."""
    if isinstance(error, ClientError):
        return code_of(error) in _BROKEN_LISTING_CODES
    return isinstance(error, ResponseParserError | UnusableAnswerError)
