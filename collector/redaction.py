"""Cuts credentials out of URLs, before anything is hashed, logged or stored.

A presigned URL's query string is a credential (AWS, Google and Azure alike), and so is ``user:password@``.
"""

import re
from urllib.parse import parse_qsl, urlencode

# Looking for the scheme, too, would take quadratic time in a long run of letters.
_URL = re.compile(r"(?<=://)[^\s\"'<>]+")

_USER = re.compile(r"(?<=://)[^\s\"'<>/]*@")
"""User name and password, also of a URL within a URL, as a proxy has it."""

_SIGNATURE = re.compile(
    r"(^|&)(x-amz-[\w-]+|x-goog-[\w-]+|awsaccesskeyid|googleaccessid|signature|sig|\w*token|\w*secret|password)=",
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
    return _URL.sub(lambda match: _clean(match[0], strict=strict), _USER.sub("", text))


def _clean(rest: str, *, strict: bool) -> str:
    location, mark, query = rest.partition("?")
    if strict:
        location = location.partition("#")[0]
    if not mark:
        return location
    if not strict and not _SIGNATURE.search(query):
        return location + mark + query
    kept = [(key, value) for key, value in parse_qsl(query) if key.lower() in _HARMLESS]
    return location + (mark + urlencode(kept) if kept else "")
