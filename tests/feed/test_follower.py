"""The follower: its steps on a scripted feed, its life on a real Valkey.  The races are in tests/interleavings/."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from cache_node.embedded import EmbeddedValkey
from cache_node.errors import FeedUnavailableError
from cache_node.feed.clock import SystemClock
from cache_node.feed.events import Event, FeedEntry, pack
from cache_node.feed.fence import Fence
from cache_node.feed.follower import (
    CONFIRM_COST_SECONDS,
    SERVER_SHARE,
    WAKE_PAUSE_SECONDS,
    FeedState,
    Follower,
    _EventRate,
)
from cache_node.feed.lease import Lease
from cache_node.feed.log import PAGE_ENTRIES, Confirmation, RedisLog
from cache_node.feed.names import RedisNames
from cache_node.feed.position import Position
from cache_node.feed.registry import FORGET_AFTER_SECONDS, Membership, RegistryWatch
from tests.fakes import (
    MAX_STALENESS_SECONDS,
    LogServer,
    ManualClock,
    ScriptedLog,
    ScriptedNode,
    ScriptedOrigin,
    changed,
    following_node,
    revoked,
)
from tests.feed.conftest import commanding, connected, frozen
from tests.feed.test_fence import Kept
from tests.waiting import eventually

# Steps on a scripted feed ---------------------------------------------------------------------------------------------


def new_node(server: LogServer) -> ScriptedNode:
    clock = ManualClock()
    return ScriptedNode(server, ScriptedOrigin(clock), clock)


def state_of(node: ScriptedNode) -> FeedState:
    return node.follower.state


async def test_states_of_a_start() -> None:
    """The first confirm tells where the feed ends, the next one that nothing came since: then the node follows."""
    server = LogServer()
    server.append(changed())
    node = new_node(server)
    assert state_of(node) is FeedState.BOOTSTRAPPING
    assert await node.follower.confirm()
    assert (state_of(node), node.fence.position) == (FeedState.BOOTSTRAPPING, Position(server.generation, 1))
    assert not await node.follower.confirm()
    assert state_of(node) is FeedState.FOLLOWING
    assert node.follower.is_fresh


async def test_states_of_a_loss() -> None:
    """Without a lease a node is LOST, and FOLLOWING again with the next complete confirm."""
    node = await following_node()
    node.clock.advance(MAX_STALENESS_SECONDS)
    assert state_of(node) is FeedState.LOST
    assert not node.follower.is_fresh
    await node.follower.confirm()
    assert state_of(node) is FeedState.FOLLOWING


async def test_age_of_the_feed_is_unknown_until_it_is_known() -> None:
    """Unknown is None, never 0: before the first complete confirm, and after a reset."""
    server = LogServer()
    node = new_node(server)
    ages = [node.follower.seconds_since_confirmed]
    await node.follow()
    node.clock.advance(0.5)
    ages.append(node.follower.seconds_since_confirmed)
    server.flushall()
    server.time_us += 1
    await node.follower.confirm()
    ages.append(node.follower.seconds_since_confirmed)
    assert ages == [None, 0.5, None]


@pytest.mark.parametrize("available", [True, False])
async def test_the_first_attempt_counts_whatever_became_of_it(available: bool) -> None:
    """Readiness waits for an attempt, not for a feed."""
    server = LogServer()
    server.available = available
    node = new_node(server)
    assert not node.follower.attempted.is_set()
    with contextlib.suppress(Exception):
        await node.follower.confirm()
    assert node.follower.attempted.is_set()
    assert node.follower.counts["failures"] == (not available)


async def test_a_record_shows_what_was_applied_before_the_confirm() -> None:
    """Receipts believe it, so it must not run ahead."""
    node = await following_node()
    position = node.log.server.append(revoked())
    await node.follower.confirm()
    reading = await node.log.ask_registry(0)
    assert [record.applied for record in reading.records] == [Position(position.generation, 0)]
    await node.follower.confirm()
    reading = await node.log.ask_registry(0)
    assert [record.applied for record in reading.records] == [position]


@pytest.mark.parametrize("step_seconds", [3600, -3600], ids=["forwards", "backwards"])
async def test_a_server_clock_that_steps_costs_nothing(step_seconds: int) -> None:
    """Between publish and confirm: the event is applied in the same generation, and no lag is negative."""
    server = LogServer()
    node = new_node(server)
    await node.follow()
    generation = server.generation
    lags: list[float] = []
    node.follower.observe_lag = lags.append
    end = server.append(revoked())
    server.time_us += step_seconds * 1_000_000
    await node.follow()
    assert (node.fence.position, end.generation) == (end, generation)
    assert state_of(node) is FeedState.FOLLOWING
    assert lags == ([3600.0] if step_seconds > 0 else [])


async def test_leaving_takes_the_record_along() -> None:
    """No receipt needs to wait for a node that has drained; and leaving never fails, whatever the server does."""
    node = await following_node()
    await node.follower.leave()
    assert (await node.log.ask_registry(0)).records == ()
    assert not node.lease.holds()
    node.log.server.available = False
    await node.follower.leave()


async def test_sweep_removes_what_has_been_dead_for_long() -> None:
    """A record whose lease ended an hour ago by the sweeper's own clock goes; one that is renewed stays."""
    node = await following_node()
    dead = node.neighbour()
    await dead.follow()
    node.log.server.nodes[b"strange"] = b"a record of another version"
    watch = RegistryWatch()
    await node.follower._sweep(watch)
    node.clock.advance(FORGET_AFTER_SECONDS)
    await node.follow()
    await node.follower._sweep(watch)
    assert len(node.log.server.nodes) == 3, "not still for an hour yet"
    node.clock.advance(MAX_STALENESS_SECONDS)
    await node.follow()
    await node.follower._sweep(watch)
    assert len(node.log.server.nodes) == 2, "its lease has not been over for an hour yet"
    node.clock.advance(1.0)
    await node.follower._sweep(watch)
    reading = await node.log.ask_registry(0)
    assert [record.node_id for record in reading.records] == ["node-1"]
    assert not reading.unreadable


