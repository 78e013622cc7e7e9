"""Scripted stand-ins, for what a real server cannot be made to do at a given moment.

`ManualClock` moves when told.  `LogServer` is the feed's server in process, with the real Lua scripts, and it can be
emptied, trimmed, copied as a replica and promoted.  `ScriptedLog` is one node's or publisher's connection to
whichever server it is pointed at.  `ScriptedOrigin` answers when its gate opens.
"""

from __future__ import annotations

import asyncio
import copy
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from cache_node.errors import OriginUnavailableError
from cache_node.feed.events import ENTRY_FIELD, Event, EventType, FeedEntry, pack
from cache_node.feed.fence import Fence
from cache_node.feed.follower import Follower
from cache_node.feed.lease import Lease
from cache_node.feed.log import Confirmation, RedisLog
from cache_node.feed.names import RedisNames
from cache_node.feed.position import Position
from cache_node.feed.registry import Membership
from cache_node.http.fast_lane import FastLane
from cache_node.http.whoami import Observer, Whoami
from cache_node.sessions.answer import Answer, Wants
from cache_node.sessions.credential import Credential
from cache_node.sessions.entry import Entry
from cache_node.sessions.keys import Key, KeyRing
from cache_node.sessions.memory_tier import MemoryTier
from cache_node.sessions.origin import OriginAnswer
from cache_node.sessions.ports import Tell
from cache_node.sessions.reader import Reader
from cache_node.sessions.sealing import seal, unseal
from tests.http.asking import Client, whoami_request
from tests.keyspace import InProcessRedis, Keyspace, Row, Stream
from tests.waiting import NotInTimeError

MAX_STALENESS_SECONDS = 2.0
NAMES = RedisNames()
SESSION_COOKIE = "ory_kratos_session"
SECRET = "a secret of at least thirty-two characters"


class ManualClock:
    """Both clocks of a node; they move only by `advance`, or by setting them (the wall clock may step)."""

    def __init__(self) -> None:
        self.steady_now = 1000.0
        self.wall_now = 1_800_000_000.0

    def steady(self) -> float:
        return self.steady_now

    def wall(self) -> float:
        return self.wall_now

    def advance(self, seconds: float) -> None:
        self.steady_now += seconds
        self.wall_now += seconds


class Gate:
    """A place where a scripted call stops: the script waits until it has `arrived`, does things, and opens it."""

    def __init__(self) -> None:
        self._arrived = asyncio.Event()
        self._opened = asyncio.Event()

    async def passed(self) -> None:
        """Called by whoever is to be stopped."""
        self._arrived.set()
        await self._opened.wait()

    async def arrived(self) -> None:
        """Wait until somebody stands before the gate; fails after 5 s."""
        async with asyncio.timeout(5):
            await self._arrived.wait()

    def open(self) -> None:
        self._opened.set()


class LogServer(Keyspace):
    """The feed's server in process: what is there can be looked at, emptied, trimmed, spoilt, copied and promoted."""

    @property
    def stream(self) -> list[Row]:
        """Rows of the feed, by position; a script may take some out, or put some in."""
        return self.streams.setdefault(NAMES.feed.encode(), Stream()).rows

    @stream.setter
    def stream(self, rows: list[Row]) -> None:
        self.stream[:] = rows

    @property
    def nodes(self) -> dict[bytes, bytes]:
        """The registry."""
        return self.hashes.setdefault(NAMES.nodes.encode(), {})

    @property
    def born(self) -> dict[bytes, bytes]:
        """What is stored of the generation."""
        return self.hashes.setdefault(NAMES.generation.encode(), {})

    @property
    def generation(self) -> int:
        return int(self.born.get(b"generation", 0))

    @property
    def number(self) -> int:
        return int(self.born.get(b"number", 0))

    @property
    def followed_us(self) -> int:
        return int(self.born.get(b"followed", 0))

    def append(self, events: Sequence[Event], shown: int = 0, retain: int = 1_000_000) -> Position:
        """A publisher's append."""
        appending = ScriptedLog(self).append(
            [pack(event) for event in events], source="test", shown_generation=shown, retain=retain
        )
        try:
            appending.send(None)
        except StopIteration as done:
            position: Position = done.value
            return position
        raise AssertionError("a server in process keeps nobody waiting")

    def trim_before(self, number: int) -> None:
        self.stream = [row for row in self.stream if row[0] >= (self.generation, number)]

    def garble(self, index: int) -> None:
        """That entry was written by another version: this one cannot read it."""
        self.stream[index] = self.stream[index][0], {ENTRY_FIELD: b"garbled"}

    def end_at(self, number: int) -> None:
        """The history has lost its end, and does not know."""
        self.stream = [row for row in self.stream if row[0][1] <= number]
        self.streams[NAMES.feed.encode()].last = (self.generation, number)
        self.born[b"number"] = b"%d" % number

    def replica(self, *, without_last: int = 0) -> Self:
        """A copy that is promoted: it has all but the last entries, and another replication id."""
        promoted = copy.deepcopy(self)
        promoted.scripts = {}
        promoted.begin_history()
        if without_last:
            kept = promoted.stream[:-without_last]
            promoted.end_at(kept[-1][0][1] if kept else 0)
        return promoted


