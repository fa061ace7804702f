"""Keeps secrets out of what is hashed, logged, stored or shown.

Credentials are cut out of URLs: a presigned URL's query string is one (AWS, Google and Azure alike), and so
is ``user:password@``. What is shown loses, besides, the secrets that this process was told of, by their
value wherever they stand, and fields that are secret by their name. What is hashed must not depend on the
process, so it loses the URLs' credentials alone.
"""

import math
import os
import re
import threading
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, parse_qsl, unquote, urlencode, urlsplit

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

HIDDEN = "***"
"""What stands in a secret's place."""

_SECRET_NAME = re.compile(
    r"(password|passwd|passphrase|secret|token|authorization|credentials?|cookie|signature|conninfo|dsn"
    r"|external_?id|database_?url|access_?key|secret_?key|private_?key|api_?key)$",
    re.IGNORECASE,
)
"""How names of fields end whose values are secret, in snake_case, kebab-case and camelCase."""

_SECRET_VARIABLES = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_SECURITY_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "PGPASSWORD",
)
_URL_VARIABLES = ("COLLECTOR_DATABASE_URL", "COLLECTOR_DIRECT_DATABASE_URL", "DATABASE_URL")

_SHORTEST_SECRET = 4
"""Hiding every occurrence of anything shorter would destroy ordinary text."""

_DEEPEST = 10
"""Levels of nested fields that are shown; what contains itself has no end."""

_register = threading.Lock()
_secrets: set[str] = set()
_known: re.Pattern[str] | None = None
"""Matches every secret of the register; replaced as a whole, so that readers need no lock."""


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


def keep_secret(value: str) -> None:
    """Never show this value again; for any thread, and harmless when told twice.

    A value shorter than four characters is not kept. A secret that is replaced every hour does not belong
    here: all that were ever told are looked for in every line.
    """
    global _known  # noqa: PLW0603 - a process has one register, as it has one log
    if len(value) < _SHORTEST_SECRET:
        return
    with _register:
        if value not in _secrets:
            _secrets.add(value)
            # Longest first: a secret that begins with another one goes as a whole.
            _known = re.compile("|".join(map(_spellings, sorted(_secrets, key=len, reverse=True))))


def keep_secrets_of_url(url: str) -> None:
    """Never show the passwords in a database's URL, encoded or not."""
    try:
        parts = urlsplit(url)
    except ValueError:  # whoever connects to it will say so
        return
    # A plus sign is one to libpq.
    query = parse_qs(parts.query.replace("+", "%2B"))
    for password in (
        unquote(parts.password or ""),
        *query.get("password", ()),
        *query.get("sslpassword", ()),
    ):
        keep_secret(password)


def keep_secrets_of_environment() -> None:
    """Never show the secrets that this process was given by environment variables."""
    for name in _SECRET_VARIABLES:
        keep_secret(os.environ.get(name, ""))
    for name in _URL_VARIABLES:
        keep_secrets_of_url(os.environ.get(name, ""))


def redacted(text: str) -> str:
    """Return ``text`` without the credentials of its URLs and without any secret of the register."""
    # The register first: cutting up a URL could leave half of a secret that is not properly encoded in it.
    return without_credentials(_known.sub(HIDDEN, text) if _known else text)


def redacted_field(name: str, value: Any) -> Any:
    """Return a field's value without secrets, made of what JSON has; other objects become their text.

    What is secret by its name is hidden whole, at every level.
    """
    return _shown(name, value, depth=0)


def _shown(name: str, value: Any, *, depth: int) -> Any:
    if value is not None and _SECRET_NAME.search(name.replace("-", "_")):
        return HIDDEN
    if value is None or isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if not isinstance(value, Mapping | list | tuple | set | frozenset):
        return redacted(value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value))
    if depth == _DEEPEST:
        return "…"
    if isinstance(value, Mapping):
        return {redacted(str(key)): _shown(str(key), item, depth=depth + 1) for key, item in value.items()}
    return [_shown("", item, depth=depth + 1) for item in value]


def _spellings(secret: str) -> str:
    """Return a pattern for a secret as it is, percent-encoded wholly or in part, or escaped in quotes."""
    return "".join(character if _is_plain(character) else _spelling(character) for character in secret)


def _is_plain(character: str) -> bool:
    return character.isascii() and character.isalnum()


def _spelling(character: str) -> str:
    encoded = "".join(f"%{byte:02x}" for byte in character.encode("utf-8", "surrogatepass"))
    plus = r"|\+" if character == " " else ""
    # Encoded first: a percent sign is encoded as something that begins with one.
    return rf"(?:(?i:{encoded})|\\?{re.escape(character)}{plus})"