async def test_sweep_takes_nothing_that_was_renewed_meanwhile() -> None:
    """A node that was suspended and confirms just as the sweeper has judged it keeps its record."""
    node = await following_node()
    slow = node.neighbour()
    await slow.follow()
    watch = RegistryWatch()
    await node.follower._sweep(watch)
    node.clock.advance(MAX_STALENESS_SECONDS + FORGET_AFTER_SECONDS + 1.0)
    await node.follow()

    class Renewing(ScriptedLog):
        async def forget(self, field: bytes, record: bytes | None = None) -> None:
            await slow.follow()
            await super().forget(field, record)

    node.follower._log = Renewing(node.log.server)
    await node.follower._sweep(watch)
    assert len(node.log.server.nodes) == 2


@pytest.mark.parametrize("nodes", [1, 10, 100, 500, 1000, 1500, 2000, 100_000])
async def test_confirms_of_all_nodes_leave_the_server_alone(nodes: int) -> None:
    """A tenth of the server at most, as far as two confirms still fit into a lease; and woken nodes coalesce."""
    node = await following_node()
    node.log.server.nodes.update({b"node-%d a" % n: b"0 0 2000000 1 default" for n in range(nodes - 1)})
    await node.follower.confirm()
    pace, spacing = node.follower._pace, node.follower._spacing
    assert spacing <= pace
    assert MAX_STALENESS_SECONDS / 4 <= pace <= MAX_STALENESS_SECONDS / 2
    for pause in (pace, spacing):
        share = nodes * CONFIRM_COST_SECONDS / pause
        assert share <= SERVER_SHARE * 1.001 or pause >= MAX_STALENESS_SECONDS / 4
    if pace < MAX_STALENESS_SECONDS / 2:
        assert nodes * CONFIRM_COST_SECONDS / pace <= SERVER_SHARE * 1.001


