"""The protocol over a scripted transport, on a real event loop whose clock is set by hand."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import TypeVarTuple

from uvicorn.config import Config
from uvicorn.server import ServerState

from cache_node.http.fast_lane import FastLane
from cache_node.http.protocol import KEEP_ALIVE_SECONDS, LimitedHttpToolsProtocol

App = Callable[..., Awaitable[None]]
Ts = TypeVarTuple("Ts")


class ManualLoop(asyncio.SelectorEventLoop):
    """A real loop whose time stands still unless `advance` moves it; it never waits."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.delays: list[float] = []

    def time(self) -> float:
        return self.now

    def call_later(
        self, delay: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        self.delays.append(delay)
        return super().call_later(delay, callback, *args, context=context)

    def settle(self) -> None:
        """Runs all that can run now."""
        self.run_until_complete(asyncio.sleep(0))
        while getattr(self, "_ready"):  # noqa: B009  (mypy does not know it)
            self.run_until_complete(asyncio.sleep(0))

    def advance(self, seconds: float) -> None:
        self.now += seconds
        self.settle()


def request(*lines: str, line: str = "GET /sessions/whoami HTTP/1.1", body: bytes = b"") -> bytes:
    """A request with these headers, and a Host."""
    return "\r\n".join([line, "Host: node", *lines, "", ""]).encode("latin-1") + body


class ScriptedTransport(asyncio.Transport):
    """Records what is written; like a socket's, it tells the protocol later that it is closed."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.loop = loop
        self.protocol: asyncio.Protocol
        self.written = b""
        self.eof_written = False
        self.closed = False
        self.reading = True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.eof_written, f"written behind the end: {bytes(data)!r}"
        if not self.closed:
            self.written += bytes(data)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.eof_written = True

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.loop.call_soon(self.protocol.connection_lost, None)

    def abort(self) -> None:
        self.close()

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


def config_of(app: App) -> Config:
    """A server's, of this application."""
    config = Config(
        app,
        ws="none",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )
    config.load()
    return config


def connect(
    transport: ScriptedTransport, config: Config, state: ServerState, lane: FastLane | None
) -> LimitedHttpToolsProtocol:
    """The protocol at the other end, as a server has it for each connection."""
    protocol = LimitedHttpToolsProtocol(config, state, {}, transport.loop, lane)
    transport.protocol = protocol
    protocol.connection_made(transport)
    return protocol


class Connection:
    """One protocol instance and what its client sees."""

    def __init__(self, loop: ManualLoop, app: App, lane: FastLane | None = None) -> None:
        self.loop = loop
        self.state = ServerState()
        self.kernel: deque[bytes] = deque()  # sent, and not read yet
        self.transport = ScriptedTransport(loop)
        self.protocol = connect(self.transport, config_of(app), self.state, lane)

    def send(self, *reads: bytes) -> bytes:
        """Delivers `reads` one by one while the protocol reads; returns all it has written since the last call."""
        self.kernel.extend(data for data in reads if data)
        self.loop.settle()
        while self.kernel and self.transport.reading and not self.transport.closed:
            self.loop.call_soon(self.protocol.data_received, self.kernel.popleft())
            self.loop.settle()
        written, self.transport.written = self.transport.written, b""
        return written

    def is_ended(self) -> bool:
        """Whether the client sees the end of the stream."""
        return self.transport.closed or self.transport.eof_written

    def is_closed(self) -> bool:
        return self.transport.closed

    def is_reading(self) -> bool:
        return self.transport.reading
