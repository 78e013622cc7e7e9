"""What goes through the fast lane and what through the slow path is the same on the wire, byte for byte."""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_node.feed.events import Event
from cache_node.http.fast_lane import LOOK_EVERY, MOST_JOINED, RENDERED_SECONDS
from cache_node.http.protocol import KEEP_ALIVE_SECONDS
from cache_node.http.template import MOST_KNOWN, MOST_KNOWN_BYTES, Template
from cache_node.http.whoami import Whoami
from cache_node.sessions.answer import Answer, Wants
from cache_node.sessions.credential import Credential
from cache_node.sessions.entry import Entry
from cache_node.sessions.keys import Key, KeyRing
from cache_node.sessions.origin import OriginAnswer
from cache_node.sessions.ports import Tell
from tests.fakes import (
    MAX_STALENESS_SECONDS,
    SECRET,
    Gate,
    ScriptedNode,
    ScriptedSession,
    changed,
    following_node,
    revoked,
)
from tests.http.wire import Connection, ManualLoop, request

COOKIE = "ory_kratos_session"
# As Kratos mints them: a date that can be read, and what only Kratos can read.
COOKIES = [base64.urlsafe_b64encode(b"1799999000|%d|mac" % number).decode() for number in range(2)]
HEADERS = ((b"content-type", b"text/plain"), (b"x-of-the-origin", b"yes"))
DATE = (b"date", b"Thu, 01 Jan 1970 00:00:00 GMT")
_CHANGING = re.compile(rb"\r\n(date|age): [^\r]*")


TOKEN = request("X-Session-Token: token")
OTHER = request("X-Session-Token: other")
STRANGER = request("X-Session-Token: stranger")
FOREIGN_PATH = request(line="GET /health/alive HTTP/1.1")


class Side:
    """A node and a connection to it, with a fast lane or without."""

    def __init__(self, loop: ManualLoop, *, has_lane: bool) -> None:
        self.loop = loop
        self.node: ScriptedNode = loop.run_until_complete(following_node())
        self.node.origin.add("other", "session-2", "identity-2")
        for number, cookie in enumerate(COOKIES):
            self.node.origin.add(cookie, f"session-of-cookie-{number}", f"identity-of-cookie-{number}")
        self.observed: list[tuple[str, int, str]] = []
        self.sampled: list[float] = []
        self.lane = self.node.lane(COOKIE, self.sampled.append, self)
        self.app = Whoami(self.node.reader, self, COOKIE, self._otherwise)
        self._has_lane = has_lane
        self.connect()

    def connect(self) -> None:
        self.connection = Connection(self.loop, self.app, self.lane if self._has_lane else None)
        self.connection.state.default_headers = [DATE]

    def observe_request(self, tier: str, status: int, detail: str, seconds: float) -> None:
        self.observed.append((tier, status, detail))

    async def _otherwise(self, scope: object, receive: object, send: object) -> None:
        await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})  # type: ignore[operator]
        await send({"type": "http.response.body", "body": b""})  # type: ignore[operator]

    def ask(self, *reads: bytes) -> bytes:
        """What comes back, without date and age."""
        return _CHANGING.sub(b"", self.connection.send(*reads))

    def append(self, events: list[Event]) -> None:
        async def append() -> None:
            self.node.log.server.append(events)

        self.loop.run_until_complete(append())

    def follow(self) -> None:
        self.loop.run_until_complete(self.node.follow())


@dataclass
class Both:
    """The same is done to both sides, and must come to the same."""

    fast: Side
    slow: Side

    def ask(self, *reads: bytes) -> bytes:
        answers = self.fast.ask(*reads), self.slow.ask(*reads)
        assert answers[0] == answers[1]
        ends = self.fast.connection.is_ended(), self.slow.connection.is_ended()
        assert ends[0] == ends[1]
        if ends[0]:
            for side in self.sides:
                side.connect()
        else:
            assert self.fast.connection.is_reading() == self.slow.connection.is_reading()
        return answers[0]

    def hits(self, *reads: bytes) -> int:
        """How many of the answers came through the fast lane."""
        before = self.fast.lane.hits
        assert self.ask(*reads).count(b"detail=memory") >= (self.fast.lane.hits - before)
        return self.fast.lane.hits - before

    @property
    def loop(self) -> ManualLoop:
        return self.fast.loop

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.fast, self.slow

    def warm(self) -> None:
        """Both sessions are in memory, and the last request of the connection was a plain one that is not learned."""
        for each in (TOKEN, OTHER, TOKEN):
            self.ask(each)


@pytest.fixture
def both(loop: ManualLoop) -> Iterator[Both]:
    built = Both(Side(loop, has_lane=True), Side(loop, has_lane=False))
    built.warm()
    yield built
    for side in built.sides:
        side.connection.transport.close()
    loop.settle()