async def test_who_is_behind_reads_page_after_page(caplog: pytest.LogCaptureFixture) -> None:
    """However many nodes there are; and if the lease runs out meanwhile, the log says so, once, and when it is over."""
    caplog.set_level("INFO")
    node = await following_node()
    node.log.server.nodes.update({b"node-%d a" % n: b"0 0 2000000 1 default" for n in range(1000)})
    for _ in range(3 * PAGE_ENTRIES + 1):
        node.log.server.append(changed())
    before = len(caplog.messages)
    assert await node.follower.confirm()
    assert (node.follower.behind, node.follower._pause_between_pages) == (2 * PAGE_ENTRIES + 1, 0)
    node.clock.advance(MAX_STALENESS_SECONDS)
    assert await node.follower.confirm()
    assert await node.follower.confirm()
    assert (node.follower.behind, node.follower.is_fresh) == (1, False)
    assert await node.follower.confirm()
    assert (node.follower.behind, node.follower.is_fresh) == (0, True)
    assert node.follower._pause_between_pages == node.follower._spacing > 0
    assert caplog.messages[before:] == [
        f"feed: {PAGE_ENTRIES + 1} events behind; answering from the origin until they are applied",
        "feed: all events are applied again",
    ]


def test_event_rate() -> None:
    """Measured over a second at least, anew in another generation; unknown counts as quiet."""
    clock = ManualClock()
    rate = _EventRate(clock)
    assert rate.per_second(Position(1, 1000)) == 0.0
    clock.advance(0.5)
    assert rate.per_second(Position(1, 2000)) == 0.0
    clock.advance(0.5)
    assert rate.per_second(Position(1, 3000)) == 2000.0
    clock.advance(0.1)
    assert rate.per_second(Position(1, 9000)) == 2000.0
    assert rate.per_second(Position(2, 1)) == 0.0


# Its life on a real Valkey --------------------------------------------------------------------------------------------

SHORT_STALENESS_SECONDS = 0.8


@dataclass
class Process:
    """What a node has of the feed, running."""

    log: RedisLog
    fence: Fence
    lease: Lease
    follower: Follower
    running: asyncio.Task[None]

    @property
    def state(self) -> FeedState:
        return self.follower.state

    async def reaches(self, state: FeedState) -> None:
        await eventually(lambda: self.state is state, self.describe, 10.0)

    async def applies(self, position: Position) -> None:
        await eventually(lambda: self.fence.has_applied(position), self.describe, 10.0)

    def describe(self) -> str:
        counts = dict(self.follower.counts)
        return f"{self.state}, {self.fence.position}, floor {self.fence.floor}, {counts}, {self.running}"

    async def end(self) -> None:
        self.running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.running


@contextlib.asynccontextmanager
async def running(
    server: EmbeddedValkey | str, names: RedisNames, *, max_staleness: float = SHORT_STALENESS_SECONDS
) -> AsyncIterator[Process]:
    """A follower under way; `server` may be the URL of one that is not there yet."""
    clock = SystemClock()
    fence, lease = Fence(clock, window_seconds=900.0, max_ids=10_000), Lease(clock)
    async with connected(server, names, timeout_seconds=max_staleness / 2) as log:
        follower = Follower(log, fence, lease, clock, Membership("node", "default", max_staleness))
        process = Process(log, fence, lease, follower, asyncio.create_task(follower.run()))
        try:
            yield process
        finally:
            follower.stop()
            await process.end()


async def append(log: RedisLog, events: list[Event]) -> Position:
    return await log.append([pack(event) for event in events], source="test", shown_generation=0, retain=1_000_000)


def kept_by(process: Process) -> Kept:
    """An entry that was read just now."""
    assert process.fence.position is not None
    position = process.fence.position
    return Kept(position.number, generation=position.generation)


async def test_it_follows_what_is_published(valkey: EmbeddedValkey, names: RedisNames, log: RedisLog) -> None:
    """At every moment an entry is admitted or the event that names it is known, and applied is never before known."""
    async with running(valkey, names) as node:
        await node.reaches(FeedState.FOLLOWING)
        kept = kept_by(node)
        seen = [(node.fence.admits(kept), False)]
        position = await append(log, revoked())

        def is_applied() -> bool:
            now = node.fence.admits(kept), node.fence.has_applied(position)
            if now != seen[-1]:
                seen.append(now)
            return now[1]

        await eventually(is_applied, node.describe)
        assert seen in ([(True, False), (False, False), (False, True)], [(True, False), (False, True)])
        assert node.fence.resets == 1
        assert node.state is FeedState.FOLLOWING


