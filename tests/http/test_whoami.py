"""`/sessions/whoami` over a real socket: what each request gets, byte for byte, and what it is told about why."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Any

import pytest

from cache_node.http import server, whoami
from cache_node.http.server import HttpServer, bind
from cache_node.http.whoami import MAX_REQUEST_BODY_BYTES, Whoami
from cache_node.sessions.origin import OriginAnswer
from tests.fakes import MAX_STALENESS_SECONDS, Gate, ManualClock, ScriptedNode, changed, following_node, revoked
from tests.waiting import eventually

TOKEN = "X-Session-Token: token"
REFUSED = (
    b'{"error":{"code":401,"status":"Unauthorized",%b"reason":"No valid session credentials found in the request.",'
    b'"message":"The request could not be authorized"}}\n'
)
UNAVAILABLE = (
    b'{"error":{"code":503,"status":"Service Unavailable",'
    b'"message":"The session could not be checked just now. Please try again."}}\n'
)


@dataclass(frozen=True)
class Response:
    """As it came, but for the `Date` that every answer has."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]

    def __getitem__(self, name: str) -> str:
        (value,) = self.all(name)
        return value

    @property
    def why(self) -> str:
        """Cache-Status, without its first word."""
        return self["cache-status"].removeprefix("cache-node; ")