# Which requests take which way ----------------------------------------------------------------------------------------


def test_the_same_request_again(both: Both) -> None:
    assert [both.hits(TOKEN) for _ in range(5)] == [1] * 5
    assert both.ask(TOKEN).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize("name", ["X-Session-Token: ", "x-session-token:", "Authorization: Bearer ", "Cookie: a=b; "])
def test_another_credential_on_the_same_connection(both: Both, name: str) -> None:
    """Each gets the answer for its own, as often as they change."""
    values = COOKIES if name.startswith("Cookie") else ["token", "other"]
    name += f"{COOKIE}=" if name.startswith("Cookie") else ""
    stranger, *requests = [request(name + value, "Accept: */*") for value in ("stranger", *values)]
    for each in (stranger, *requests):
        both.ask(each)
        both.ask(each)
    bodies = {both.ask(each) for each in requests}
    assert len(bodies) == 2
    assert [both.hits(each) for each in requests * 3] == [1] * 6
    assert both.hits(stranger) == 0


@pytest.mark.parametrize("trace", ["traceparent", "X-Request-Id", "user-agent"])
@pytest.mark.parametrize("is_before", [True, False])
def test_another_trace_on_each_request(both: Both, trace: str, is_before: bool) -> None:
    """Learned from the first change on."""

    def traced(number: int, token: str = "token") -> bytes:
        lines = [f"{trace}: 00-{number:032x}-01", f"X-Session-Token: {token}"]
        return request(*(lines if is_before else reversed(lines)), "Accept: */*")

    for number in range(3):
        both.ask(traced(number))
    assert [both.hits(traced(number)) for number in range(5)] == [1] * 5
    assert [both.hits(traced(number, token)) for number, token in enumerate(["other", "token", "other"])] == [1] * 3
    assert both.ask(traced(9, "other")) == both.ask(OTHER)


def test_a_line_end_in_place_of_a_trace(both: Both) -> None:
    """What it hides is seen, as it is by the parser."""
    for number in range(4):
        both.ask(request(f"traceparent: {number}", "X-Session-Token: token"))
    assert both.hits(request("traceparent: 5", "X-Session-Token: token")) == 1
    hiding = request("traceparent: 6\r\nOrigin: https://app.example", "X-Session-Token: token")
    assert both.hits(hiding) == 0


def test_what_is_known_of_credentials_is_forgotten_and_never_much(both: Both) -> None:
    """Each second anew, only what is harmless, no more than so many, and none that is long."""
    known = both.fast.lane._known["token"]
    tokens = [f"known-{number}" for number in range(MOST_KNOWN + 10)]
    both.ask(TOKEN)
    for token in (*tokens, "x" * (MOST_KNOWN_BYTES + 1), 'odd"one'):
        both.fast.ask(request(f"X-Session-Token: {token}"))
    assert len(known) == MOST_KNOWN
    assert max(map(len, known)) <= MOST_KNOWN_BYTES
    assert b'odd"one' not in known
    both.fast.node.clock.advance(RENDERED_SECONDS)
    both.fast.ask(TOKEN)
    assert set(known) <= {b"token"}


