"""The origin client against a server whose every byte is scripted: what is sent, what is made of any answer or none."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable

import pytest

from cache_node.errors import OriginUnavailableError
from cache_node.feed.clock import SystemClock
from cache_node.sessions import origin as origin_module
from cache_node.sessions.credential import Credential
from cache_node.sessions.origin import DEAD_CONNECTIONS_SECONDS, Origin, OriginAnswer
from cache_node.sessions.origin_client import MAX_ANSWER_BYTES, MOST_INTERIM
from tests.fakes import Gate, ManualClock
from tests.raw_origin import OK, READY_PATH, REFUSED, Peer, RawOrigin, gated, http, silence
from tests.sessions.asking import TOKEN, cause, never, origin_to, read
from tests.waiting import eventually

READY, NOT_READY = http(200, b'{"status":"ok"}'), http(503)


# What is sent ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("credential", "header"),
    [
        (TOKEN, b"X-Session-Token: ory_st_secret"),
        (Credential("token", b"ory_st_secret", bearer=True), b"Authorization: Bearer ory_st_secret"),
        (Credential("cookie", b"MTc5=", cookie_name="ory_kratos_session"), b"Cookie: ory_kratos_session=MTc5="),
    ],
)
async def test_a_fill_carries_the_credential_and_nothing_else(
    server: RawOrigin, credential: Credential, header: bytes
) -> None:
    """Others get its answer, so nothing of one client's may be in it: no User-Agent, no Accept-Encoding, no cookies."""
    async with origin_to(server) as origin:
        await read(origin, credential)
    host = f"Host: 127.0.0.1:{server.port}".encode()
    expected = [b"GET /sessions/whoami HTTP/1.1", host, header, b"Accept: application/json", b"", b""]

    assert server.requests == [b"\r\n".join(expected)]


async def test_the_anonymous_question_carries_no_credential(server: RawOrigin) -> None:
    """And its 401 needs no readiness: it is true in an outage, too."""
    server.replies = [REFUSED]
    async with origin_to(server) as origin:
        answer = await origin.read_anonymous()

    assert (answer.status, answer.body, answer.believed) == (401, b"refused", True)
    assert server.probed == 0
    assert server.requests[0].count(b"\r\n") == 4, "request line, host, accept, and the blank line"


async def test_what_is_passed_on_keeps_all_but_hop_by_hop_headers(server: RawOrigin) -> None:
    """Method, target, order, repetition and body are the client's; its connection is its own."""
    headers = [
        (b"host", b"app.example"),
        (b"cookie", b"a=1"),
        (b"cookie", b"ory_kratos_session=x"),
        (b"x-session-token", b"ory_st_secret"),
        (b"connection", b"keep-alive, X-Mine"),
        (b"keep-alive", b"timeout=5"),
        (b"x-mine", b"1"),
        (b"te", b"trailers"),
        (b"upgrade", b"h2c"),
        (b"transfer-encoding", b"chunked"),
        (b"expect", b"100-continue"),
        (b"accept-language", b"de"),
        (b"x-name", "Söhne".encode()),
        (b"user-agent", b"curl/8"),
    ]
    async with origin_to(server) as origin:
        await origin.pass_on(
            "POST", "/sessions/whoami?tokenize_as=a%20b&x=", headers, b"body", anonymous=False, is_expected=never
        )
    lines = server.requests[0].split(b"\r\n")

    assert lines[0] == b"POST /sessions/whoami?tokenize_as=a%20b&x= HTTP/1.1"
    assert lines[1] == f"Host: 127.0.0.1:{server.port}".encode()
    assert lines[2:-3] == [
        b"cookie: a=1",
        b"cookie: ory_kratos_session=x",
        b"x-session-token: ory_st_secret",
        b"accept-language: de",
        b"x-name: S\xc3\xb6hne",
        b"user-agent: curl/8",
    ]
    assert lines[-3:] == [b"Content-Length: 4", b"", b"body"]


async def test_a_cookie_that_is_set_is_not_remembered(server: RawOrigin) -> None:
    """One client's Set-Cookie must never go out with another's request."""
    server.replies = [http(200, b"", [b"Set-Cookie: ory_kratos_session=new; Path=/"])]
    async with origin_to(server) as origin:
        for _ in range(2):
            answer = await read(origin)
            assert answer.header(b"set-cookie") == b"ory_kratos_session=new; Path=/"
        await origin.read_anonymous()

    assert not any(b"cookie" in request.lower() for request in server.requests)