class Connection:
    """Raw requests and answers on one keep-alive connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(
        self, *lines: str | bytes, method: str = "GET", target: str = "/sessions/whoami", body: bytes = b""
    ) -> None:
        head = [f"{method} {target} HTTP/1.1", "Host: node", *lines]
        encoded = [line if isinstance(line, bytes) else line.encode("utf-8") for line in head]
        self.writer.write(b"\r\n".join([*encoded, b"", body]))

    async def receive(self, *, has_body: bool = True) -> Response:
        async with asyncio.timeout(5):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            status, *lines = head.rstrip("\r\n").split("\r\n")
            headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
            assert [name for name, _ in headers].count("date") == 1
            kept = [(name, value) for name, value in headers if name != "date"]
            length = next((int(value) for name, value in kept if name == "content-length"), 0)
            body = await self.reader.readexactly(length) if has_body else b""
        return Response(int(status.split()[1]), kept, body)

    async def ask(self, *lines: str | bytes, **options: Any) -> Response:
        self.send(*lines, **options)
        return await self.receive(has_body=options.get("method") != "HEAD")


class Port:
    """A node's public port, and what it told the observer."""

    def __init__(self, node: ScriptedNode) -> None:
        self.node = node
        self.observed: list[tuple[str, int, str]] = []
        self.whoami = Whoami(node.reader, self, "ory_kratos_session", self._otherwise)
        self.lane = node.lane("ory_kratos_session", lambda seconds: None, self)
        self.server = HttpServer(self.whoami, bind("127.0.0.1", 0), lane=self.lane, drain_seconds=1.0)
        self._open: list[Connection] = []

    def observe_request(self, tier: str, status: int, detail: str, seconds: float) -> None:
        assert 0.0 <= seconds < 60.0
        self.observed.append((tier, status, detail))

    async def _otherwise(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    async def connect(self) -> Connection:
        host, _, port = self.server.address.rpartition(":")
        connection = Connection(*await asyncio.open_connection(host, int(port)))
        self._open.append(connection)
        return connection

    async def ask(self, *lines: str | bytes, **options: Any) -> Response:
        if not self._open:
            await self.connect()
        return await self._open[0].ask(*lines, **options)

    async def close(self) -> None:
        for connection in self._open:
            connection.writer.close()
        await self.server.drain()


@pytest.fixture
async def port(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Port]:
    monkeypatch.setattr(server, "_GRACE_SECONDS", 0.0)  # nothing is under way when a test ends
    monkeypatch.setattr(server, "_DRAIN_POLL_SECONDS", 0.001)
    built = Port(await following_node())
    await built.server.start()
    yield built
    await built.close()


# Hits and misses ------------------------------------------------------------------------------------------------------


async def test_a_miss_and_then_a_hit(port: Port) -> None:
    """Status, body and headers are the origin's, and two say how the answer came about; there is nothing else."""
    miss = await port.ask(TOKEN)
    hit = await port.ask(TOKEN)
    of_origin = [("content-type", "application/json; charset=utf-8")]
    length = ("content-length", str(len(miss.body)))

    assert miss.status == hit.status == 200
    assert miss.headers == [*of_origin, ("cache-status", "cache-node; fwd=miss; detail=cold"), ("age", "0"), length]
    assert hit.headers == [*of_origin, ("cache-status", "cache-node; hit; detail=memory"), ("age", "0"), length]
    assert hit.body == miss.body
    assert port.observed + [("memory", 200, "memory")] * port.lane.hits == [
        ("origin", 200, "cold"),
        ("memory", 200, "memory"),
    ]


async def test_repeated_headers_stay_in_order(port: Port) -> None:
    """`Vary` twice, as Kratos sends it, from the origin and from memory."""
    headers = [("vary", "Origin"), ("cache-control", "private"), ("vary", "Cookie"), ("ory-error-id", "")]
    port.node.origin.extra_headers = tuple((name.encode(), value.encode()) for name, value in headers)
    for _ in range(2):
        assert (await port.ask(TOKEN)).headers[1:5] == headers


async def test_a_cookie_that_the_origin_sets_reaches_its_client(port: Port) -> None:
    """Whoever presents an extended session's old cookie must get the new one."""
    port.node.origin.set_cookie = True
    for _ in range(2):
        answer = await port.ask(TOKEN)
        assert (answer["set-cookie"], answer.why) == ("ory_kratos_session=another", "fwd=miss; detail=cold")


async def test_age_is_whole_seconds_since_the_origin_was_asked(port: Port) -> None:
    """Rounded down, in memory, in Redis, and past the TTL."""
    await port.ask(TOKEN)
    port.node.clock.advance(12.9)
    await port.node.follow()
    hit = await port.ask(TOKEN)
    port.node.clock.advance(1000.0)
    await port.node.follow()
    port.node.origin.down = True
    stale = await port.ask(TOKEN)

    assert [(hit["age"], hit.why), (stale["age"], stale.why)] == [
        ("12", "hit; detail=memory"),
        ("1012", "fwd=stale; detail=stale-if-error"),
    ]


async def test_a_hit_in_redis(port: Port) -> None:
    """What a neighbour has stored."""
    neighbour = port.node.neighbour()
    await neighbour.follow()
    await neighbour.read("token")

    assert (await port.ask(TOKEN)).why == "hit; detail=redis"


async def test_why_an_entry_was_not_given(port: Port) -> None:
    """Each reason has its word, and RFC 9211's beside it."""
    node = port.node
    await port.ask(TOKEN)
    node.clock.advance(MAX_STALENESS_SECONDS)
    assert (await port.ask(TOKEN)).why == "fwd=stale; detail=no-lease"
    await node.follow()
    node.log.server.append(changed())
    await node.follow()
    assert (await port.ask(TOKEN)).why == "fwd=stale; detail=fenced"
    node.clock.advance(901.0)
    await node.follow()
    assert (await port.ask(TOKEN)).why == "fwd=stale; detail=ttl"
    node.origin.sessions[b"token"].expires_at = "2027-01-15T08:00:00Z"
    assert (await port.ask(TOKEN, "Cache-Control: no-cache")).why == "fwd=request; detail=no-cache"
    assert (await port.ask(TOKEN)).why == "fwd=stale; detail=expired"


@pytest.mark.parametrize(
    "header",
    [
        "X-Session-Token: token",
        "x-session-token:   token  ",
        "Authorization: Bearer token",
        "Authorization: bearer token",
    ],
)
async def test_a_token_however_it_is_presented(port: Port, header: str) -> None:
    """One entry for all."""
    await port.ask(TOKEN)

    assert (await port.ask(header)).why == "hit; detail=memory"


async def test_a_cookie(port: Port) -> None:
    """Among others of the same header."""
    value = base64.urlsafe_b64encode(f"{int(ManualClock().wall_now)}|payload|mac".encode()).decode()
    port.node.origin.add(value)

    assert (await port.ask(f"Cookie: theme=dark; ory_kratos_session={value}; x=y")).why == "fwd=miss; detail=cold"
    assert (await port.ask(f'Cookie: ory_kratos_session="{value}"')).why == "hit; detail=memory"


async def test_other_query_parameters_are_ignored(port: Port) -> None:
    """As Kratos ignores them."""
    await port.ask(TOKEN, target="/sessions/whoami?a=1")

    assert (await port.ask(TOKEN, target="/sessions/whoami?b=2&c")).why == "hit; detail=memory"
    assert port.node.origin.passed_on == 0


# 401s -----------------------------------------------------------------------------------------------------------------


async def test_no_credential(port: Port) -> None:
    """The origin's anonymous 401, and again without asking it."""
    first, second = [await port.ask() for _ in range(2)]

    assert (first.status, first.body, first.why) == (401, REFUSED % b"", "fwd=miss; detail=anonymous")
    assert (second.status, second.body, second.why) == (401, REFUSED % b"", "hit; detail=negative")
    assert second["content-type"] == "application/json"


async def test_an_unknown_token(port: Port) -> None:
    """The same words, kept for a few seconds."""
    first, second = [await port.ask("X-Session-Token: made-up") for _ in range(2)]

    assert (first.status, first.why) == (401, "fwd=miss; detail=cold")
    assert (second.status, second.body, second.why) == (401, REFUSED % b"", "hit; detail=negative")


@pytest.mark.parametrize("credential", [[], ["X-Session-Token: made-up"]])
@pytest.mark.parametrize(
    ("sent", "echoed"),
    [
        ("req-42", rb'"request":"req-42",'),
        ("  req-42 ", rb'"request":"req-42",'),
        ("", b""),
        ('a"b\\c', rb'"request":"a\"b\\c",'),
        ("<a&b>", rb'"request":"\u003ca\u0026b\u003e",'),
        ("Zoë", '"request":"Zoë",'.encode()),
        ("a\u2028b", rb'"request":"a\u2028b",'),
    ],
)
async def test_a_request_id_is_repeated_where_kratos_repeats_it(
    port: Port, credential: list[str], sent: str, echoed: bytes
) -> None:
    """Recorded: behind the status, in answers from the origin and in kept ones alike, as Go's encoder writes it."""
    for _ in range(2):
        answer = await port.ask(*credential, f"X-Request-ID: {sent}")
        assert answer.body == REFUSED % echoed
    assert (await port.ask(*credential)).body == REFUSED % b"", "and nobody else sees it"


async def test_a_request_id_that_is_no_text_is_left_out(port: Port) -> None:
    """There is no way to write it as JSON."""
    assert (await port.ask(b"X-Request-ID: \xff\xfe")).body == REFUSED % b""


async def test_a_request_id_is_in_no_session_and_no_403(port: Port) -> None:
    """Recorded, too: Kratos has it in neither."""
    assert b"req-42" not in (await port.ask(TOKEN, "X-Request-ID: req-42")).body
    port.node.origin.status = 403
    answer = await port.ask("X-Session-Token: other", "X-Request-ID: req-42")
    assert (answer.status, answer.body) == (403, b"scripted\n")


# What the client demands ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lines",
    [
        ["Cache-Control: no-cache"],
        ["Cache-Control: NO-CACHE"],
        ["Cache-Control: no-store"],
        ["Cache-Control: private,no-cache"],
        ["Cache-Control: max-age=0"],
        ['Cache-Control: max-age="0"'],
        ["Cache-Control: max-age=00"],
        ["cache-control: max-stale, Max-Age=0"],
        ["Cache-Control: max-age=60", "Cache-Control: no-cache"],
        ["Cache-Control: max-age=60, max-age=0"],
    ],
)
async def test_no_cache(port: Port, lines: list[str]) -> None:
    """However it is said, the origin is asked."""
    await port.ask(TOKEN)

    assert (await port.ask(TOKEN, *lines)).why == "fwd=request; detail=no-cache"


