"""`/sessions/whoami` as a raw ASGI application: the one request that must be fast stands in front of the router.

Everything that is not plain (plain.py) goes to the origin for itself; this module alone writes statuses.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

import orjson

from cache_node.errors import OriginUnavailableError
from cache_node.http.credentials import ANONYMOUS, MIXED, NoCredential, extract
from cache_node.http.errors import error_body
from cache_node.http.plain import wants_of, why_not_plain
from cache_node.sessions.answer import Answer, Tier
from cache_node.sessions.credential import Credential
from cache_node.sessions.entry import Headers
from cache_node.sessions.origin import WHOAMI_PATH
from cache_node.sessions.reader import Reader

logger = logging.getLogger(__name__)

MAX_REQUEST_BODY_BYTES = 1024 * 1024
"""A body that goes on to the origin; Kratos ignores those of whoami."""
REQUEST_BODY_SECONDS = 5.0
RETRY_AFTER_SECONDS = 1

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# The shape in which herodot writes an error, up to where it puts the request's id.
_ERROR_HEAD = re.compile(rb'\{"error":\{"code":\d{3},"status":"[^"\\]*",')


class Observer(Protocol):
    """Where latency and outcomes of answers go."""

    def observe_request(self, tier: str, status: int, detail: str, seconds: float) -> None:
        """One answer: from which tier, with which status, why, and how long it took."""


class Whoami:
    """The public port's ASGI application: it answers the one path, and `otherwise` has all the rest.

    `session_cookie` is the cookie's name.
    """

    def __init__(self, reader: Reader, observer: Observer, session_cookie: str, otherwise: App) -> None:
        self._otherwise = otherwise
        self._reader = reader
        self._observer = observer
        self._session_cookie = session_cookie.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] != WHOAMI_PATH:
            await self._otherwise(scope, receive, send)
            return
        begun = time.perf_counter()
        try:
            answer = await self._answer(scope, receive)
        except asyncio.CancelledError as exc:
            answer = unavailable(exc, "origin")
        answer = _with_request_id(answer, scope["headers"])
        await _send(answer, send, is_head=scope["method"] == "HEAD")
        self._observer.observe_request(answer.tier, answer.status, answer.detail, time.perf_counter() - begun)

    async def _answer(self, scope: Scope, receive: Receive) -> Answer:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        credential = extract(headers, self._session_cookie)  # 1
        why = why_not_plain(scope["method"], headers, scope["query_string"])
        if why is not None or credential is MIXED:
            return await self._pass_on(scope, receive, why or "mixed", credential)
        try:
            if isinstance(credential, Credential):
                return await self._reader.read(credential, wants_of(headers))
            return await self._reader.read_anonymous()
        except OriginUnavailableError as exc:
            return unavailable(exc, "origin")

    async def _pass_on(self, scope: Scope, receive: Receive, why: str, credential: Credential | NoCredential) -> Answer:
        query: bytes = scope["query_string"]
        target = WHOAMI_PATH + ("?" + query.decode("latin-1") if query else "")
        headers = tuple(scope["headers"])
        try:
            body = await _read_body(receive)
            if not all(_is_utf8(value) for _name, value in headers):
                raise _Refused(400, "A header of this request is not valid UTF-8.")
            return await self._reader.pass_on(
                scope["method"],
                target,
                headers,
                body,
                why,
                credential=credential if isinstance(credential, Credential) else None,
                anonymous=credential is ANONYMOUS,
            )
        except OriginUnavailableError as exc:
            return unavailable(exc, "bypass")
        except _Refused as exc:
            headers = _JSON if exc.status == 400 else (*_JSON, (b"connection", b"close"))  # the body's rest is not read
            return Answer(exc.status, headers, error_body(exc.status, exc.message), "bypass", "refused")


class _Refused(Exception):
    """The request itself cannot be passed on."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


_JSON: Headers = ((b"content-type", b"application/json"),)


async def _read_body(receive: Receive) -> bytes:
    chunks = []
    size = 0
    more = True
    try:
        async with asyncio.timeout(REQUEST_BODY_SECONDS):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _Refused(400, "The request ended before its body did.")
                chunks.append(message.get("body", b""))
                size += len(chunks[-1])
                if size > MAX_REQUEST_BODY_BYTES:
                    raise _Refused(413, f"The body is larger than {MAX_REQUEST_BODY_BYTES} bytes.")
                more = message.get("more_body", False)
    except TimeoutError:
        raise _Refused(408, f"The body did not arrive within {REQUEST_BODY_SECONDS:g} s.") from None
    return b"".join(chunks)


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def unavailable(exc: OriginUnavailableError | asyncio.CancelledError, tier: Tier) -> Answer:
    """The node's own 503; a read is cancelled when the server ends and has waited long enough."""
    if isinstance(exc, asyncio.CancelledError):
        exc = OriginUnavailableError("timeout", "the node ends")
    logger.debug("no answer: %s", exc)
    headers: Headers = (*_JSON, (b"retry-after", str(RETRY_AFTER_SECONDS).encode()))
    body = error_body(503, "The session could not be checked just now. Please try again.")
    return Answer(503, headers, body, tier, exc.cause)


def _with_request_id(answer: Answer, headers: list[tuple[bytes, bytes]]) -> Answer:
    """Kratos repeats `X-Request-ID` in the body of these errors; a fill and a stored answer know none."""
    if answer.tier == "bypass" or answer.status not in (400, 401, 500):
        return answer
    request_id = next((value.strip(b" \t") for name, value in headers if name == b"x-request-id"), b"")
    head = _ERROR_HEAD.match(answer.body)
    if not request_id or head is None or not _is_utf8(request_id):
        return answer
    quoted = orjson.dumps(request_id.decode())
    for character in "<>&\u2028\u2029":  # as Go's encoder writes them
        quoted = quoted.replace(character.encode(), b"\\u%04x" % ord(character))
    body = answer.body[: head.end()] + b'"request":' + quoted + b"," + answer.body[head.end() :]
    return Answer(answer.status, answer.headers, body, answer.tier, answer.detail, answer.age_seconds)


_HITS = {"memory": "hit", "redis": "hit", "negative": "hit", "stale": "fwd=stale", "bypass": "fwd=bypass"}
_FORWARD_REASONS = {
    "cold": "miss",
    "anonymous": "miss",
    "expired": "stale",
    "ttl": "stale",
    "fenced": "stale",
    "no-lease": "stale",
    "no-cache": "request",
    "max-age": "request",
    "min-position": "request",
}


@functools.lru_cache(64)
def cache_status(tier: Tier, detail: str) -> bytes:
    """RFC 9211: which tier answered or why none did."""
    how = _HITS.get(tier) or "fwd=" + _FORWARD_REASONS.get(detail, "miss")
    return f"cache-node; {how}; detail={detail}".encode()


def headers_of(answer: Answer, *, is_head: bool = False) -> list[tuple[bytes, bytes]]:
    """The answer's headers as they go to the client, in order."""
    headers = [
        *answer.headers,
        (b"cache-status", cache_status(answer.tier, answer.detail)),
        (b"age", str(int(answer.age_seconds)).encode()),
    ]
    # A HEAD that went to the origin for itself has the length that the origin told, if any; these have none.
    if (answer.body or not is_head) and answer.status not in (204, 304):
        headers.append((b"content-length", str(len(answer.body)).encode()))
    return headers


async def _send(answer: Answer, send: Send, *, is_head: bool) -> None:
    headers = headers_of(answer, is_head=is_head)
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})
