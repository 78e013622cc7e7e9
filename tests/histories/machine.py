"""The world as a hypothesis state machine: each rule is one thing that may happen, after which all is judged."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Awaitable, Callable

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.histories.truth import Demand, Fault, Kind, Mood, Told
from tests.histories.world import World

nodes = st.sampled_from([0, 1])
servers = st.sampled_from([0, 1])
few = st.sampled_from([0, 1, 2])
now_and_then = st.sampled_from([False, False, False, False, True])

kinds = st.sampled_from(Kind)
tellings = st.sampled_from([*[Told.PLAINLY] * 4, *Told])

CLIMATES: tuple[tuple[Fault, ...], ...] = (
    (),
    (),
    (Fault.TRIM, Fault.CUT, Fault.HOLE),
    (Fault.FLUSHALL, Fault.RESTART_EMPTY, Fault.LOSE_GENERATION, Fault.LOSE_NUMBER),
    (Fault.FLUSHALL, Fault.RESTART_EMPTY, Fault.LOSE_GENERATION, Fault.CLOCK_BACK),
    (Fault.REPLICATE, Fault.PROMOTE, Fault.FAIL_BACK),
    (Fault.REPLICATE, Fault.PROMOTE),
    (Fault.LOSE_REGISTRY, Fault.FOREIGN, Fault.BEYOND),
    tuple(Fault),
)

TOTALS: Counter[str] = Counter()
"""What has happened in all histories of this process, so that a run can show that something did."""

INTERRUPTED = threading.Event()
"""Whoever plays is to stop before the next step: in the middle of one that would be a failure, and be played again."""


class Steps(RuleBasedStateMachine):
    """What may happen singly."""

    def __init__(self) -> None:
        super().__init__()
        self._runner = asyncio.Runner()
        self._do(self._begin)

    def _do(self, action: Callable[[], Awaitable[object] | None]) -> None:
        """Do it, and let everybody come to a stand."""
        if INTERRUPTED.is_set():
            raise KeyboardInterrupt
        TOTALS["steps"] += 1
        self._run(action)

    def _run(self, action: Callable[[], Awaitable[object] | None]) -> None:
        async def step() -> None:
            doing = action()
            if doing is not None:
                await doing
            await self.world.settle()

        self._runner.run(step())

    def _begin(self) -> None:
        self.world = World()
        self.faults: tuple[Fault, ...] = ()

    @initialize(
        faults=st.sampled_from(CLIMATES), is_small=st.sampled_from([True, True, False]), has_locks=st.booleans()
    )
    def begin(self, faults: tuple[Fault, ...], is_small: bool, has_locks: bool) -> None:
        """Two nodes that follow; a climate keeps histories from being nothing but ruins.

        Without fill locks each asks the origin for itself, as it does where locks are lost: there is more to go wrong.
        """
        self.faults = faults
        self.world.agree(faults)
        if has_locks:
            self.world.begin_locks()

        async def start() -> None:
            await self.world.replace(1, in_order=True, is_small=is_small)
            for node in (0, 1):
                await self.world.follow(node, 0)

        self._do(start)

    def teardown(self) -> None:
        """What is left in the caches of a history shows once the faults are over and old events are forgotten."""

        async def epilogue() -> None:
            world = self.world
            await world.let_all_go_on()
            world.turn(Mood.WELL)
            world.is_redis_away = False
            for seconds in (0.5, 6.0):
                await world.live(seconds, world.primary, is_asked=True)
                for node in (0, 1):
                    world.request(node, Demand.PLAIN)
                    await world.settle()
                    await world.let_all_go_on()

        try:
            self._do(epilogue)
        finally:
            self._run(self.world.end)
            self._runner.close()
        TOTALS.update(self.world.counts)

    # The session ------------------------------------------------------------------------------------------------------

    @rule(kind=kinds, ends_soon=now_and_then)
    def commit(self, kind: Kind, ends_soon: bool) -> None:
        self._do(lambda: self.world.commit(kind, ends_soon=ends_soon))

    @precondition(lambda self: self.world.unpublished)
    @rule(which=few, others=few, server=servers, told=tellings)
    def publish(self, which: int, others: int, server: int, told: Told) -> None:
        self._do(lambda: self.world.publish(which, others, server, told))

    @rule(which=st.integers(0, 39), server=servers, many=st.sampled_from([1, 1, 3, 20]))
    def publish_noise(self, which: int, server: int, many: int) -> None:
        self._do(lambda: self.world.publish_noise(which, server, many))

    @rule()
    def begin_publisher(self) -> None:
        self._do(self.world.begin_publisher)

    @precondition(lambda self: self.world.changes)
    @rule(server=servers, is_slow=st.booleans())
    def ask_for_receipts(self, server: int, is_slow: bool) -> None:
        self._do(lambda: self.world.ask_for_receipts(server, is_slow=is_slow))

    @rule(kind=kinds, server=servers, told=tellings)
    def commit_and_publish(self, kind: Kind, server: int, told: Told) -> None:
        self._do(lambda: self._change(kind, server, told))

    # Nodes ------------------------------------------------------------------------------------------------------------

    @rule(node=nodes, demand=st.sampled_from([*[Demand.PLAIN] * 6, *Demand]))
    def request(self, node: int, demand: Demand) -> None:
        self._do(lambda: self.world.request(node, demand))

    @rule(node=nodes)
    def requests_of_others(self, node: int) -> None:
        self._do(lambda: self.world.requests_of_others(node))

    @rule(node=nodes)
    def request_and_wait(self, node: int) -> None:
        async def ask() -> None:
            self.world.request(node, Demand.PLAIN)
            await self.world.settle()
            await self.world.let_all_go_on()

        self._do(ask)

    @precondition(lambda self: self.world.left)
    @rule(which=few)
    def request_of_one_that_left(self, which: int) -> None:
        self._do(lambda: self.world.request_of(self.world.left[which % len(self.world.left)]))

    @precondition(lambda self: self.world.requests)
    @rule(which=few)
    def client_goes_away(self, which: int) -> None:
        self._do(lambda: self.world.client_goes_away(which))

    @rule(node=nodes, server=servers, overlaps=now_and_then)
    def confirm(self, node: int, server: int, overlaps: bool) -> None:
        self._do(lambda: self.world.confirm(node, server, overlaps=overlaps))

    @rule(node=nodes, server=servers)
    def follow(self, node: int, server: int) -> None:
        self._do(lambda: self.world.follow(node, server))

    @rule(node=nodes, kind=kinds, seconds=st.sampled_from([0.6, 1.2, 1.9]))
    def slow_confirm(self, node: int, kind: Kind, seconds: float) -> None:
        """The reply of a confirm is long on its way; what is published behind it is not in it."""

        async def confirm() -> None:
            world = self.world
            await self._warm(node)
            world.confirm(node, world.primary)
            await world.settle()
            await self._change(kind, world.primary)
            world.time_passes(seconds)
            await world.let_all_go_on()
            world.time_passes(2.005 - seconds)
            world.request(node)

        self._do(confirm)

    @rule(node=nodes, server=servers, skipped=st.sampled_from([0, 1, -1]))
    def wake_up(self, node: int, server: int, skipped: int) -> None:
        self._do(lambda: self.world.wake_up(node, server, skipped))

    @rule(node=nodes, server=servers)
    def replay(self, node: int, server: int) -> None:
        self._do(lambda: self.world.replay(node, server))

    @rule(node=nodes, in_order=st.booleans(), is_small=st.booleans())
    def replace(self, node: int, in_order: bool, is_small: bool) -> None:
        self._do(lambda: self.world.replace(node, in_order=in_order, is_small=is_small))

    @rule(node=nodes)
    def evict(self, node: int) -> None:
        self._do(lambda: self.world.evict(node))

    @precondition(lambda self: self.world.locks)
    @rule()
    def end_locks(self) -> None:
        self._do(self.world.end_locks)

    @precondition(lambda self: self.faults)
    @rule(node=nodes, region=st.sampled_from(["0", "default"]))
    def update(self, node: int, region: str) -> None:
        self._do(lambda: self.world.update(node, region))

    @rule(node=nodes)
    def sweep(self, node: int) -> None:
        self._do(lambda: self.world.sweep(node))

    @precondition(lambda self: self.world.stops.waiting)
    @rule(which=st.integers(0, 7), is_lost=now_and_then)
    def go_on(self, which: int, is_lost: bool) -> None:
        self._do(lambda: self.world.go_on(which, is_lost=is_lost))

    @precondition(lambda self: len(self.world.stops.waiting) > 1)
    @rule()
    def let_all_go_on(self) -> None:
        self._do(self.world.let_all_go_on)

    @precondition(lambda self: len(self.world.stops.waiting) > 1)
    @rule(backwards=st.booleans())
    def let_all_go_on_at_once(self, backwards: bool) -> None:
        self._do(lambda: self.world.let_all_go_on_at_once(backwards=backwards))

    # Time and faults --------------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.01, 0.3, 0.6, 1.2, 2.005, 2.5]))
    def time_passes(self, seconds: float) -> None:
        self._do(lambda: self.world.time_passes(seconds))

    @rule(seconds=st.sampled_from([3.0, 6.0]), server=servers, is_asked=st.booleans())
    def peace(self, seconds: float, server: int, is_asked: bool) -> None:
        """So long everybody does as usual: after 3 s receipts are quick, after 6 s a small node forgets events."""
        self._do(lambda: self.world.live(seconds, server, is_asked=is_asked))

    @precondition(lambda self: self.faults)
    @rule(seconds=st.sampled_from([-3600.0, -1.5, 1.5, 3600.0]))
    def wall_clock_steps(self, seconds: float) -> None:
        self._do(lambda: self.world.wall_clock_steps(seconds))

    @precondition(lambda self: self.faults)
    @rule(which=st.integers(0, 7))
    def fault(self, which: int) -> None:
        self._do(lambda: self.world.fault(self.faults[which % len(self.faults)]))

    @precondition(lambda self: self.faults)
    @rule()
    def redis_tier_goes_or_comes(self) -> None:
        def toggle() -> None:
            self.world.is_redis_away = not self.world.is_redis_away

        self._do(toggle)

    @precondition(lambda self: self.faults)
    @rule(mood=st.sampled_from([Mood.WELL, *Mood]))
    def origin_turns(self, mood: Mood) -> None:
        self._do(lambda: self.world.turn(mood))

    # What rules are made of -------------------------------------------------------------------------------------------

    async def _change(self, kind: Kind, server: int, told: Told = Told.PLAINLY) -> None:
        self.world.commit(kind)
        await self.world.publish(-1, 0, server, told)

    async def _fault(self, which: int | None) -> None:
        if which is not None and self.faults:
            await self.world.fault(self.faults[which % len(self.faults)])

    async def _warm(self, node: int) -> None:
        """The node follows, and has an answer in its memory."""
        world = self.world
        await world.follow(node, world.primary)
        world.request(node)
        await world.settle()
        await world.let_all_go_on()