@pytest.mark.parametrize(
    "value",
    [
        "",
        "private",
        "max-age",
        "max-age=",
        "max-age=abc",
        "max-age=-1",
        "max-age=1.5",
        "max-age=99999999999999999999",
        "s-maxage=0",
        "max-stale=0",
        "no-cache-please",
        "only-if-cached",
        ",,",
        "x" * 10_000,
    ],
)
async def test_a_cache_control_that_demands_nothing(port: Port, value: str) -> None:
    """Unknown and malformed directives are ignored, as RFC 9111 has it."""
    await port.ask(TOKEN)

    assert (await port.ask(TOKEN, f"Cache-Control: {value}")).why == "hit; detail=memory"


async def test_max_age(port: Port) -> None:
    """The smallest of several counts."""
    await port.ask(TOKEN)
    port.node.clock.advance(10.0)
    await port.node.follow()
    assert (await port.ask(TOKEN, "Cache-Control: max-age=10")).why == "hit; detail=memory"

    assert (await port.ask(TOKEN, "Cache-Control: max-age=60, max-age=9")).why == "fwd=request; detail=max-age"
    assert (await port.ask(TOKEN, 'Cache-Control: max-age="9"')).why == "hit; detail=memory"


async def test_min_position(port: Port) -> None:
    """A position that is applied is served from the tiers, a newer one by the origin."""
    await port.ask(TOKEN)
    position = port.node.log.server.append(changed("another"))
    assert (await port.ask(TOKEN, f"Cache-Node-Min-Position: {position}")).why == "fwd=request; detail=min-position"
    await port.node.follow()

    assert (await port.ask(TOKEN, f"Cache-Node-Min-Position: {position}")).why == "hit; detail=memory"
    assert (await port.ask(TOKEN, f"Cache-Node-Min-Position:   {position} ")).why == "hit; detail=memory"


