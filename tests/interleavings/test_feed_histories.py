"""Random histories of two nodes, their readers, a publisher and failing servers, each from its seed.

Everything stops wherever it awaits, and goes on when the dice say so.  The truth is kept in plain lists: which version
of the one session was committed, published and receipted when.  The promises are those of the protocol's model:

1. a cached answer shows every change that was acknowledged max_staleness ago, and every one whose event is applied;
2. after a receipt no request gets an older answer;
3. any other answer is the origin's, read after the request began.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from cache_node.errors import FeedUnavailableError
from cache_node.feed.events import Event, FeedEntry
from cache_node.feed.log import Confirmation
from cache_node.feed.position import Position
from cache_node.feed.registry import RegistryWatch
from cache_node.sessions.answer import Answer
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
    version_of,
)

STEPS = 250


@dataclass
class Server(LogServer):
    """May refuse to write, as a replica does, or a primary that was cut off in time, and still be read from."""

    writes: bool = True

    def current(self, shown: int) -> Position:
        if not self.writes:
            raise FeedUnavailableError("the scripted server may not write")
        return super().current(shown)


@dataclass
class Stops:
    """Places where somebody waits for the dice."""

    waiting: list[tuple[object, asyncio.Future[None]]] = field(default_factory=list)

    async def stop(self, who: object) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.append((who, future))
        await future

    def release(self, index: int, error: Exception | None = None) -> None:
        _, future = self.waiting.pop(index)
        if future.cancelled():
            return
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)


class StoppingLog(ScriptedLog):
    """A confirm and a page of a replay stop between the server and the node; there a confirm's reply may be lost."""

    def __init__(self, server: LogServer, stops: Stops) -> None:
        super().__init__(server)
        self._stops = stops

    async def confirm(
        self, applied: Position | None, shown_generation: int, field: str, record: str, followed_us: int
    ) -> Confirmation:
        reply = await super().confirm(applied, shown_generation, field, record, followed_us)
        await self._stops.stop("confirm")
        return reply

    async def read_back(self, before: Position, count: int) -> tuple[FeedEntry, ...]:
        page = await super().read_back(before, count)
        await self._stops.stop("replay")
        return page


class StoppingMemory(SharedMemory):
    def __init__(self, stored: dict[bytes, bytes], stops: Stops) -> None:
        super().__init__(stored)
        self._stops = stops

    async def get(self, keys: Sequence[Key]) -> Entry | None:
        found = await super().get(keys)
        await self._stops.stop("redis")
        return found


class StoppingOrigin(ScriptedOrigin):
    def __init__(self, clock: ManualClock, stops: Stops) -> None:
        super().__init__(clock)
        self._stops = stops

    async def read(
        self, credential: Credential, *, on_begin: Callable[[], None], is_expected: Callable[[], bool]
    ) -> OriginAnswer:
        await self._stops.stop("origin")
        answer = await super().read(credential, on_begin=on_begin, is_expected=is_expected)
        await self._stops.stop("origin")
        return answer


@dataclass
class Change:
    """Version `version` of the session, and what became of its event."""

    version: int
    events: list[Event]
    position: Position | None = None
    acknowledged_at: float = 0.0
    waiting: ReceiptWait | None = None
    is_receipted: bool = False


@dataclass
class Request:
    node: ScriptedNode
    task: asyncio.Task[Answer]
    committed: int
    receipted: int


