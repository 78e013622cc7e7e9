"""Bytes are fed to the protocol over a scripted transport, on a real event loop whose clock is set by hand."""

from __future__ import annotations

import asyncio
import json
import logging
from itertools import pairwise
from typing import Any

import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from cache_node.http.protocol import (
    _PIECE_BYTES,
    HEAD_BYTES,
    HEAD_SECONDS,
    KEEP_ALIVE_SECONDS,
    LINGER_SECONDS,
)
from tests.http.wire import Connection, ManualLoop

GET = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n"


class Gate:
    """An application that reads the body, then answers with method, path and its length once the gate is open."""

    def __init__(self, *, open_now: bool = True) -> None:
        self.asked: list[str] = []
        self.scopes: list[Any] = []
        self.opened = asyncio.Event()
        if open_now:
            self.opened.set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked.append(scope["path"])
        self.scopes.append(scope)
        size, more = 0, True
        while more:
            message = await receive()
            size += len(message.get("body", b""))
            more = message.get("more_body", False)
        await self.opened.wait()
        body = f"{scope['method']} {scope['path']} {size}".encode()
        length = (b"content-length", str(len(body)).encode())
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": body})


@pytest.fixture
def app() -> Gate:
    return Gate()


@pytest.fixture
def connection(loop: ManualLoop, app: Gate) -> Connection:
    return Connection(loop, app)


