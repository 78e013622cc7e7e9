"""Two nodes, their readers, a publisher, an origin and servers that fail, and the plain truth about one session.

Everything stops wherever it awaits, and goes on when it is told to.  The truth is a list: which version of the session
was committed, published, acknowledged and receipted when.  The promises are those of the protocol's model:

1. a cached answer shows every change that was acknowledged max_staleness ago, and every one whose event is applied;
2. after a receipt no request gets an older answer, nor does one that demands the position of a publish;
3. any other answer is the origin's, read after the request began.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import pytest

from cache_node.errors import FeedUnavailableError, OriginUnavailableError
from cache_node.feed.events import Event, FeedEntry
from cache_node.feed.log import Confirmation, Log
from cache_node.feed.position import Position
from cache_node.feed.registry import RegistryReading, RegistryWatch
from cache_node.sessions.answer import Answer, Wants
from cache_node.sessions.credential import Credential
from cache_node.sessions.entry import Entry
from cache_node.sessions.keys import Key
from cache_node.sessions.origin import OriginAnswer
from cache_node.sources.receipt import ReceiptWait
from tests.fakes import (
    MAX_STALENESS_SECONDS,
    LogServer,
    ManualClock,
    ScriptedLog,
    ScriptedNode,
    ScriptedOrigin,
    SharedMemory,
    changed,
    flush,
    identity_changed,
    revoked,
    version_of,
)

PAGE_ENTRIES = 2
"""Of a confirm: pages that do not reach the end are where a lease could be granted too early."""
MAX_TURNS = 200
"""Turns of the loop after which everybody who was let go must stand somewhere again."""


class Kind(Enum):
    """How a change is committed and told."""

    SESSION = "session.changed"
    IDENTITY = "identity.changed"
    REVOKE = "session.revoked"
    EVERYTHING = "flush"


class Demand(Enum):
    """What a request wants."""

    PLAIN = "plain"
    NO_CACHE = "no-cache"
    MAX_AGE = "max-age=1"
    MIN_POSITION = "the position of the last publish"


class Fault(Enum):
    """What happens to the feed's servers."""

    FLUSHALL = "everything is gone, the server's identity stays"
    RESTART_EMPTY = "a new process without data"
    CUT = "the primary does not answer, until it is cut again"
    TRIM = "all but the last entry is trimmed away"
    HOLE = "the last entry but one is deleted"
    REPLICATE = "the primary is cut off from its clients; a replica without its last entry waits"
    PROMOTE = "that replica is the primary now"
    FAIL_BACK = "the old primary is the primary again"
    CLOCK_BACK = "the server's clock steps back by an hour"
    LOSE_REGISTRY = "the nodes registry is deleted"


@dataclass
class Stops:
    """Places where somebody waits to be let go."""

    waiting: list[tuple[str, asyncio.Future[None]]] = field(default_factory=list)
    are_away: int = 0
    """How many wait for a server's answer, and stand nowhere yet."""
    nobody_away: asyncio.Event = field(default_factory=asyncio.Event)

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        self.are_away += 1
        self.nobody_away.clear()
        try:
            yield
        finally:
            self.are_away -= 1
            if self.are_away == 0:
                self.nobody_away.set()

    async def stop(self, place: str) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.append((place, future))
        await future

    def release(self, index: int, *, is_lost: bool) -> None:
        place, future = self.waiting.pop(index)
        if future.cancelled():
            return
        if is_lost and place == "confirm":
            future.set_exception(FeedUnavailableError("the reply was lost"))
        else:
            future.set_result(None)


class StoppingLog:
    """A `Log` whose confirms and pages stop between the server and the node; there a confirm's reply may be lost."""

    def __init__(self, log: Log, stops: Stops) -> None:
        self.log = log
        self._stops = stops

    async def confirm(
        self, applied: Position | None, shown_generation: int, field: str, record: str, followed_us: int
    ) -> Confirmation:
        with self._stops.away():
            reply = await self.log.confirm(applied, shown_generation, field, record, followed_us)
        await self._stops.stop("confirm")
        return reply

    async def read_back(self, before: Position, count: int) -> tuple[FeedEntry, ...]:
        with self._stops.away():
            page = await self.log.read_back(before, count)
        await self._stops.stop("replay")
        return page

    async def wake_up(self, after: Position, block_seconds: float) -> list[tuple[Position, FeedEntry]]:
        return await self.log.wake_up(after, block_seconds)

    async def ask_registry(self, shown_generation: int) -> RegistryReading:
        return await self.log.ask_registry(shown_generation)

    async def forget(self, field: bytes, record: bytes | None = None) -> None:
        await self.log.forget(field, record)