@pytest.mark.parametrize(
    "values",
    [
        [""],
        ["latest"],
        ["0-0"],
        ["1-1"],
        ["1800000000000000"],
        ["1800000000000000-"],
        ["1800000000000000--1"],
        ["1800000000000000-0-0"],
        ["99999999999999999999-99999999999999999999"],
        ["999999999999999999999999999999-1"],
        ["1800000000000000-0", "1800000000000000-0"],
        ["1800000000000000-0, 1800000000000000-0"],
        [b"\xff"],
        ["١-١"],
    ],
)
async def test_a_min_position_that_cannot_be_compared_asks_the_origin(port: Port, values: list[str | bytes]) -> None:
    """Unknown is never fresh enough."""
    await port.ask(TOKEN)
    lines = [b"Cache-Node-Min-Position: " + (v if isinstance(v, bytes) else v.encode()) for v in values]

    assert (await port.ask(TOKEN, *lines)).why == "fwd=request; detail=min-position"


# To the origin for itself ---------------------------------------------------------------------------------------------


def passed_on(port: Port) -> tuple[str, str, dict[bytes, bytes], bytes]:
    """The last request that the origin got for itself."""
    assert port.node.origin.last_passed_on is not None
    method, target, headers, body = port.node.origin.last_passed_on
    return method, target, dict(headers), body


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
async def test_other_methods_are_passed_on(port: Port, method: str) -> None:
    """With headers, query and body; nothing is kept, and nothing kept answers."""
    await port.ask(TOKEN)
    answer = await port.ask(TOKEN, "Content-Length: 4", method=method, target="/sessions/whoami?a=%20", body=b"body")
    sent_method, target, headers, body = passed_on(port)

    assert (answer.status, answer.why) == (401, "fwd=bypass; detail=method")
    assert (sent_method, target, body) == (method, "/sessions/whoami?a=%20", b"body")
    assert headers[b"x-session-token"] == b"token"
    assert port.node.origin.reads == 1