class ScriptedLog(RedisLog):
    """The `Log` of one node, on `server`, which a script may exchange between calls, or for the wake-ups alone, or for
    the replay alone.

    With `gate` set, a confirm stops there *before* the server sees it; with `reply_gate`, after, before the reply.
    `replay_gate` stops each page of a replay before its reply.
    """

    def __init__(self, server: LogServer) -> None:
        # None of the connections that RedisLog begins with: they would take a third of a history's time.
        self._names, self._timeout = NAMES, 5.0
        self.server = server
        self.wake_server: LogServer | None = None
        self.replay_server: LogServer | None = None
        self.gate: Gate | None = None
        self.reply_gate: Gate | None = None
        self.reply_error: Exception | None = None
        """Comes in place of the next replies."""
        self.replay_gate: Gate | None = None
        self._client: Any = InProcessRedis(lambda: self.server)
        self._confirming: Any = self._client
        self._blocked: Any = InProcessRedis(lambda: self.wake_server or self.server)
        self._replaying: Any = InProcessRedis(lambda: self.replay_server or self.server)

    async def confirm(
        self, applied: Position | None, shown_generation: int, field: str, record: str, followed_us: int
    ) -> Confirmation:
        if self.gate is not None:
            await self.gate.passed()
        reply = await super().confirm(applied, shown_generation, field, record, followed_us)
        if self.reply_gate is not None:
            await self.reply_gate.passed()
        if self.reply_error is not None:
            raise self.reply_error
        return reply

    async def read_back(self, before: Position, count: int) -> tuple[FeedEntry, ...]:
        page = await super().read_back(before, count)
        if self.replay_gate is not None:
            await self.replay_gate.passed()
        return page


class SharedMemory:
    """A redis tier without a server: sealed bytes in a dict that several nodes may share, written at once.

    With `gate` set, a `get` stops there after it has read the value.  Without `locks`, which nodes may share too, every
    node asks the origin for itself.
    """

    def __init__(self, stored: dict[bytes, bytes] | None = None) -> None:
        self.stored = {} if stored is None else stored
        self.locks: dict[bytes, SharedMemory | None] | None = None
        """Who holds each; None for a while where the last one kept nothing."""
        self.gate: Gate | None = None
        self.gets = 0

    async def get(self, keys: Sequence[Key]) -> Entry | None:
        self.gets += 1
        found = [(key, self.stored[key.name]) for key in keys if key.name in self.stored]
        if self.gate is not None:
            await self.gate.passed()
        return next((entry for key, value in found if (entry := unseal(key, value)) is not None), None)

    def look_up(self, keys: Sequence[Key], tell: Tell) -> None:
        looking = asyncio.ensure_future(self.get(keys))
        looking.add_done_callback(lambda done: tell(None if done.cancelled() else done.result()))

    async def get_or_lock(self, keys: Sequence[Key], attempt: int) -> tuple[Entry | None, bool]:
        await asyncio.sleep(0)
        entry = await self.get(keys)
        return entry, self.is_locked(keys[0])

    def is_locked(self, key: Key) -> bool:
        """Whether another node asks the origin; else this one does from now on, unless nobody need wait for it."""
        return self.locks is not None and self.locks.setdefault(key.name, self) not in (self, None)

    def release(self, key: Key, *, is_kept: bool) -> None:
        if self.locks is not None and self.locks.get(key.name) is self:
            if is_kept:
                del self.locks[key.name]
            else:
                self.locks[key.name] = None

    def put(self, key: Key, entry: Entry) -> None:
        self.stored[key.name] = seal(key, entry)

    def discard(self, key: Key) -> None:
        self.stored.pop(key.name, None)