async def test_a_redirect_is_an_answer_and_not_followed(server: RawOrigin) -> None:
    """Credentials go to the origin and nowhere else."""
    elsewhere = f"{server.url}/elsewhere".encode()
    server.replies = [http(302, b"", [b"Location: " + elsewhere]), OK]
    async with origin_to(server) as origin:
        answer = await read(origin)

    assert (answer.status, answer.header(b"location")) == (302, elsewhere)
    assert len(server.requests) == 1


# What is made of an answer --------------------------------------------------------------------------------------------


async def test_headers_keep_order_and_repetition_and_bytes(server: RawOrigin) -> None:
    """Names in lower case, hop-by-hop ones and those that Connection names dropped, values untouched."""
    server.replies = [
        http(
            200,
            b"body",
            [
                b"Cache-Control: private",
                b"Vary: Origin",
                b"X-Latin: caf\xe9",
                b"Connection: keep-alive, X-Mine",
                b"Keep-Alive: timeout=5",
                b"X-Mine: 1",
                b"Date: Tue, 24 Nov 2026 12:20:30 GMT",
                b"VARY: Cookie",
                b"Ory-Error-Id: ",
            ],
        )
    ]
    async with origin_to(server) as origin:
        answer = await read(origin)

    assert answer.headers == (
        (b"cache-control", b"private"),
        (b"vary", b"Origin"),
        (b"x-latin", b"caf\xe9"),
        (b"vary", b"Cookie"),
        (b"ory-error-id", b""),
    )
    assert (answer.status, answer.body, answer.fetched_at) == (200, b"body", ManualClock().wall_now)


@pytest.mark.parametrize(
    "reply",
    [
        http(200, bytes(range(256)) * 40),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1400\r\n" + bytes(range(256)) * 20 + b"\r\n"
        b"1400\r\n" + bytes(range(256)) * 20 + b"\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 10240\r\n\r\n" + bytes(range(256)) * 40,
    ],
    ids=["length", "chunked", "encoded"],
)
async def test_bodies_are_kept_byte_for_byte(server: RawOrigin, reply: bytes) -> None:
    """However they are framed, and never decoded."""
    server.replies = [reply]
    async with origin_to(server) as origin:
        assert (await read(origin)).body == bytes(range(256)) * 40


async def test_a_body_that_ends_with_its_connection(server: RawOrigin) -> None:
    """HTTP/1.0 has no other way to say where it ends."""

    async def answer(peer: Peer) -> None:
        await peer.send(b"HTTP/1.0 200 OK\r\n\r\nall of it")
        peer.close()

    server.replies = [answer]
    async with origin_to(server) as origin:
        assert (await read(origin)).body == b"all of it"


async def test_the_length_of_an_answer_to_head_is_kept(server: RawOrigin) -> None:
    """Nothing else tells it; for all other answers the body does."""
    server.replies = [b"HTTP/1.1 200 OK\r\nContent-Length: 1399\r\n\r\n"]
    async with origin_to(server) as origin:
        answer = await origin.pass_on("HEAD", "/sessions/whoami", [], b"", anonymous=False, is_expected=never)

    assert (answer.headers, answer.body) == (((b"content-length", b"1399"),), b"")


async def test_a_header_of_64_kilobytes_is_read(server: RawOrigin) -> None:
    """Longer than that is garbage."""
    server.replies = [http(200, b"", [b"X-Long: " + b"x" * 60_000]), http(200, b"", [b"X-Long: " + b"x" * 70_000])]
    async with origin_to(server) as origin:
        assert len((await read(origin)).header(b"x-long") or b"") == 60_000
        assert await cause(origin) == "garbage"


# No answer ------------------------------------------------------------------------------------------------------------


async def test_an_origin_that_is_not_there(server: RawOrigin) -> None:
    """Refused at once; and it is asked again by the next reader."""
    origin = Origin("http://127.0.0.1:1", ManualClock(), timeout_seconds=5, concurrency=1, ready_path=READY_PATH)

    assert await cause(origin) == "unreachable"
    assert await cause(origin) == "unreachable"
    await origin.aclose()


