"""Scripted stand-ins, for what a real server cannot be made to do at a given moment.

`ManualClock` moves when told.  `LogServer` is the feed's server in process: the same rules as the Lua scripts, and it
can be emptied, trimmed, copied as a replica and promoted.  `ScriptedLog` is one node's or publisher's connection to
whichever server it is pointed at.  `ScriptedOrigin` answers when its gate opens.
"""

from __future__ import annotations

import asyncio
import copy
import json
import random
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cache_node.errors import FeedUnavailableError, OriginUnavailableError
from cache_node.feed.events import Event, EventType, FeedEntry
from cache_node.feed.fence import Fence
from cache_node.feed.follower import Follower
from cache_node.feed.lease import Lease
from cache_node.feed.log import PAGE_ENTRIES, Confirmation
from cache_node.feed.position import Position
from cache_node.feed.registry import Membership, RegistryReading
from cache_node.sessions.answer import Answer, Wants
from cache_node.sessions.credential import Credential
from cache_node.sessions.entry import Entry
from cache_node.sessions.keys import Key, KeyRing
from cache_node.sessions.memory_tier import MemoryTier
from cache_node.sessions.origin import OriginAnswer
from cache_node.sessions.reader import Reader
from cache_node.sessions.sealing import seal, unseal
from tests.waiting import NotInTimeError

MAX_STALENESS_SECONDS = 2.0
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


@dataclass
class LogServer:
    """State of the feed on one server, changed by the same rules as in cache_node/feed/scripts.py.

    `time_us` is its TIME; it stands still unless a script of a test moves it.
    """

    time_us: int = 1_800_000_000_000_000
    replid: str = field(default_factory=lambda: secrets.token_hex(20))
    stored_replid: str | None = None
    generation: int = 0
    number: int = 0
    followed_us: int = 0
    stream: list[tuple[Position, FeedEntry]] = field(default_factory=list)
    nodes: dict[str, str] = field(default_factory=dict)
    available: bool = True
    salt_bits: int = 20
    dice: random.Random = field(default_factory=random.Random)

    def current(self, shown: int) -> Position:
        """Make sure of the generation, as every script does first."""
        self.check()
        if self.stored_replid != self.replid:
            top = self.stream[-1][0].generation if self.stream else 0
            salt = self.dice.getrandbits(self.salt_bits) + 1 if self.salt_bits else 1
            self.generation = max(max(self.generation, shown, top) + salt, self.time_us)
            self.stored_replid, self.number, self.followed_us = self.replid, 0, 0
            self.stream = []
        return Position(self.generation, self.number)

    def append(self, events: Sequence[Event], shown: int = 0, retain: int = 1_000_000) -> Position:
        self.current(shown)
        self.number += len(events)
        position = Position(self.generation, self.number)
        self.stream.append((position, FeedEntry(self.number, tuple(events))))
        if self.number - retain > 0:
            self.trim_before(self.number - retain)
        return position

    def trim_before(self, number: int) -> None:
        """XTRIM MINID."""
        self.stream = [row for row in self.stream if row[0].number >= number]

    def flushall(self) -> None:
        """Everything is gone, the server's identity stays."""
        self.stored_replid, self.generation, self.number, self.followed_us = None, 0, 0, 0
        self.stream, self.nodes = [], {}

    def restart_empty(self) -> None:
        """A new process without data."""
        self.flushall()
        self.replid = secrets.token_hex(20)

    def replica(self, *, without_last: int = 0) -> LogServer:
        """A copy that is promoted: it has all but the last entries, and another replication id."""
        promoted = copy.deepcopy(self)
        promoted.replid, promoted.dice = secrets.token_hex(20), self.dice
        if without_last:
            promoted.stream = promoted.stream[:-without_last]
            promoted.number = promoted.stream[-1][0].number if promoted.stream else 0
        return promoted

    def check(self) -> None:
        if not self.available:
            raise FeedUnavailableError("the scripted server is away")


