"""Who may use the admin port: the holder of its token, or without one whoever is on this machine and no web page.

A web page of anywhere can make a browser on this machine send requests to a loopback port: with an `Origin` header
(forged requests), or under a name that the page's owner made to point here (DNS rebinding).  Neither gets in.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Sequence

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from cache_node.config import is_loopback
from cache_node.ops.answers import error_answer

_BEARER = re.compile(rb"bearer +([\x21-\x7e]+)", re.IGNORECASE)
_HOST = re.compile(r"(?:\[(?P<ipv6>[0-9a-fA-F:.]+)\]|(?P<name>[^\[\]:]+))(?::[0-9]{1,5})?")

_Headers = Sequence[tuple[bytes, bytes]]


class Gate:
    """ASGI: lets through to `app` who presents `token`, or with None every request that no web page caused."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app = app
        self._token = None if token is None else token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: _Headers = scope["headers"]
        refusal = _without_token(headers) if self._token is None else _with_token(headers, self._token)
        await (self._app if refusal is None else refusal)(scope, receive, send)


def is_loopback_host(host: str) -> bool:
    """Whether a `Host` header names this machine in a way that no DNS server can give to another meaning."""
    match = _HOST.fullmatch(host)
    return match is not None and is_loopback(match["ipv6"] or match["name"])


def _with_token(headers: _Headers, token: bytes) -> Response | None:
    presented = _values(headers, b"authorization")
    match = _BEARER.fullmatch(presented[0]) if len(presented) == 1 else None
    if match is not None and hmac.compare_digest(match[1], token):
        return None
    return error_answer(401, "the admin port's bearer token is needed", {"WWW-Authenticate": "Bearer"})


def _without_token(headers: _Headers) -> Response | None:
    if _values(headers, b"origin"):
        return error_answer(403, "a web page may not use the admin port: set a token, or send no Origin")
    hosts = _values(headers, b"host")
    if len(hosts) != 1 or not is_loopback_host(hosts[0].decode("latin-1")):
        return error_answer(403, "without a token the admin port is used as 127.0.0.1, [::1] or localhost only")
    return None


def _values(headers: _Headers, wanted: bytes) -> list[bytes]:
    return [value for name, value in headers if name == wanted]