async def test_its_record_follows_what_it_applies(valkey: EmbeddedValkey, names: RedisNames, log: RedisLog) -> None:
    """A page with events is confirmed at once, not at the next beat, so that receipts are quick."""
    async with running(valkey, names, max_staleness=200.0) as node:  # a beat takes 50 s
        await node.reaches(FeedState.FOLLOWING)
        position = await append(log, revoked())

        async def is_recorded() -> bool:
            reading = await log.ask_registry(0)
            seen[:] = [str(record.applied) for record in reading.records]
            return seen == [str(position)]

        seen: list[str] = []
        await eventually(is_recorded, lambda: (seen, node.describe()))


async def test_it_wakes_up_for_every_event(valkey: EmbeddedValkey, names: RedisNames, log: RedisLog) -> None:
    """One after the other, each within far less than a beat; a burst is coalesced into few confirms."""
    async with running(valkey, names, max_staleness=200.0) as node:
        await node.reaches(FeedState.FOLLOWING)
        for _ in range(5):
            await node.applies(await append(log, changed()))
        before = node.follower.counts["confirms"]
        positions = await asyncio.gather(*(append(log, changed(f"s{n}")) for n in range(200)))
        await node.applies(max(positions, key=lambda p: p.number))
        assert node.follower.counts["confirms"] - before < 100
        assert node.follower.counts["events"] == 205


