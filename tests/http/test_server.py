"""Real sockets against a real server, on asyncio's own loop and on uvloop."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import re
import resource
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from email.utils import parsedate_to_datetime
from typing import Any

import pytest
import uvloop

from cache_node.errors import CacheNodeError
from cache_node.http import server
from cache_node.http.protocol import HEAD_BYTES, HEAD_SECONDS
from cache_node.http.server import HttpServer, address_of, bind
from tests.waiting import eventually

NewLoop = Callable[[], asyncio.AbstractEventLoop]
DEADLINE_SECONDS = 10.0
GET = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n"


def on_each_loop(scenario: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[NewLoop], None]:
    """A test that runs the scenario on each kind of loop a node may have."""

    def test(new_loop: NewLoop) -> None:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(asyncio.wait_for(scenario(), 6 * DEADLINE_SECONDS))

    test.__name__ = scenario.__name__
    test.__doc__ = scenario.__doc__
    parametrize = pytest.mark.parametrize(
        "new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
    )
    decorated: Callable[[NewLoop], None] = parametrize(test)
    return decorated


class Gate:
    """An application that answers with the path, for `/slow…` not before the gate is open."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.opened = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked.append(scope["path"])
        if scope["path"].startswith("/slow"):
            await self.opened.wait()
        body = scope["path"].encode()
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class Client:
    """One raw connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the next answer."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            head = await self._reader.readuntil(b"\r\n\r\n")
            status_line, *lines = head.decode().removesuffix("\r\n\r\n").split("\r\n")
            headers = dict(line.split(": ", 1) for line in lines)
            return int(status_line.split()[1]), headers, await self._reader.readexactly(int(headers["content-length"]))

    async def end(self) -> bytes:
        """What comes until the server ends the connection."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            return await self._reader.read()

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


class Site:
    """A started server, its application, and clients that are closed with it."""

    def __init__(self, app: Callable[..., Awaitable[None]], drain_seconds: float) -> None:
        self.server = HttpServer(app, bind("127.0.0.1", 0), drain_seconds=drain_seconds)
        self.clients: list[Client] = []

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.server.address.rpartition(":")
        return host, int(port)

    @property
    def connections(self) -> int:
        return len(self.server._state.connections)

    async def connect(self, *sent: bytes) -> Client:
        client = Client(*await asyncio.open_connection(*self.address))
        self.clients.append(client)
        for data in sent:
            await client.send(data)
        return client

    async def get(self, path: str) -> bytes:
        """The body of an answer on a connection of its own."""
        client = await self.connect(f"GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode())
        status, _headers, body = await client.answer()
        assert status == 200
        assert await client.end() == b""
        return body


@contextlib.asynccontextmanager
async def serving(
    app: Callable[..., Awaitable[None]], *, drain_seconds: float = DEADLINE_SECONDS
) -> AsyncIterator[Site]:
    site = Site(app, drain_seconds)
    await site.server.start()
    try:
        yield site
    finally:
        await asyncio.gather(*(client.close() for client in site.clients))
        await site.server.drain()
        assert site.connections == 0


@on_each_loop
async def test_newcomers_do_not_wait_for_a_turn_of_the_loop_each() -> None:
    """A turn takes long where many connections are busy."""
    newcomers, turns = 96, 0
    async with serving(Gate()) as site:
        with contextlib.ExitStack() as stack:
            for _ in range(newcomers):
                sock = stack.enter_context(socket.socket())
                sock.connect(site.address)  # the kernel completes it, before the server has a turn
            while site.connections < newcomers and turns < 10 * newcomers:
                await asyncio.sleep(0)
                turns += 1
    assert turns < newcomers / 4


# Answers


@on_each_loop
async def test_it_answers_with_a_date_and_without_a_server() -> None:
    async with serving(Gate()) as site:
        client = await site.connect()
        for _ in range(2):
            await client.send(GET)
            status, headers, body = await client.answer()
            assert (status, body) == (200, b"/a")
            assert list(headers) == ["date", "content-length"]
            assert abs(parsedate_to_datetime(headers["date"]).timestamp() - time.time()) < 5
        assert site.connections == 1


@on_each_loop
async def test_the_date_goes_on() -> None:
    days = itertools.count()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "_DATE_SECONDS", 0.001)
        patch.setattr(server, "formatdate", lambda usegmt: f"day {next(days)}")
        async with serving(Gate()) as site:
            client = await site.connect()
            dates = set()

            async def has_gone_on() -> bool:
                await client.send(GET)
                dates.add((await client.answer())[1]["date"])
                return len(dates) > 2

            await eventually(has_gone_on, lambda: f"still {dates}", DEADLINE_SECONDS)