def answer(text: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\ncontent-length: {len(text)}\r\n\r\n{text}".encode()


def last_answer(text: str) -> bytes:
    return answer(text).replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")


def assert_error(written: bytes, status: int) -> None:
    """`written` is exactly one error answer in Kratos' shape that announces the end."""
    head, _, body = written.partition(b"\r\n\r\n")
    phrase = {400: "Bad Request", 431: "Request Header Fields Too Large"}[status]
    assert head.split(b"\r\n") == [
        f"HTTP/1.1 {status} {phrase}".encode(),
        b"content-type: application/json",
        f"content-length: {len(body)}".encode(),
        b"connection: close",
    ]
    assert body.endswith(b"}\n")
    error = json.loads(body)["error"]
    assert list(error) == ["code", "status", "message"]
    assert (error["code"], error["status"]) == (status, phrase)


def head_of(size: int, *, start: bytes = b"GET /a HTTP/1.1\r\nHost: h\r\n") -> bytes:
    """A complete request head of exactly `size` bytes."""
    fill = size - len(start) - len(b"X: \r\n\r\n")
    return start + b"X: " + b"x" * fill + b"\r\n\r\n"


def in_reads(data: bytes, size: int) -> list[bytes]:
    return [data[i : i + size] for i in range(0, len(data), size)]


# Ordinary requests


def test_a_head_split_at_any_byte_is_answered_as_in_one_read(loop: ManualLoop) -> None:
    request = b"GET /a?b=c HTTP/1.1\r\nHost: h\r\nX-Session-Token: abc\r\nCookie: a=b; c=d\r\n\r\n"
    for at in range(1, len(request)):
        app = Gate()
        connection = Connection(loop, app)
        assert connection.send(request[:at], request[at:]) == answer("GET /a 0"), at
        assert app.scopes[0]["headers"] == [(b"host", b"h"), (b"x-session-token", b"abc"), (b"cookie", b"a=b; c=d")]
        assert not connection.is_ended()


def test_a_head_that_arrives_byte_by_byte(connection: Connection) -> None:
    assert connection.send(*in_reads(GET, 1)) == answer("GET /a 0")


def test_pipelined_requests_are_answered_in_order(connection: Connection) -> None:
    requests = b"".join(b"GET /%d HTTP/1.1\r\nHost: h\r\n\r\n" % i for i in range(50))
    assert connection.send(requests) == b"".join(answer(f"GET /{i} 0") for i in range(50))


def test_many_pipelined_small_requests_are_no_large_head(connection: Connection, app: Gate) -> None:
    requests = GET * (3 * HEAD_BYTES // len(GET))
    assert connection.send(requests).count(b"200 OK") == len(app.asked) == requests.count(b"GET")
    assert not connection.is_ended()


def test_few_of_many_pipelined_requests_wait_in_memory(loop: ManualLoop) -> None:
    app = Gate(open_now=False)
    connection = Connection(loop, app)
    requests = b"".join(b"GET /%d HTTP/1.1\r\nHost: h\r\n\r\n" % i for i in range(5000))
    connection.send(*in_reads(requests, 50_000))
    assert len(connection.protocol.pipeline) <= _PIECE_BYTES // len(GET)
    assert len(connection.kernel) == len(requests) // 50_000
    app.opened.set()
    assert connection.send() == b"".join(answer(f"GET /{i} 0") for i in range(5000))
    assert not connection.is_ended()
    assert connection.send(GET) == answer("GET /a 0")


@pytest.mark.parametrize("read_bytes", [1000, 8192, 65536, 10**7])
def test_a_large_body_is_no_large_head(connection: Connection, read_bytes: int) -> None:
    size = 3 * HEAD_BYTES
    post = b"POST /p HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size
    assert connection.send(*in_reads(post + GET, read_bytes)) == answer(f"POST /p {size}") + answer("GET /a 0")


@pytest.mark.parametrize("read_bytes", [1000, 8192, 65536, 10**7])
@pytest.mark.parametrize("chunk_bytes", [1, 100000])
def test_a_large_chunked_body_is_no_large_head(connection: Connection, read_bytes: int, chunk_bytes: int) -> None:
    chunks = [b"%x\r\n%b\r\n" % (chunk_bytes, b"x" * chunk_bytes)] * (50000 // chunk_bytes + 3)
    post = b"POST /p HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + b"".join(chunks) + b"0\r\n\r\n"
    size = chunk_bytes * len(chunks)
    assert connection.send(*in_reads(post + GET, read_bytes)) == answer(f"POST /p {size}") + answer("GET /a 0")


def test_reading_goes_on_behind_a_piece_of_waiting_requests(loop: ManualLoop) -> None:
    connection = Connection(loop, answer_at_once)
    requests = GET * (_PIECE_BYTES // len(GET) - 1)
    requests += head_of(_PIECE_BYTES - len(requests))
    expected = answer("ok") * requests.count(b"GET")
    assert connection.send(requests + GET[:5]) == expected
    assert connection.send(GET[5:]) == answer("ok")


def test_what_a_transport_delivers_although_it_was_paused_keeps_its_order(loop: ManualLoop) -> None:
    app = Gate(open_now=False)
    connection = Connection(loop, app)
    requests = b"".join(b"GET /%d HTTP/1.1\r\nHost: h\r\n\r\n" % i for i in range(1000))
    for read in in_reads(requests, 9000):
        connection.protocol.data_received(read)
    app.opened.set()
    assert connection.send() == b"".join(answer(f"GET /{i} 0") for i in range(1000))


def test_a_shutdown_answers_what_was_parsed_and_asks_for_no_more(loop: ManualLoop) -> None:
    app = Gate(open_now=False)
    connection = Connection(loop, app)
    connection.send(GET * 1000)
    under_way = 1 + len(connection.protocol.pipeline)
    connection.protocol.shutdown()
    app.opened.set()
    assert connection.send() == answer("GET /a 0") * (under_way - 1) + last_answer("GET /a 0")
    assert connection.is_closed()
    assert len(app.asked) == under_way < 1000


def test_http_1_0_needs_no_host_and_ends_the_connection(connection: Connection) -> None:
    assert connection.send(b"GET /a HTTP/1.0\r\n\r\n") == last_answer("GET /a 0")
    assert connection.is_ended()


def test_a_head_request_has_no_body_in_its_answer(connection: Connection) -> None:
    assert connection.send(b"HEAD /a HTTP/1.1\r\nHost: h\r\n\r\n") == b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n"
    assert not connection.is_ended()


def test_connection_close_ends_it_and_nothing_behind_is_read(connection: Connection, app: Gate) -> None:
    closing = b"GET /a HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    assert connection.send(closing + GET + b"garbage") == last_answer("GET /a 0")
    assert connection.is_ended()
    assert app.asked == ["/a"]


def test_blank_lines_between_requests_are_skipped(connection: Connection) -> None:
    assert connection.send(b"\r\n\r\n" + GET + b"\r\n" + GET) == answer("GET /a 0") * 2


def test_an_upgrade_is_declined_and_the_connection_goes_on(
    connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    upgrade = b"GET /u HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n"
    assert connection.send(upgrade) == answer("GET /u 0")
    assert connection.send(upgrade + GET + upgrade) == answer("GET /u 0") + answer("GET /a 0") + answer("GET /u 0")
    assert not connection.is_ended()
    assert not caplog.records


@pytest.mark.parametrize("reads", ["one", "two"])
def test_the_body_of_a_declined_upgrade_is_never_the_next_request(
    connection: Connection, app: Gate, reads: str
) -> None:
    head = b"POST /u HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: x\r\nContent-Length: %d\r\n\r\n" % len(GET)
    written = connection.send(head + GET) if reads == "one" else connection.send(head, GET)
    assert written == last_answer("POST /u 0")
    assert connection.is_ended()
    assert app.asked == ["/u"]


def test_trailers_do_not_become_headers(connection: Connection, app: Gate) -> None:
    post = b"POST /p HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX-Session-Token: t\r\n\r\n"
    assert connection.send(post + GET) == answer("POST /p 1") + answer("GET /a 0")
    assert app.scopes[0]["headers"] == [(b"host", b"h"), (b"transfer-encoding", b"chunked")]
    assert app.scopes[1]["headers"] == [(b"host", b"h")]


STREAM = (
    GET
    + b"POST /b HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello"
    + b"HEAD /c HTTP/1.1\r\nHost: h\r\n\r\n\r\n"
    + b"POST /d HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1;e=f\r\n \r\n0\r\nT: u\r\n\r\n"
    + b"GET /e HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"
    + b"GET /f HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    + GET
)


@given(st.lists(st.integers(1, len(STREAM) - 1), max_size=12, unique=True))
def test_however_a_stream_is_cut_the_answers_are_the_same(cuts: list[int]) -> None:
    loop = ManualLoop()
    try:
        ends = [0, *sorted(cuts), len(STREAM)]
        reads = [STREAM[start:end] for start, end in pairwise(ends)]
        cut, whole = Connection(loop, Gate()), Connection(loop, Gate())
        assert cut.send(*reads) == whole.send(STREAM)
        assert cut.is_ended()
        assert whole.is_ended()
    finally:
        loop.close()


# Size of a head


@pytest.mark.parametrize("read_bytes", [100, 8191, 8192, 8193, 65536, 10**7])
def test_the_limit_is_exact(loop: ManualLoop, read_bytes: int) -> None:
    for start in (b"GET /a HTTP/1.1\r\nHost: h\r\n", b"GET /a HTTP/1.1\r\nHost:h\r\nY:" + b" " * 9000 + b"\r\n"):
        allowed = Connection(loop, Gate())
        assert allowed.send(*in_reads(head_of(HEAD_BYTES, start=start), read_bytes)) == answer("GET /a 0")
        assert allowed.send(GET) == answer("GET /a 0")
        refused = Connection(loop, Gate())
        assert_error(refused.send(*in_reads(head_of(HEAD_BYTES + 1, start=start), read_bytes)), 431)
        assert refused.is_ended()


@pytest.mark.parametrize("cut", range(HEAD_BYTES - 5, HEAD_BYTES + 1))
def test_the_limit_is_exact_wherever_the_blank_line_is_cut(loop: ManualLoop, cut: int) -> None:
    body = b"x" * 2 * _PIECE_BYTES
    post = b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n" % len(body)
    allowed, refused = head_of(HEAD_BYTES, start=post) + body, head_of(HEAD_BYTES + 1, start=post) + body
    assert Connection(loop, Gate()).send(allowed[:cut], allowed[cut:]) == answer(f"POST /a {len(body)}")
    assert_error(Connection(loop, Gate()).send(refused[:cut], refused[cut:]), 431)


def test_the_head_is_not_counted_with_the_body(connection: Connection) -> None:
    post = head_of(HEAD_BYTES, start=b"POST /p HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n")
    assert connection.send(post + b"5", b"\r\nhello\r\n0\r\n\r\n") == answer("POST /p 5")


def test_a_large_head_is_not_shown_to_the_application(connection: Connection, app: Gate) -> None:
    assert_error(connection.send(head_of(200_000)), 431)
    assert not app.asked


@pytest.mark.parametrize("read_bytes", [100, 4096, 65536, 262144])
@pytest.mark.parametrize(
    ("start", "repeated"),
    [
        pytest.param(b"GET /a HTTP/1.1\r\nHost: h\r\nX: ", b"x", id="header value"),
        pytest.param(b"GET /a HTTP/1.1\r\nHost: h\r\nX: ", b" ", id="padding"),
        pytest.param(b"GET /a HTTP/1.1\r\nHost: h\r\n", b"x", id="header name"),
        pytest.param(b"GET /a HTTP/1.1\r\n", b"A: b\r\n", id="headers"),
        pytest.param(b"GET /", b"x", id="path"),
        pytest.param(b"GET /?", b"a=b&", id="query"),
    ],
)
def test_an_endless_head_is_refused_in_time(
    connection: Connection, app: Gate, start: bytes, repeated: bytes, read_bytes: int
) -> None:
    assert_error(fed_until_the_end(connection, start, repeated, read_bytes), 431)
    assert not app.asked


@pytest.mark.parametrize("read_bytes", [100, 4096, 65536, 262144])
def test_an_endless_head_behind_another_request_is_refused_in_time(connection: Connection, read_bytes: int) -> None:
    written = fed_until_the_end(connection, GET + b"GET /", b"x", read_bytes)
    first = answer("GET /a 0")
    if written.startswith(first):
        assert_error(written.removeprefix(first), 431)
    else:  # one read held both, so the first answer was still due
        assert written == last_answer("GET /a 0")


@pytest.mark.parametrize("read_bytes", [100, 4096, 65536, 262144])
@pytest.mark.parametrize(
    ("start", "repeated"),
    [
        pytest.param(b"0\r\n", b"A: b\r\n", id="trailers"),
        pytest.param(b"0\r\nA: ", b"b", id="trailer value"),
        pytest.param(b"5;", b"e", id="chunk extension"),
    ],
)
def test_endless_trailers_are_refused_in_time(
    connection: Connection, start: bytes, repeated: bytes, read_bytes: int
) -> None:
    post = b"POST /p HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"
    written = fed_until_the_end(connection, post + start, repeated, read_bytes)
    assert written.startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 400 "))  # the parser has limits for chunks of its own


def fed_until_the_end(connection: Connection, start: bytes, repeated: bytes, read_bytes: int) -> bytes:
    """Feeds `start` and endless repetition, and says what was written when the connection ended: soon enough."""
    filler = repeated * (read_bytes // len(repeated))
    fed, written = len(start), connection.send(start + filler)
    while not connection.is_ended():
        assert fed <= HEAD_BYTES + _PIECE_BYTES, f"still reading after {fed} bytes"
        fed += len(filler)
        written += connection.send(filler)
    return written


def test_a_refused_client_may_go_on_sending_for_a_moment(connection: Connection, loop: ManualLoop, app: Gate) -> None:
    loop.advance(HEAD_SECONDS - 0.1)
    assert_error(connection.send(head_of(70_000)), 431)
    assert connection.transport.eof_written
    assert not connection.is_closed()
    assert connection.send(GET, b"x" * 100_000) == b""
    assert connection.is_reading()
    loop.advance(LINGER_SECONDS - 0.1)
    assert not connection.is_closed()
    loop.advance(0.1)
    assert connection.is_closed()
    assert not app.asked


# Host


@pytest.mark.parametrize(
    "request_head",
    [
        b"GET /a HTTP/1.1\r\n\r\n",
        b"GET /a HTTP/1.1\r\nX-Host: h\r\n\r\n",
        b"GET http://h/a HTTP/1.1\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: h\r\nhost: i\r\n\r\n",
        b"GET /a HTTP/1.0\r\nHost: h\r\nHost: i\r\n\r\n",
    ],
)
def test_a_request_needs_one_host(connection: Connection, app: Gate, request_head: bytes) -> None:
    assert_error(connection.send(request_head), 400)
    assert connection.is_ended()
    assert not app.asked


def test_an_empty_host_is_one(connection: Connection) -> None:
    assert connection.send(b"GET /a HTTP/1.1\r\nHost:\r\n\r\n") == answer("GET /a 0")


def test_the_refusal_of_a_head_request_has_no_body(connection: Connection) -> None:
    written = connection.send(b"HEAD /a HTTP/1.1\r\n\r\n")
    assert written.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert written.endswith(b"connection: close\r\n\r\n")


# Malformed requests


GARBAGE = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"hello\r\n\r\n",
    b"\x00" * 100,
    b"get /a HTTP/1.1\r\nHost: h\r\n\r\n",
    b"GET /a HTTP/1.1\nHost: h\n\n",
    b"GET /a HTTP/1.7\r\nHost: h\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET /\xff HTTP/1.1\r\nHost: h\r\n\r\n",
    b"GET http://h HTTP/1.1\r\nHost: h\r\n\r\n",
    b"CONNECT h:80 HTTP/1.1\r\nHost: h\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: h\r\nX: a\x00b\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: h\r\nCookie: a=b\r\n c=d\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost : h\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: h\r\nContent-Length: x\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
]


@pytest.mark.parametrize("garbage", GARBAGE)
def test_what_is_no_http_gets_400(
    connection: Connection, app: Gate, garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert_error(connection.send(garbage), 400)
    assert connection.is_ended()
    assert not app.asked
    assert not caplog.records


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_behind_an_answer_gets_400_in_its_turn(connection: Connection, garbage: bytes) -> None:
    assert connection.send(GET) == answer("GET /a 0")
    assert_error(connection.send(garbage), 400)


@pytest.mark.parametrize("waiting", [1, 2, 3])
@pytest.mark.parametrize("in_one_read", [True, False])
@pytest.mark.parametrize("refused", [*GARBAGE, b"GET /a HTTP/1.1\r\n\r\n", head_of(HEAD_BYTES + _PIECE_BYTES)])
def test_a_refusal_never_overtakes_the_answers_that_are_due(
    loop: ManualLoop, refused: bytes, in_one_read: bool, waiting: int
) -> None:
    app = Gate(open_now=False)
    connection = Connection(loop, app)
    reads = [GET * waiting, refused, GET]
    assert connection.send(*([b"".join(reads)] if in_one_read else reads)) == b""
    app.opened.set()
    assert_answers_then_end(connection, connection.send(), waiting)
    assert len(app.asked) == waiting


def assert_answers_then_end(connection: Connection, written: bytes, count: int) -> None:
    """The last answer announces the end, or a refusal follows in its turn."""
    assert connection.is_ended()
    before_the_last = answer("GET /a 0") * (count - 1)
    assert written.startswith(before_the_last)
    last = written.removeprefix(before_the_last)
    if last != last_answer("GET /a 0"):
        assert last.startswith(answer("GET /a 0"))
        refusal = last.removeprefix(answer("GET /a 0"))
        assert_error(refusal, 431 if b" 431 " in refusal else 400)


BROKEN_BODY = (
    b"POST /p HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    b"not a chunk\r\n",
)


@pytest.mark.parametrize("in_one_read", [True, False])
def test_a_broken_body_gets_400(connection: Connection, in_one_read: bool) -> None:
    written = connection.send(b"".join(BROKEN_BODY)) if in_one_read else connection.send(*BROKEN_BODY)
    assert_error(written, 400)
    assert connection.is_ended()
    assert not connection.state.tasks


def test_nobody_is_told_to_continue_with_a_broken_body(
    connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """The application asks for the body when its request has been refused: nothing may follow that, nor be complained
    of in the log, which anybody could fill."""
    head, end = BROKEN_BODY
    expecting = head.replace(b"\r\n\r\n5", b"\r\nExpect: 100-continue\r\n\r\n5")
    assert_error(connection.send(expecting + end), 400)
    assert not caplog.messages


def test_a_client_whose_large_body_is_broken_may_go_on_sending_too(connection: Connection) -> None:
    head, end = BROKEN_BODY
    assert_error(connection.send(head + b"%x\r\n%b\r\n" % (200_000, b"x" * 200_000) + end), 400)
    assert connection.is_reading()


@pytest.mark.parametrize("waiting", [1, 2, 3])
def test_a_broken_body_behind_a_request_under_way_is_not_asked_for(loop: ManualLoop, waiting: int) -> None:
    app = Gate(open_now=False)
    connection = Connection(loop, app)
    assert connection.send(GET * waiting + b"".join(BROKEN_BODY)) == b""
    app.opened.set()
    assert_answers_then_end(connection, connection.send(), waiting)
    assert app.asked == ["/a"] * waiting


def test_a_body_that_breaks_after_its_answer_began_ends_the_connection_only(loop: ManualLoop) -> None:
    async def early(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"o", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        await send({"type": "http.response.body", "body": b"k"})

    connection = Connection(loop, early)
    assert connection.send(*BROKEN_BODY) == b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\no"
    assert connection.is_ended()
    assert not connection.state.tasks


def test_a_body_that_breaks_after_its_answer_ends_the_connection_only(loop: ManualLoop) -> None:
    connection = Connection(loop, answer_at_once)
    assert connection.send(*BROKEN_BODY) == answer("ok")
    assert connection.is_ended()


async def answer_at_once(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


# Time


def test_a_head_has_five_seconds_from_the_connection(loop: ManualLoop) -> None:
    for reads in ([], [GET[:5]], [b"\r\n"]):
        connection = Connection(loop, Gate())
        connection.send(*reads)
        loop.advance(HEAD_SECONDS - 0.1)
        assert not connection.is_closed(), reads
        connection.send(b"\r\n" if not reads else b"")
        loop.advance(0.1)
        assert connection.is_closed(), reads
        assert connection.send() == b"", reads


def test_a_later_head_has_five_seconds_from_its_first_byte(connection: Connection, loop: ManualLoop) -> None:
    connection.send(GET)
    loop.advance(60)
    assert connection.send(GET[:1]) == b""
    for byte in GET[1:10]:  # a trickle does not prolong it
        loop.advance(HEAD_SECONDS / 10)
        connection.send(bytes([byte]))
        assert not connection.is_closed()
    loop.advance(HEAD_SECONDS / 10)
    assert connection.is_closed()
    assert connection.send() == b""


def test_a_head_begun_behind_another_request_has_five_seconds_too(connection: Connection, loop: ManualLoop) -> None:
    assert connection.send(GET + GET[:1]) == answer("GET /a 0")
    loop.advance(HEAD_SECONDS)
    assert connection.is_closed()


def test_a_head_that_is_complete_in_time_has_no_clock(loop: ManualLoop) -> None:
    app = Gate(open_now=False)
    connection = Connection(loop, app)
    connection.send(GET[:1])
    loop.advance(HEAD_SECONDS - 0.1)
    connection.send(GET[1:])
    loop.advance(1000)
    assert not connection.is_closed()
    app.opened.set()
    assert connection.send() == answer("GET /a 0")


def test_the_clock_of_a_head_stands_still_while_an_earlier_answer_is_due(loop: ManualLoop) -> None:
    app = Gate(open_now=False)
    connection = Connection(loop, app)
    connection.send(GET + GET + GET[:-1])
    loop.advance(1000)
    assert not connection.is_closed()
    app.opened.set()
    assert connection.send() == answer("GET /a 0") * 2
    loop.advance(HEAD_SECONDS - 0.1)
    assert connection.send(GET[-1:]) == answer("GET /a 0")
    loop.advance(KEEP_ALIVE_SECONDS - 0.1)
    assert not connection.is_closed()
    connection.send(GET[:1])
    loop.advance(HEAD_SECONDS)
    assert connection.is_closed()


def test_a_connection_may_rest_for_the_keep_alive(connection: Connection, loop: ManualLoop) -> None:
    for _ in range(3):
        assert connection.send(GET) == answer("GET /a 0")
        loop.advance(KEEP_ALIVE_SECONDS - 0.1)
        assert not connection.is_closed()
    loop.advance(0.1)
    assert connection.is_closed()


def test_the_keep_alive_ends_with_the_next_request(loop: ManualLoop) -> None:
    for reads in ([GET, GET], [GET + GET[:-1], GET[-1:]]):
        app = Gate()
        connection = Connection(loop, app)
        assert connection.send(reads[0]) == answer("GET /a 0")
        app.opened.clear()
        connection.send(reads[1])
        loop.advance(10 * KEEP_ALIVE_SECONDS)
        assert not connection.is_closed()
        app.opened.set()
        assert connection.send() == answer("GET /a 0")


def test_blank_lines_do_not_prolong_the_keep_alive(connection: Connection, loop: ManualLoop) -> None:
    connection.send(GET)
    for _ in range(KEEP_ALIVE_SECONDS // 5):
        assert not connection.is_closed()
        connection.send(b"\r\n")
        loop.advance(5)
    assert connection.is_closed()


def test_the_rest_of_a_body_that_was_answered_early_has_the_keep_alive_too(loop: ManualLoop) -> None:
    connection = Connection(loop, answer_at_once)
    assert connection.send(b"POST /p HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n1") == answer("ok")
    loop.advance(KEEP_ALIVE_SECONDS / 2)
    connection.send(b"2")
    assert not connection.is_closed()
    loop.advance(KEEP_ALIVE_SECONDS / 2)
    assert connection.is_closed()


def test_a_request_in_one_read_costs_no_timer(connection: Connection, loop: ManualLoop) -> None:
    for _ in range(10):
        connection.send(GET)
    keep_alives = [delay for delay in loop.delays if delay == KEEP_ALIVE_SECONDS]
    assert len(keep_alives) == 10  # uvicorn's own
    assert [delay for delay in loop.delays if delay != KEEP_ALIVE_SECONDS] == [HEAD_SECONDS]  # the connection's


@pytest.mark.parametrize("sent", [b"", GET[:5], GET, GET + GET[:5], b"garbage", head_of(70_000)])
@pytest.mark.parametrize("error", [None, ConnectionResetError()])
def test_a_lost_connection_leaves_no_timer(loop: ManualLoop, sent: bytes, error: Exception | None) -> None:
    connection = Connection(loop, Gate())
    connection.send(sent)
    connection.transport.closed = True
    connection.protocol.connection_lost(error)
    assert connection.protocol._timer is None
    assert connection.protocol.timeout_keep_alive_task is None
    assert not connection.state.connections


def test_requests_of_a_lost_connection_learn_of_it(loop: ManualLoop) -> None:
    told = []

    async def waiting(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        told.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": []})

    for requests in (GET, GET * 3):
        connection = Connection(loop, waiting)
        connection.send(requests)
        connection.transport.close()
        assert connection.send() == b""
        assert told.pop() == "/a"
        assert not told
        assert not connection.state.tasks


def test_uvicorn_internals(connection: Connection, app: Gate) -> None:
    """Every internal of uvicorn's that the protocol and the server rely on; uvicorn is pinned to this minor version."""
    assert uvicorn.__version__.startswith("0.54.")
    assert STATUS_LINE[431] == b"HTTP/1.1 431 Request Header Fields Too Large\r\n"

    # Overridden: uvicorn must go on calling them.
    for name in (
        "connection_made",
        "connection_lost",
        "data_received",
        "on_message_begin",
        "on_headers_complete",
        "on_body",
        "on_message_complete",
        "on_response_complete",
        "_start_asgi_task",
    ):
        assert callable(getattr(HttpToolsProtocol, name)), name
    # Called.
    for name in ("_unset_keepalive_if_required", "shutdown", "on_url", "on_header"):
        assert callable(getattr(HttpToolsProtocol, name)), name

    app.opened.clear()
    connection.send(GET + GET + GET)
    protocol = connection.protocol
    assert protocol.loop is connection.loop
    assert protocol.transport is connection.transport
    assert protocol.server_state is connection.state
    assert protocol.url == b"/a"
    assert protocol.parser.get_http_version() == "1.1"
    assert protocol.parser.get_method() == b"GET"
    assert isinstance(protocol.logger, logging.Logger)
    assert protocol.scope["headers"] == [(b"host", b"h")]

    # The newest request is `cycle`, and the leftmost of those that wait for their turn.
    assert isinstance(protocol.cycle, RequestResponseCycle)
    assert protocol.cycle.scope is protocol.scope
    assert [cycle is protocol.cycle for cycle, _app in protocol.pipeline] == [True, False]
    for name, value in {
        "keep_alive": True,
        "disconnected": False,
        "response_started": False,
        "response_complete": False,
    }.items():
        assert getattr(protocol.cycle, name) is value, name
    assert isinstance(protocol.cycle.message_event, asyncio.Event)

    # The set of tasks and that of connections are the server's to wait for.
    assert len(connection.state.tasks) == 1
    assert connection.state.connections == {protocol}

    # Pipelined requests stop the reading.
    assert not connection.is_reading()
    protocol.flow.resume_reading()
    assert not connection.is_reading()

    # `default_headers` are looked up for each request.
    app.opened.set()
    connection.send()
    connection.state.default_headers = [(b"date", b"today")]
    assert b"\r\ndate: today\r\n" in connection.send(GET)
    assert connection.state.total_requests == 4
    assert connection.is_reading()
    assert protocol.timeout_keep_alive_task is not None
    assert not connection.state.tasks