async def test_events_that_come_one_upon_another_are_heard_together(
    valkey: EmbeddedValkey, names: RedisNames, log: RedisLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wake-up each would cost a node more than all else that it does about them."""
    async with running(valkey, names) as node:
        await node.reaches(FeedState.FOLLOWING)
        heard, hear = 0, node.follower.hear

        def counted(entries: list[tuple[Position, FeedEntry]]) -> None:
            nonlocal heard
            heard += 1
            hear(entries)

        monkeypatch.setattr(node.follower, "hear", counted)
        begun = time.monotonic()
        positions = [await append(log, changed(f"s{number}")) for number in range(300)]
        await node.applies(positions[-1])
        assert 0 < heard <= (time.monotonic() - begun) / WAKE_PAUSE_SECONDS + 1


async def test_a_frozen_server_costs_the_lease_and_nothing_else(own_valkey: EmbeddedValkey, names: RedisNames) -> None:
    """LOST while it is away, FOLLOWING when it is back: the log is continuous, so nothing is dropped."""
    async with running(own_valkey, names) as node, connected(own_valkey, names) as log:
        await node.reaches(FeedState.FOLLOWING)
        kept, other = kept_by(node), kept_by(node)
        other.session_id = "session-2"
        with frozen(own_valkey):
            await node.reaches(FeedState.LOST)
            assert not node.lease.holds()
        position = await append(log, revoked())
        await node.applies(position)
        await node.reaches(FeedState.FOLLOWING)
        assert node.fence.resets == 1
        assert (node.fence.admits(kept), node.fence.admits(other)) == (False, True)


async def test_a_flushed_server_costs_everything(own_valkey: EmbeddedValkey, names: RedisNames) -> None:
    """Another generation, and a node that goes on in it by itself, with nothing of what it had."""
    async with running(own_valkey, names) as node, connected(own_valkey, names) as log:
        await node.reaches(FeedState.FOLLOWING)
        before = node.fence.position
        kept = kept_by(node)
        async with commanding(own_valkey) as redis:
            await redis.flushall()
        await eventually(lambda: node.fence.position != before, node.describe)
        await node.reaches(FeedState.FOLLOWING)
        assert node.follower.counts["resets_generation"] == 1
        assert not node.fence.admits(kept)
        await node.applies(await append(log, revoked()))


@pytest.mark.process
async def test_a_restarted_server_is_found_again(names: RedisNames) -> None:
    """An empty process on the same address: the node resets and follows, without a restart of its own."""
    with EmbeddedValkey() as first:
        port = first.port
        async with running(first, names) as node:
            await node.reaches(FeedState.FOLLOWING)
            kept = kept_by(node)
            first.stop()
            await node.reaches(FeedState.LOST)
            with EmbeddedValkey(port=port) as second:
                await node.reaches(FeedState.FOLLOWING)
                assert not node.fence.admits(kept)
                async with connected(second, names) as log:
                    await node.applies(await append(log, revoked()))


@pytest.mark.parametrize("max_staleness", [SHORT_STALENESS_SECONDS, 60.0])
@pytest.mark.process
async def test_a_server_that_comes_later_is_followed(names: RedisNames, max_staleness: float) -> None:
    """An unreachable feed keeps no node from starting: it has tried, and follows soon after the feed is there."""
    with EmbeddedValkey() as former:
        url, port = former.url, former.port
    async with running(url, names, max_staleness=max_staleness) as node:
        await eventually(lambda: node.follower.counts["failures"] > 1, node.describe)
        assert node.follower.attempted.is_set()
        assert node.state is FeedState.BOOTSTRAPPING
        with EmbeddedValkey(port=port):
            await node.reaches(FeedState.FOLLOWING)
            await eventually(lambda: node.follower.replay_done, node.describe)


async def test_it_replays_what_is_retained(valkey: EmbeddedValkey, names: RedisNames, log: RedisLog) -> None:
    """More than a page of it, in the background; then entries of before its start are judged like any others."""
    for start in range(0, 1203, 401):
        await asyncio.gather(*(append(log, changed(f"s{n}")) for n in range(start, start + 401)))
    async with running(valkey, names) as node:
        await eventually(lambda: node.follower.replay_done, node.describe)
        assert node.fence.position is not None
        assert (node.fence.position.number, node.fence.floor, len(node.fence)) == (1203, 1, 1203)
        generation = node.fence.position.generation
        assert node.fence.admits(Kept(1, generation=generation))
        assert not node.fence.admits(Kept(1, "s9", generation=generation))


async def test_a_node_that_left_does_not_come_back(valkey: EmbeddedValkey, names: RedisNames, log: RedisLog) -> None:
    """Without a lease and without a record, though its loops may still be woken once."""
    async with running(valkey, names) as node:
        await node.reaches(FeedState.FOLLOWING)
        await node.follower.leave()
        assert not node.lease.holds()
        assert (await log.ask_registry(0)).records == ()
        confirms = node.follower.counts["confirms"]
        await append(log, revoked())
        await node.log.wake_up(Position(0, 0), 1.0)  # as it would be woken
        await node.end()
        assert (await log.ask_registry(0)).records == ()
        assert node.follower.counts["confirms"] == confirms
        assert not node.lease.holds()


async def test_two_nodes_in_one_process(valkey: EmbeddedValkey, names: RedisNames, log: RedisLog) -> None:
    """They share nothing but the feed: each has its own fence, lease and record."""
    async with running(valkey, names) as one, running(valkey, names) as two:
        await one.reaches(FeedState.FOLLOWING)
        await two.reaches(FeedState.FOLLOWING)
        position = await append(log, revoked())
        await one.applies(position)
        await two.applies(position)
        assert len((await log.ask_registry(0)).records) == 2
        await one.follower.leave()
        assert two.lease.holds()


async def test_a_follower_that_runs_again_goes_on_where_it_was(valkey: EmbeddedValkey, names: RedisNames) -> None:
    """A failure of its loops costs hits at most: it neither resets nor lowers its floor by running once more."""
    async with running(valkey, names) as node, connected(valkey, names) as log:
        await node.reaches(FeedState.FOLLOWING)
        await node.applies(await append(log, revoked()))
        floor = node.fence.floor
        await node.end()
        position = await append(log, changed())
        node.running = asyncio.create_task(node.follower.run())
        await node.applies(position)
        assert (node.fence.resets, node.fence.floor) == (1, floor)


async def test_a_reset_upon_a_reset_waits(caplog: pytest.LogCaptureFixture) -> None:
    """A feed that contradicts itself must not be asked as fast as it answers, nor fill the log."""
    server = LogServer()
    node = new_node(server)
    await node.follow()
    again = []
    for node.log.server in (server.replica(), server) * 2:  # each confirm reaches the other of two
        again.append(await node.follower.confirm())
    assert again == [True, False, False, False], "the first reset is followed by the confirm that may end it"
    assert [record.levelname for record in caplog.records].count("WARNING") == 1


class _Slow(ScriptedLog):
    """A second goes by with each page of a replay."""

    def __init__(self, server: LogServer, clock: ManualClock) -> None:
        super().__init__(server)
        self.before_page: Callable[[], None] = lambda: None
        self._clock = clock

    async def read_back(self, before: Position, count: int) -> tuple[FeedEntry, ...]:
        self.before_page()
        self._clock.advance(1.0)
        return await super().read_back(before, count)


@pytest.mark.parametrize(
    ("max_ids", "shown"),
    [
        pytest.param(1000, [0.0, 0.2, 0.4, 0.6, 0.7], id="it ends sooner than the feed began"),
        pytest.param(32, [0.0, 1 / 3, 2 / 3, 1.0], id="it ends when the fence is full"),
    ],
)
async def test_a_replay_shows_how_far_it_has_come(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, max_ids: int, shown: list[float]
) -> None:
    """A node with a long window to read says every two seconds that it is at it, and never that more is done than is:
    where the window begins is seen when it is reached."""
    caplog.set_level("INFO")
    monkeypatch.setattr("cache_node.feed.follower.PAGE_EVENTS", 10)
    server = LogServer()
    for number in range(50):
        server.append(changed(f"s{number}"))
    server.trim_before(16)
    clock = ManualClock()
    log, lease, fence = _Slow(server, clock), Lease(clock), Fence(clock, window_seconds=900.0, max_ids=max_ids)
    follower = Follower(log, fence, lease, clock, Membership("node-1", "default", MAX_STALENESS_SECONDS))
    assert follower.replay_share is None
    await follower.confirm()
    shares: list[float | None] = []
    log.before_page = lambda: shares.append(follower.replay_share)
    await follower.replay()
    assert shares == shown
    assert follower.counts["replayed"] == 51 - fence.floor
    assert [line.partition(", ")[2] for line in caplog.messages] == [
        f"{number} events so far, at least {int(100 * share)} %; floor is {51 - number} of {fence.position}"
        for number, share in ((20, shown[2]), (35, 0.7))
        if share in shown[:5:2]
    ]


class _Away(ScriptedLog):
    """Each confirm takes 4 s, and fails for the next of the reasons."""

    def __init__(self, server: LogServer, clock: ManualClock, reasons: Sequence[str]) -> None:
        super().__init__(server)
        self._clock = clock
        self._reasons = iter(reasons)

    async def confirm(self, *args: Any) -> Confirmation:
        self._clock.advance(4.0)
        for reason in self._reasons:
            raise FeedUnavailableError(reason)
        return await super().confirm(*args)

    async def wake_up(self, after: Position, block_seconds: float) -> list[tuple[Position, FeedEntry]]:
        await asyncio.Event().wait()
        return []


async def test_the_log_says_why_the_feed_is_away_now(caplog: pytest.LogCaptureFixture) -> None:
    """Each reason once, while it lasts, however the reasons alternate."""
    caplog.set_level("INFO")
    clock = ManualClock()
    log = _Away(LogServer(), clock, ["reset"] + ["refused", "late"] * 2 + ["no such user"] * 5)
    fence, membership = Fence(clock, window_seconds=900.0, max_ids=1000), Membership("node-1", "default", 0.02)
    follower = Follower(log, fence, Lease(clock), clock, membership)
    running = asyncio.create_task(follower.run())
    await eventually(lambda: follower.counts["confirms"] > 0, lambda: f"{follower.counts}, {caplog.messages}")
    running.cancel()
    await asyncio.wait([running])

    assert [line for line in caplog.messages if "feed: " in line][:4] == [
        "feed: reset; answering from the origin once the lease has run out",
        "feed: by now refused; still answering from the origin",
        "feed: by now no such user; still answering from the origin",
        "feed: reachable again",
    ]


class _FailingOnce(ScriptedLog):
    failures = 1

    async def read_back(self, before: Position, count: int) -> tuple[FeedEntry, ...]:
        if self.failures:
            self.failures -= 1
            raise FeedUnavailableError("the scripted server stalls once")
        return await super().read_back(before, count)


async def test_a_replay_that_failed_goes_on() -> None:
    """A stall of the server at a node's start must not leave it cold for its life."""
    server = LogServer()
    for _ in range(5):
        server.append(changed())
    clock = ManualClock()
    membership = Membership("node-1", "default", 0.02)
    lease = Lease(clock)
    fence = Fence(clock, window_seconds=900.0, max_ids=1000)
    follower = Follower(_FailingOnce(server), fence, lease, clock, membership)
    await follower.confirm()
    await follower.replay()
    assert fence.floor == 1