@on_each_loop
async def test_a_head_that_trickles_in_is_answered() -> None:
    async with serving(Gate()) as site:
        client = await site.connect(*(bytes([byte]) for byte in GET))
        assert (await client.answer())[2] == b"/a"


@on_each_loop
async def test_pipelined_requests_are_answered_in_order() -> None:
    async with serving(Gate()) as site:
        client = await site.connect(b"".join(b"GET /%d HTTP/1.1\r\nHost: h\r\n\r\n" % i for i in range(1000)))
        assert [(await client.answer())[2] for _ in range(1000)] == [b"/%d" % i for i in range(1000)]


@on_each_loop
async def test_http_1_0_and_head() -> None:
    async with serving(Gate()) as site:
        old = await site.connect(b"GET /a HTTP/1.0\r\n\r\n")
        assert re.fullmatch(rb"HTTP/1.1 200 OK\r\n.*connection: close\r\n\r\n/a", await old.end(), re.DOTALL)
        head = await site.connect(b"HEAD /a HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        assert re.fullmatch(rb"HTTP/1.1 200 OK\r\n.*content-length: 2\r\n.*\r\n\r\n", await head.end(), re.DOTALL)


@on_each_loop
async def test_two_servers_share_a_process_and_a_loop() -> None:
    async def other(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
        await send({"type": "http.response.body", "body": b"other"})

    async with serving(Gate()) as first:
        async with serving(other) as second:
            assert first.server.address != second.server.address
            assert await first.get("/a") == b"/a"
            assert await second.get("/a") == b"other"
        assert await first.get("/b") == b"/b"


# Limits


@on_each_loop
async def test_a_client_that_sends_a_huge_head_before_it_reads_gets_its_answer() -> None:
    async with serving(Gate()) as site:
        for size in (HEAD_BYTES + 1, 10**6, 8 * 10**6):
            client = await site.connect(b"GET /a HTTP/1.1\r\nHost: h\r\nX: " + b"x" * size + b"\r\n\r\n")
            status, headers, body = await client.answer()
            assert (status, headers["connection"]) == (431, "close")
            assert headers["content-type"] == "application/json"
            assert json.loads(body)["error"]["status"] == "Request Header Fields Too Large"
            assert await client.end() == b""


@on_each_loop
async def test_garbage_and_a_missing_host_get_400() -> None:
    async with serving(Gate()) as site:
        for sent in (os.urandom(10_000), b"hello\r\n\r\n", b"GET /a HTTP/1.1\r\n\r\n"):
            client = await site.connect(sent)
            status, headers, body = await client.answer()
            assert (status, headers["connection"]) == (400, "close")
            assert json.loads(body)["error"]["code"] == 400
            assert await client.end() == b""


@on_each_loop
async def test_a_thousand_half_sent_requests_harm_nobody() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    try:
        async with serving(Gate()) as site:
            begun = time.monotonic()
            for start in range(0, 1000, 100):
                await asyncio.gather(*(site.connect(GET[: 1 + i % (len(GET) - 1)]) for i in range(start, start + 100)))
            assert await site.get("/b") == b"/b"
            assert site.connections > 900 or time.monotonic() - begun > HEAD_SECONDS
            # One that goes on is answered.
            late = await site.connect(GET[:-1])
            await late.send(GET[-1:])
            assert (await late.answer())[2] == b"/a"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# The end


@on_each_loop
async def test_a_request_under_way_is_answered_and_then_the_connection_ends() -> None:
    app = Gate()
    async with serving(app) as site:
        busy = await site.connect(b"GET /slow HTTP/1.1\r\nHost: h\r\n\r\n")
        idle = await site.connect(GET)
        assert (await idle.answer())[2] == b"/a"
        silent = await site.connect()
        half = await site.connect(GET[:10])
        await eventually(lambda: "/slow" in app.asked, lambda: app.asked)
        await eventually(lambda: site.connections == 4, lambda: site.connections)

        drained = asyncio.ensure_future(site.server.drain())
        for client in (idle, silent, half):
            assert await client.end() == b""
        with pytest.raises(OSError, match=r"Connect|connect"):
            await site.connect()
        assert not drained.done()
        assert site.connections == 1

        app.opened.set()
        _status, headers, body = await busy.answer()
        assert (body, headers["connection"]) == (b"/slow", "close")
        assert await busy.end() == b""
        async with asyncio.timeout(DEADLINE_SECONDS):
            await drained
        assert site.connections == 0


@on_each_loop
async def test_a_request_sent_before_the_end_is_answered() -> None:
    async with serving(Gate()) as site:
        clients = [await site.connect(GET) for _ in range(20)]
        for client in clients:
            await client.answer()
        for client in clients:
            await client.send(GET)  # in the kernel, not read yet
        drained = asyncio.ensure_future(site.server.drain())
        for client in clients:
            assert (await client.answer())[2] == b"/a"
            assert await client.end() == b""
        await drained


@on_each_loop
async def test_a_request_that_takes_too_long_is_cut_off() -> None:
    app = Gate()
    async with serving(app, drain_seconds=0.1) as site:
        client = await site.connect(b"GET /slow HTTP/1.1\r\nHost: h\r\n\r\n")
        await eventually(lambda: bool(app.asked), lambda: app.asked)
        begun = time.monotonic()
        await site.server.drain()
        assert 0.1 <= time.monotonic() - begun < 2
        assert (await client.end()).startswith(b"HTTP/1.1 500 "), "the application did not say anything better"
        await eventually(lambda: site.connections == 0, lambda: site.connections)


@on_each_loop
async def test_the_port_is_free_as_soon_as_it_is_drained() -> None:
    async with serving(Gate()) as site:
        await site.get("/a")
        await site.server.drain()
        again = bind(*site.address)
        assert address_of(again) == site.server.address
        again.close()


@on_each_loop
async def test_one_that_never_started_closes_its_socket() -> None:
    sock = bind("127.0.0.1", 0)
    await HttpServer(Gate(), sock).drain()
    assert sock.fileno() == -1


# Addresses


def test_port_0_picks_a_free_port() -> None:
    with bind("127.0.0.1", 0) as first, bind("127.0.0.1", 0) as second:
        assert address_of(first) != address_of(second)
        assert re.fullmatch(r"127\.0\.0\.1:[1-9]\d+", address_of(first))


def test_connections_queue_before_the_server_starts() -> None:
    with bind("127.0.0.1", 0) as sock, socket.create_connection(sock.getsockname()) as client:
        assert client.getpeername() == sock.getsockname()


def test_an_ipv6_address_has_brackets() -> None:
    with contextlib.ExitStack() as stack:
        try:
            sock = stack.enter_context(bind("::1", 0))
        except CacheNodeError:
            with pytest.raises(CacheNodeError, match=r"^cannot listen on \[::1\]:0: "):  # a machine without IPv6
                bind("::1", 0)
        else:
            assert sock.family == socket.AF_INET6
            assert re.fullmatch(r"\[::1\]:[1-9]\d+", address_of(sock))


def test_an_address_in_use_is_named() -> None:
    with bind("127.0.0.1", 0) as first:
        taken = address_of(first)
        with pytest.raises(CacheNodeError, match=f"^cannot listen on {re.escape(taken)}: address already in use$"):
            bind(*first.getsockname())


@pytest.mark.parametrize("host", ["192.0.2.1", "host.invalid"])
def test_an_address_that_is_not_ours_is_named(host: str) -> None:
    with pytest.raises(CacheNodeError, match=f"^cannot listen on {re.escape(host)}:80: [^\n]+$"):
        bind(host, 80)
