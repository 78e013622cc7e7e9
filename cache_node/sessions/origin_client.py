"""HTTP to one origin: requests are written as they are given, answers are read whole, connections are kept.

Of aiohttp this uses the connector (pool, names, TLS), the protocol and the parser.  Its ClientSession would cost as
much again, and adds, follows and remembers what must not be here: headers, redirects, cookies, proxies, passwords.

What is relied on beyond its documented interface is named in test_origin_client.py::test_aiohttp_internals.
"""

from __future__ import annotations

import asyncio
import functools
import re
import select
from typing import Any, cast

import aiohttp
from aiohttp.client_proto import ResponseHandler
from yarl import URL

from cache_node.sessions.entry import Headers

MAX_ANSWER_BYTES = 8 * 1024 * 1024
"""A body above this is garbage, whatever its length says."""
MAX_LINE_BYTES = 64 * 1024
MOST_INTERIM = 16
"""1xx answers in a row; there is hardly ever one."""
IDLE_SECONDS = 60.0
"""Kratos closes idle connections after 120 s; ours are closed first."""
CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
"""What no line of a message may hold."""

_TOKEN = re.compile(r"[-!#$%&'*+.^_`|~0-9A-Za-z]+")
_BODILESS = ("GET", "HEAD", "OPTIONS", "TRACE")  # whose length is told only if there is one
_IDEMPOTENT = (*_BODILESS, "PUT", "DELETE")
_NO_TIMEOUT = aiohttp.ClientTimeout(total=None)


class OriginClient:
    """Owns its connections; made in the event loop that it serves.  Deadlines and numbers at once are the caller's.

    Raises ValueError for a URL that is none.
    """

    def __init__(self, base_url: str) -> None:
        self._base = base_url
        # Tells the connector where to, and holds nothing of any request.
        self._peer = aiohttp.ClientRequest("GET", URL(base_url, encoded=True))
        self._host = b"Host: " + self._peer.headers["Host"].encode()
        # Probes must get through when all reads wait, so the limit is the caller's and not the connector's.
        self._connector = _Connector(limit=0, keepalive_timeout=IDLE_SECONDS)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._connector.close()

    async def request(self, method: str, target: str, headers: Headers, body: bytes) -> tuple[int, Headers, bytes]:
        """Status, headers and body of the answer to these headers behind `Host`; the body's length is added.

        What is idempotent is sent once more if its connection ended without an answer: it may have been closed when it
        was idle.  Raises aiohttp's errors, and ValueError for what may not be sent or has no end.
        """
        request = self._head(method, target, headers, len(body)) + body
        try:
            return await self._exchange(method, request)
        except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as exc:
            if method not in _IDEMPOTENT or isinstance(exc, aiohttp.ClientConnectorError):
                raise
        return await self._exchange(method, request)

    def _head(self, method: str, target: str, headers: Headers, length: int) -> bytes:
        path = URL(self._base + target, encoded=True).raw_path_qs
        lines = [f"{method} {path} HTTP/1.1".encode(), self._host, *(b"%b: %b" % header for header in headers)]
        if length or method not in _BODILESS:
            lines.append(b"Content-Length: %d" % length)
        if not _TOKEN.fullmatch(method) or CONTROL.search(b"".join(lines)):
            raise ValueError("the request's head holds characters that would break it")
        return b"\r\n".join((*lines, b"", b""))

    async def _exchange(self, method: str, request: bytes) -> tuple[int, Headers, bytes]:
        connection = await self._connector.connect(self._peer, [], _NO_TIMEOUT)
        try:
            protocol = cast(_Handler, connection.protocol)  # which is there until it is released
            protocol.set_response_params(
                skip_payload=method == "HEAD",
                read_until_eof=True,
                auto_decompress=False,
                max_line_size=MAX_LINE_BYTES,
                max_field_size=MAX_LINE_BYTES,
            )
            if not protocol.is_connected():
                raise aiohttp.ClientConnectionResetError("the connection ended before it was used")
            cast(asyncio.Transport, protocol.transport).write(request)
            message, payload = await protocol.read()
            body = await _read_bounded(payload)
            # A body that an origin sends where none belongs must not be taken for the next answer, nor what it has not
            # read of this request for the next one.
            if body and not protocol.writing_paused:
                connection.release()
            return message.code, message.raw_headers, body
        finally:
            connection.close()  # unless it was released


async def _read_bounded(payload: aiohttp.StreamReader) -> bytes:
    chunks = []
    size = 0
    while not payload.at_eof():
        chunks.append(await payload.readany())
        size += len(chunks[-1])
        if size > MAX_ANSWER_BYTES:
            raise ValueError("the origin's answer has no end")
    return b"".join(chunks)


class _Handler(ResponseHandler):
    """Drops interim answers (1xx), and a connection that brings no end of them.

    aiohttp would go through all that have arrived without giving way [a memory hit waited 9 s beside one such read].
    """

    _interim = 0

    def feed_data(self, data: Any, size: int = 0) -> None:
        if not 100 <= data[0].code <= 199 or data[0].code == 101:
            self._interim = 0
            super().feed_data(data, size)
            return
        self._interim += 1
        if self._interim > MOST_INTERIM and self.transport is not None:
            self.transport.abort()


class _Connector(aiohttp.TCPConnector):
    """Reuses no connection on which something has arrived since its last answer.

    aiohttp would take that for the answer to the next request: one client's session for another's credential.  Causes
    are answers longer than they say, and the 408 that some proxies send before they close an idle connection.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._factory = functools.partial(_Handler, loop=self._loop)  # type: ignore[assignment]  # a subclass

    async def _get(self, key: Any, traces: Any) -> Any:
        while (connection := await super()._get(key, traces)) is not None:
            if not _has_unread(connection.protocol):
                break
            connection.close()
        return connection


def _has_unread(protocol: Any) -> bool:
    unread = select.poll()
    unread.register(protocol.transport.get_extra_info("socket"), select.POLLIN)
    return protocol.should_close or bool(unread.poll(0))