async def test_an_origin_that_is_silent(server: RawOrigin) -> None:
    """The deadline is one for the whole read."""
    server.replies = [silence]
    async with origin_to(server, timeout_seconds=0.05) as origin:
        assert await cause(origin) == "timeout"


async def test_an_origin_that_drips(server: RawOrigin) -> None:
    """A byte now and then does not prolong the deadline."""

    async def drip(peer: Peer) -> None:
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(1000):
            await peer.send(b"x")
            await asyncio.sleep(0.01)  # the origin's pace, and nothing that is waited for

    server.replies = [drip]
    async with origin_to(server, timeout_seconds=0.1) as origin:
        assert await cause(origin) == "timeout"


async def test_interim_answers_are_no_answers(server: RawOrigin) -> None:
    """Early hints and the like come before the answer."""
    server.replies = [b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * MOST_INTERIM + OK]
    async with origin_to(server) as origin:
        assert [(await read(origin)).body for _ in range(3)] == [b"good"] * 3


async def test_interim_answers_without_end_hold_up_nobody(server: RawOrigin) -> None:
    """The connection is ended, and the event loop has its turns meanwhile."""

    async def flood(peer: Peer) -> None:
        while True:
            await peer.send(b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000)

    server.replies = [flood]
    async with origin_to(server) as origin:
        assert await cause(origin) == "unreachable"


async def cut_body(peer: Peer) -> None:
    await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"x" * 999)
    peer.close()


async def cut_chunks(peer: Peer) -> None:
    await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n")
    peer.close()


async def cut_head(peer: Peer) -> None:
    await peer.send(b"HTTP/1.1 200 OK\r\nContent-Le")
    peer.close()


async def reset_at_once(peer: Peer) -> None:
    peer.reset()


async def reset_in_the_body(peer: Peer) -> None:
    await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nxxx")
    peer.reset()


