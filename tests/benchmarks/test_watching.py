"""The watcher tells when old answers end, of servers that are told when to end them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

import pytest

from benchmarks.load import BadAnswerError
from benchmarks.servers import Server
from benchmarks.watching import watcher

pytestmark = pytest.mark.process


@contextlib.asynccontextmanager
async def answering(tier: Callable[[], str]) -> AsyncIterator[Server]:
    """One that answers from what `tier` says at each request; its body comes a little later than its head."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError), contextlib.closing(writer):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(
                    f"HTTP/1.1 200 OK\r\nCache-Status: hit; detail={tier()}\r\nContent-Length: 2\r\n\r\n".encode()
                )
                await writer.drain()
                writer.write(b"{}")

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield Server(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", 0)


async def test_the_last_old_answer_of_the_slowest_counts() -> None:
    revoked, given = asyncio.Event(), list[float]()
    said = iter(["cold", "redis"])

    def quick() -> str:
        return "cold" if revoked.is_set() else next(said, "memory")

    def slow() -> str:
        if revoked.is_set():
            given.append(time.monotonic())
        return "memory" if len(given) <= 3 else "cold"

    async with answering(quick) as one, answering(slow) as other, watcher([one, other]) as watching:
        await watching.known("a-token")
        revoked.set()
        last_old, denied = await watching.ended()
    assert given[2] < last_old < denied < given[3], "three old answers were given after the revocation"


async def test_who_never_knows_a_session_is_not_watched_for_ever() -> None:
    async with answering(lambda: "cold") as server, watcher([server], give_up_seconds=0.1) as watching:
        with pytest.raises(BadAnswerError, match="1 nodes do not know"):
            await watching.known("a-token")


async def test_a_node_that_hangs_up_is_said() -> None:
    def hang_up() -> str:
        raise ConnectionError

    async with answering(hang_up) as server, watcher([server]) as watching:
        with pytest.raises(BadAnswerError, match="hung up"):
            await watching.known("a-token")
