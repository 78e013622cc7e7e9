"""Two nodes, their readers, a publisher, an origin and servers that fail: all that may happen to them.

Everything stops wherever it awaits, and goes on when it is told to.  truth.py says what must hold.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from redis.exceptions import ResponseError

from cache_node.environment import PublisherSettings
from cache_node.errors import FeedUnavailableError, OriginUnavailableError
from cache_node.feed import scripts
from cache_node.feed.events import Event
from cache_node.feed.log import Log, RedisLog
from cache_node.feed.position import Position
from cache_node.feed.registry import Membership, RegistryWatch
from cache_node.sessions.answer import Wants
from cache_node.sessions.credential import Credential
from cache_node.sessions.origin import OriginAnswer
from cache_node.sources.publisher import ATTEMPT_SECONDS, AsyncPublisher
from cache_node.sources.receipt import ReceiptWait
from tests.fakes import (
    MAX_STALENESS_SECONDS,
    NAMES,
    LogServer,
    ManualClock,
    ScriptedLog,
    ScriptedNode,
    ScriptedOrigin,
    ScriptedSession,
    SharedMemory,
    changed,
    flush,
    identity_changed,
    revoked,
)
from tests.histories.stops import StoppingLog, StoppingMemory, Stops
from tests.histories.truth import (
    CREDENTIAL,
    TTL_SECONDS,
    Change,
    Demand,
    Fault,
    Kind,
    Mood,
    Read,
    Request,
    Told,
    Truth,
    has_a_run,
)
from tests.http import wire

PAGE_ENTRIES = 2
"""Of a confirm: pages that do not reach the end are where a lease could be granted too early."""
PAGE_EVENTS = 3
"""Some entries have more."""
MAX_TURNS = 200
"""Turns of the loop after which everybody who was let go must stand somewhere again."""


MAX_IDS = {True: 16, False: 1000}
"""What the fences of small nodes and of others remember at most."""
SESSION_ID = "0a1b2c3d-0000-4000-8000-00000000c0de"
IDENTITY_ID = "0a1b2c3d-0000-4000-8000-0000000000ff"
RATES = (0.996, 1.004)
"""How fast the clocks of the two nodes run, by that of the publisher: less than DRIFT apart."""


class StoppingOrigin(ScriptedOrigin):
    """The origin as one node reaches it: stops before it sees the state, and behind it."""

    def __init__(self, world: World) -> None:
        super().__init__(world.clock)
        self.sessions = world.sessions
        self._world = world
        self.under_way = 0
        self.failed = False
        """Whether the last read did."""

    async def read(
        self, credential: Credential, *, on_begin: Callable[[], None], is_expected: Callable[[], bool], patient: bool
    ) -> OriginAnswer:
        on_begin()
        self.under_way += 1
        try:
            await self._world.stops.stop("origin")
            answer = await super().read(credential, on_begin=lambda: None, is_expected=is_expected, patient=patient)
            read = self._world.reads[-1]
            await self._world.stops.stop("origin")
            read.came = self._clock.steady()
        finally:
            self.under_way -= 1
        return answer

    async def read_anonymous(self, *, patient: bool) -> OriginAnswer:
        return self._as_it_is(await super().read_anonymous(patient=patient))

    async def pass_on(self, *args: Any, **options: Any) -> OriginAnswer:
        return self._as_it_is(await super().pass_on(*args, **options))

    def _as_it_is(self, answer: OriginAnswer) -> OriginAnswer:
        mood = self._world.mood
        if mood is Mood.DOWN:
            raise OriginUnavailableError("unreachable", "the scripted origin is down")
        if mood is Mood.FAILING:
            return replace(answer, status=500, body=b"{}")
        headers = [(b"x-request-id", b"1")]
        if mood is Mood.SETTING_COOKIES:
            headers.append((b"set-cookie", b"ory_kratos_session=another"))
        answer = replace(answer, headers=(*answer.headers, *headers))
        return replace(answer, status=200, body=b"an error page") if mood is Mood.NO_SESSION else answer

    def _now(self, token: bytes) -> OriginAnswer:
        mood = self._world.mood
        self.failed = mood not in _KINDLY
        self._world.reads.append(Read(self._world.clock.wall(), mood is Mood.SETTING_COOKIES))
        self.reads = len(self._world.reads)
        self.refusal_body = json.dumps({"read": self.reads}).encode()
        return self._as_it_is(super()._now(token))


class DriftingClock(ManualClock):
    """A node's own: it drifts from the world's, but for the wall clock, which is set by that of the world."""

    def __init__(self, clock: ManualClock, rate: float) -> None:
        super().__init__()
        self._clock = clock
        self._rate = rate

    def steady(self) -> float:
        return self._clock.steady() * self._rate

    def wall(self) -> float:
        return self._clock.wall()


class OfAnotherVersion(Membership):
    """A node whose records this version cannot read, or which say of its lease what cannot be."""

    def next_record(self, applied: Position | None) -> str:
        generation, number, _staleness, count, region = super().next_record(applied).split(" ")
        return f"{generation} {number} 0 {count} {region}" if self.region == "0" else f"v2 {count}"


class World(Truth):
    """What may happen, each with its arguments.  `counts` tells what did."""

    def __init__(self) -> None:
        super().__init__()
        self._settings = pytest.MonkeyPatch()
        self._settings.setattr("cache_node.feed.log.PAGE_ENTRIES", PAGE_ENTRIES)
        self._settings.setattr("cache_node.feed.fence.SWEPT_IDS", 1)
        for room in ("follower", "log"):
            self._settings.setattr(f"cache_node.feed.{room}.PAGE_EVENTS", PAGE_EVENTS)
        self._settings.setattr("cache_node.sources.publisher.PUBLISH_DEADLINE_SECONDS", ATTEMPT_SECONDS)  # once
        self.stops = Stops()
        self.mood = Mood.WELL
        self.sessions: dict[bytes, ScriptedSession] = {}
        self.session = self.sessions[CREDENTIAL.value] = ScriptedSession(SESSION_ID, IDENTITY_ID)
        self.stored: dict[bytes, bytes] = {}
        self.locks: dict[bytes, SharedMemory | None] | None = None
        self.servers = [LogServer()]
        self.publisher_staleness = MAX_STALENESS_SECONDS
        self.reading: asyncio.Task[None] | None = None
        self.confirming: dict[ScriptedNode, asyncio.Task[bool]] = {}
        self.sweeping: defaultdict[ScriptedNode, RegistryWatch] = defaultdict(RegistryWatch)
        self.tasks: list[asyncio.Task[Any]] = []
        self.nodes = [self.new_node(place) for place in (0, 1)]
        self.left: list[ScriptedNode] = []
        self.begin_publisher()

    def agree(self, faults: Sequence[Fault]) -> None:
        """Where the registry is never lost a publisher may wait less than the nodes' leases; and where TIME rises, a
        salt need be no more than 1."""
        if not faults:
            self.publisher_staleness = MAX_STALENESS_SECONDS / 2
        if not {Fault.CLOCK_BACK, Fault.PROMOTE} & set(faults):
            self._settings.setattr("cache_node.feed.log._SALT_BITS", 0)

    def begin_locks(self) -> None:
        """One node asks the origin, and the other waits for what it brings."""
        self.locks = {}
        for node in self.nodes:
            node.redis.locks = self.locks

    def end_locks(self) -> None:
        """By their age: whoever held one has died, stands still, or could not give it back."""
        if self.locks is not None:
            self.locks.clear()

    def new_node(self, place: int, *, is_small: bool = False) -> ScriptedNode:
        """All have one id, as if somebody had made a mistake."""
        node = ScriptedNode(
            self.servers[0],
            StoppingOrigin(self),
            DriftingClock(self.clock, RATES[place]),
            node_id="node",
            window_seconds=4.0 if is_small else 900.0,
            max_ids=MAX_IDS[is_small],
            ttl_seconds=TTL_SECONDS,
        )
        node.follower._log = StoppingLog(self.log_of(node), self.stops)
        node.redis = StoppingMemory(self.stored, self.stops, lambda: self.is_redis_away)
        node.redis.locks = self.locks
        node.reader._redis = node.redis
        self.everybody.append(node)
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

    def log_to(self, server: int) -> RedisLog:
        """A publisher's connection; raises FeedUnavailableError if there is no way."""
        return ScriptedLog(self.server(server))

    def takes_events(self, server: int) -> bool:
        return self.server(server).available and self.server(server).writes

    async def command(self, *parts: bytes | str | int) -> Any:
        """Whatever somebody does to the primary by hand."""
        return self.servers[self.primary].execute(*parts)

    names = NAMES

    # The session ------------------------------------------------------------------------------------------------------

    def commit(self, kind: Kind, *, ends_soon: bool = False) -> None:
        self.session.version += 1
        self.session.valid = kind is not Kind.REVOKE
        ends_at = datetime.fromtimestamp(self.clock.wall() + (5.0 if ends_soon else 1e8), UTC)
        self.session.expires_at = ends_at.isoformat()
        events = {
            Kind.SESSION: changed(SESSION_ID),
            Kind.IDENTITY: identity_changed(IDENTITY_ID),
            Kind.REVOKE: revoked(SESSION_ID),
            Kind.EVERYTHING: flush(),
        }
        self.changes.append(Change(self.session.version, self.session.valid, events[kind]))

    @property
    def unpublished(self) -> list[Change]:
        return [change for change in self.changes if change.position is None]

    async def publish(self, which: int, others: int, server: int, told: Told = Told.PLAINLY) -> None:
        """The event of a change, behind others of strangers in one entry."""
        change = self.unpublished[which % len(self.unpublished)]
        events = [*changed("somebody-else") * others, *change.events]
        with pytest.MonkeyPatch.context() as writing:
            if told is Told.IN_CAPITALS:
                events = [Event(type_, *[id_ and id_.upper() for id_ in ids]) for type_, *ids in events]
            elif told is Told.BY_ANOTHER_VERSION:
                events = changed("somebody-else") * len(events)
                writing.setattr(scripts, "APPEND", _APPEND_OF_ANOTHER_VERSION)
            position = await self.append(events, server)
        self.time_passes(1e-6)  # what was asked before is not asked at the same moment
        if position is not None:
            change.position, change.acknowledged_at = position, self.clock.steady()
            change.waiting = ReceiptWait(position, self.clock.steady(), self.publisher_staleness, self.watch)
            self.counts["published"] += 1

    async def publish_noise(self, which: int, server: int, many: int = 1) -> Position | None:
        """An event of strangers, or of so many at once; now and then a flush."""
        strangers = [event for n in range(many) for event in changed(f"other-{which + n}")]
        return await self.append(flush() if which == 0 else strangers, server)

    async def append(self, events: list[Event], server: int) -> Position | None:
        refused = None
        try:
            self.publisher._log = self.log_to(server)
            return await self.publisher.publish(events)
        except FeedUnavailableError as error:
            refused = error
        assert not self.takes_events(server), f"a server that is there took no event: {refused}"
        return None

    def begin_publisher(self) -> None:
        """Another process, which has seen nothing yet; no receipts are waited for by the one before."""
        self.watch = RegistryWatch()
        for change in self.changes:
            change.waiting = None
        self.publisher = AsyncPublisher(settings=PublisherSettings("redis://nowhere"))

    async def ask_for_receipts(self, server: int, *, is_slow: bool = False) -> None:
        """By one reading of the registry, which may be long on its way."""
        if self.reading is None or self.reading.done():
            self.reading = asyncio.create_task(self._read_registry(server))
            self.tasks.append(self.reading)
        await self.settle()
        if not is_slow:
            await self.let_go_on("question")
            await self.let_go_on("registry")

    async def _read_registry(self, server: int) -> None:
        sent = self.clock.steady()
        log = StoppingLog(self.log_to(server), self.stops)
        reading = await log.ask_registry(self.publisher._poll.newest_generation)
        received = self.clock.steady()
        for change in self.changes:
            if change.waiting is not None and not change.is_receipted:
                change.is_receipted = change.waiting.is_complete(reading, sent, received)
                quick = change.is_receipted and not change.waiting.has_outlived_leases(sent)
                self.counts["quick receipts"] += quick

    # Nodes ------------------------------------------------------------------------------------------------------------

    def request(self, node: int, demand: Demand = Demand.PLAIN) -> None:
        self.request_of(self.nodes[node], demand)

    def request_of(self, asked: ScriptedNode, demand: Demand = Demand.PLAIN) -> None:
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
        task = asyncio.create_task(asked.read(CREDENTIAL.value.decode(), wants))
        may_fail = self.mood not in _KINDLY or (_origin_of(asked).failed and has_a_run(asked))
        self.requests.append(Request(asked, task, demand, self.session.version, demanded, in_outage, may_fail))

    async def requests_of_others(self, node: int) -> None:
        """One that presents nothing, and one that goes to the origin for itself; nothing of them stops."""
        token = f"X-Session-Token: {CREDENTIAL.value.decode()}"
        for asked in (wire.request(), wire.request(token, "X-Session-Token: another")):
            try:
                answer = await self.nodes[node].client.ask(asked)
            except OriginUnavailableError as error:
                may_fail, words = self.mood not in _KINDLY, str(error)
            else:
                may_fail, words = answer.status == 401 or self.mood is Mood.FAILING, f"{answer.status} for no session"
                is_shared = answer.tier != "bypass"
                has_cookie = any(name == b"set-cookie" for name, _ in answer.headers)
                assert not (is_shared and has_cookie), "strangers share a cookie"
            assert may_fail, f"an origin that was well: {words}"

    def client_goes_away(self, which: int) -> None:
        """What it asked for is nobody's any more, but others may wait for the same."""
        request = self.requests.pop(which % len(self.requests))
        request.task.cancel()
        self.tasks.append(request.task)

    def confirm(self, node: int, server: int, *, overlaps: bool = False) -> None:
        asking = self.nodes[node]
        under_way = self.confirming.get(asking)
        if overlaps and under_way is not None:
            self.tasks.append(under_way)
        if overlaps or under_way is None or under_way.done():
            asking.log.server = self.server(server)
            self.confirming[asking] = asyncio.create_task(asking.follower.confirm())

    async def wake_up(self, node: int, server: int, skipped: int) -> None:
        """Entries of any server; the first ones, or all but the last, may be lost on the way."""
        woken = self.nodes[node]
        woken.log.wake_server = self.server(server)
        applied = woken.fence.position or Position(0, 0)
        try:
            heard = await self.log_of(woken).wake_up(applied, 0.0)
        except FeedUnavailableError:
            return
        woken.follower.hear(heard[skipped:])
        self.heard[woken] |= {at for at, _ in heard[skipped:] if at.generation == applied.generation}

    def replay(self, node: int, server: int) -> None:
        replaying = self.nodes[node]
        replaying.log.replay_server = self.server(server)
        self.tasks.append(asyncio.create_task(replaying.follower.replay()))

    async def replace(self, node: int, *, in_order: bool, is_small: bool) -> None:
        """A node leaves, and may still be asked, or is killed; another process starts."""
        leaving = self.nodes[node]
        if in_order:
            await leaving.follower.leave()
            self.left.append(leaving)
        else:
            for request in [request for request in self.requests if request.node is leaving]:
                self.client_goes_away(self.requests.index(request))  # what is killed answers nothing
            leaving.redis.locks = None  # nor gives any back
        self.nodes[node] = self.new_node(node, is_small=is_small)

    def evict(self, node: int) -> None:
        """The node has no room for the session's entry."""
        evicting = self.nodes[node]
        evicting.memory._entries.discard(evicting.keys.derive(CREDENTIAL)[0].name)

    def update(self, node: int, region: str) -> None:
        """The node is of another version from now on, as its records show."""
        membership = OfAnotherVersion("node", region, MAX_STALENESS_SECONDS)
        self.nodes[node].follower._membership = membership

    def sweep(self, node: int) -> None:
        sweeping = self.nodes[node]
        self.tasks.append(asyncio.create_task(sweeping.follower._sweep(self.sweeping[sweeping])))

    @contextlib.contextmanager
    def out_of_memory(self, node: int) -> Iterator[None]:
        """What the node would add to its fence cannot be added."""

        def fail(*args: object) -> None:
            raise MemoryError

        with pytest.MonkeyPatch.context() as failing:
            failing.setattr(self.nodes[node].fence, "_add_event", fail)
            yield

    def go_on(self, which: int, *, is_lost: bool) -> None:
        """Somebody who waits goes on; a confirm's reply may be lost."""
        self.stops.release(which % len(self.stops.waiting), is_lost=is_lost)

    async def let_go_on(self, place: str, *, is_lost: bool = False) -> None:
        """Whoever waits there now, and nobody else."""
        for waiting in [waiting for waiting in self.stops.waiting if waiting[0] == place]:
            self.stops.release(self.stops.waiting.index(waiting), is_lost=is_lost)
        await self.settle()

    async def let_all_go_on(self) -> None:
        """Whoever waits, and whoever does so then: until all is done."""
        for _ in range(100):
            if not self.stops.waiting:
                return
            if all(place == "lock" for place, _ in self.stops.waiting):
                self.end_locks()
            self.stops.release(0, is_lost=False)
            await self.settle()

    async def let_all_go_on_at_once(self, *, backwards: bool) -> None:
        """Whoever waits now, in one turn of the loop."""
        for _ in list(self.stops.waiting):
            self.stops.release(-1 if backwards else 0, is_lost=False)
        await self.settle()

    async def confirm_once(self, node: int, server: int, *, is_lost: bool = False) -> bool:
        """Confirm, and have the reply, unless that is lost; True if another should follow."""
        self.confirm(node, server)
        await self.settle()
        await self.let_go_on("confirm", is_lost=is_lost)
        done = self.confirming[self.nodes[node]]
        return done.exception() is None and done.result()

    async def follow(self, node: int, server: int) -> None:
        """Confirm, and apply, until the server has nothing more."""
        for _ in range(20):
            if not await self.confirm_once(node, server):
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

    def turn(self, mood: Mood) -> None:
        self.mood = mood
        if mood not in _KINDLY:
            for request in self.requests:
                request.may_fail = True

    @property
    def may_lose_end(self) -> bool:
        """Nobody lacks any of it, nor waits for an older word of the feed, and all can be told at once."""
        server = self.servers[self.primary]
        end = Position(server.generation, server.number)
        asks = any(place == "confirm" for place, _ in self.stops.waiting)
        is_applied = all(node.fence.position == end for node in self.nodes)
        return self.takes_events(self.primary) and is_applied and not asks

    async def lose_end(self) -> None:
        """An older copy of the server's data comes back as if it were the newest; all confirm before anybody writes."""
        server = self.servers[self.primary]
        server.end_at(max(0, server.number - 1))
        self.stored.clear()
        for node in (0, 1):
            await self.follow(node, self.primary)

    async def fault(self, fault: Fault) -> None:
        """Some need another before them, and are nothing without."""
        names = self.names
        rows = await self.command("XREVRANGE", names.feed, "+", "-", "COUNT", 2)
        match fault:
            case Fault.FLUSHALL:
                await self.command("FLUSHALL")
            case Fault.TRIM if rows:
                await self.command("XTRIM", names.feed, "MINID", rows[0][0])
            case Fault.HOLE if len(rows) > 1:
                await self.command("XDEL", names.feed, rows[1][0])
            case Fault.LOSE_REGISTRY:
                await self.command("DEL", names.nodes)
            case Fault.LOSE_GENERATION:
                await self.command("DEL", names.generation)
            case Fault.LOSE_NUMBER:
                await self.command("DEL", names.feed)
                await self.command("HDEL", names.generation, "number")
            case Fault.FOREIGN | Fault.BEYOND if rows:
                last = Position.parse(rows[0][0])
                beyond = Position(9_007_199_254_740_993_000, 1)
                by_hand = beyond if fault is Fault.BEYOND else Position(last.generation, last.number + 1)
                with contextlib.suppress(ResponseError):
                    await self.command("XADD", names.feed, str(by_hand), "e", "foreign")
            case _:
                if not await self.fault_of_servers(fault):
                    return
        self.counts[fault.name] += 1

    async def fault_of_servers(self, fault: Fault) -> bool:
        """What nobody does by a command; False where it is nothing."""
        first, last = self.servers[0], self.servers[-1]
        primary = self.servers[self.primary]
        match fault:
            case Fault.RESTART_EMPTY:
                primary.restart_empty()
            case Fault.CUT:
                primary.available = not primary.available
            case Fault.CLOCK_BACK:
                primary.time_us -= 3_600_000_000
            case Fault.REPLICATE if len(self.servers) == 1:
                replica = first.replica()
                replica.writes, replica.available, replica.replid = False, True, first.replid
                replica.time_us += 777  # no two clocks show the same microsecond
                self.servers.append(replica)
            case Fault.PROMOTE if len(self.servers) == 2 and not last.writes:
                first.writes, last.writes = False, True
                last.begin_history()
            case Fault.FAIL_BACK if len(self.servers) == 2 and last.writes:
                first.writes = True
                first.begin_history()
                self.servers.pop()
            case _:
                return False
        return True

    def check(self) -> None:
        for node in self.everybody:
            assert _origin_of(node).under_way <= 1, "one credential costs more than one request"
        super().check()

    def _collect(self) -> None:
        for task in (*self.tasks, *self.confirming.values()):
            if task.done() and not task.cancelled():
                error = task.exception()
                assert error is None or isinstance(error, _EXPECTED), error
        self.tasks = [task for task in self.tasks if not task.done()]

    async def end(self) -> None:
        """Whoever still waits is sent home."""
        self._settings.undo()
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
        for node in self.everybody:
            self.counts["memory, by the fast lane"] += node.fast_lane.hits
            self.counts["redis, by the fast lane"] += node.by_lane["redis"]
        self.counts["waits for a lock"] += self.stops.counts["lock"]


_APPEND_OF_ANOTHER_VERSION = scripts.Script(scripts.APPEND.text.replace("cmsgpack.pack(1)", "cmsgpack.pack(2)"))
_KINDLY = (Mood.WELL, Mood.SETTING_COOKIES)
_EXPECTED = (FeedUnavailableError, OriginUnavailableError, MemoryError)


def _origin_of(node: ScriptedNode) -> StoppingOrigin:
    assert isinstance(node.origin, StoppingOrigin)
    return node.origin