class History:
    """One run; `counts` tells what happened in it."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.clock = ManualClock()
        self.stops = Stops()
        self.origin = StoppingOrigin(self.clock, self.stops)
        self.session = self.origin.add("token")
        self.stored: dict[bytes, bytes] = {}
        self.servers = [Server()]
        self.faults = self.dice.choice(["none", "trim", "empty", "empty", "failover", "failover", "failback"])
        self.changes: list[Change] = []
        self.requests: list[Request] = []
        self.watch = RegistryWatch()
        self.shown = 0
        self.counts: Counter[str] = Counter()
        self.confirming: dict[int, asyncio.Task[bool]] = {}
        self.tasks: list[asyncio.Task[object]] = []
        self.names = 0
        self.nodes = [self.new_node(), self.new_node()]

    def new_node(self) -> ScriptedNode:
        self.names += 1
        window = self.dice.choice([4.0, 900.0])
        max_ids = self.dice.choice([16, 1000])
        node = ScriptedNode(
            self.servers[0],
            self.origin,
            self.clock,
            node_id=f"node-{self.names}",
            window_seconds=window,
            max_ids=max_ids,
        )
        node.log = StoppingLog(self.servers[0], self.stops)
        node.follower._log = node.log
        node.redis = StoppingMemory(self.stored, self.stops)
        node.reader._redis = node.redis
        return node

    # What may happen --------------------------------------------------------------------------------------------------

    def a_server(self) -> Server:
        server = self.dice.choice(self.servers)
        server.time_us = max(server.time_us + 1, 1_800_000_000_000_000 + round(self.clock.steady() * 1e6))
        return server

    async def commit(self) -> None:
        self.session.version += 1
        self.changes.append(Change(self.session.version, self.dice.choice([changed(), identity_changed()])))

    async def publish(self) -> None:
        waiting = [change for change in self.changes if change.position is None]
        if waiting:
            change = self.dice.choice(waiting)
            others = changed("somebody-else") * self.dice.choice([0, 0, 2])
            position = self._append([*others, *change.events])
            if position is not None:
                change.position, change.acknowledged_at = position, self.clock.steady()
                change.waiting = ReceiptWait(position, self.clock.steady(), MAX_STALENESS_SECONDS, self.watch)

    async def publish_noise(self) -> None:
        self._append(self.dice.choice([*[changed(f"other-{self.dice.randrange(40)}")] * 8, flush()]))

    def _append(self, events: list[Event]) -> Position | None:
        try:
            position = self.a_server().append(events, self.shown)
        except FeedUnavailableError:
            return None
        self.shown = max(self.shown, position.generation)
        return position

    async def ask_for_receipts(self) -> None:
        try:
            log = ScriptedLog(self.a_server())
            reading = await log.ask_registry(self.shown)
        except FeedUnavailableError:
            return
        for change in self.changes:
            if change.waiting is not None and not change.is_receipted:
                now = self.clock.steady()
                change.is_receipted = change.waiting.is_complete(reading, now, now)
                quick = change.is_receipted and not change.waiting.has_outlived_leases(now)
                self.counts["quick receipts"] += quick

    async def request(self) -> None:
        node = self.dice.choice(self.nodes)
        receipted = max((change.version for change in self.changes if change.is_receipted), default=0)
        task = asyncio.create_task(node.read("token"))
        self.requests.append(Request(node, task, self.session.version, receipted))

    async def confirm(self) -> None:
        node = self.dice.choice(self.nodes)
        under_way = self.confirming.get(id(node))
        if under_way is None or under_way.done():
            node.log.server = self.a_server()
            self.confirming[id(node)] = asyncio.create_task(node.follower.confirm())

    async def wake_up(self) -> None:
        node = self.dice.choice(self.nodes)
        after = node.fence.position or Position(0, 0)
        node.log.wake_server = self.a_server()
        heard = await node.log.wake_up(self.dice.choice([after, Position(0, 0)]), 0.0)
        node.follower.hear(heard[self.dice.choice([0, 0, 1]) :])

    async def replay(self) -> None:
        node = self.dice.choice(self.nodes)
        node.log.replay_server = self.a_server()
        self.tasks.append(asyncio.create_task(node.follower.replay()))

    async def go_on(self) -> None:
        """Somebody who waits goes on; one confirm in five is never answered."""
        if self.stops.waiting:
            index = self.dice.randrange(len(self.stops.waiting))
            is_lost = self.stops.waiting[index][0] == "confirm" and self.dice.random() < 0.2
            self.stops.release(index, FeedUnavailableError("the reply was lost") if is_lost else None)

    async def time_passes(self) -> None:
        self.clock.advance(self.dice.choice([0.01, 0.3, 0.6, 1.2, 2.5]))

    async def replace_a_node(self) -> None:
        """It leaves in order, or is killed; another process starts.  What it had under way is nobody's any more."""
        node = self.dice.choice(self.nodes)
        if self.dice.random() < 0.5:
            node.log.server = self.a_server()
            await node.follower.leave()
        elif self.dice.random() < 0.5:
            return  # what is killed answers nothing; what has left must not, so that it is asked all the same
        self.nodes[self.nodes.index(node)] = self.new_node()

    async def fault(self) -> None:
        first = self.servers[0]
        if self.faults == "trim" and first.stream:
            first.trim_before(first.number - self.dice.choice([0, 1, 3]))
        elif self.faults == "empty":
            self.dice.choice([first.flushall, first.restart_empty])()
            self.counts["emptied"] += 1
            if self.counts["emptied"] > 1:
                self.faults = "none"
        elif self.faults in ("failover", "failback") and len(self.servers) == 1:
            first.writes = False
            lost = self.dice.choice([0, 1, 2])
            promoted = first.replica(without_last=lost)
            assert isinstance(promoted, Server)
            promoted.writes = False
            self.servers.append(promoted)
        elif self.faults in ("failover", "failback") and not self.servers[1].writes and not self.counts["promoted"]:
            self.servers[1].writes = True
            self.counts["promoted"] += 1
        elif self.faults == "failback":
            first.writes, self.servers[1].writes = True, False
            first.replid = first.replid[::-1]
            self.faults = "none"

    # What must hold ---------------------------------------------------------------------------------------------------

    def check(self) -> None:
        now = self.clock.steady()
        for request in [request for request in self.requests if request.task.done()]:
            self.requests.remove(request)
            answer = request.task.result()
            version = version_of(answer)
            self.counts[answer.tier] += 1
            assert version >= request.receipted, (
                f"{answer.tier} gave {version} after the receipt of {request.receipted}"
            )
            if answer.tier == "origin" and version >= request.committed:
                continue  # its own answer; an older one of a flight that it joined is judged as a cached one
            for change in self.changes:
                if change.position is not None and version < change.version:
                    is_due = change.acknowledged_at + MAX_STALENESS_SECONDS <= now
                    assert not is_due, f"{answer.tier} gave {version}, {change} was acknowledged long ago"
                    is_applied = request.node.fence.has_applied(change.position)
                    assert not is_applied, f"{answer.tier} gave {version}, {change} is applied"

    async def run(self) -> None:
        actions: dict[Callable[[], object], int] = {
            self.commit: 1,
            self.publish: 3,
            self.publish_noise: 2,
            self.ask_for_receipts: 5,
            self.request: 14,
            self.confirm: 14,
            self.wake_up: 4,
            self.replay: 2,
            self.go_on: 45,
            self.time_passes: 2,
            self.replace_a_node: 1,
            self.fault: 1,
        }
        for _ in range(STEPS):
            (action,) = self.dice.choices(list(actions), list(actions.values()))
            await action()  # type: ignore[misc]
            for _ in range(8):
                await asyncio.sleep(0)
            self.check()
            self._collect()
        for waiting in (*self.tasks, *self.confirming.values(), *(r.task for r in self.requests)):
            waiting.cancel()
        for _, future in self.stops.waiting:
            future.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        self._collect()
        for node in self.nodes:
            self.counts.update({name: n for name, n in node.follower.counts.items() if name.startswith("resets")})

    def _collect(self) -> None:
        for task in (*self.tasks, *self.confirming.values()):
            if task.done() and not task.cancelled():
                error = task.exception()
                assert error is None or isinstance(error, FeedUnavailableError), error
        self.tasks = [task for task in self.tasks if not task.done()]


@pytest.mark.parametrize("block", range(2))
async def test_no_history_breaks_a_promise(block: int) -> None:
    """Whatever the order of things, and whichever of the faults: no answer is older than what was promised."""
    counts: Counter[str] = Counter()
    for seed in range(block * 100, block * 100 + 100):
        history = History(seed)
        try:
            await history.run()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
        counts += history.counts
    told = dict(counts)
    assert counts["memory"] > 500, told
    assert counts["redis"] > 50, told
    assert counts["quick receipts"] > 5, told
    assert counts["resets_generation"] > 20, told
