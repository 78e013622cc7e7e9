"""A wire to a scripted server: whatever it says or does not say, no reply is ever another command's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, RedisError, ResponseError

from cache_node.feed.redis_client import Wire
from tests.waiting import eventually

GET = ("GET", "key")


class Server:
    """Says what a test tells it to, on the connections that it has, in their order."""

    def __init__(self) -> None:
        self.lines: list[asyncio.StreamWriter] = []
        self.heard = b""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.lines.append(writer)
        while data := await reader.read(65536):
            self.heard += data
        writer.close()

    async def has_heard(self, commands: int) -> None:
        await eventually(lambda: self.heard.count(b"GET") >= commands, lambda: self.heard)


@asynccontextmanager
async def wired() -> AsyncIterator[tuple[Wire, Server]]:
    server = Server()
    async with await asyncio.start_server(server.serve, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        wire = Wire(f"redis://127.0.0.1:{port}", timeout_seconds=5.0)
        try:
            yield wire, server
        finally:
            wire.close()
            for line in server.lines:
                line.close()


async def exchange(
    wire: Wire, server: Server, *said: bytes, commands: Sequence[Sequence[object]] = (GET,)
) -> list[Any]:
    """What comes of these commands when the server says that, piece by piece."""
    before = server.heard.count(b"GET")
    asking = asyncio.create_task(wire.exchange(commands))
    await server.has_heard(before + len(commands))
    for piece in said:
        server.lines[-1].write(piece)
        await server.lines[-1].drain()
        await asyncio.sleep(0)
    return await asyncio.wait_for(asking, 5.0)


async def test_replies_come_in_order_errors_among_them() -> None:
    """In one piece or split anywhere."""
    text = b"$3\r\none\r\n-WRONGTYPE it is none\r\n*2\r\n:7\r\n$-1\r\n"
    async with wired() as (wire, server):
        for split in range(len(text)):
            one, error, many = await exchange(wire, server, text[:split], text[split:], commands=[GET] * 3)
            assert (one, many) == (b"one", [7, None])
            assert isinstance(error, ResponseError)
        assert len(server.lines) == 1


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b"-LOADING the dataset\r\n", RedisConnectionError),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", InvalidResponse),
        (b"-MOVED x\r\n", InvalidResponse),
        (b"$1\r\na\r\n$1\r\nb\r\n", RedisConnectionError),
    ],
    ids=["loading", "another protocol", "an odd error", "too much"],
)
async def test_what_is_no_reply_ends_the_connection(said: bytes, error: type[RedisError]) -> None:
    """And the next exchange is on a new one."""
    async with wired() as (wire, server):
        with pytest.raises(error):
            await exchange(wire, server, said)
        assert await exchange(wire, server, b"$3\r\nnew\r\n") == [b"new"]
        assert len(server.lines) == 2


@pytest.mark.parametrize("said", [b"$4\r\nlate\r\n", b"$4\r\nla", b""], ids=["a reply", "a part of one", "the end"])
async def test_what_comes_unasked_is_no_answer_to_the_next_command(said: bytes) -> None:
    """The connection is given up when it comes, or breaks."""
    async with wired() as (wire, server):
        assert await exchange(wire, server, b"$5\r\nfirst\r\n") == [b"first"]
        server.lines[0].write(said)
        server.lines[0].close()
        await eventually(lambda: not wire.is_open, lambda: "still open")
        assert await exchange(wire, server, b"$3\r\nnew\r\n") == [b"new"]


async def test_a_reply_to_a_cancelled_command_is_no_answer_to_the_next() -> None:
    """Whoever goes away takes the connection along."""
    async with wired() as (wire, server):
        asking = asyncio.create_task(wire.exchange([GET]))
        await server.has_heard(1)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        server.lines[0].write(b"$4\r\nlate\r\n")
        assert await exchange(wire, server, b"$3\r\nnew\r\n") == [b"new"]
        assert len(server.lines) == 2


async def test_a_wire_that_is_closed_while_it_connects_stays_closed() -> None:
    """What was being made is not left behind."""
    async with wired() as (wire, server):
        asking = asyncio.create_task(wire.exchange([GET]))
        await asyncio.sleep(0)
        wire.close()
        with pytest.raises(RedisConnectionError):
            await asyncio.wait_for(asking, 5.0)
        assert not wire.is_open
        assert server.heard == b""


async def test_a_connection_that_breaks_ends_the_exchange() -> None:
    """At once, and not with a deadline."""
    async with wired() as (wire, server):
        asking = asyncio.create_task(wire.exchange([GET, GET]))
        await server.has_heard(2)
        server.lines[0].write(b"$3\r\none\r\n")
        server.lines[0].close()
        with pytest.raises(RedisConnectionError):
            await asyncio.wait_for(asking, 5.0)
