"""Runs one ASGI application on one listening socket of the running event loop, with uvicorn's protocol and our limits.

Any number of servers live in one process.  Signals, logging and the application's own start and end belong to others.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from typing import Any, Final

from uvicorn.config import Config
from uvicorn.server import ServerState

from cache_node.errors import CacheNodeError
from cache_node.http.fast_lane import FastLane
from cache_node.http.protocol import KEEP_ALIVE_SECONDS, LimitedHttpToolsProtocol

BACKLOG: Final = 2048
"""Connections that the kernel holds until they are accepted."""
ACCEPTED_AT_ONCE: Final = 32
"""The socket is given to uvloop so many times, which accepts one connection of each in a turn of the loop.

With once, newcomers wait for a turn each, behind all who are busy [the last of 1,000: up to a second].
"""
DRAIN_SECONDS: Final = 10.0
"""How long requests under way may take once a server drains."""

# What clients had sent when the drain began is read within this; then connections without a request end.
_GRACE_SECONDS = 0.05
_DRAIN_POLL_SECONDS = 0.01
_DATE_SECONDS = 1.0
# An application that is cancelled may still say why.
_LAST_WORD_SECONDS = 0.25

_log = logging.getLogger("cache_node.http")


def bind(host: str, port: int) -> socket.socket:
    """A listening TCP socket (port 0 picks a free one); the caller owns it.

    Connections queue from now on, until a server starts on it.  Raises CacheNodeError with one line that names the
    address: in use, not permitted, no such address.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return _listen(socket.socket(family, kind, protocol), address)
    except OSError as error:
        # Not the error's own text: asked for a name that does not exist, it is about getaddrinfo.
        reason = "no such host" if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0).lower()
        raise CacheNodeError(f"cannot listen on {_written(host, port)}: {reason}") from error


def address_of(sock: socket.socket) -> str:
    """`host:port` of a bound socket, an IPv6 host in brackets: the port is the true one where 0 was asked for."""
    return _written(*sock.getsockname()[:2])


class HttpServer:
    """One application on one socket, from `start` to `drain`; it owns the socket.

    `app` is an ASGI 3 application (no lifespan, no WebSocket).  `drain_seconds` bounds `drain`.
    """

    def __init__(
        self,
        app: Callable[..., Awaitable[None]],
        sock: socket.socket,
        *,
        lane: FastLane | None = None,
        drain_seconds: float = DRAIN_SECONDS,
    ) -> None:
        self.address = address_of(sock)
        self._sock = sock
        self._lane = lane
        self._drain_seconds = drain_seconds
        self._config = _config(app)
        self._state = ServerState()
        self._servers: list[asyncio.AbstractServer] = []
        self._date_timer: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Accepts connections from now on."""
        loop = asyncio.get_running_loop()
        self._config.load()
        self._renew_date(loop)

        def connection() -> LimitedHttpToolsProtocol:
            return LimitedHttpToolsProtocol(self._config, self._state, {}, loop, self._lane)

        for sock in (self._sock, *(self._sock.dup() for _ in range(ACCEPTED_AT_ONCE - 1))):
            self._servers.append(await loop.create_server(connection, sock=sock, backlog=BACKLOG))

    @property
    def under_way(self) -> set[asyncio.Task[None]]:
        """What requests wait for that are not answered yet."""
        return set(self._state.tasks)

    async def drain(self, within_seconds: float | None = None) -> None:
        """Ends: no new connections, requests under way are answered, and after `drain_seconds` (or so much) cut off.

        Returns when no connection and no request is left.  A server that has not started just closes its socket.
        """
        if not self._servers:
            self._sock.close()
            return
        for server in self._servers:
            server.close()
        await asyncio.sleep(_GRACE_SECONDS)
        try:
            async with asyncio.timeout(self._drain_seconds if within_seconds is None else within_seconds):
                await self._let_finish()
        except TimeoutError:
            await self._cut_off()
        finally:
            if self._date_timer is not None:
                self._date_timer.cancel()

    def _renew_date(self, loop: asyncio.AbstractEventLoop) -> None:
        self._state.default_headers = [(b"date", formatdate(usegmt=True).encode())]
        self._date_timer = loop.call_later(_DATE_SECONDS, self._renew_date, loop)

    async def _let_finish(self, *, cut_off: bool = False) -> None:
        cancelled: set[asyncio.Task[None]] = set()
        while self._state.connections or self._state.tasks:
            # Once each, or what it says instead would be cut off too; a pipelined request begins when another ends.
            for task in (set(self._state.tasks) - cancelled) if cut_off else ():
                task.cancel()
                cancelled.add(task)
            for connection in list(self._state.connections):
                connection.shutdown()  # at once, or behind the answer that is due; new requests may still come in
            await asyncio.sleep(_DRAIN_POLL_SECONDS)

    async def _cut_off(self) -> None:
        _log.warning(
            "cut off %d requests that were under way for %g s after the end began",
            len(self._state.tasks),
            self._drain_seconds,
        )
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORD_SECONDS):
                await self._let_finish(cut_off=True)
        for connection in list(self._state.connections):
            connection.transport.abort()
        if self._state.tasks:
            for task in self._state.tasks:
                task.cancel()
            await asyncio.wait(self._state.tasks, timeout=_LAST_WORD_SECONDS)


def _config(app: Callable[..., Awaitable[None]]) -> Config:
    return Config(
        app,
        http=LimitedHttpToolsProtocol,
        ws="none",
        lifespan="off",
        interface="asgi3",
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=True,
        proxy_headers=False,  # nothing here trusts or changes X-Forwarded-*
        workers=1,  # or uvicorn reads WEB_CONCURRENCY
    )


def _written(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _listen(sock: socket.socket, address: Any) -> socket.socket:
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)  # only this tells that another one listens there
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock
