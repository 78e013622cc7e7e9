"""The bytes that the client of the origin writes, when it writes them again, and what it leans on in aiohttp."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from cache_node.sessions.origin_client import OriginClient
from tests.raw_origin import OK, Peer, RawOrigin, http

HEADERS = ((b"X-Session-Token", b"ory_st_secret"), (b"accept-language", b"de"), (b"accept-language", b"s\xc3\xb6"))
AS_LINES = b"X-Session-Token: ory_st_secret\r\naccept-language: de\r\naccept-language: s\xc3\xb6\r\n"


@asynccontextmanager
async def client_of(url: str) -> AsyncIterator[OriginClient]:
    client = OriginClient(url)
    try:
        async with asyncio.timeout(10):
            yield client
    finally:
        await client.aclose()


async def closed(peer: Peer) -> None:
    """No answer, and the end of the connection."""
    peer.close()


async def reset(peer: Peer) -> None:
    """The same, rudely."""
    peer.reset()


# What is written ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "body", "length"),
    [
        ("GET", b"", b""),
        ("GET", b"body", b"Content-Length: 4\r\n"),
        ("HEAD", b"", b""),
        ("OPTIONS", b"", b""),
        ("POST", b"", b"Content-Length: 0\r\n"),
        ("POST", b"body", b"Content-Length: 4\r\n"),
        ("DELETE", b"", b"Content-Length: 0\r\n"),
        ("PATCH", b"\r\n\x00\xff", b"Content-Length: 4\r\n"),
    ],
)
async def test_every_byte_of_a_request(server: RawOrigin, method: str, body: bytes, length: bytes) -> None:
    """The line, the host, the headers as they were given, a length where a body is or could be, and no more."""
    server.replies = [http(200)]
    async with client_of(server.url) as client:
        await client.request(method, "/sessions/whoami?a=%20b&c", HEADERS, body)

    line = b"%b /sessions/whoami?a=%%20b&c HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n" % (method.encode(), server.port)
    assert server.requests == [line + AS_LINES + length + b"\r\n" + body]


@pytest.mark.parametrize(
    ("base", "target", "line"),
    [
        ("", "/sessions/whoami", b"/sessions/whoami"),
        ("/prefix", "/sessions/whoami", b"/prefix/sessions/whoami"),
        ("/a%20b", "/x?q=%2F", b"/a%20b/x?q=%2F"),
        ("", "/x?q#fragment", b"/x?q"),
        ("", "/x?", b"/x"),
        ("", "/a/../b", b"/a/../b"),
        ("", "", b"/"),
    ],
)
async def test_the_target_is_behind_the_path_of_the_base(
    server: RawOrigin, base: str, target: str, line: bytes
) -> None:
    """As it came, but for a fragment, which is nobody's but the client's."""
    async with client_of(server.url + base) as client:
        await client.request("GET", target, (), b"")

    assert server.requests[0].partition(b"\r\n")[0] == b"GET %b HTTP/1.1" % line


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://kratos", b"kratos"),
        ("http://kratos:80", b"kratos"),
        ("http://kratos:443", b"kratos:443"),
        ("https://kratos:443", b"kratos"),
        ("https://kratos:4433", b"kratos:4433"),
        ("http://[::1]", b"[::1]"),
        ("http://[::1]:4433", b"[::1]:4433"),
    ],
)
async def test_the_host_has_its_port_unless_it_is_the_default(url: str, host: bytes) -> None:
    """And an IPv6 address its brackets.  Nobody may listen at 80, so this asks for the head alone."""
    async with client_of(url) as client:
        assert client._head("GET", "/", (), 0) == b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n" % host


@pytest.mark.parametrize("control", [b"\r\n", b"\r", b"\n", b"\x00", b"\x1b", b"\x7f"])
async def test_what_would_break_a_line_is_never_written(server: RawOrigin, control: bytes) -> None:
    """Neither in names nor in values nor in the method: one client's header must not become another's request."""
    evil = b"a%bb: c" % control
    async with client_of(server.url) as client:
        for method, header in [("GET", (b"x", evil)), ("GET", (evil, b"x")), ("G" + control.decode(), (b"x", b"y"))]:
            with pytest.raises(ValueError, match=r"^the request's head holds characters that would break it$"):
                await client.request(method, "/", (header,), b"")
        with pytest.raises(ValueError, match="that would break it"):
            await client.request("GET /x", "/", (), b"")

    assert server.connections == []


@pytest.mark.parametrize("control", ["\r\n", "\r", "\n", "\x00", "\x1b", "\x7f"])
async def test_a_target_is_one_line(server: RawOrigin, control: str) -> None:
    """What URLs never hold is left out of it, and all else that could break the line is refused."""
    async with client_of(server.url) as client:
        try:
            await client.request("GET", f"/a{control}b", (), b"")
        except ValueError:
            assert server.connections == []
        else:
            assert server.requests == [b"GET /ab HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % server.port]


# When it is written again ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [closed, reset])
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"])
async def test_what_is_idempotent_is_sent_once_more(server: RawOrigin, method: str, end: object) -> None:
    """On a connection that waited, its end and the request may have crossed; the second time is the last."""
    server.replies = [OK, end, http(200), end, end, OK]  # type: ignore[list-item]  # parametrize cannot say so
    async with client_of(server.url) as client:
        await client.request("GET", "/", (), b"")
        assert (await client.request(method, "/", HEADERS, b"body"))[0] == 200
        with pytest.raises((aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)):
            await client.request(method, "/", HEADERS, b"body")

    again = server.requests[1:]
    assert len(again) == 4, "two of each"
    assert len(set(again)) == 1, "the same bytes"


@pytest.mark.parametrize("end", [closed, reset])
@pytest.mark.parametrize("method", ["POST", "PATCH", "QUERY"])
async def test_what_may_not_be_done_twice_is_sent_once(server: RawOrigin, method: str, end: object) -> None:
    """Even on a connection that waited: who asked may know whether it can be asked again."""
    server.replies = [OK, end, OK]  # type: ignore[list-item]
    async with client_of(server.url) as client:
        await client.request("GET", "/", (), b"")
        with pytest.raises((aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)):
            await client.request(method, "/", HEADERS, b"body")

    assert len(server.requests) == 2
    assert len(server.connections) == 1


async def test_a_connection_that_could_not_be_made_is_not_tried_again() -> None:
    """That is no end of one that waited: here, the server wants no TLS."""
    peers = []

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peers.append(Peer(reader, writer))
        await reader.read(1)
        peers[-1].reset()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    async with server, client_of(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}") as client:
        with pytest.raises(aiohttp.ClientConnectorError):
            await client.request("GET", "/", (), b"")

    assert len(peers) == 1


async def test_what_was_answered_in_part_is_sent_once(server: RawOrigin) -> None:
    """Its connection did not end without an answer."""

    async def cut(peer: Peer) -> None:
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        peer.close()

    server.replies = [cut, OK]
    async with client_of(server.url) as client:
        with pytest.raises(aiohttp.ClientPayloadError):
            await client.request("GET", "/", (), b"")

    assert len(server.requests) == 1


# Which connections are used again -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "reply"),
    [
        ("GET", http(200)),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"),
        ("GET", http(200, b"good", [b"Connection: close"])),
        ("GET", b"HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\ngood"),
    ],
)
async def test_a_connection_that_may_bring_more_is_not_used_again(server: RawOrigin, method: str, reply: bytes) -> None:
    """After an answer without a body, one may come all the same; and others have said that they are over."""
    server.replies = [reply, OK]
    async with client_of(server.url) as client:
        await client.request(method, "/", (), b"")
        assert (await client.request("GET", "/", (), b""))[2] == b"good"

    assert len(server.connections) == 2


async def test_a_connection_that_has_not_taken_the_whole_request_is_not_used_again() -> None:
    """Answered before it was read: its rest would be taken for the next one."""
    peers = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peers.append(Peer(reader, writer))
        await reader.readuntil(b"\r\n\r\n")
        await peers[-1].send(OK)

    server = await asyncio.start_server(answer, "127.0.0.1", 0, limit=1024)
    async with server, client_of(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as client:
        for _ in range(2):
            assert (await client.request("POST", "/", (), bytes(32 * 1024 * 1024)))[2] == b"good"
        for peer in peers:
            peer.reset()

    assert len(peers) == 2


async def test_an_endless_body_is_not_read_to_the_end(server: RawOrigin) -> None:
    """Nor held: its sender is stopped, and the connection ends."""
    ended = asyncio.Event()

    async def endless(peer: Peer) -> None:
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\n")
        try:
            while True:
                await peer.send(b"x" * 65536)
        finally:
            ended.set()

    server.replies = [endless]
    async with client_of(server.url) as client:
        with pytest.raises(ValueError, match="no end"):
            await client.request("GET", "/", (), b"")
        await ended.wait()


def test_aiohttp_internals() -> None:
    """What is relied on beyond what aiohttp documents, as it is pinned to one minor version: some guards hang on it."""
    connector, handler = aiohttp.TCPConnector, aiohttp.client_proto.ResponseHandler
    assert inspect.signature(aiohttp.BaseConnector._get).parameters.keys() == {"self", "key", "traces"}
    assert inspect.iscoroutinefunction(aiohttp.BaseConnector._get)
    assert inspect.signature(connector.connect).parameters.keys() == {"self", "req", "traces", "timeout"}
    assert {"protocol", "close", "release"} <= set(dir(aiohttp.connector.Connection))
    assert {"should_close", "is_connected", "writing_paused", "feed_data", "read"} <= set(dir(handler))
    assert {"skip_payload", "read_until_eof", "auto_decompress", "max_line_size", "max_field_size"} <= (
        inspect.signature(handler.set_response_params).parameters.keys()
    )
    assert {"at_eof", "readany"} <= set(dir(aiohttp.StreamReader))
    assert "self._factory = functools.partial(ResponseHandler, loop=loop)" in inspect.getsource(aiohttp.BaseConnector)
    assert "self.feed_data(" in inspect.getsource(handler.data_received)
    assert "protocol.should_close" in inspect.getsource(aiohttp.BaseConnector._release)