async def endless_body(peer: Peer) -> None:
    await peer.send(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        await peer.send(b"x" * 65536)


async def endless_head(peer: Peer) -> None:
    await peer.send(b"HTTP/1.1 200 OK\r\n")
    while True:
        await peer.send(b"X-Again: again\r\n" * 100)


@pytest.mark.parametrize(
    ("reply", "causes"),
    [
        (cut_body, {"garbage"}),
        (cut_chunks, {"garbage"}),
        (cut_head, {"unreachable"}),
        (reset_at_once, {"unreachable"}),
        (reset_in_the_body, {"unreachable", "garbage"}),
        (endless_body, {"garbage"}),
        (endless_head, {"garbage"}),
        (http(200, b"x" * (MAX_ANSWER_BYTES + 1)), {"garbage"}),
        (b"220 mail.example ESMTP\r\n", {"garbage"}),
        (b"\x16\x03\x01\x02\x00\x01\x00", {"garbage"}),
        (b"HTTP/1.1 999999 Strange\r\n\r\n", {"garbage"}),
        (b"HTTP/1.1 200 OK\r\nContent-Length: minus\r\n\r\n", {"garbage"}),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 7\r\n\r\nabcdefg", {"garbage"}),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", {"garbage"}),
        (b"HTTP/1.1 200 OK\r\nName without colon\r\n\r\n", {"garbage"}),
        (http(600, b"strange"), {"garbage"}),
        (http(999, b"strange"), {"garbage"}),
        (b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: other\r\n\r\n", {"garbage"}),
        (b"HTTP/1.1 304 Not Modified\r\n\r\n", {"garbage"}),
        (b"HTTP/1.1 200 OK\r\nVary: a\x01b\r\nContent-Length: 2\r\n\r\n{}", {"garbage"}),
        (b"HTTP/1.1 200 OK\r\nVary: \x7f\r\nContent-Length: 2\r\n\r\n{}", {"garbage"}),
    ],
)
async def test_no_answer_is_made_of_half_of_one(server: RawOrigin, reply: object, causes: set[str]) -> None:
    """Cut off, endless or no HTTP at all: there is no answer, within the deadline, and the next read begins anew."""
    server.replies = [reply, OK]  # type: ignore[list-item]  # parametrize cannot say so
    if causes == {"unreachable"}:
        server.replies.insert(0, reply)  # type: ignore[arg-type]  # unanswered, an idempotent request is sent once more
    async with origin_to(server) as origin:
        assert await cause(origin) in causes
        assert (await read(origin)).body == b"good"


async def test_a_304_answers_who_asked_on_a_condition(server: RawOrigin) -> None:
    """It is garbage to everybody else, above."""
    server.replies = [b"HTTP/1.1 304 Not Modified\r\n\r\n"]
    async with origin_to(server) as origin:
        headers = [(b"x-session-token", b"secret"), (b"if-none-match", b'"1"')]
        answer = await origin.pass_on("GET", "/", headers, b"", anonymous=False, is_expected=lambda: False)
        assert answer.status == 304


# Connections ----------------------------------------------------------------------------------------------------------


async def test_connections_are_used_again(server: RawOrigin) -> None:
    """A thousand reads, one after another, need one."""
    async with origin_to(server) as origin:
        for _ in range(50):
            await read(origin)

    assert len(server.connections) == 1


async def test_a_connection_that_the_origin_closed_is_no_error(server: RawOrigin) -> None:
    """Kratos closes idle ones, and a restart closes all."""
    async with origin_to(server) as origin:
        await read(origin)
        server.connections[0].close()
        await server.connections[0].writer.wait_closed()
        assert (await read(origin)).status == 200

    assert len(server.connections) == 2


async def test_a_connection_that_the_origin_closes_as_it_is_used_is_no_error(server: RawOrigin) -> None:
    """Its end and the next request cross: nothing was answered, so the question is put again."""

    async def close(peer: Peer) -> None:
        peer.close()

    server.replies = [OK, close, OK]
    async with origin_to(server) as origin:
        await read(origin)
        assert (await read(origin)).status == 200

    assert len(server.requests) == 3


EVIL = http(200, b"another client's session")


async def test_bytes_behind_an_answer_are_no_answer_to_the_next_question(server: RawOrigin) -> None:
    """An answer longer than it says must not become somebody else's."""
    server.replies = [OK + EVIL, OK]
    async with origin_to(server) as origin:
        bodies = [(await read(origin)).body for _ in range(3)]

    assert bodies == [b"good"] * 3


async def test_bytes_on_an_idle_connection_are_no_answer_to_the_next_question(server: RawOrigin) -> None:
    """As above, but they arrive when the connection waits for its next use; some proxies send a 408 there."""
    async with origin_to(server) as origin:
        await read(origin)
        await server.connections[0].send(EVIL)
        bodies = [(await read(origin)).body for _ in range(3)]
        await server.connections[-1].send(EVIL)
        await asyncio.sleep(0)
        bodies += [(await read(origin)).body for _ in range(3)]

    assert bodies == [b"good"] * 6


async def test_an_answer_that_comes_after_the_deadline_is_nobodys(server: RawOrigin) -> None:
    """The connection of a read that was given up is not used again."""
    gate = Gate()
    server.replies = [gated(gate, EVIL), OK]
    async with origin_to(server, timeout_seconds=0.05) as origin:
        assert await cause(origin) == "timeout"
        gate.open()
        assert [(await read(origin)).body for _ in range(3)] == [b"good"] * 3


async def test_a_read_that_is_cancelled_leaves_nothing_behind(server: RawOrigin) -> None:
    """Neither its place, nor a connection with an answer on it."""
    gate = Gate()
    server.replies = [gated(gate, EVIL), OK]
    async with origin_to(server, concurrency=1) as origin:
        reading = asyncio.create_task(read(origin))
        await gate.arrived()
        reading.cancel()
        await asyncio.wait([reading])
        gate.open()
        assert [(await read(origin)).body for _ in range(3)] == [b"good"] * 3


# How many at once -----------------------------------------------------------------------------------------------------


async def test_no_more_reads_at_once_than_the_limit(server: RawOrigin) -> None:
    """The others wait for their turn, and none of their reads has begun meanwhile."""
    gates = [Gate() for _ in range(6)]
    server.replies = [gated(gate, OK) for gate in gates]
    begun: list[int] = []
    async with origin_to(server, concurrency=2) as origin:
        reads = [
            asyncio.create_task(origin.read(TOKEN, on_begin=functools.partial(begun.append, n), is_expected=never))
            for n in range(6)
        ]
        for number in range(6):
            await gates[number].arrived()
            assert len(server.requests) <= number + 2
            assert len(begun) <= number + 2
            gates[number].open()
        assert [answer.status for answer in await asyncio.gather(*reads)] == [200] * 6


async def test_a_read_that_waits_too_long_for_its_turn(server: RawOrigin, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so, and has not begun."""
    monkeypatch.setattr(origin_module, "QUEUE_SECONDS", 0.05)
    gate = Gate()
    server.replies = [gated(gate, OK), OK]
    begun: list[str] = []
    async with origin_to(server, concurrency=1) as origin:
        first = asyncio.create_task(read(origin))
        await gate.arrived()
        with pytest.raises(OriginUnavailableError) as caught:
            await origin.read(TOKEN, on_begin=lambda: begun.append("second"), is_expected=never)
        gate.open()
        assert (await first).status == 200
        assert (await read(origin)).status == 200

    assert (caught.value.cause, begun, len(server.requests)) == ("busy", [], 2)


async def test_reads_begin_right_before_they_are_sent(server: RawOrigin) -> None:
    """Who joins before that may have the result, so it must not be said too early, nor after the request is out."""
    seen: list[int] = []
    async with origin_to(server) as origin:
        await origin.read(TOKEN, on_begin=lambda: seen.append(len(server.requests)), is_expected=never)

    assert seen == [0]


# 401s -----------------------------------------------------------------------------------------------------------------


async def test_a_401_is_believed_when_it_is_said_again_after_a_second(server: RawOrigin) -> None:
    """Read, probe, once more at once, and then by a read that no dead connection of the database can have answered."""
    order: list[str] = []

    def told(what: str, reply: bytes) -> Callable[[Peer], object]:
        async def tell(peer: Peer) -> None:
            order.append(what)
            await peer.send(reply)

        return tell

    server.replies = [told("401", REFUSED)]  # type: ignore[list-item]
    server.probes = [told("ready", READY)]  # type: ignore[list-item]
    async with origin_to(server, clock=SystemClock()) as origin:
        begun = time.monotonic()
        answer = await read(origin)
        assert time.monotonic() - begun >= DEAD_CONNECTIONS_SECONDS

    assert (answer.status, answer.body, answer.believed) == (401, b"refused", True)
    assert order == ["401", "ready"] * 3
    assert origin.counts["unbelieved"] == 0


async def test_an_expected_401_is_believed_at_once(server: RawOrigin) -> None:
    """The session was revoked, and here is known to be: one read, and one probe that says ready."""
    server.replies = [REFUSED]
    async with origin_to(server) as origin:
        assert (await read(origin, expected=True)).status == 401
    assert (len(server.requests), server.probed) == (1, 1)


@pytest.mark.parametrize(
    "probes",
    [[NOT_READY], [READY, NOT_READY], [http(404)], [http(204)], [http(302)], [silence], [cut_body], [reset_at_once]],
)
async def test_a_401_of_an_origin_that_is_not_ready(server: RawOrigin, probes: list[object]) -> None:
    """With its database down Kratos says 401 to everybody: without two 200s of its readiness, it is no 401."""
    server.replies = [REFUSED]
    server.probes = probes  # type: ignore[assignment]
    async with origin_to(server, timeout_seconds=0.2) as origin:
        assert await cause(origin) == "unready"
        assert origin.counts["unbelieved"] == 1


async def test_a_401_at_the_end_of_an_outage(server: RawOrigin) -> None:
    """The last 401 of an outage is followed by a probe that says ready: asked again, the session is there."""
    server.replies = [REFUSED, OK]
    async with origin_to(server) as origin:
        answer = await read(origin)

    assert (answer.status, answer.body) == (200, b"good")
    assert (server.probed, len(server.requests)) == (1, 2)


async def test_a_401_at_the_beginning_of_an_outage(server: RawOrigin) -> None:
    """The probe after it says not ready, whatever an earlier one said."""
    server.replies = [REFUSED]
    server.probes = [READY, NOT_READY]
    async with origin_to(server) as origin:
        assert (await read(origin, expected=True)).status == 401
        assert await cause(origin) == "unready"


async def test_a_401_that_was_said_twice_at_once_is_not_believed(
    server: RawOrigin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the database has ended its connections, the second read may meet a dead one as the first did."""
    monkeypatch.setattr(origin_module, "DEAD_CONNECTIONS_SECONDS", 0.2)
    server.replies = [REFUSED, REFUSED, OK]
    async with origin_to(server, clock=SystemClock()) as origin:
        assert (await read(origin)).status == 200
    assert (server.probed, len(server.requests)) == (2, 3)


async def test_a_probe_that_was_sent_before_the_401_proves_nothing(server: RawOrigin) -> None:
    """A's probe is under way when B's 401 arrives: B waits for another one, and that says not ready."""
    first = Gate()
    server.replies = [REFUSED]
    server.probes = [gated(first, READY), NOT_READY]
    async with origin_to(server) as origin:
        reading_a = asyncio.create_task(cause(origin))
        await first.arrived()
        reading_b = asyncio.create_task(cause(origin, Credential("token", b"ory_st_b")))
        await eventually(lambda: len(server.requests) == 2)
        assert server.probed == 1, "one in flight"
        first.open()

        assert [await reading_a, await reading_b] == ["unready", "unready"]
    of_b = [request for request in server.requests if b"ory_st_b" in request]
    assert len(of_b) == 1, "it gave up after its first 401, which no probe has vouched for"


async def test_many_401s_share_their_probes(server: RawOrigin) -> None:
    """A flood of made-up tokens costs a few probes, not one each."""
    server.replies = [REFUSED]
    async with origin_to(server) as origin:
        made_up = [Credential("token", b"t%d" % n) for n in range(50)]
        answers = await asyncio.gather(*(read(origin, each, expected=True) for each in made_up))

    assert {answer.status for answer in answers} == {401}
    assert len(server.requests) == 50
    assert server.probed <= 10


async def test_a_probe_gets_through_when_all_places_are_taken(server: RawOrigin) -> None:
    """Whether the origin is ready must be known above all when it is slow."""
    gate = Gate()
    server.replies = [REFUSED, gated(gate, OK)]
    probing = Gate()
    server.probes = [gated(probing, READY), READY]
    async with origin_to(server, concurrency=1) as origin:
        refused = asyncio.create_task(read(origin, expected=True))
        await probing.arrived()
        slow = asyncio.create_task(read(origin))
        await gate.arrived()  # it has the only place
        probing.open()
        assert await origin._readiness.asked_now()  # type: ignore[union-attr]
        gate.open()

        assert (await slow).status == 200
        assert (await refused).status == 401


async def test_an_origin_without_readiness(server: RawOrigin) -> None:
    """Its 401s are said to be unbelieved, and passed on after one read."""
    server.replies = [REFUSED]
    async with origin_to(server, ready_path="") as origin:
        answer = await read(origin)

    assert (answer.status, answer.body, answer.believed) == (401, b"refused", False)
    assert (server.probed, len(server.requests)) == (0, 1)


async def test_a_401_of_what_is_passed_on_is_judged_as_well(server: RawOrigin) -> None:
    """A browser's request with an Origin header must not be logged out by an outage either."""
    server.replies = [REFUSED]
    server.probes = [NOT_READY]
    async with origin_to(server) as origin:
        with pytest.raises(OriginUnavailableError):
            await origin.pass_on(
                "GET",
                "/sessions/whoami",
                [(b"origin", b"https://app.example")],
                b"",
                anonymous=False,
                is_expected=never,
            )


async def test_outcomes_are_observed(server: RawOrigin) -> None:
    """Each request with its status or the cause of its failure; probes are no reads."""
    server.replies = [OK, REFUSED, http(500), b"garbage\r\n\r\n", silence]
    seen: list[str] = []
    async with origin_to(server, timeout_seconds=0.1) as origin:
        origin.observe = lambda outcome, seconds: seen.append(outcome)
        for _ in range(3):
            await read(origin, expected=True)
        assert [await cause(origin), await cause(origin)] == ["garbage", "timeout"]

    assert seen == ["200", "401", "500", "garbage", "timeout"]


@pytest.mark.parametrize(("status", "is_failure"), [(200, False), (401, False), (403, False), (429, True), (500, True)])
def test_what_counts_as_a_failure(status: int, is_failure: bool) -> None:
    """429 and 5xx say nothing about the credential."""
    assert OriginAnswer(status, (), b"", 0.0).is_failure is is_failure