@pytest.mark.parametrize(
    ("lines", "detail"),
    [
        ([TOKEN, "Origin: https://app.example"], "origin-header"),
        (["Origin: null"], "origin-header"),
        ([TOKEN, "Cookie: ory_kratos_session=MTc5"], "mixed"),
        ([TOKEN, "Authorization: Bearer token"], "mixed"),
        ([TOKEN, TOKEN], "mixed"),
        (["Cookie: ory_kratos_session=a; ory_kratos_session=b"], "mixed"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_what_is_not_plain_is_passed_on(port: Port, lines: list[str], detail: str, method: str) -> None:
    """Only the origin knows what it makes of these."""
    await port.ask(TOKEN)
    answer = await port.ask(*lines, method=method)

    assert answer.why == f"fwd=bypass; detail={detail}"
    assert passed_on(port)[0] == method


@pytest.mark.parametrize(
    "query", ["tokenize_as=jwt", "a=1&tokenize_as=", "tokenize%5Fas=jwt", "%74okenize_as=jwt", "a=1;b=2", "a=%20"]
)
async def test_tokens_are_minted_by_the_origin(port: Port, query: str) -> None:
    """A query that asks for one, or might, is never answered from the cache."""
    await port.ask(TOKEN)
    answer = await port.ask(TOKEN, target=f"/sessions/whoami?{query}")

    assert answer.why == "fwd=bypass; detail=tokenize"
    assert passed_on(port)[1] == f"/sessions/whoami?{query}"


async def test_a_request_with_a_body_is_passed_on(port: Port) -> None:
    """With a length or in chunks; an empty one is none."""
    await port.ask(TOKEN)
    assert (await port.ask(TOKEN, "Content-Length: 0")).why == "hit; detail=memory"
    assert (await port.ask(TOKEN, "Content-Length: 2", body=b"{}")).why == "fwd=bypass; detail=body"
    assert passed_on(port)[3] == b"{}"
    answer = await port.ask(TOKEN, "Transfer-Encoding: chunked", body=b"2\r\n{}\r\n1\r\n!\r\n0\r\n\r\n")

    assert answer.why == "fwd=bypass; detail=body"
    assert passed_on(port)[3] == b"{}!"


async def test_a_body_that_is_too_large_is_refused(port: Port) -> None:
    """It would have to be held in memory; Kratos ignores it anyway."""
    size = MAX_REQUEST_BODY_BYTES + 1
    answer = await port.ask(TOKEN, f"Content-Length: {size}", method="POST", body=b"x" * size)

    assert (answer.status, answer["content-type"], answer.why) == (
        413,
        "application/json",
        "fwd=bypass; detail=refused",
    )
    assert answer.body.startswith(b'{"error":{"code":413,"status":"')
    assert b'"message":"The body is larger than 1048576 bytes."}}' in answer.body
    assert port.node.origin.passed_on == 0


async def test_a_body_without_end_is_refused_early(port: Port) -> None:
    """As soon as it is known to be too large, and not at its end; others are answered as ever."""
    size = MAX_REQUEST_BODY_BYTES + 1
    begun = b"%x\r\n%b" % (size, b"x" * size)
    endless = await port.connect()
    answer = await endless.ask(TOKEN, "Transfer-Encoding: chunked", method="POST", body=begun)

    assert (answer.status, answer["connection"], answer.why) == (413, "close", "fwd=bypass; detail=refused")
    assert port.node.origin.passed_on == 0
    assert (await (await port.connect()).ask(TOKEN)).status == 200


async def test_a_body_that_does_not_come_is_not_waited_for(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whoami, "REQUEST_BODY_SECONDS", 0.05)
    answer = await port.ask(TOKEN, "Content-Length: 9", method="POST", body=b"{")

    assert (answer.status, answer["connection"], answer.why) == (408, "close", "fwd=bypass; detail=refused")
    assert port.node.origin.passed_on == 0


async def test_a_request_id_is_the_origins_where_it_was_passed_on(port: Port) -> None:
    """It has seen the header itself."""
    answer = await port.ask("Origin: null", "X-Request-ID: req-42")

    assert answer.body == REFUSED % b""
    assert passed_on(port)[2][b"x-request-id"] == b"req-42"


async def test_headers_that_are_no_text(port: Port) -> None:
    """They do no harm to a plain request; one that must be passed on is refused, for they cannot be sent."""
    await port.ask(TOKEN)
    assert (await port.ask(TOKEN, b"X-Name: caf\xe9")).why == "hit; detail=memory"
    assert (await port.ask(b"X-Session-Token: caf\xe9")).status == 400
    answer = await port.ask(TOKEN, "Origin: null", b"X-Name: caf\xe9")

    assert (answer.status, answer.why) == (400, "fwd=bypass; detail=refused")
    assert b'"message":"A header of this request is not valid UTF-8."' in answer.body


def answer_of_origin(status: int, *headers: tuple[bytes, bytes], body: bytes = b"") -> OriginAnswer:
    return OriginAnswer(status, headers, body, ManualClock().wall_now)


async def test_an_answer_without_a_body_has_no_length(port: Port) -> None:
    """A preflight's 204 must not have one (RFC 9110, 8.6)."""
    port.node.origin.any_answer = answer_of_origin(204, (b"access-control-allow-origin", b"https://app.example"))
    answer = await port.ask("Origin: https://app.example", method="OPTIONS")

    assert (answer.status, answer.all("content-length")) == (204, [])
    assert answer["access-control-allow-origin"] == "https://app.example"
    port.node.origin.any_answer = None
    assert (await port.ask(TOKEN)).status == 200, "and the connection goes on"


# HEAD -----------------------------------------------------------------------------------------------------------------


async def test_head_is_answered_from_one_entry_with_get(port: Port) -> None:
    """A HEAD miss is filled by a GET; it gets all the headers, the body's length included, and no body."""
    head = await port.ask(TOKEN, method="HEAD")
    get = await port.ask(TOKEN)
    again = await port.ask(TOKEN, method="HEAD")

    assert (head.why, get.why, again.why) == ("fwd=miss; detail=cold", "hit; detail=memory", "hit; detail=memory")
    assert again.headers == get.headers
    assert head["content-length"] == str(len(get.body))
    assert (port.node.origin.reads, port.node.origin.passed_on) == (1, 0)


async def test_head_of_a_401_counts_the_request_id(port: Port) -> None:
    """Recorded: its length is that of the GET's body."""
    head = await port.ask("X-Request-ID: req-42", method="HEAD")

    assert (head.status, head["content-length"]) == (401, "176")


@pytest.mark.parametrize(("headers", "length"), [([(b"content-length", b"1399")], ["1399"]), ([], [])])
async def test_head_that_was_passed_on_has_the_origins_length(
    port: Port, headers: list[tuple[bytes, bytes]], length: list[str]
) -> None:
    """Ours would be that of a body which it does not have."""
    port.node.origin.any_answer = answer_of_origin(200, *headers)
    answer = await port.ask(TOKEN, "Origin: null", method="HEAD")

    assert answer.all("content-length") == length
    port.node.origin.any_answer = None
    assert (await port.ask(TOKEN)).status == 200, "and the connection goes on"


# No answer ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lines", [[TOKEN], ["X-Session-Token: made-up"], [], [TOKEN, "Origin: null"], [TOKEN, "Cache-Control: no-cache"]]
)
async def test_without_the_origin_and_without_an_entry(port: Port, lines: Iterable[str]) -> None:
    """503 in Kratos' shape, and when to come again; never a 401."""
    port.node.origin.down = True
    answer = await port.ask(*lines)
    forward = "bypass" if "Origin: null" in lines else "miss"

    assert (answer.status, answer.body) == (503, UNAVAILABLE)
    assert answer.headers == [
        ("content-type", "application/json"),
        ("retry-after", "1"),
        ("cache-status", f"cache-node; fwd={forward}; detail=unreachable"),
        ("age", "0"),
        ("content-length", str(len(UNAVAILABLE))),
    ]


async def test_without_the_origin_and_with_an_entry(port: Port) -> None:
    """Memory goes on answering; who wants the origin's word gets the entry that is proven unchanged."""
    await port.ask(TOKEN)
    port.node.origin.down = True
    assert (await port.ask(TOKEN)).why == "hit; detail=memory"
    answer = await port.ask(TOKEN, "Cache-Control: no-cache")
    assert (answer.status, answer.why) == (200, "fwd=stale; detail=stale-if-error")
    port.node.log.server.append(revoked())
    await port.node.follow()

    assert (await port.ask(TOKEN)).status == 503


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_failure_of_the_origin_is_passed_on(port: Port, status: int) -> None:
    """Where no entry answers."""
    port.node.origin.status = status
    answer = await port.ask(TOKEN)

    assert (answer.status, answer.body, answer.why) == (status, b"scripted\n", "fwd=miss; detail=origin-error")


@pytest.mark.parametrize(
    ("lines", "target", "why"),
    [
        ([TOKEN], "/sessions/whoami", "fwd=miss; detail=garbage"),
        ([], "/sessions/whoami", "fwd=miss; detail=garbage"),
        ([TOKEN], "/sessions/whoami?tokenize_as=x", "fwd=bypass; detail=garbage"),
    ],
    ids=["token", "anonymous", "bypass"],
)
@pytest.mark.parametrize(
    "body",
    [b"<html>", b"", b"{}", b"[]", b'{"id": "a"}', b'{"id": "", "identity": {"id": "b"}}'],
    ids=["html", "empty", "object", "array", "no-identity", "no-id"],
)
async def test_a_200_that_is_no_session(port: Port, lines: list[str], target: str, why: str, body: bytes) -> None:
    """An error page of something in between is nobody's session."""
    for status in (200, 204):
        port.node.origin.any_answer = answer_of_origin(status, body=body)
        answer = await port.ask(*lines, target=target)
        assert (answer.status, answer.why, answer.body) == (503, why, UNAVAILABLE)


@pytest.mark.parametrize(
    "body",
    [
        b'{"id": "%b", "active": true, "expires_at": "2030-01-01T00:00:00Z", "identity": {"id": "b"}}' % (b"a" * 200),
        b'{"id": "a", "active": true, "expires_at": "some day", "identity": {"id": "b"}}',
        b'{"id": "a", "identity": {"id": "b"}}',
    ],
    ids=["long id", "unknown end", "bare"],
)
async def test_a_session_that_cannot_be_cached(port: Port, body: bytes) -> None:
    """No event could name it, or its end is not known: it is given as the origin says it, each time anew."""
    port.node.origin.any_answer = answer_of_origin(200, body=body)
    for _ in range(2):
        answer = await port.ask(TOKEN)
        assert (answer.status, answer.why, answer.body) == (200, "fwd=miss; detail=cold", body)


async def test_what_is_passed_on_compressed_is_not_judged(port: Port) -> None:
    """The client asked for it; only it can read it."""
    port.node.origin.any_answer = answer_of_origin(200, (b"content-encoding", b"gzip"), body=b"\x1f\x8b\x08")
    answer = await port.ask(TOKEN, "Accept-Encoding: gzip", target="/sessions/whoami?tokenize_as=x")

    assert (answer.status, answer.body) == (200, b"\x1f\x8b\x08")


async def test_pipelined_reads_that_outlast_the_drain(port: Port, caplog: pytest.LogCaptureFixture) -> None:
    """Each gets its answer, though it begins when the one before it has been cut off."""
    gate = port.node.origin.gate = Gate()
    connection = await port.connect()
    for _ in range(4):
        connection.send(TOKEN)
    await gate.arrived()
    await port.server.drain(within_seconds=0.0)
    answers = [await connection.receive() for _ in range(4)]

    assert [(answer.status, answer.why) for answer in answers] == [(503, "fwd=miss; detail=timeout")] * 4
    assert [record.levelname for record in caplog.records] == ["WARNING"], caplog.text


async def test_a_read_that_outlasts_the_drain(port: Port, caplog: pytest.LogCaptureFixture) -> None:
    """The node ends, and says so to whom it cannot answer any more: 503, and no traceback."""
    port.node.origin.gate = Gate()
    connection = await port.connect()
    connection.send(TOKEN)
    await port.node.origin.gate.arrived()
    await port.server.drain(within_seconds=0.0)
    answer = await connection.receive()

    assert (answer.status, answer.body, answer.why) == (503, UNAVAILABLE, "fwd=miss; detail=timeout")
    assert [record.levelname for record in caplog.records] == ["WARNING"], caplog.text


# The connection -------------------------------------------------------------------------------------------------------


async def test_other_paths_are_others_business(port: Port) -> None:
    """A trailing slash makes another path, as it does at the origin."""
    for target in ("/", "/sessions/whoami/", "/sessions", "/health/alive"):
        assert (await port.ask(TOKEN, target=target)).status == 404
    assert (await port.ask(TOKEN, target="/sessions/who%61mi")).status == 200


async def test_pipelined_requests_are_answered_in_order(port: Port) -> None:
    """A hit does not overtake the miss before it."""
    connection = await port.connect()
    port.node.origin.add("slow")
    await connection.ask(TOKEN)
    port.node.origin.gate = gate = Gate()
    connection.send("X-Session-Token: slow")
    connection.send(TOKEN)
    connection.send("X-Session-Token: slow", method="HEAD")
    await gate.arrived()
    gate.open()

    assert (await connection.receive()).why == "fwd=miss; detail=cold"
    assert (await connection.receive()).why == "hit; detail=memory"
    assert (await connection.receive(has_body=False)).why == "hit; detail=memory"


async def test_a_client_that_goes_away_takes_nothing_with_it(port: Port) -> None:
    """The fill it began is kept, and nothing of its request stays."""
    connection = await port.connect()
    port.node.origin.gate = gate = Gate()
    connection.send(TOKEN)
    await gate.arrived()
    assert len(port.server.under_way) == 1
    connection.writer.transport.abort()
    await eventually(lambda: not port.server._state.connections)
    gate.open()
    await eventually(lambda: not port.server.under_way)

    assert (await (await port.connect()).ask(TOKEN)).why == "hit; detail=memory"
