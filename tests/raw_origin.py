"""An origin whose every byte is a test's: a TCP server that reads requests and answers what a script says."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from cache_node.sessions.origin import WHOAMI_PATH
from tests.fakes import Gate

READY_PATH = "/health/ready"

Reply = bytes | Callable[["Peer"], Awaitable[None]]
"""Bytes to send, or what to do with the connection."""


def http(status: int, body: bytes = b"", headers: Sequence[bytes] = ()) -> bytes:
    """An answer with a length, such as Kratos gives."""
    lines = [b"HTTP/1.1 %d Whatever" % status, *headers, b"Content-Length: %d" % len(body), b"", body]
    return b"\r\n".join(lines)


OK = http(200, b"good")
REFUSED = http(401, b"refused")


class Peer:
    """One connection, seen from the server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def reset(self) -> None:
        """End it with a RST."""
        self.writer.transport.abort()

    def close(self) -> None:
        """End it with a FIN, behind what was sent."""
        self.writer.close()


class RawOrigin:
    """Records requests as they came; `replies` and `probes` say what is answered, in turn, the last one for ever.

    `by_token` comes first: what is answered to requests that hold these bytes.
    """

    def __init__(self) -> None:
        self.url = ""
        self.port = 0
        self.replies: list[Reply] = [OK]
        self.probes: list[Reply] = [http(200)]
        self.by_token: dict[bytes, Reply] = {}
        self.requests: list[bytes] = []
        self.probed = 0
        self.connections: list[Peer] = []

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[RawOrigin]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 20)
        self.port = server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        try:
            yield self
        finally:
            server.close()
            for peer in self.connections:
                peer.reset()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        self.connections.append(peer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while not writer.is_closing():
                await self._answer(peer, await _read_request(reader))
        writer.close()

    async def _answer(self, peer: Peer, request: bytes) -> None:
        is_probe = f" {READY_PATH} " in request.partition(b"\r\n")[0].decode()
        if is_probe:
            self.probed += 1
        else:
            self.requests.append(request)
        replies = self.probes if is_probe else self.replies
        reply = next((reply for token, reply in self.by_token.items() if token in request), None)
        if reply is None:
            reply = replies.pop(0) if len(replies) > 1 else replies[0]
        if isinstance(reply, bytes):
            await peer.send(reply)
        else:
            await reply(peer)


async def _read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0)
    return head + await reader.readexactly(length)


def gated(gate: Gate, reply: bytes) -> Reply:
    """Answer when the gate opens."""

    async def wait(peer: Peer) -> None:
        await gate.passed()
        await peer.send(reply)

    return wait


async def silence(_peer: Peer) -> None:
    """Never answer."""
    await asyncio.Event().wait()


WHOAMI_LINE = f"GET {WHOAMI_PATH} HTTP/1.1".encode()