ODD = {
    "HTTP/1.0": [request("X-Session-Token: token", line="GET /sessions/whoami HTTP/1.0")],
    "HTTP/1.0 kept alive": [
        request("X-Session-Token: token", "Connection: keep-alive", line="GET /sessions/whoami HTTP/1.0")
    ],
    "close": [request("X-Session-Token: token", "Connection: close")],
    "upgrade": [request("X-Session-Token: token", "Connection: Upgrade", "Upgrade: h2c")],
    "upgrade with a body": [
        request("X-Session-Token: token", "Connection: Upgrade", "Upgrade: x", "Content-Length: 2", body=b"ab")
    ],
    "a body": [request("X-Session-Token: token", "Content-Length: 3", body=b"abc")],
    "a body in another read": [request("X-Session-Token: token", "Content-Length: 3"), b"abc"],
    "a body like a request": [request("X-Session-Token: token", f"Content-Length: {len(OTHER)}"), OTHER],
    "chunks": [request("X-Session-Token: token", "Transfer-Encoding: chunked", body=b"3\r\nabc\r\n0\r\n\r\n")],
    "HEAD": [request("X-Session-Token: token", line="HEAD /sessions/whoami HTTP/1.1")],
    "POST": [request("X-Session-Token: token", line="POST /sessions/whoami HTTP/1.1")],
    "a query": [request("X-Session-Token: token", line="GET /sessions/whoami?a=b HTTP/1.1")],
    "tokenize": [request("X-Session-Token: token", line="GET /sessions/whoami?tokenize_as=x HTTP/1.1")],
    "another path": [FOREIGN_PATH],
    "another path as long": [request("X-Session-Token: token", line="GET /sessions/whoamj HTTP/1.1")],
    "an absolute target": [request("X-Session-Token: token", line="GET http://node/sessions/whoami HTTP/1.1")],
    "an escaped path": [request("X-Session-Token: token", line="GET /sessions/who%61mi HTTP/1.1")],
    "a page's script": [request("X-Session-Token: token", "Origin: https://app.example")],
    "no-cache": [request("X-Session-Token: token", "Cache-Control: no-cache")],
    "max-age": [request("X-Session-Token: token", "Cache-Control: max-age=60")],
    "a position": [request("X-Session-Token: token", "Cache-Node-Min-Position: 1-1")],
    "two tokens": [request("X-Session-Token: token", "X-Session-Token: other")],
    "two kinds": [request("X-Session-Token: token", "Authorization: Bearer other")],
    "a token and a cookie": [request("X-Session-Token: token", f"Cookie: {COOKIE}=MTc=")],
    "a token and another cookie": [request("X-Session-Token: token", "Cookie: csrf=1")],
    "another scheme": [request("X-Session-Token: token", "Authorization: Basic dG9rZW4=")],
    "an empty token": [request("X-Session-Token:")],
    "nobody": [request()],
    "a stranger": [STRANGER, STRANGER],
    "a long token": [request("X-Session-Token: " + "t" * 4096)],
    "a too long token": [request("X-Session-Token: " + "t" * 4097)],
    "a control character": [request("X-Session-Token: tok\x01en")],
    "a byte beyond ASCII": [request("X-Session-Token: tok\xe9n")],
    "spaces around": [request("X-Session-Token:  \t token \t ")],
    "a quoted cookie": [request(f'Cookie: {COOKIE}="token"')],
    "a cookie twice": [request(f"Cookie: {COOKIE}=token; {COOKIE}=other")],
    "a folded line": [request("X-Session-Token: token", "A: b", " c")],
    "no Host": [b"GET /sessions/whoami HTTP/1.1\r\nX-Session-Token: token\r\n\r\n"],
    "two Hosts": [request("Host: again", "X-Session-Token: token")],
    "bare line feeds": [TOKEN.replace(b"\r\n", b"\n")],
    "empty lines before": [b"\r\n\r\n" + TOKEN],
    "one line end too many": [TOKEN + b"\r\n", TOKEN],
    "garbage": [b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n"],
    "half": [TOKEN[:40]],
    "two in one read": [TOKEN + OTHER],
    "many in one read": [TOKEN * 20],
    "one and a half": [TOKEN + OTHER[:30], OTHER[30:]],
    "an answer and half a request": [TOKEN[:30], TOKEN[30:] + OTHER[:30], OTHER[30:]],
    "two reads at once": [TOKEN, OTHER, TOKEN],
    "a length of none": [request("X-Session-Token: token", "Content-Length: 0")],
    "a header of some bytes": [request("X-Session-Token: token", "A: " + "a" * 5_000)],
    "a header of many bytes": [request("X-Session-Token: token", "A: " + "a" * 70_000)],
    "a smuggler": [request("X-Session-Token: token\r\nX-Session-Token: other")],
    "a smuggler in a trace": [request("traceparent: a\r\nOrigin: https://evil.example", "X-Session-Token: token")],
}


@pytest.mark.parametrize("oddity", ODD)
def test_whatever_is_odd(both: Both, oddity: str) -> None:
    """The same bytes, and the connection is none the worse; after it, a plain request is a fast one again."""
    for _ in range(3):
        both.ask(*ODD[oddity])
    for _ in range(2):
        both.ask(FOREIGN_PATH)
        both.ask(TOKEN)
        if both.hits(TOKEN):
            break
    else:
        for side in both.sides:
            side.connect()
        both.ask(TOKEN)
        assert both.hits(TOKEN) == 1


@pytest.mark.parametrize(
    "oddity", ["another path as long", "HEAD", "POST", "a body", "chunks", "no-cache", "max-age", "a page's script"]
)
def test_an_odd_request_after_a_plain_one_that_is_known(both: Both, oddity: str) -> None:
    """And what comes behind it."""
    assert both.hits(TOKEN) == 1
    assert both.hits(*ODD[oddity]) == 0
    both.ask(TOKEN)
    assert both.hits(TOKEN) == 1


@pytest.mark.parametrize("split", range(1, len(TOKEN)))
def test_a_request_in_two_reads(both: Both, split: int) -> None:
    """At every byte: no hit of the fast lane, and the next whole one is."""
    assert both.hits(TOKEN) == 1
    assert both.hits(TOKEN[:split]) == 0
    assert both.hits(TOKEN[split:]) == 0
    both.ask(TOKEN)
    assert both.hits(TOKEN) == 1


READS = [read for reads in ODD.values() for read in reads] + [TOKEN, OTHER, STRANGER]


@st.composite
def conversations(draw: st.DrawFn) -> Sequence[bytes]:
    """Whole requests, parts of them, and some with a byte changed, in any order."""
    reads = []
    for read in draw(st.lists(st.sampled_from([*READS, *[TOKEN, OTHER] * 10]), min_size=1, max_size=8)):
        match draw(st.sampled_from(["whole", "whole", "split", "mutated", "joined"])):
            case "split":
                at = draw(st.integers(0, len(read)))
                reads += [read[:at], read[at:]]
            case "mutated":
                at = draw(st.integers(0, len(read) - 1))
                reads.append(read[:at] + bytes([draw(st.integers(0, 255))]) + read[at + 1 :])
            case "joined" if reads:
                reads[-1] += read
            case _:
                reads.append(read)
    return reads


@given(reads=conversations())
def test_any_conversation(reads: Sequence[bytes]) -> None:
    """In the order in which a client might have it."""
    loop = ManualLoop()
    both = Both(Side(loop, has_lane=True), Side(loop, has_lane=False))
    both.warm()
    for read in reads:
        both.ask(read)
    for side in both.sides:
        side.connection.transport.close()
    loop.settle()
    loop.close()


# All that is asked before a hit ---------------------------------------------------------------------------------------


def test_no_hit_after_an_event(both: Both) -> None:
    """One that names the session, by the time it is applied; one that does not costs nothing."""
    for side in both.sides:
        side.append(changed("session-2"))
        side.follow()
    assert both.hits(TOKEN) == 1

    for side in both.sides:
        side.append(revoked("session-1"))
        side.node.origin.sessions[b"token"].valid = False
        side.follow()
    assert both.hits(TOKEN) == 0
    assert both.ask(TOKEN).startswith(b"HTTP/1.1 401")


def test_no_hit_without_a_lease(both: Both) -> None:
    for side in both.sides:
        side.node.clock.advance(MAX_STALENESS_SECONDS)
    assert both.hits(TOKEN) == 0
    assert b"detail=no-lease" in both.ask(TOKEN)

    for side in both.sides:
        side.follow()
    both.ask(TOKEN)
    assert both.hits(TOKEN) == 1


def test_no_hit_when_the_lease_ends_within_the_second_of_an_answer(both: Both) -> None:
    """What was rendered is still there, and is not given."""
    for seconds, expected in ((MAX_STALENESS_SECONDS - 0.5, 1), (0.5, 0)):
        for side in both.sides:
            side.node.clock.advance(seconds)
        assert both.hits(TOKEN) == expected


def test_no_hit_past_the_ttl(both: Both) -> None:
    for seconds, expected in ((899.5, 1), (1.0, 0)):
        for side in both.sides:
            side.node.clock.advance(seconds)
            side.follow()
        assert both.hits(TOKEN) == expected


@pytest.mark.parametrize("seconds", [1e9, -3600.0])
def test_no_hit_when_the_wall_clock_has_stepped_beyond_the_entry(both: Both, seconds: float) -> None:
    """At once, though nothing else has moved."""
    assert both.hits(TOKEN) == 1
    for side in both.sides:
        side.node.clock.wall_now += seconds
    assert both.hits(TOKEN) == 0


def test_no_hit_of_an_entry_that_is_gone_or_replaced(both: Both) -> None:
    """The tier is asked each time."""
    name = KeyRing([SECRET]).digest("token", b"token")[:32]
    for side in both.sides:
        side.node.memory.discard(name)
        side.node.redis.stored.clear()
        side.node.origin.sessions[b"token"].version = 7
    assert both.hits(TOKEN) == 0
    assert both.hits(TOKEN) == 1
    assert b'"version": 7' in both.ask(TOKEN)


def test_hits_count_as_used(both: Both) -> None:
    """For the memory tier, which evicts what nobody asked for."""
    name = KeyRing([SECRET]).digest("token", b"token")[:32]
    entry = both.fast.node.memory.get(name)
    assert entry is not None
    both.ask(TOKEN)
    entry.used_in = 0
    assert both.hits(TOKEN) == 1
    assert entry.used_in == both.fast.node.memory.turn.now


def test_age_and_date_are_of_the_second(both: Both) -> None:
    """Rendered anew when a second has passed."""
    ages = []
    for seconds in (0.0, 0.5, 0.5, 1.0, 5.5):
        for side in both.sides:
            side.node.clock.advance(seconds)
            side.follow()
        ages.append(
            [int(age) for side in both.sides for age in re.findall(rb"age: (\d+)", side.connection.send(TOKEN))]
        )
    assert ages == [[0, 0], [0, 0], [1, 1], [2, 2], [7, 7]]


# The connection -------------------------------------------------------------------------------------------------------


def test_writing_that_is_paused(both: Both) -> None:
    """A client that does not read gets nothing more until it does, by whichever way."""
    for side in both.sides:
        side.connection.protocol.pause_writing()
    assert both.hits(TOKEN) == 0
    for side in both.sides:
        side.connection.protocol.resume_writing()
    both.ask()
    both.ask(TOKEN)
    assert both.hits(TOKEN) == 1


def test_no_credential_outlives_its_connection(both: Both) -> None:
    """Nor is a large request kept while its connection rests."""
    assert both.hits(TOKEN) == 1
    connection = both.fast.connection

    def kept() -> list[Template | None]:
        return [connection.protocol._template, connection.protocol._candidate]

    assert kept() != [None, None]
    both.ask(ODD["a header of some bytes"][0])
    assert kept() == [None, None]
    both.ask(TOKEN)
    assert kept() != [None, None]
    connection.transport.close()
    both.loop.settle()
    assert kept() == [None, None]


def test_a_server_that_ends(both: Both) -> None:
    """Its resting connections are closed, and answer nothing more."""
    for side in both.sides:
        side.connection.protocol.shutdown()
    assert both.fast.connection.is_closed()
    assert both.slow.connection.is_closed()


def test_a_connection_that_rests_is_closed(both: Both, loop: ManualLoop) -> None:
    """So long after its last answer, by whichever way that came."""
    for _ in range(5):
        for side in both.sides:
            side.node.clock.advance(KEEP_ALIVE_SECONDS - 5)
            side.follow()
        loop.advance(KEEP_ALIVE_SECONDS - 5)
        assert both.hits(TOKEN) == 1
    for side in both.sides:
        side.node.clock.advance(KEEP_ALIVE_SECONDS - 1)
    loop.advance(KEEP_ALIVE_SECONDS - 1)
    assert not both.fast.connection.is_closed()
    for side in both.sides:
        side.node.clock.advance(1)
    loop.advance(1)
    assert both.fast.connection.is_closed()
    assert both.slow.connection.is_closed()


def test_a_sample_of_the_hits_is_timed(both: Both) -> None:
    """And all are counted."""
    both.fast.sampled.clear()
    before = both.fast.lane.hits
    for _ in range(2000):
        both.fast.ask(TOKEN)
    assert both.fast.lane.hits - before == 2000
    assert 1 <= len(both.fast.sampled) <= 100


# What memory does not know --------------------------------------------------------------------------------------------


class Redis:
    """The redis tier of a side: what its node has in memory it forgets, and a read may be held up."""

    def __init__(self, side: Side) -> None:
        self.tier = side.node.redis
        self.names = list(self.tier.stored)
        for name in self.names:
            side.node.memory.discard(name)

    def hold(self) -> Gate:
        self.gate = self.tier.gate = Gate()
        return self.gate

    def let_go(self) -> None:
        self.tier.gate = None
        self.gate.open()


@pytest.fixture
def shared(both: Both) -> list[Redis]:
    """Both sides know the sessions from Redis only; and their connections are ready for the lane."""
    assert both.hits(TOKEN) == 1
    return [Redis(side) for side in both.sides]


def test_a_hit_in_redis(both: Both, shared: list[Redis]) -> None:
    """As the slow path gives it, and observed as there; the next one is memory's."""
    asked = [redis.tier.gets for redis in shared]
    observed = [len(side.observed) for side in both.sides]
    assert b"; hit; detail=redis\r\n" in both.ask(TOKEN)
    assert [redis.tier.gets for redis in shared] == [before + 1 for before in asked]
    assert [side.observed[n:] for side, n in zip(both.sides, observed, strict=True)] == [[("redis", 200, "redis")]] * 2
    assert both.fast.connection.protocol.cycle.response_complete
    assert both.hits(TOKEN) == 1
    assert b"detail=redis" in both.ask(OTHER)
    assert both.hits(OTHER) == 1


def test_no_task_and_no_parser_for_a_hit_in_redis(both: Both, shared: list[Redis]) -> None:
    """The connection's last cycle is the one of its last request that was parsed."""
    cycle = both.fast.connection.protocol.cycle
    assert b"detail=redis" in both.ask(TOKEN)
    assert both.fast.connection.protocol.cycle is cycle


def test_what_redis_does_not_know_is_read_from_the_origin(both: Both, shared: list[Redis]) -> None:
    """Past the parser and the application, and observed as there; the next one is a hit."""
    for redis in shared:
        redis.tier.stored.clear()
    cycle = both.fast.connection.protocol.cycle
    observed = [len(side.observed) for side in both.sides]
    assert b"fwd=miss; detail=cold" in both.ask(TOKEN)
    assert both.fast.connection.protocol.cycle is cycle
    assert [side.observed[n:] for side, n in zip(both.sides, observed, strict=True)] == [[("origin", 200, "cold")]] * 2
    assert both.hits(TOKEN) == 1


def test_where_looks_find_nothing_few_are_made(
    both: Both, shared: list[Redis], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cold read looks and locks in one round trip; the lane looks first where that mostly helps."""
    reader, tokens = both.fast.node.reader, [f"cold-{number}" for number in range(48)]
    for side in both.sides:
        for token in tokens:
            side.node.origin.sessions[token.encode()] = ScriptedSession(f"s-{token}", f"i-{token}")
    look_up, looks = reader.look_up, Counter[str]()

    def counted(keys: tuple[Key, ...], tell: Tell) -> bool:
        looks["so far"] += 1
        return look_up(keys, tell)

    monkeypatch.setattr(reader, "look_up", counted)
    for token in tokens:
        assert b"fwd=miss; detail=cold" in both.ask(request(f"X-Session-Token: {token}"))
    assert 48 // LOOK_EVERY < looks["so far"] < 16

    for side in both.sides:
        side.node.memory.clear()
    made = []
    for token in tokens:
        before = looks["so far"]
        assert b"hit; detail=redis" in both.ask(request(f"X-Session-Token: {token}"))
        made.append(looks["so far"] - before)
    assert sum(made[:8]) < 8, "most are left to the reader still"
    assert made[-8:] == [1] * 8


@pytest.mark.parametrize("lost", ["lease", "event", "expiry"])
def test_what_is_found_is_judged_when_it_is_found(both: Both, shared: list[Redis], lost: str) -> None:
    """An event that was applied, or a lease that ended, while Redis was asked."""
    for redis in shared:
        redis.hold()
    assert both.ask(TOKEN) == b""
    for side in both.sides:
        if lost == "lease":
            side.node.lease.end()
        elif lost == "event":
            side.append(revoked())
            side.node.origin.sessions.pop(b"token")
            side.follow()
        else:
            side.node.clock.advance(10**9)
    for redis in shared:
        redis.let_go()

    assert b"detail=redis" not in (answer := both.ask())
    assert answer


def test_what_is_found_late_does_not_cover_the_origins_newest_word(both: Both, shared: list[Redis]) -> None:
    """A refusal that came while Redis was asked stands: the entry is older, and was taken away there for it."""
    side = both.fast
    gate = shared[0].hold()
    assert side.ask(TOKEN) == b""
    shared[0].tier.gate = None  # the next read passes
    side.node.origin.sessions.pop(b"token")
    side.loop.run_until_complete(side.node.read("token", Wants(no_cache=True)))
    gate.open()

    assert side.ask().startswith(b"HTTP/1.1 401 ")
    assert side.node.memory.get(shared[0].names[0]) is None


def test_what_arrives_meanwhile_waits_for_its_turn(both: Both, shared: list[Redis]) -> None:
    """Pipelined, in one read or many, whatever it is."""
    for redis in shared:
        redis.hold()
    assert both.ask(TOKEN) == b""
    for side in both.sides:
        assert side.connection.send(FOREIGN_PATH + OTHER, TOKEN) == b""
    for redis in shared:
        redis.let_go()
    answers = both.ask()

    assert answers.count(b"HTTP/1.1 200 OK") == 3
    assert answers.count(b"HTTP/1.1 404 ") == 1
    assert both.hits(TOKEN) == 1


def test_a_shutdown_waits_for_what_redis_says(both: Both, shared: list[Redis]) -> None:
    """The request is answered, and its connection ends behind that, as that of any request under way."""
    for redis in shared:
        redis.hold()
    assert both.ask(TOKEN) == b""
    for side in both.sides:
        side.connection.protocol.shutdown()
    for redis in shared:
        redis.let_go()
    answers = [side.ask() for side in both.sides]

    assert [b"connection: close" in answer for answer in answers] == [True, True]
    assert all(side.connection.is_ended() for side in both.sides)


def test_a_client_that_is_gone_gets_nothing(both: Both, shared: list[Redis]) -> None:
    """And what was found is kept for others."""
    shared[0].hold()
    both.fast.ask(TOKEN)
    both.fast.connection.transport.close()
    both.loop.settle()
    shared[0].let_go()

    assert both.fast.ask() == b""
    both.fast.connect()
    both.fast.ask(TOKEN)
    assert both.fast.observed[-1] == ("memory", 200, "memory")


# What no tier knows ---------------------------------------------------------------------------------------------------

COLD = request("X-Session-Token: cold")


@pytest.mark.parametrize("status", [None, 200, 204, 302, 403, 404, 429, 500, 503, 599])
@pytest.mark.parametrize("is_down", [False, True])
def test_whatever_the_origin_says(both: Both, status: int | None, is_down: bool) -> None:
    """Once and again, of what was never there and of what is known no more; None is a refusal."""
    cycle = both.fast.connection.protocol.cycle
    for side in both.sides:
        side.observed.clear()
        side.node.origin.any_answer = None if status is None else OriginAnswer(status, HEADERS, b"", 0.0)
        side.node.origin.down = is_down
    for asked in (COLD, COLD, TOKEN):
        assert both.ask(asked).startswith(b"HTTP/1.1 ")
    for side in both.sides:
        side.append(revoked())
        side.follow()
    for asked in (TOKEN, TOKEN, COLD):
        assert both.ask(asked).startswith(b"HTTP/1.1 ")
    assert both.fast.connection.protocol.cycle is cycle
    assert both.fast.observed == [each for each in both.slow.observed if each[0] != "memory"]


@pytest.mark.parametrize(
    "line", ["X-Session-Token: {}", "Authorization: Bearer {}", "Cookie: a=b; " + COOKIE + "={}; c=d"]
)
def test_the_origin_is_asked_with_what_the_client_presents(
    both: Both, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    """Kind, way and name of the credential."""
    presented: list[list[tuple[Credential, bool, str]]] = []
    for side in both.sides:
        seen: list[tuple[Credential, bool, str]] = []
        presented.append(seen)
        read = side.node.origin.read

        async def seeing(
            credential: Credential, *, read: Any = read, seen: list[Any] = seen, **options: Any
        ) -> OriginAnswer:
            seen.append((credential, credential.bearer, credential.cookie_name))
            answer: OriginAnswer = await read(credential, **options)
            return answer

        monkeypatch.setattr(side.node.origin, "read", seeing)
    for number in range(3):
        both.ask(request(line.format(f"stranger-{number}")))
    assert len(presented[0]) == 3
    assert presented[0] == presented[1]


@pytest.mark.parametrize("beyond", [-1000, 1])
def test_a_large_body_is_there_once_for_all_its_clients(both: Both, beyond: int) -> None:
    """Cold, from memory, from Redis: a client that does not read it keeps it waiting, and no copy of it."""
    for side in both.sides:
        side.node.origin.add("large", "session-4", "identity-4")
        side.node.origin.padding_bytes = MOST_JOINED + beyond
    written: list[object] = []
    transport = both.fast.connection.transport
    write = transport.write

    def recorded(data: bytes | bytearray | memoryview) -> None:
        written.append(data)
        write(data)

    transport.write = recorded  # type: ignore[method-assign]
    large = request("X-Session-Token: large")

    assert b"detail=cold" in both.ask(large)
    assert b"detail=memory" in both.ask(large)
    for side in both.sides:
        Redis(side)
    assert b"detail=redis" in both.ask(large)
    assert b"detail=memory" in both.ask(large)
    bodies = [data for data in written if isinstance(data, bytes) and data.startswith(b"{")]
    assert len(bodies) == (4 if beyond > 0 else 0)
    assert len({id(body) for body in bodies}) == (2 if beyond > 0 else 0), "from the origin, and from Redis"


@pytest.mark.parametrize("is_known", [True, False])
def test_a_request_with_an_id_takes_the_slow_path(both: Both, is_known: bool) -> None:
    """Errors repeat it."""
    token = "token" if is_known else "stranger"
    asked = request(f"X-Session-Token: {token}", "X-Request-ID: of-this-request")
    answer = [both.ask(asked) for _ in range(3)][-1]
    assert (b'"request":"of-this-request"' in answer) == (not is_known)


def held(both: Both) -> list[Gate]:
    """A cold read of each side stands before the origin's answer."""
    for side in both.sides:
        side.node.origin.add("cold", "session-3", "identity-3")
        side.node.origin.gate = Gate()
    assert both.ask(COLD) == b""
    return [gate for side in both.sides if (gate := side.node.origin.gate) is not None]


def test_what_arrives_while_the_origin_is_asked_waits_for_its_turn(both: Both) -> None:
    """Whatever it is."""
    gates = held(both)
    for side in both.sides:
        assert side.connection.send(FOREIGN_PATH + TOKEN, COLD) == b""
    for gate in gates:
        gate.open()
    answers = both.ask()
    assert answers.count(b"HTTP/1.1 200 OK") == 3
    assert answers.count(b"HTTP/1.1 404 ") == 1


def test_a_shutdown_waits_for_what_the_origin_says(both: Both) -> None:
    """The answer says that the connection ends."""
    gates = held(both)
    for side in both.sides:
        side.connection.protocol.shutdown()
        side.connection.send(TOKEN)
    for gate in gates:
        gate.open()
    answer = both.ask()
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert b"\r\nconnection: close\r\n" in answer


@pytest.mark.parametrize("late", [FOREIGN_PATH + TOKEN, TOKEN, FOREIGN_PATH + TOKEN[:20], TOKEN[:20]])
def test_a_shutdown_waits_for_what_was_asked_behind_it_too(both: Both, late: bytes) -> None:
    """The answer to the last whole request says that the connection ends."""
    gates = held(both)
    for side in both.sides:
        assert side.connection.send(late) == b""
        side.connection.protocol.shutdown()
    for gate in gates:
        gate.open()
    answers = both.ask()
    assert answers.count(b"HTTP/1.1 ") == 1 + late.count(b"\r\n\r\n")
    assert answers.count(b"\r\nconnection: close\r\n") == 1
    assert b"\r\nconnection: close\r\n" in answers[answers.rindex(b"HTTP/1.1 ") :]


def test_a_server_that_has_waited_long_enough_says_so(both: Both) -> None:
    """Whoever asks is told to come again, elsewhere."""
    held(both)
    for side in both.sides:  # as `HttpServer` does
        for task in side.connection.state.tasks:
            task.cancel()
    assert both.ask().startswith(b"HTTP/1.1 503 ")


def test_a_connection_does_not_rest_while_the_origin_is_asked(both: Both, loop: ManualLoop) -> None:
    """However long that takes; its rest begins with the answer."""
    gates = held(both)
    loop.advance(KEEP_ALIVE_SECONDS + 5)
    for side in both.sides:
        side.node.clock.advance(KEEP_ALIVE_SECONDS + 5)
    loop.advance(KEEP_ALIVE_SECONDS + 5)
    for gate in gates:
        gate.open()
    assert both.ask().startswith(b"HTTP/1.1 ")
    for side in both.sides:
        side.node.clock.advance(KEEP_ALIVE_SECONDS - 1)
    loop.advance(KEEP_ALIVE_SECONDS - 1)
    assert not both.fast.connection.is_closed()


def test_a_client_that_leaves_while_the_origin_is_asked_takes_nothing_with_it(both: Both) -> None:
    """What was read is kept."""
    (gate, _) = held(both)
    both.fast.connection.transport.close()
    both.loop.settle()
    gate.open()
    assert both.fast.ask() == b""
    both.fast.connect()
    both.fast.ask(COLD)
    assert both.fast.observed[-1] == ("memory", 200, "memory")


def test_a_read_that_fails_is_the_servers_failure(
    both: Both, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug is a 500 on either way, never a connection that waits for ever."""
    for side in both.sides:
        monkeypatch.setattr(side.node.reader, "_fill_with_lock", _fail)
    assert both.ask(COLD).startswith(b"HTTP/1.1 500 ")
    assert "a read failed" in caplog.text


def test_a_read_that_fails_behind_its_answer_is_said(
    both: Both, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A node that can store nothing must not look healthy."""
    side = both.fast
    side.ask(COLD)
    side.node.origin.add("another")
    monkeypatch.setattr(side.node.reader, "_store", _fail_at_once)
    assert side.ask(COLD.replace(b"cold", b"another")).startswith(b"HTTP/1.1 200 ")
    assert "a run failed behind its answer" in caplog.text
    assert "a bug" in caplog.text


def test_a_reader_that_cannot_be_told_keeps_no_other_waiting(
    both: Both, shared: list[Redis], caplog: pytest.LogCaptureFixture
) -> None:
    """Two connections ask Redis for one key; what goes wrong with one is reported."""
    side = both.fast
    heard: list[Entry | None] = []

    def fail(_: Entry | None) -> None:
        raise RuntimeError("of this reader")

    shared[0].hold()
    keys = side.node.keys.derive(Credential("token", b"token"))

    async def look() -> None:
        assert side.node.reader.look_up(keys, fail)
        assert side.node.reader.look_up(keys, heard.append)

    side.loop.run_until_complete(look())
    shared[0].let_go()
    side.loop.settle()
    assert [entry is not None for entry in heard] == [True]
    assert "a reader could not be told" in caplog.text


async def _fail(*_: object) -> Answer:
    raise RuntimeError("a bug")


def _fail_at_once(*_: object) -> Answer:
    raise RuntimeError("a bug")
