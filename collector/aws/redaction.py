"""Cuts credentials out of URLs, before anything is hashed, logged or stored.

A presigned URL's query string is a credential (AWS, Google and Azure alike), and so is ``user:password@``.
"""

import re
from urllib.parse import parse_qsl, urlencode

_URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*://)(?P<rest>[^\s\"'<>]*)", re.IGNORECASE)

_SIGNATURE = re.compile(
    r"(^|&)(x-amz-\w+|x-goog-\w+|awsaccesskeyid|googleaccessid|signature|sig|\w*token|\w*secret|password)=",
    re.IGNORECASE,
)
"""Query parameters that show a query string to be a credential."""

_HARMLESS = frozenset({"versionid"})
"""Query parameters that name the object and open nothing; they stay."""


def without_credentials(text: str, *, strict: bool = False) -> str:
    """Return ``text`` with the credentials of every URL in it removed.

    User names and passwords before the host always go. A query string goes when it holds a signature, or,
    when ``strict`` (for members that are URLs by contract), whatever it holds; the object's version stays.
    """
    if "://" not in text:
        return text
    return _URL.sub(lambda match: match["scheme"] + _clean(match["rest"], strict=strict), text)


def _clean(rest: str, *, strict: bool) -> str:
    authority, slash, path = rest.partition("/")
    location = authority.rpartition("@")[2] + slash + path
    location, mark, query = location.partition("?")
    if not mark:
        return location.partition("#")[0] if strict else location
    if not strict and not _SIGNATURE.search(query):
        return location + mark + query
    kept = [(key, value) for key, value in parse_qsl(query) if key.lower() in _HARMLESS]
    return location + (mark + urlencode(kept) if kept else "")
