"""A TCP proxy of our own: cuts, holds and delays the link between a real client and a real server."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit


class Proxy:
    """Forwards 127.0.0.1:`port` to the server of `target_url`, in the current event loop.

    `hold_replies()` keeps back what the server says until `release_replies()`; `cut()` resets all connections and all
    new ones until `mend()`, `refuse()` resets them and lets nobody connect until `listen()`; `delay_seconds` is added
    to every piece, of at most `piece_bytes`, in both directions; with `resets_replies` each is broken off half-way.
    """

    def __init__(self, target_url: str, delay_seconds: float = 0.0) -> None:
        target = urlsplit(target_url)
        self._target = (target.hostname or "127.0.0.1", target.port or 80)
        self._scheme = target.scheme
        self.delay_seconds = delay_seconds
        self.piece_bytes = 65536
        self.resets_replies = False
        self._replies = asyncio.Event()
        self._replies.set()
        self._is_cut = False
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0
        self.connections = 0
        self.held = asyncio.Event()
        """Set when a reply has arrived and is being held."""

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release_replies()
        self.refuse()

    async def listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def refuse(self) -> None:
        if self._server is not None:
            self._server.close()
        self._abort()

    def hold_replies(self) -> None:
        self.held.clear()
        self._replies.clear()

    def release_replies(self) -> None:
        self._replies.set()

    def cut(self) -> None:
        self._is_cut = True
        self._abort()

    def mend(self) -> None:
        self._is_cut = False

    def _abort(self) -> None:
        for writer in list(self._writers):
            _reset(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self._is_cut:
            _reset(writer)
            return
        try:
            server_reader, server_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        ends = {writer, server_writer}
        self._writers |= ends
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, server_writer, is_reply=False))
                group.create_task(self._pump(server_reader, writer, is_reply=True))
        finally:
            self._writers -= ends
            for end in ends:
                end.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_reply: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                for start in range(0, len(data), self.piece_bytes):
                    piece = data[start : start + self.piece_bytes]
                    if self.delay_seconds:
                        await asyncio.sleep(self.delay_seconds)
                    if is_reply and not self._replies.is_set():
                        self.held.set()
                        await self._replies.wait()
                    if is_reply and self.resets_replies:
                        writer.write(piece[: len(piece) // 2])
                        await writer.drain()
                        _reset(writer)
                        return
                    writer.write(piece)
                    await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    """End the connection with a RST, as a machine or a firewall does that knows nothing of it."""
    with contextlib.suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