class StoppingMemory(SharedMemory):
    """A redis tier whose reads stop behind the server, and which may be away."""

    def __init__(self, stored: dict[bytes, bytes], stops: Stops, is_away: Callable[[], bool]) -> None:
        super().__init__(stored)
        self._stops = stops
        self._is_away = is_away

    async def get(self, keys: Sequence[Key]) -> Entry | None:
        found = None if self._is_away() else await super().get(keys)
        await self._stops.stop("redis")
        return found

    def put(self, key: Key, entry: Entry) -> None:
        if not self._is_away():
            super().put(key, entry)

    def discard(self, key: Key) -> None:
        if not self._is_away():
            super().discard(key)


class StoppingOrigin(ScriptedOrigin):
    """Stops before it sees the state, and behind it."""

    def __init__(self, clock: ManualClock, stops: Stops) -> None:
        super().__init__(clock)
        self._stops = stops

    async def read(
        self, credential: Credential, *, on_begin: Callable[[], None], is_expected: Callable[[], bool]
    ) -> OriginAnswer:
        on_begin()
        await self._stops.stop("origin")
        answer = await super().read(credential, on_begin=lambda: None, is_expected=is_expected)
        await self._stops.stop("origin")
        return answer


@dataclass
class Change:
    """Version `version` of the session, and what became of its event."""

    version: int
    is_valid: bool
    events: list[Event]
    position: Position | None = None
    acknowledged_at: float = 0.0
    waiting: ReceiptWait | None = None
    is_receipted: bool = False


@dataclass
class Request:
    """One request under way; the versions are of its beginning: what an answer must show, and one from an outage."""

    node: ScriptedNode
    task: asyncio.Task[Answer]
    committed: int
    demanded: int
    demanded_in_outage: int