@dataclass
class ScriptedSession:
    """What the origin knows of one token: its current version shows in the body."""

    session_id: str
    identity_id: str
    version: int = 0
    valid: bool = True
    expires_at: str = "2030-01-01T00:00:00Z"


_REFUSAL_BODY = (
    b'{"error":{"code":401,"status":"Unauthorized","reason":"No valid session credentials found in the request.",'
    b'"message":"The request could not be authorized"}}\n'
)


class ScriptedOrigin:
    """The origin as the truth of a test.  An answer shows the state at the moment when its read reached the origin.

    With `gate` set, a read stops there after it has seen the state.  `down` makes every read fail.
    """

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self.sessions: dict[bytes, ScriptedSession] = {}
        self.gate: Gate | None = None
        self.before_gate: Gate | None = None
        self.down = False
        self.set_cookie = False
        self.status: int | None = None
        self.extra_headers: tuple[tuple[bytes, bytes], ...] = ()
        self.padding_bytes = 0
        self.believes_401 = True
        self.reads = 0
        self.passed_on = 0
        self.last_passed_on: tuple[str, str, Sequence[tuple[bytes, bytes]], bytes] | None = None
        self.any_answer: OriginAnswer | None = None
        """Given to whatever is asked."""
        self.refusal_body = _REFUSAL_BODY
        self.is_expected: Callable[[], bool] = lambda: False
        """What the last caller would say of a 401."""
        self.is_patient: bool | None = None
        """Whether the last caller would wait for an open breaker."""

    def add(self, token: str, session_id: str = "session-1", identity_id: str = "identity-1") -> ScriptedSession:
        session = self.sessions[token.encode()] = ScriptedSession(session_id, identity_id)
        return session

    async def read(
        self,
        credential: Credential,
        *,
        on_begin: Callable[[], None],
        is_expected: Callable[[], bool],
        patient: bool,
    ) -> OriginAnswer:
        self.is_patient = patient
        self.is_expected = is_expected
        if self.before_gate is not None:
            await self.before_gate.passed()
        on_begin()
        self.reads += 1
        answer = self._now(credential.value)
        gate = self.gate
        if gate is not None:
            await gate.passed()
        if self.down:
            raise OriginUnavailableError("unreachable", "the scripted origin is down")
        return answer

    async def read_anonymous(self, *, patient: bool) -> OriginAnswer:
        answer = self.any_answer or self._refusal()
        gate = self.gate
        if gate is not None:
            await gate.passed()
        if self.down:
            raise OriginUnavailableError("unreachable", "the scripted origin is down")
        return answer

    async def pass_on(
        self,
        method: str,
        target: str,
        headers: Sequence[tuple[bytes, bytes]],
        body: bytes,
        *,
        anonymous: bool,
        is_expected: Callable[[], bool],
    ) -> OriginAnswer:
        self.is_expected = is_expected
        self.passed_on += 1
        self.last_passed_on = method, target, headers, body
        if self.down:
            raise OriginUnavailableError("unreachable", "the scripted origin is down")
        return self.any_answer or self._refusal()

    def _now(self, token: bytes) -> OriginAnswer:
        session = self.sessions.get(token)
        if self.any_answer is not None:
            return self.any_answer
        if self.status is not None:
            return OriginAnswer(self.status, (), b"scripted\n", self._clock.wall())
        if session is None or not session.valid:
            return self._refusal()
        body = {
            "id": session.session_id,
            "active": True,
            "expires_at": session.expires_at,
            "identity": {"id": session.identity_id, "traits": {"version": session.version}},
            "padding": "x" * self.padding_bytes,
            "read": self.reads,
        }
        headers = [(b"content-type", b"application/json; charset=utf-8"), *self.extra_headers]
        if self.set_cookie:
            headers.append((b"set-cookie", b"ory_kratos_session=another"))
        return OriginAnswer(200, tuple(headers), json.dumps(body).encode() + b"\n", self._clock.wall())

    def _refusal(self) -> OriginAnswer:
        headers = ((b"content-type", b"application/json"), *self.extra_headers)
        return OriginAnswer(401, headers, self.refusal_body, self._clock.wall(), believed=self.believes_401)


class Tally(Counter[str]):
    """An observer that counts answers, by their tier."""

    def observe_request(self, tier: str, status: int, detail: str, seconds: float) -> None:
        self[tier] += 1