class ScriptedLog:
    """The `Log` of one node, on `server`, which a script may exchange between calls, or for the wake-ups alone, or for
    the replay alone.

    With `gate` set, a confirm stops there *before* the server sees it; with `reply_gate`, after, before the reply.
    `replay_gate` stops each page of a replay before its reply.
    """

    def __init__(self, server: LogServer) -> None:
        self.server = server
        self.wake_server: LogServer | None = None
        self.replay_server: LogServer | None = None
        self.gate: Gate | None = None
        self.reply_gate: Gate | None = None
        self.reply_error: Exception | None = None
        """Comes in place of the next replies."""
        self.replay_gate: Gate | None = None
        self.page_entries = PAGE_ENTRIES

    async def confirm(
        self, applied: Position | None, shown_generation: int, field: str, record: str, followed_us: int
    ) -> Confirmation:
        if self.gate is not None:
            await self.gate.passed()
        server = self.server
        end = server.current(shown_generation)
        followed_us = followed_us if applied is not None and applied.generation == end.generation else 0
        is_new = field not in server.nodes
        was_lost = followed_us > 0 and is_new
        server.nodes[field] = record
        is_alone = is_new and len(server.nodes) == 1
        server.followed_us = 0 if was_lost or is_alone else max(server.followed_us, followed_us)
        page: tuple[FeedEntry, ...] = ()
        if applied is not None:
            rows = [e for p, e in server.stream if p.generation == applied.generation and p.number > applied.number]
            page = tuple(rows[: self.page_entries])
        nodes = len(server.nodes)
        if self.reply_gate is not None:
            await self.reply_gate.passed()
        if self.reply_error is not None:
            raise self.reply_error
        return Confirmation(end, page, nodes, server.time_us, was_lost)

    async def wake_up(self, after: Position, block_seconds: float) -> list[tuple[Position, FeedEntry]]:
        server = self.wake_server or self.server
        server.check()
        key = (after.generation, after.number)
        return [(p, e) for p, e in server.stream if (p.generation, p.number) > key]

    async def read_back(self, before: Position, count: int) -> tuple[FeedEntry, ...]:
        server = self.replay_server or self.server
        server.check()
        rows = [e for p, e in server.stream if p.generation == before.generation and p.number <= before.number]
        page = tuple(reversed(rows))[:count]
        if self.replay_gate is not None:
            await self.replay_gate.passed()
        return page

    async def ask_registry(self, shown_generation: int) -> RegistryReading:
        server = self.server
        end = server.current(shown_generation)
        rows = {name.encode(): record.encode() for name, record in server.nodes.items()}
        return RegistryReading.parse(
            str(end.generation).encode(), str(end.number).encode(), str(server.followed_us).encode(), rows
        )

    async def forget(self, field: bytes, record: bytes | None = None) -> None:
        self.server.check()
        if record is None or self.server.nodes.get(field.decode(), "").encode() == record:
            self.server.nodes.pop(field.decode(), None)


class SharedMemory:
    """A redis tier without a server: sealed bytes in a dict that several nodes may share, written at once.

    With `gate` set, a `get` stops there after it has read the value.
    """

    def __init__(self, stored: dict[bytes, bytes] | None = None) -> None:
        self.stored = {} if stored is None else stored
        self.gate: Gate | None = None
        self.gets = 0

    async def get(self, keys: Sequence[Key]) -> Entry | None:
        self.gets += 1
        found = [(key, self.stored[key.name]) for key in keys if key.name in self.stored]
        if self.gate is not None:
            await self.gate.passed()
        return next((entry for key, value in found if (entry := unseal(key, value)) is not None), None)

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
        if self.down:
            raise OriginUnavailableError("unreachable", "the scripted origin is down")
        return self.any_answer or self._refusal()

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
        }
        headers = [(b"content-type", b"application/json; charset=utf-8"), *self.extra_headers]
        if self.set_cookie:
            headers.append((b"set-cookie", b"ory_kratos_session=another"))
        return OriginAnswer(200, tuple(headers), json.dumps(body).encode() + b"\n", self._clock.wall())

    def _refusal(self) -> OriginAnswer:
        headers = ((b"content-type", b"application/json"), *self.extra_headers)
        return OriginAnswer(401, headers, self.refusal_body, self._clock.wall(), believed=self.believes_401)


class ScriptedNode:
    """A node without ports: real fence, lease, follower, memory tier and reader over scripted surroundings.

    Nothing runs by itself: `await follow()` confirms until the feed has nothing more to say.
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
        self.reader = Reader(
            keys=KeyRing(secrets),
            memory=self.memory,
            redis=self.redis,
            origin=origin,
            fence=self.fence,
            lease=self.lease,
            clock=clock,
            ttl_seconds=ttl_seconds,
            stale_if_error_seconds=3600.0,
            cookie_max_age_seconds=86400.0,
        )

    async def follow(self) -> None:
        """Confirm, and again as long as the follower wants to."""
        while await self.follower.confirm():
            pass

    async def read(self, token: str, wants: Wants | None = None) -> Answer:
        return await self.reader.read(Credential("token", token.encode()), wants or Wants())

    def neighbour(self, **options: Any) -> ScriptedNode:
        """Another node of the region: same feed, origin, redis tier and time."""
        options = {"node_id": "node-2", "shared": self.redis.stored} | options
        return ScriptedNode(self.log.server, self.origin, self.clock, **options)


async def following_node(**options: Any) -> ScriptedNode:
    """A node with a lease, on a feed of its own; its origin knows one session, by `token`."""
    clock = ManualClock()
    origin = ScriptedOrigin(clock)
    origin.add("token")
    node = ScriptedNode(LogServer(), origin, clock, **options)
    await node.follow()
    return node


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
