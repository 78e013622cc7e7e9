"""The session cookie of the demo origin: Kratos' format, which gorilla/securecookie defines, without its encryption.

The value is `base64url("unixdate|payload|HMAC-SHA256")`.  Kratos puts the encrypted session token into the payload;
here the payload is random and the token stays in memory.  The mint date is readable in both.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from cache_node.demo.api import COOKIE_NAME

_MAX_BYTES = 4096
_PAYLOAD_BYTES = 207  # makes the value as long as Kratos'
_ALPHABET = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


class CookieError(Exception):
    """A value is no valid session cookie; the text is what securecookie says, and Kratos passes it on in a 500."""


@dataclass(frozen=True, slots=True)
class CookieContent:
    """What a cookie stands for: the session token, and the session's expiry when it was minted, in nanoseconds."""

    session_token: str
    expires_at: int


class SessionCookies:
    """Mints and reads session cookies; a value older than `lifespan_seconds` is expired, whatever its session says."""

    def __init__(self, lifespan_seconds: int) -> None:
        self._lifespan_seconds = lifespan_seconds
        self._secret = secrets.token_bytes(32)
        self._contents: dict[bytes, CookieContent] = {}

    def mint(self, content: CookieContent) -> str:
        """A new value for `content`; no two are equal."""
        payload = base64.urlsafe_b64encode(secrets.token_bytes(_PAYLOAD_BYTES))
        self._contents[payload] = content
        signed = b"%d|%s" % (int(time.time()), payload)
        return base64.urlsafe_b64encode(signed + b"|" + self._mac(signed)).decode()

    def read(self, value: str) -> CookieContent:
        """What `value` stands for; CookieError, with the checks in the order of securecookie."""
        if len(value) > _MAX_BYTES:
            raise CookieError("securecookie: the value is too long")
        parts = _decoded(value.encode()).split(b"|", 2)
        if len(parts) != 3 or not hmac.compare_digest(parts[2], self._mac(b"|".join(parts[:2]))):
            raise CookieError("securecookie: the value is not valid")
        if int(parts[0]) < time.time() - self._lifespan_seconds:
            raise CookieError("securecookie: expired timestamp")
        return self._contents[parts[1]]

    def find(self, cookie_headers: Iterable[str]) -> CookieContent | None:
        """The first session cookie that can be read, None when there is none at all, CookieError when none can be."""
        error: CookieError | None = None
        for value in _values(cookie_headers):
            try:
                return self.read(value)
            except CookieError as unreadable:
                error = unreadable
        if error is not None:
            raise error
        return None

    def _mac(self, signed: bytes) -> bytes:
        return hmac.digest(self._secret, f"{COOKIE_NAME}|".encode() + signed, hashlib.sha256)


def _values(cookie_headers: Iterable[str]) -> Iterator[str]:
    """The values of all session cookies as Go's net/http reads them: quotes stripped, odd characters refused."""
    for header in cookie_headers:
        for pair in header.split(";"):
            name, _, value = pair.strip(" \t").partition("=")
            if name != COOKIE_NAME:
                continue
            if len(value) > 1 and value[0] == value[-1] == '"':
                value = value[1:-1]
            if all(" " <= character < "\x7f" and character not in '";\\' for character in value):
                yield value


def _decoded(value: bytes) -> bytes:
    """Decode padded base64url; the error names the byte that Go's decoder names."""
    bad = next((place for place, byte in enumerate(value.rstrip(b"=")) if byte not in _ALPHABET), None)
    if bad is None and len(value) % 4:
        bad = len(value) - len(value) % 4  # the quantum that is not complete
    if bad is not None:
        raise CookieError(f"securecookie: base64 decode failed - caused by: illegal base64 data at input byte {bad}")
    return base64.urlsafe_b64decode(value)