class World:
    """What may happen, each with its arguments, and `check`.  `counts` tells what did."""

    def __init__(self) -> None:
        self._pages = pytest.MonkeyPatch()
        for room in ("follower", "log"):
            self._pages.setattr(f"cache_node.feed.{room}.PAGE_ENTRIES", PAGE_ENTRIES)
        self.clock = ManualClock()
        self.stops = Stops()
        self.origin = StoppingOrigin(self.clock, self.stops)
        self.session = self.origin.add("token")
        self.stored: dict[bytes, bytes] = {}
        self.servers = [LogServer()]
        self.is_redis_away = False
        self.changes: list[Change] = []
        self.requests: list[Request] = []
        self.watch = RegistryWatch()
        self.shown = 0
        self.counts: Counter[str] = Counter()
        self.confirming: dict[int, asyncio.Task[bool]] = {}
        self.tasks: list[asyncio.Task[Any]] = []
        self.names = 0
        self.nodes = [self.new_node(), self.new_node()]

    def new_node(self, *, is_small: bool = False) -> ScriptedNode:
        self.names += 1
        node = ScriptedNode(
            self.servers[0],
            self.origin,
            self.clock,
            node_id=f"node-{self.names}",
            window_seconds=4.0 if is_small else 900.0,
            max_ids=16 if is_small else 1000,
        )
        node.follower._log = StoppingLog(self.log_of(node), self.stops)
        node.redis = StoppingMemory(self.stored, self.stops, lambda: self.is_redis_away)
        node.reader._redis = node.redis
        return node

    async def settle(self) -> None:
        """Until everybody stands somewhere; then what was answered is judged, before anything else happens."""
        loop: Any = asyncio.get_running_loop()
        for _ in range(MAX_TURNS):
            await asyncio.sleep(0)
            if self.stops.are_away:
                async with asyncio.timeout(10):
                    await self.stops.nobody_away.wait()
            if not loop._ready:  # nobody but this task runs: twice as many histories as with a fixed number of turns
                break
        else:
            raise AssertionError("somebody goes round in circles")
        self._collect()
        self.check()

    # What a world with another kind of server does in its own way ----------------------------------------------------

    def log_of(self, node: ScriptedNode) -> Log:
        """The node's connection to the server that it is pointed at."""
        return node.log

    async def append_to(self, server: int, events: list[Event]) -> Position:
        return self.server(server).append(events, self.shown)

    async def registry_of(self, server: int) -> RegistryReading:
        return await ScriptedLog(self.server(server)).ask_registry(self.shown)

    # The session ------------------------------------------------------------------------------------------------------

    def commit(self, kind: Kind) -> None:
        self.session.version += 1
        self.session.valid = kind is not Kind.REVOKE
        events = {
            Kind.SESSION: changed(),
            Kind.IDENTITY: identity_changed(),
            Kind.REVOKE: revoked(),
            Kind.EVERYTHING: flush(),
        }
        self.changes.append(Change(self.session.version, self.session.valid, events[kind]))

    @property
    def unpublished(self) -> list[Change]:
        return [change for change in self.changes if change.position is None]

    async def publish(self, which: int, others: int, server: int) -> None:
        """The event of a change, behind others of strangers in one entry."""
        change = self.unpublished[which % len(self.unpublished)]
        position = await self.append([*changed("somebody-else") * others, *change.events], server)
        if position is not None:
            change.position, change.acknowledged_at = position, self.clock.steady()
            change.waiting = ReceiptWait(position, self.clock.steady(), MAX_STALENESS_SECONDS, self.watch)
            self.counts["published"] += 1

    async def publish_noise(self, which: int, server: int) -> None:
        """An event of strangers, now and then a flush."""
        await self.append(flush() if which == 0 else changed(f"other-{which}"), server)

    async def append(self, events: list[Event], server: int) -> Position | None:
        try:
            position = await self.append_to(server, events)
        except FeedUnavailableError:
            return None
        self.shown = max(self.shown, position.generation)
        return position

    async def ask_for_receipts(self, server: int) -> None:
        try:
            reading = await self.registry_of(server)
        except FeedUnavailableError:
            return
        for change in self.changes:
            if change.waiting is not None and not change.is_receipted:
                now = self.clock.steady()
                change.is_receipted = change.waiting.is_complete(reading, now, now)
                quick = change.is_receipted and not change.waiting.has_outlived_leases(now)
                self.counts["quick receipts"] += quick

    # Nodes ------------------------------------------------------------------------------------------------------------

    def request(self, node: int, demand: Demand) -> None:
        asked = self.nodes[node]
        receipted = max((change.version for change in self.changes if change.is_receipted), default=0)
        published = [change for change in self.changes if change.position is not None]
        demanded, in_outage, wants = receipted, receipted, Wants()
        match demand:
            case Demand.NO_CACHE:
                demanded, wants = self.session.version, Wants(no_cache=True)
            case Demand.MAX_AGE:
                wants = Wants(max_age_seconds=1.0)
            case Demand.MIN_POSITION if published:
                demanded = in_outage = max(receipted, published[-1].version)
                wants = Wants(min_position=published[-1].position)
        task = asyncio.create_task(asked.read("token", wants))
        self.requests.append(Request(asked, task, self.session.version, demanded, in_outage))

    def confirm(self, node: int, server: int) -> None:
        asking = self.nodes[node]
        under_way = self.confirming.get(id(asking))
        if under_way is None or under_way.done():
            asking.log.server = self.server(server)
            self.confirming[id(asking)] = asyncio.create_task(asking.follower.confirm())

    async def wake_up(self, node: int, server: int, skipped: int) -> None:
        """Entries of any server; the first ones, or all but the last, may be lost on the way."""
        woken = self.nodes[node]
        woken.log.wake_server = self.server(server)
        try:
            heard = await self.log_of(woken).wake_up(woken.fence.position or Position(0, 0), 0.0)
        except FeedUnavailableError:
            return
        woken.follower.hear(heard[skipped:])

    def replay(self, node: int, server: int) -> None:
        replaying = self.nodes[node]
        replaying.log.replay_server = self.server(server)
        self.tasks.append(asyncio.create_task(replaying.follower.replay()))

    async def replace(self, node: int, *, in_order: bool, is_small: bool) -> None:
        """A node leaves, or is killed; another process starts.  What it had under way is nobody's any more."""
        leaving = self.nodes[node]
        if in_order:
            await leaving.follower.leave()
        else:
            for request in [request for request in self.requests if request.node is leaving]:
                self.requests.remove(request)  # what is killed answers nothing
                request.task.cancel()
                self.tasks.append(request.task)
        self.nodes[node] = self.new_node(is_small=is_small)

    def go_on(self, which: int, *, is_lost: bool) -> None:
        """Somebody who waits goes on; a confirm's reply may be lost."""
        self.stops.release(which % len(self.stops.waiting), is_lost=is_lost)

    async def let_all_go_on(self) -> None:
        """Whoever waits, and whoever does so then: until all is done."""
        for _ in range(100):
            if not self.stops.waiting:
                return
            self.stops.release(0, is_lost=False)
            await self.settle()

    async def follow(self, node: int, server: int) -> None:
        """Confirm, and apply, until the server has nothing more."""
        for _ in range(20):
            self.confirm(node, server)
            await self.settle()
            for place, future in list(self.stops.waiting):
                if place == "confirm":
                    self.stops.waiting.remove((place, future))
                    if not future.cancelled():
                        future.set_result(None)
            await self.settle()
            under_way = self.confirming[id(self.nodes[node])]
            if under_way.done() and (under_way.exception() is not None or not under_way.result()):
                break

    # Time and faults --------------------------------------------------------------------------------------------------

    def server(self, index: int) -> LogServer:
        server = self.servers[index % len(self.servers)]
        server.time_us += 1
        return server

    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)
        for server in self.servers:
            server.time_us += round(seconds * 1e6)

    async def live(self, seconds: float, server: int, *, is_asked: bool) -> None:
        """So long, each half a second both nodes confirm, and a publisher may ask for its receipts."""
        for _ in range(round(seconds / 0.5)):
            self.time_passes(0.5)
            for node in (0, 1):
                await self.follow(node, server)
            if is_asked:
                await self.ask_for_receipts(server)

    @property
    def primary(self) -> int:
        """The server that writes, or the first one."""
        return next((index for index, server in enumerate(self.servers) if server.writes), 0)

    def wall_clock_steps(self, seconds: float) -> None:
        self.clock.wall_now += seconds

    async def fault(self, fault: Fault) -> None:
        """Some need another before them, and are nothing without."""
        first, last = self.servers[0], self.servers[-1]
        primary = self.servers[self.primary]
        match fault:
            case Fault.FLUSHALL:
                primary.flushall()
            case Fault.RESTART_EMPTY:
                primary.restart_empty()
            case Fault.CUT:
                primary.available = not primary.available
            case Fault.TRIM:
                primary.trim_before(primary.number)
            case Fault.HOLE if len(primary.stream) > 1:
                del primary.stream[-2]
            case Fault.CLOCK_BACK:
                primary.time_us -= 3_600_000_000
            case Fault.LOSE_REGISTRY:
                primary.nodes.clear()
            case Fault.REPLICATE if len(self.servers) == 1:
                first.writes = False
                promoted = first.replica(without_last=min(1, len(first.stream)))
                promoted.writes, promoted.available = False, True
                promoted.time_us += 777  # no two clocks show the same microsecond
                self.servers.append(promoted)
            case Fault.PROMOTE if len(self.servers) == 2 and not first.writes:
                last.writes = True
            case Fault.FAIL_BACK if len(self.servers) == 2 and last.writes:
                first.writes, last.writes = True, False
                first.replid += "'"
                self.servers.pop()
            case _:
                return
        self.counts[fault.name] += 1

    # What must hold ---------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises AssertionError for an answer that breaks a promise."""
        for request in [request for request in self.requests if request.task.done()]:
            self.requests.remove(request)
            error = request.task.exception()
            if error is None:
                self._judge(request, request.task.result())
            else:
                assert isinstance(error, OriginUnavailableError), error
                self.counts["no answer"] += 1

    def _judge(self, request: Request, answer: Answer) -> None:
        self.counts[answer.tier] += 1
        version = self._newest_shown(answer)
        # no-cache in an outage gets what the feed proves unchanged
        demanded = request.demanded_in_outage if answer.tier == "stale" else request.demanded
        assert version >= demanded, f"{answer.tier} gave {version}, {demanded} was promised"
        if answer.tier == "origin" and version >= request.committed:
            return  # its own answer; an older one of a flight that it joined is judged as a cached one
        now = self.clock.steady()
        for change in self.changes:
            if change.position is not None and version < change.version:
                is_due = change.acknowledged_at + MAX_STALENESS_SECONDS <= now
                assert not is_due, f"{answer.tier} gave {version}, {change} was acknowledged long ago"
                is_applied = request.node.fence.has_applied(change.position)
                assert not is_applied, f"{answer.tier} gave {version}, {change} is applied"

    def _newest_shown(self, answer: Answer) -> int:
        """Of a 200 its version, which must have been valid; of a 401 the newest version that was not."""
        if answer.status == 200:
            version = version_of(answer)
            assert version == 0 or self.changes[version - 1].is_valid, f"a 200 of {self.changes[version - 1]}"
            return version
        assert answer.status == 401, answer
        refused = [change.version for change in self.changes if not change.is_valid]
        assert refused, "a 401 of a session that was never revoked"
        return refused[-1]

    def _collect(self) -> None:
        for task in (*self.tasks, *self.confirming.values()):
            if task.done() and not task.cancelled():
                error = task.exception()
                assert error is None or isinstance(error, FeedUnavailableError), error
        self.tasks = [task for task in self.tasks if not task.done()]

    async def end(self) -> None:
        """Whoever still waits is sent home."""
        self._pages.undo()
        for waiting in (*self.tasks, *self.confirming.values(), *(request.task for request in self.requests)):
            waiting.cancel()
        self.requests.clear()
        for _, future in self.stops.waiting:
            future.cancel()
        for _ in range(3):
            await asyncio.sleep(0)
        self._collect()
        for node in self.nodes:
            self.counts.update({name: n for name, n in node.follower.counts.items() if name.startswith("resets")})
