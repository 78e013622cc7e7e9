"""Finds the credential of a request exactly as Kratos does, or says that only the origin can.

Kratos takes `X-Session-Token`, else the session cookie, else the bearer token, with fall-backs that depend on whether
a cookie can be decoded.  So exactly one credential, presented once and in a plain form, is ours to answer; whatever
else a request presents is mixed.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from typing import Final

from cache_node.sessions.credential import Credential

# Longer ones are refused by securecookie, and no token comes near.
_TOKEN = re.compile(rb"[\x21-\x7e]{1,4096}")
# RFC 6265's cookie-octets; Go also takes spaces and commas, and skips a cookie with any other byte.
_COOKIE_VALUE = re.compile(rb"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]{1,4096}")
# Go's net/http sees no cookie at all when there are more than 3,000.
_MOST_COOKIES = 1000
GO_SPACE = b" \t\r\n"
"""What Go's net/http trims from a cookie's name and value."""


class NoCredential(enum.Enum):
    """Why a request has no credential that entries could be kept for."""

    ANONYMOUS = "anonymous"
    """It presents none: Kratos would give the anonymous 401."""
    MIXED = "mixed"
    """It presents several, one of them twice, or an odd one: it goes to the origin for itself."""


ANONYMOUS: Final = NoCredential.ANONYMOUS
MIXED: Final = NoCredential.MIXED


def extract(headers: Iterable[tuple[bytes, bytes]], session_cookie: bytes) -> Credential | NoCredential:
    """The single credential among `headers` (ASGI's: lower-case names, values as received), ANONYMOUS or MIXED.

    `session_cookie` is the configured cookie name; it is case-sensitive.
    """
    tokens: list[bytes] = []
    authorizations: list[bytes] = []
    cookie_lines: list[bytes] = []
    for name, value in headers:
        if name == b"x-session-token":
            tokens.append(value)
        elif name == b"authorization":
            authorizations.append(value)
        elif name == b"cookie":
            cookie_lines.append(value)
        elif name == b"x-session-cookie":  # older versions of Kratos put it before the cookie
            return MIXED
    if len(tokens) > 1 or len(authorizations) > 1:
        return MIXED
    token = tokens[0].strip(b" \t") if tokens else b""
    bearer = _bearer_token(authorizations[0]) if authorizations else b""
    if not cookie_lines:
        return MIXED if token and bearer else _token_credential(token or bearer, bearer=bool(bearer))
    return _beside_cookies(token, bearer, cookie_lines, session_cookie)


def _beside_cookies(
    token: bytes, bearer: bytes, cookie_lines: list[bytes], session_cookie: bytes
) -> Credential | NoCredential:
    pairs = [pair for line in cookie_lines for pair in line.split(b";")]
    values = _values_of(session_cookie, pairs)
    if bool(token) + bool(bearer) + len(values) > 1:
        return MIXED
    if not values:
        return _token_credential(token or bearer, bearer=bool(bearer))
    if len(pairs) > _MOST_COOKIES or not _COOKIE_VALUE.fullmatch(values[0]):
        return MIXED
    return Credential("cookie", values[0], cookie_name=session_cookie.decode("latin-1"))


def _token_credential(token: bytes, *, bearer: bool) -> Credential | NoCredential:
    if not token:
        return ANONYMOUS
    return Credential("token", token, bearer=bearer) if _TOKEN.fullmatch(token) else MIXED


def _bearer_token(authorization: bytes) -> bytes:
    # Kratos splits at every single space: two of them make three parts, and that is no credential.
    parts = authorization.strip(b" \t").split(b" ")
    return parts[1] if len(parts) == 2 and parts[0].lower() == b"bearer" else b""


def _values_of(session_cookie: bytes, pairs: list[bytes]) -> list[bytes]:
    # As Go's net/http readCookies, except that values it would skip are kept: they make the request mixed.
    values = []
    for pair in pairs:
        name, _, value = pair.strip(GO_SPACE).partition(b"=")
        if name.strip(GO_SPACE) == session_cookie:
            quoted = len(value) > 1 and value[0] == value[-1] == ord('"')
            values.append(value[1:-1] if quoted else value)
    return values
