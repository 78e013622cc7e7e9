"""Histories: single steps in any order, and what takes so many that chance alone would seldom put them in a row.

Each of these rules goes where a guard is, with everything about it left open that need not be so.
"""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from tests.histories.machine import Steps, few, kinds, nodes, now_and_then, servers, tellings
from tests.histories.truth import Demand, Fault, Kind, Mood, Told

maybe = st.sampled_from([*[None] * 8, *range(8)])
"""Which of the climate's faults, if any."""
pauses = st.sampled_from([0.0, 1.5, 2.005, 2.005])


class Histories(Steps):
    """One history."""

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
            if confirms == "not" and Fault.LOSE_REGISTRY in self.faults:
                await world.fault(Fault.LOSE_REGISTRY)
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
        on_the_way=st.sampled_from([[], ["question"], ["question"], ["question", "registry"]]),
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
                await world.follow(node, world.primary)
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
        is_published=st.booleans(),
        hears=st.booleans(),
        asks=st.sampled_from([None, Demand.NO_CACHE]),
        seconds=st.sampled_from([0.0, 0.0, 2.005]),
    )
    def change_during_a_look(
        self, node: int, kind: Kind, is_published: bool, hears: bool, asks: Demand | None, seconds: float
    ) -> None:
        """In Redis, for what was evicted; somebody else may have the newest word of the origin before it is there."""

        async def change() -> None:
            world = self.world
            await self._warm(node)
            world.evict(node)
            world.request(node)
            await world.settle()
            world.commit(kind)
            if is_published:
                await world.publish(-1, 0, world.primary)
            if hears:
                await world.follow(node, world.primary)
            if asks is not None:
                world.request(node, asks)
                await world.settle()
                await world.let_go_on("origin")
                await world.let_go_on("origin")
            world.time_passes(seconds)
            await world.let_go_on("redis")
            world.request(node)
            await world.settle()
            await world.let_all_go_on()

        self._do(change)

    @rule(
        node=nodes,
        kind=kinds,
        hearing=st.sampled_from([[], [0], [1], [0, 1]]),
        other=st.sampled_from(["answers", "answers", "dies", "stands still"]),
        pauses=few,
    )
    def change_while_another_node_asks(
        self, node: int, kind: Kind, hearing: list[int], other: str, pauses: int
    ) -> None:
        """And this one waits for what that brings, if there are fill locks."""

        async def change() -> None:
            world = self.world
            await self._change(Kind.SESSION, world.primary)
            for one in (1 - node, node):
                await world.follow(one, world.primary)
                world.request(one)
                await world.settle()
                await world.let_go_on("redis")
                await world.let_go_on("origin")
            await self._change(kind, world.primary)
            for one in hearing:
                await world.follow(one, world.primary)
            if other == "answers":
                await world.let_go_on("origin")
            elif other == "dies":
                await world.replace(1 - node, in_order=False, is_small=False)
            for _ in range(pauses):
                world.time_passes(1.3)
                await world.follow(node, world.primary)
            await world.let_go_on("lock")
            await world.let_go_on("redis")
            world.request(node)
            await world.settle()
            await world.let_all_go_on()

        self._do(change)

    @rule(node=nodes, kind=kinds, demand=st.sampled_from(Demand), seconds=st.sampled_from([0.0, 0.3, 1.2]))
    def change_between_two_like_demands(self, node: int, kind: Kind, demand: Demand, seconds: float) -> None:
        """Of one client: the bytes of the second are those of the first."""

        async def ask_twice() -> None:
            world = self.world
            await self._warm(node)
            world.request(node, demand)
            await world.settle()
            await world.let_all_go_on()
            world.commit(kind)
            world.time_passes(seconds)
            world.request(node, demand)

        self._do(ask_twice)

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

    @rule(node=nodes, seconds=st.sampled_from([5.3, 12.3]), ends_soon=st.booleans())
    def nothing_changes(self, node: int, seconds: float, ends_soon: bool) -> None:
        """But what is cached grows old, and did not look so a moment ago."""

        async def wait() -> None:
            world = self.world
            world.commit(Kind.SESSION, ends_soon=ends_soon)
            await world.publish(-1, 0, world.primary)
            await self._warm(node)
            for passing in (seconds - 0.6, 0.6):
                world.time_passes(passing)
                await world.follow(node, world.primary)
                world.request(node)
                await world.settle()

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