class ScriptedNode:
    """A node without ports: real fence, lease, follower, memory tier and reader over scripted surroundings.

    It is asked as by a client, through protocol, fast lane and application.  Nothing runs by itself: `await follow()`
    confirms until the feed has nothing more to say.
    """

    def __init__(
        self,
        server: LogServer,
        origin: ScriptedOrigin,
        clock: ManualClock,
        *,
        shared: dict[bytes, bytes] | None = None,
        node_id: str = "node-1",
        window_seconds: float = 900.0,
        max_ids: int = 250_000,
        ttl_seconds: float = 900.0,
        memory_bytes: int = 1 << 24,
        secrets: Sequence[str] = (SECRET,),
    ) -> None:
        self.clock = clock
        self.origin = origin
        self.log = ScriptedLog(server)
        self.fence = Fence(clock, window_seconds=window_seconds, max_ids=max_ids)
        self.lease = Lease(clock)
        membership = Membership(node_id, "default", MAX_STALENESS_SECONDS)
        self.follower = Follower(self.log, self.fence, self.lease, clock, membership)
        self.memory = MemoryTier(memory_bytes)
        self.redis = SharedMemory(shared)
        self.keys = KeyRing(secrets)
        self.reader = Reader(
            keys=self.keys,
            memory=self.memory,
            redis=self.redis,
            origin=origin,
            fence=self.fence,
            lease=self.lease,
            clock=clock,
            ttl_seconds=ttl_seconds,
            stale_if_error_seconds=3600.0,
            cookie_max_age_seconds=86400.0,
            neighbour_seconds=2.5,
        )
        self.by_lane = Tally()
        """Of the hits in Redis, those that the fast lane gave."""
        self.fast_lane = self.lane(SESSION_COOKIE, lambda seconds: None, self.by_lane)
        self.client = Client(Whoami(self.reader, Tally(), SESSION_COOKIE, _otherwise), self.fast_lane)

    def lane(self, session_cookie: str, observe: Callable[[float], None], observer: Observer) -> FastLane:
        """The fast lane of its public port."""
        return FastLane(
            reader=self.reader,
            keys=self.keys,
            fence=self.fence,
            lease=self.lease,
            clock=self.clock,
            turn=self.memory.turn,
            observe=observe,
            observer=observer,
            session_cookie=session_cookie,
        )

    async def follow(self) -> None:
        """Confirm, and again as long as the follower wants to."""
        while await self.follower.confirm():
            pass

    async def read(self, token: str | None, wants: Wants | None = None) -> Answer:
        """What a client gets who presents this token, or nothing; raises what `client` does."""
        return await self.client.ask(whoami_request(token, wants or Wants()))

    def neighbour(self, **options: Any) -> ScriptedNode:
        """Another node of the region: same feed, origin, redis tier and time."""
        options = {"node_id": "node-2", "shared": self.redis.stored} | options
        return ScriptedNode(self.log.server, self.origin, self.clock, **options)


async def _otherwise(scope: object, receive: object, send: object) -> None:
    raise AssertionError("asked for another path")


async def following_node(**options: Any) -> ScriptedNode:
    """A node with a lease, on a feed of its own; its origin knows one session, by `token`."""
    clock = ManualClock()
    origin = ScriptedOrigin(clock)
    origin.add("token")
    node = ScriptedNode(LogServer(), origin, clock, **options)
    await node.follow()
    return node


async def get_as_far_as_they_can() -> None:
    """Give whoever was started the turns that it takes, through all tasks of a request, to where something stops it."""
    for _ in range(8):
        await asyncio.sleep(0)


async def turns_until(predicate: Callable[[], bool]) -> None:
    """Give the loop its turns, and stop in the very one in which it is so: whom it wakes up is not awake yet."""
    for _ in range(100):
        if predicate():
            return
        await asyncio.sleep(0)
    raise NotInTimeError("not so within 100 turns of the loop")


def version_of(answer: Answer) -> int:
    """The version of the session that an answer shows."""
    version: int = json.loads(answer.body)["identity"]["traits"]["version"]
    return version


def revoked(session_id: str = "session-1") -> list[Event]:
    return [Event(EventType.SESSION_REVOKED, session_id)]


def changed(session_id: str = "session-1") -> list[Event]:
    return [Event(EventType.SESSION_CHANGED, session_id)]


def identity_changed(identity_id: str = "identity-1") -> list[Event]:
    return [Event(EventType.IDENTITY_CHANGED, None, identity_id)]


def flush() -> list[Event]:
    return [Event(EventType.FLUSH)]
