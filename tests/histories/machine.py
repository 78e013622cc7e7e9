"""The world as a hypothesis state machine: each rule is one thing that may happen, after which all is judged."""

from __future__ import annotations

import asyncio
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
pauses = st.sampled_from([0.0, 1.5, 2.005, 2.005])
maybe = st.sampled_from([*[None] * 8, *range(8)])
"""Which of the climate's faults, if any."""

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


class Histories(RuleBasedStateMachine):
    """One history.  Some rules are compounds of others: they lead somewhere in few steps."""

    def __init__(self) -> None:
        super().__init__()
        self._runner = asyncio.Runner()
        self._do(self._begin)

    def _do(self, action: Callable[[], Awaitable[object] | None]) -> None:
        """Do it, and let everybody come to a stand."""

        async def step() -> None:
            doing = action()
            if doing is not None:
                await doing
            await self.world.settle()

        TOTALS["steps"] += 1
        self._runner.run(step())

    def _begin(self) -> None:
        self.world = World()
        self.faults: tuple[Fault, ...] = ()

    @initialize(faults=st.sampled_from(CLIMATES), is_small=st.sampled_from([True, True, False]))
    def begin(self, faults: tuple[Fault, ...], is_small: bool) -> None:
        """Two nodes that follow; a climate keeps histories from being nothing but ruins."""
        self.faults = faults
        self.world.agree(faults)

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
            self._do(self.world.end)
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

    async def _change(self, kind: Kind, server: int, told: Told = Told.PLAINLY) -> None:
        self.world.commit(kind)
        await self.world.publish(-1, 0, server, told)

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

    @rule(node=nodes, server=servers, kind=kinds, seconds=st.sampled_from([0.6, 1.2, 1.9]))
    def slow_confirm(self, node: int, server: int, kind: Kind, seconds: float) -> None:
        """The reply of a confirm is long on its way; what is published behind it is not in it."""

        async def confirm() -> None:
            world = self.world
            world.confirm(node, server)
            await world.settle()
            await self._change(kind, server)
            world.time_passes(seconds)
            await world.let_all_go_on()

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

    async def _fault(self, which: int | None) -> None:
        if which is not None and self.faults:
            await self.world.fault(self.faults[which % len(self.faults)])

    # Where it has gone wrong before, or might -------------------------------------------------------------------------

    @rule(node=nodes, kind=kinds, which=maybe)
    def change_that_is_lost_on_the_way(self, node: int, kind: Kind, which: int | None) -> None:
        """A wake-up brings what came behind it only; or the feed itself loses it."""

        async def lose() -> None:
            world = self.world
            await self._warm(node)
            await self._change(kind, world.primary)
            await world.publish_noise(7, world.primary)
            await self._fault(which)
            await world.wake_up(node, world.primary, -1)
            world.request(node)
            await world.follow(node, world.primary)
            world.request(node)

        self._do(lose)

    async def _warm(self, node: int) -> None:
        """The node follows, and has an answer in its memory."""
        world = self.world
        await world.follow(node, world.primary)
        world.request(node)
        await world.settle()
        await world.let_all_go_on()

    @rule(
        node=nodes,
        kind=kinds,
        told=tellings,
        which=maybe,
        knows=st.booleans(),
        confirms=st.sampled_from(["at once", "at once", "after a lost reply", "not"]),
        before=st.sampled_from([0.0, 2.01]),
        pause=st.sampled_from([0.0, 0.0, 1.2]),
    )
    def change_that_one_node_applies(
        self,
        node: int,
        kind: Kind,
        told: Told,
        which: int | None,
        knows: bool,
        confirms: str,
        before: float,
        pause: float,
    ) -> None:
        """The other one is asked, once there is a receipt for it by a publisher who may know little."""

        async def change() -> None:
            world = self.world
            await world.follow(node, world.primary)
            world.time_passes(before)
            await world.follow(node, world.primary)
            await self._warm(1 - node)
            await self._fault(which)
            if not knows:
                world.begin_publisher()
            if confirms == "after a lost reply":
                await world.confirm_once(node, world.primary, is_lost=True)
            await self._change(kind, world.primary, told)
            if confirms != "not":
                await world.follow(node, world.primary)
            world.time_passes(pause)
            await world.ask_for_receipts(world.primary)
            world.request(1 - node)

        self._do(change)

    @rule(
        node=nodes,
        kind=kinds,
        which=st.integers(0, 7),
        comes_first=st.booleans(),
        knows=st.booleans(),
        is_slow=st.booleans(),
        seconds=few,
    )
    def history_begins_anew(
        self, node: int, kind: Kind, which: int, comes_first: bool, knows: bool, is_slow: bool, seconds: int
    ) -> None:
        """Its numbers reach those of a node again; somebody else may have come first, or the server's clock is slow."""

        async def begin() -> None:
            world = self.world
            await self._warm(node)
            if is_slow and Fault.CLOCK_BACK in self.faults:
                await world.fault(Fault.CLOCK_BACK)
            await self._fault(which)
            if comes_first:
                await world.follow(1 - node, world.primary)
            if not knows:
                world.begin_publisher()
            await self._change(kind, world.primary)
            applied, reached = world.nodes[node].fence.position, world.changes[-1].position
            for _ in range(50):
                if applied is None or reached is None or reached.number >= applied.number:
                    break
                reached = await world.publish_noise(7, world.primary)
            await world.follow(node, world.primary)
            for _ in range(2 * seconds):
                world.time_passes(0.5)
                await world.follow(node, world.primary)
            world.request(node)

        self._do(begin)

    @rule(
        node=nodes,
        is_small=st.booleans(),
        kind=kinds,
        told=tellings,
        noise=few,
        which=maybe,
        meanwhile=st.booleans(),
        again=st.booleans(),
        server=servers,
    )
    def another_node_reads_back(
        self,
        node: int,
        is_small: bool,
        kind: Kind,
        told: Told,
        noise: int,
        which: int | None,
        meanwhile: bool,
        again: bool,
        server: int,
    ) -> None:
        """It takes what its neighbours left in Redis, before a change or while it reads of it."""

        async def begin() -> None:
            world = self.world
            await self._warm(1 - node)
            if not meanwhile:
                await self._change(kind, world.primary, told)
            for _ in range(noise):
                await world.publish_noise(7, world.primary)
            if not meanwhile:
                await self._fault(which)
            await world.replace(node, in_order=False, is_small=is_small)
            await world.follow(node, world.primary)
            world.replay(node, server)
            await world.settle()
            if meanwhile:
                await self._fault(which)
                await self._change(kind, world.primary, told)
                await world.follow(node, world.primary)
            if again:
                world.replay(node, server)
                await world.settle()
            await world.let_go_on("replay")
            await world.let_go_on("replay")
            world.request(node)
            await world.settle()
            await world.let_all_go_on()

        self._do(begin)

    @rule(node=nodes, kind=kinds, told=tellings, noise=st.sampled_from([0, 20, 40]), twice=st.booleans())
    def change_that_is_forgotten(self, node: int, kind: Kind, told: Told, noise: int, twice: bool) -> None:
        """By a small fence, for its age or because there was too much else; it may have been named before."""

        async def forget() -> None:
            world = self.world
            await self._warm(node)
            if twice:
                await self._change(kind, world.primary, told)
                await self._warm(node)
                world.time_passes(1.8)
            await self._change(kind, world.primary, told)
            await world.follow(node, world.primary)
            await world.publish_noise(1, world.primary, noise or 1)
            for _ in range(2 if noise or twice else 3):
                world.time_passes(0.0 if noise else 1.6)
                await world.follow(node, world.primary)
            world.request(node)

        self._do(forget)

    @rule(node=nodes, server=servers, kind=kinds, told=tellings, seconds=few)
    def change_behind_a_page(self, node: int, server: int, kind: Kind, told: Told, seconds: int) -> None:
        """The node is so far behind that one confirm does not bring it."""

        async def fall_behind() -> None:
            world = self.world
            for _ in range(3):
                await world.publish_noise(7, server)
            await self._change(kind, server, told)
            world.time_passes(seconds * 1.25)
            await world.confirm_once(node, server)
            world.request(node)

        self._do(fall_behind)

    @rule(node=nodes, server=servers, kind=kinds, confirms=st.booleans())
    def change_after_a_node_left(self, node: int, server: int, kind: Kind, confirms: bool) -> None:
        """It is asked once more; the reply to a confirm of its may come meanwhile."""

        async def leave() -> None:
            world = self.world
            if confirms:
                world.confirm(node, server)
                await world.settle()
            await world.replace(node, in_order=True, is_small=False)
            await world.let_go_on("confirm")
            await self._change(kind, server)
            await world.follow(1 - node, server)
            await world.ask_for_receipts(server)
            world.request_of(world.left[-1])

        self._do(leave)

    @rule(node=nodes, server=servers, kind=kinds)
    def change_after_a_sweep(self, node: int, server: int, kind: Kind) -> None:
        """A node that was taken for dead confirms just when it is swept away."""

        async def sweep() -> None:
            world = self.world
            for _ in range(2):
                world.sweep(node)
                await world.settle()
                await world.let_go_on("question")
                await world.let_go_on("registry")
                world.time_passes(3610.0)
                await world.follow(node, server)
            world.sweep(node)
            await world.settle()
            await world.let_go_on("question")
            await world.follow(1 - node, server)
            world.request(1 - node)
            await world.settle()
            await world.let_all_go_on()
            await self._change(kind, server)
            await world.follow(node, server)
            await world.ask_for_receipts(server)
            world.request(1 - node)

        self._do(sweep)

    @rule(
        node=nodes,
        server=servers,
        kind=kinds,
        before=pauses,
        on_the_way=st.sampled_from([[], ["question"], ["question", "registry"]]),
        pause=pauses,
        meanwhile=st.sampled_from(["nothing", "confirm", "change", "confirm, then change"]),
        after=pauses,
    )
    def change_around_a_slow_reading(
        self,
        node: int,
        server: int,
        kind: Kind,
        before: float,
        on_the_way: list[str],
        pause: float,
        meanwhile: str,
        after: float,
    ) -> None:
        """Of the registry; it may be a replica's."""

        async def read() -> None:
            world = self.world
            for one in (0, 1):
                await self._warm(one)
            await world.ask_for_receipts(server)
            world.time_passes(before)
            await world.ask_for_receipts(server, is_slow=True)
            for place in on_the_way:
                await world.let_go_on(place)
            world.time_passes(pause)
            if "confirm" in meanwhile:
                await self._warm(node)
            if "change" in meanwhile:
                await self._change(kind, world.primary)
            await world.let_go_on("question")
            await world.let_go_on("registry")
            if "change" not in meanwhile:
                world.time_passes(after)
                await self._change(kind, world.primary)
                await world.follow(1 - node, world.primary)
                await world.ask_for_receipts(server)
            world.request(node)

        self._do(read)

    @rule(
        node=nodes,
        kind=kinds,
        told=tellings,
        demand=st.sampled_from([Demand.PLAIN, Demand.NO_CACHE]),
        place=st.sampled_from(["redis", "origin"]),
        joins=st.sampled_from([None, None, Demand.PLAIN, Demand.PLAIN, *Demand]),
        was_revoked=now_and_then,
        which=maybe,
        hears=st.sampled_from(["nothing", "in time", "in time", "just then", "just then, first"]),
        seconds=st.sampled_from([0.0, 0.0, 2.005]),
    )
    def change_during_a_fill(
        self,
        node: int,
        kind: Kind,
        told: Told,
        demand: Demand,
        place: str,
        joins: Demand | None,
        was_revoked: bool,
        which: int | None,
        hears: str,
        seconds: float,
    ) -> None:
        """What was read before it arrives behind it, or just when it does; somebody else may wait for the same."""

        async def change() -> None:
            world = self.world
            await world.follow(node, world.primary)
            if was_revoked:
                await self._change(Kind.REVOKE, world.primary)
                await world.follow(node, world.primary)
            world.request(node, demand)
            await world.settle()
            if place == "origin":
                await world.let_go_on("redis")
                await world.let_go_on("origin")
            await self._fault(which)
            await self._change(kind, world.primary, told)
            world.time_passes(seconds)
            if hears == "in time":
                await world.follow(node, world.primary)
            if joins is not None:
                world.request(node, joins)
                await world.settle()
            if hears.startswith("just then"):
                world.confirm(node, world.primary)
                await world.settle()
                await world.let_all_go_on_at_once(backwards="first" in hears)
            await world.let_all_go_on()
            world.request(node)

        self._do(change)

    @rule(
        node=nodes,
        kind=kinds,
        demand=st.sampled_from(Demand),
        mood=st.sampled_from(Mood),
        ends_soon=st.booleans(),
        changes=st.booleans(),
        hears=st.booleans(),
        seconds=st.sampled_from([0.0, 2.005, 5.5, 14.0]),
    )
    def change_before_an_outage(
        self,
        node: int,
        kind: Kind,
        demand: Demand,
        mood: Mood,
        ends_soon: bool,
        changes: bool,
        hears: bool,
        seconds: float,
    ) -> None:
        """Of the origin; the session may end in it, or nothing change."""

        async def change() -> None:
            world = self.world
            world.commit(Kind.SESSION, ends_soon=ends_soon)
            await world.publish(-1, 0, world.primary)
            await self._warm(node)
            if changes:
                await self._change(kind, world.primary)
            world.turn(mood)
            world.time_passes(seconds)
            if hears:
                await world.follow(node, world.primary)
            world.request(node, demand)
            await world.settle()
            await world.let_all_go_on()
            world.turn(Mood.WELL)

        self._do(change)

    @rule(node=nodes, seconds=st.sampled_from([5.5, 14.0]), ends_soon=st.booleans())
    def nothing_changes(self, node: int, seconds: float, ends_soon: bool) -> None:
        """But what is cached grows old."""

        async def wait() -> None:
            world = self.world
            world.commit(Kind.SESSION, ends_soon=ends_soon)
            await world.publish(-1, 0, world.primary)
            await self._warm(node)
            world.time_passes(seconds)
            await world.follow(node, world.primary)
            world.request(node)

        self._do(wait)

    @rule(
        node=nodes,
        why_not_kept=st.sampled_from(["it is", "no lease", "a cookie"]),
        is_away=st.booleans(),
        mood=st.sampled_from(Mood),
        seconds=st.sampled_from([0.0, 5.5]),
    )
    def refusal_without_an_event(self, node: int, why_not_kept: str, is_away: bool, mood: Mood, seconds: float) -> None:
        """Of what is cached; Redis may be away just then, and an outage may follow."""

        async def refuse() -> None:
            world = self.world
            was_away, world.is_redis_away = world.is_redis_away, False
            await self._warm(node)
            world.commit(Kind.REVOKE)
            world.is_redis_away = is_away
            if why_not_kept == "a cookie":
                world.turn(Mood.SETTING_COOKIES)
            elif why_not_kept == "no lease":
                world.time_passes(2.005)
            world.request(node, Demand.NO_CACHE)
            await world.settle()
            await world.let_all_go_on()
            world.is_redis_away = False
            world.time_passes(seconds)
            await world.follow(node, world.primary)
            world.turn(mood)
            world.request(node)
            await world.settle()
            await world.let_all_go_on()
            world.turn(Mood.WELL)
            world.is_redis_away = was_away

        self._do(refuse)

    @precondition(lambda self: Fault.PROMOTE in self.faults)
    @rule(node=nodes, kind=kinds, lost=st.sampled_from(["events", "a node"]))
    def change_after_a_failover(self, node: int, kind: Kind, lost: str) -> None:
        """The replica lacks what was written last: it may be that the other node is there at all."""

        async def fail_over() -> None:
            world = self.world
            await world.follow(node, world.primary)
            if lost == "a node":
                await world.replace(1 - node, in_order=True, is_small=False)
            await world.fault(Fault.REPLICATE)
            if lost == "events":
                await world.publish_noise(7, world.primary)
            world.time_passes(2.005)
            await world.follow(node, world.primary)
            await self._warm(1 - node)
            await world.fault(Fault.PROMOTE)
            await self._change(kind, world.primary)
            await world.follow(node, world.primary)
            await world.ask_for_receipts(world.primary)
            world.request(1 - node)

        self._do(fail_over)

    @precondition(lambda self: self.faults)
    @rule(node=nodes, kind=kinds)
    def change_behind_a_lost_end(self, node: int, kind: Kind) -> None:
        """Its number is one that the node has had."""

        async def lose() -> None:
            world = self.world
            for one in (0, 1):
                await world.follow(one, world.primary)
            world.request(node)
            await world.settle()
            await world.let_all_go_on()
            if world.may_lose_end:
                await world.lose_end()
                await self._change(kind, world.primary)
                await world.follow(node, world.primary)
                world.request(node)

        self._do(lose)

    @rule(node=nodes, server=servers, kind=kinds)
    def change_that_cannot_be_remembered(self, node: int, server: int, kind: Kind) -> None:
        """The fence has no memory for it just then."""

        async def fail() -> None:
            await self._change(kind, server)
            with self.world.out_of_memory(node):
                await self.world.confirm_once(node, server)
            await self.world.follow(node, server)
            self.world.request(node)

        self._do(fail)
