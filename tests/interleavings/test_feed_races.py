"""Races between a node and its feed: whatever servers do and in whatever order calls arrive, no event is skipped.

`node.fence.position` is what a node claims to have applied, `node.follow()` confirms until nothing more is to be said.
An answer of tier `memory` or `redis` came from the cache; of tier `origin`, from the truth.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import overload

import pytest

from cache_node.errors import FeedUnavailableError
from cache_node.feed.events import Event, EventType
from cache_node.feed.follower import DRIFT, FeedState
from cache_node.feed.log import PAGE_ENTRIES
from cache_node.feed.position import Position
from tests.fakes import (
    MAX_STALENESS_SECONDS,
    Gate,
    LogServer,
    ManualClock,
    ScriptedNode,
    ScriptedOrigin,
    ScriptedSession,
    changed,
    flush,
    identity_changed,
    revoked,
    version_of,
)

LEASE_SECONDS = MAX_STALENESS_SECONDS * (1 - DRIFT)


@dataclass
class Scene:
    """One node that follows one server, and one session, which "token" presents."""

    clock: ManualClock
    server: LogServer
    origin: ScriptedOrigin
    node: ScriptedNode
    session: ScriptedSession

    async def cache(self) -> None:
        """Let the node keep the session's present version."""
        await self.node.read("token")
        assert (await self.node.read("token")).tier == "memory"

    async def give(self) -> tuple[str, int]:
        """Tier and version of the node's next answer."""
        answer = await self.node.read("token")
        return answer.tier, version_of(answer)

    def another(self, server: LogServer | None = None, *, window_seconds: float = 900.0) -> ScriptedNode:
        """A second node, which shares the redis tier with the first."""
        shared = self.node.redis.stored
        return ScriptedNode(
            server or self.server,
            self.origin,
            self.clock,
            shared=shared,
            node_id="node-2",
            window_seconds=window_seconds,
        )


async def scene(*, events_before: int = 2, window_seconds: float = 900.0, max_ids: int = 250_000) -> Scene:
    clock, server = ManualClock(), LogServer()
    origin = ScriptedOrigin(clock)
    session = origin.add("token")
    for _ in range(events_before):
        server.append(changed("somebody-else"))
    node = ScriptedNode(server, origin, clock, window_seconds=window_seconds, max_ids=max_ids)
    await node.follow()
    assert state_of(node) is FeedState.FOLLOWING
    return Scene(clock, server, origin, node, session)


async def heard_from(server: LogServer, after: Position, node: ScriptedNode) -> None:
    """A wake-up that reaches `server`."""
    node.log.wake_server = server
    node.follower.hear(await node.log.wake_up(after, 0.0))


def state_of(node: ScriptedNode) -> FeedState:
    return node.follower.state


def number_of(node: ScriptedNode) -> int:
    assert node.fence.position is not None
    return node.fence.position.number


# A wake-up and a confirm that reach two different servers ------------------------------------------------------------


async def test_wake_up_from_the_old_primary_moves_nothing_on_the_new_one() -> None:
    """The position counts what the confirming server has shown; what a wake-up of another brought is not in it."""
    s = await scene(events_before=1)
    old = s.server
    s.server = s.node.log.server = old.replica()
    s.server.append(changed("somebody-else"))
    await s.node.follow()  # the new primary's generation, at number 1
    await s.cache()

    for _ in range(2):
        old.append(changed("somebody-else"))  # the isolated old primary goes on, up to number 3
    s.session.version = 1
    s.server.append(revoked())
    s.server.append(changed("somebody-else"))  # number 3 here, too
    assert s.node.fence.position is not None
    before = s.node.fence.position
    await heard_from(old, Position(old.generation, 0), s.node)
    after = s.node.fence.position
    await s.node.follow()
    assert await s.give() == ("origin", 1), "the new primary's own events were skipped"
    assert after == before, "a wake-up moved the position"
    assert number_of(s.node) == 3


async def test_wake_up_that_runs_ahead_of_the_confirm_skips_nothing() -> None:
    """A wake-up may bring entry 4 and not entry 3; only the confirm, which brings both in order, applies them."""
    s = await scene()
    await s.cache()
    s.session.version = 1
    s.server.append(revoked())
    s.server.append(changed("somebody-else"))
    await heard_from(s.server, Position(s.server.generation, 3), s.node)  # its first page was lost on the way
    heard_at = number_of(s.node)
    await s.node.follow()
    assert await s.give() == ("origin", 1), "an event was skipped"
    assert heard_at == 2, "a wake-up moved the position"
    assert number_of(s.node) == 4


async def test_wake_up_after_the_confirm_changes_nothing() -> None:
    """The other order: what a confirm has applied already is not new when a slow wake-up brings it once more."""
    s = await scene()
    s.server.append(revoked())
    await s.node.follow()
    await s.cache()
    version = s.node.fence.version

    await heard_from(s.server, Position(s.server.generation, 0), s.node)
    assert s.node.fence.version == version
    assert s.node.follower.counts["early_entries"] == 0
    assert await s.give() == ("memory", 0)


async def test_wake_up_grants_no_lease() -> None:
    """Hearing events is no confirmation: a node that can only be woken stops answering when its lease has run out."""
    s = await scene()
    await s.cache()
    s.clock.advance(LEASE_SECONDS)
    s.server.append(changed("somebody-else"))
    await heard_from(s.server, Position(s.server.generation, 0), s.node)
    assert not s.node.lease.holds()
    assert await s.give() == ("origin", 0)
    assert state_of(s.node) is FeedState.LOST


async def test_wake_up_of_another_generation_is_not_counted_in_this_one() -> None:
    """Positions of different generations are never compared: a foreign number must not reject what is right here."""
    s = await scene()
    await s.cache()
    promoted = s.server.replica()
    for _ in range(3):
        promoted.append(changed())
    await heard_from(promoted, Position(promoted.generation, 0), s.node)
    assert await s.give() == ("memory", 0)
    await s.node.follow()  # it still reaches the old primary, which knows of no change
    assert await s.give() == ("memory", 0)


# An early addition to the fence without its confirm ------------------------------------------------------------------


async def test_early_addition_kills_before_any_confirm() -> None:
    """A heard event rejects what is older at once, though the confirm that would apply it never comes."""
    s = await scene()
    await s.cache()
    s.session.version = 1
    s.server.append(revoked())
    await heard_from(s.server, Position(s.server.generation, 2), s.node)
    assert number_of(s.node) == 2
    assert await s.give() == ("origin", 1)


async def test_early_addition_rejects_fills_on_both_sides_of_it() -> None:
    """Until the confirm nothing read proves to be newer than the heard event, not even what was read after it."""
    s = await scene()
    s.origin.gate = Gate()
    before = asyncio.create_task(s.node.read("token"))
    await s.origin.gate.arrived()
    s.session.version = 1
    s.server.append(changed())
    await heard_from(s.server, Position(s.server.generation, 2), s.node)
    s.origin.gate.open()
    assert version_of(await before) == 0, "it asked before the change"

    assert await s.give() == ("origin", 1), "read before the event, and kept"
    assert await s.give() == ("origin", 1), "as_of is the applied position, which is still before the event"
    await s.node.follow()
    assert await s.give() == ("origin", 1)
    assert await s.give() == ("memory", 1)


async def test_early_addition_and_its_confirm_are_one_event() -> None:
    """The confirm that follows a wake-up applies the same entries once more, and nothing else changes."""
    s = await scene()
    s.server.append(changed())
    await heard_from(s.server, Position(s.server.generation, 2), s.node)
    remembered = len(s.node.fence)
    await s.node.follow()
    assert (number_of(s.node), len(s.node.fence)) == (3, remembered)
    await s.cache()


# An entry stamped forward, and then named by an event ----------------------------------------------------------------


@pytest.mark.parametrize("named", [revoked(), changed(), identity_changed()], ids=lambda e: e[0].type.value)
async def test_stamped_entry_dies_by_the_next_event_that_names_it(named: list[Event]) -> None:
    """A hit proves an entry up to the applied position and no further: the next event that names it kills it."""
    s = await scene()
    await s.cache()
    for _ in range(3):
        s.server.append(changed("somebody-else"))
    await s.node.follow()
    assert await s.give() == ("memory", 0)  # stamped forward to 5
    s.session.version = 1
    s.server.append(named)
    await s.node.follow()
    assert await s.give() == ("origin", 1)


async def test_stamp_goes_to_the_applied_position_never_to_a_heard_one() -> None:
    """Stamped at 2 while 4 was heard of: event 3, which names the entry and arrives with the confirm, must kill it."""
    s = await scene()
    await s.cache()
    s.session.version = 1
    s.server.append(revoked())
    s.server.append(changed("somebody-else"))
    await heard_from(s.server, Position(s.server.generation, 3), s.node)  # 4, without 3
    assert await s.give() == ("memory", 0)  # nothing known names it, so far
    await s.node.follow()
    assert await s.give() == ("origin", 1)


async def test_entry_in_use_survives_a_raised_floor_and_an_idle_one_does_not() -> None:
    """Stamping forward is what lets the fence forget: the entry proven at 4 stays above floor 4, the other does not."""
    s = await scene()
    s.origin.add("idle-token", "session-2", "identity-2")
    await s.cache()
    await s.node.read("idle-token")
    for _ in range(2):
        s.server.append(changed("somebody-else"))
    await s.node.follow()
    assert await s.give() == ("memory", 0)
    s.clock.steady_now += 1000.0  # the window passes; not for the TTL, which is not the point here
    await s.node.follow()
    assert (len(s.node.fence), s.node.fence.floor) == (0, 4)
    assert await s.give() == ("memory", 0)
    assert (await s.node.read("idle-token")).tier == "origin", "its as_of is 2"


# A bucket dropped while its ids are cached ---------------------------------------------------------------------------


async def test_bucket_dropped_by_age_keeps_its_entries_dead() -> None:
    """The window has passed and the id is forgotten: the floor must reject what the id rejected until then."""
    s = await scene(window_seconds=16.0)
    await s.cache()
    s.session.version = 1
    s.server.append(revoked())
    await s.node.follow()
    for _ in range(20):
        s.clock.advance(1.0)
        await s.node.follow()
    assert len(s.node.fence) == 0
    assert await s.give() == ("origin", 1)


async def test_bucket_dropped_by_age_keeps_entries_of_redis_dead() -> None:
    """The same for what a neighbour left in Redis long ago."""
    s = await scene()
    await s.cache()
    other = s.another(window_seconds=16.0)
    await other.follow()
    s.session.version = 1
    s.server.append(revoked())
    await other.follow()
    s.clock.advance(20.0)
    await other.follow()
    assert len(other.fence) == 0
    answer = await other.read("token")
    assert (answer.tier, version_of(answer)) == ("origin", 1)


async def test_bucket_dropped_by_the_cap_keeps_its_entries_dead() -> None:
    """More ids than the cap allows: too little memory costs hits, and never gives an old answer."""
    s = await scene(max_ids=32)
    await s.cache()
    s.session.version = 1
    s.server.append(revoked())
    for number in range(60):
        s.server.append(changed(f"another-{number}"))
    await s.node.follow()
    assert len(s.node.fence) <= 32
    assert await s.give() == ("origin", 1)
    assert await s.give() == ("memory", 1), "what is read now is above the floor"


async def test_entry_of_more_events_than_the_cap_is_one_flush() -> None:
    """One publish that names more ids than the fence may hold cannot be remembered: then everything older is dead."""
    s = await scene(max_ids=32)
    await s.cache()
    s.session.version = 1
    s.server.append(revoked() + [Event(EventType.SESSION_CHANGED, f"another-{n}") for n in range(40)])
    await s.node.follow()
    assert len(s.node.fence) <= 32
    assert await s.give() == ("origin", 1)


# A gap after trimming ------------------------------------------------------------------------------------------------


def trimmed_to_the_last(server: LogServer) -> None:
    for named in (revoked(), changed("somebody-else"), changed("somebody-else")):
        server.append(named)
    server.trim_before(server.number)


def trimmed_to_nothing(server: LogServer) -> None:
    server.append(revoked())
    server.stream.clear()


def trimmed_into_a_batch(server: LogServer) -> None:
    """What is left is one entry, 4 to 6: its count does not reach back to 3."""
    server.append(revoked())
    server.append(changed("somebody-else") * 3)
    server.trim_before(server.number)


@pytest.mark.parametrize("lose", [trimmed_to_the_last, trimmed_to_nothing, trimmed_into_a_batch])
async def test_gap_is_never_stepped_over(lose: Callable[[LogServer], None]) -> None:
    """What is missing between position and feed's end might name anything: all that is cached is void."""
    s = await scene()
    await s.cache()
    s.session.version = 1
    lose(s.server)
    assert await s.node.follower.confirm(), "it asks again at once"
    assert state_of(s.node) is FeedState.RESETTING
    assert not s.node.lease.holds()
    assert s.node.follower.counts["resets_gap"] == 1
    await s.node.follow()
    assert state_of(s.node) is FeedState.FOLLOWING
    assert await s.give() == ("origin", 1)
    assert await s.give() == ("memory", 1)


async def test_gap_behind_the_last_number_is_seen_by_the_count() -> None:
    """An entry tells by its number and count which one precedes it: a hole in the middle of a page is a gap, too."""
    s = await scene()
    await s.cache()
    s.session.version = 1
    s.server.append(changed("somebody-else"))
    s.server.append(revoked())
    s.server.append(changed("somebody-else"))
    del s.server.stream[-2]
    await s.node.follow()
    assert await s.give() == ("origin", 1)
    assert s.node.follower.counts["resets_gap"] == 1


async def test_feed_without_its_last_entry_is_another_one() -> None:
    """The stream ends where no script has left it: the server begins a generation, and all that is cached is void."""
    s = await scene()
    await s.cache()
    s.session.version = 1
    s.server.append(changed("somebody-else"))
    s.server.append(revoked())
    del s.server.stream[-1]
    await s.node.follow()
    assert s.node.follower.counts["resets_generation"] == 1
    assert await s.give() == ("origin", 1)


async def test_trimming_up_to_the_applied_position_is_no_gap() -> None:
    """A node that has applied 2 needs 3 and later: trimming what it knows costs it nothing."""
    s = await scene()
    await s.cache()
    s.server.append([*changed("somebody-else"), *changed("yet-another")])
    s.server.trim_before(3)
    await s.node.follow()
    assert number_of(s.node) == 4
    assert s.node.fence.resets == 1
    assert await s.give() == ("memory", 0)


async def test_gap_voids_flights_begun_before_it() -> None:
    """A fill under way when the reset comes began at a position of which nothing is known any more."""
    s = await scene()
    s.origin.gate = Gate()
    reader = asyncio.create_task(s.node.read("token"))
    await s.origin.gate.arrived()
    s.session.version = 1
    s.server.append(revoked())
    trimmed_to_the_last(s.server)
    await s.node.follow()
    s.origin.gate.open()
    assert version_of(await reader) == 0, "it asked before the change"
    assert await s.give() == ("origin", 1)


# FLUSHALL, an empty restart, and a failover, with a revocation lost --------------------------------------------------


def flushed(server: LogServer) -> LogServer:
    server.flushall()
    server.time_us += 1
    return server


def restarted_empty(server: LogServer) -> LogServer:
    server.restart_empty()
    server.time_us += 1
    return server


def promoted_without_tail(server: LogServer) -> LogServer:
    return server.replica(without_last=1)


LOSSES = [flushed, restarted_empty, promoted_without_tail]


@pytest.mark.parametrize("publishes_first", [False, True], ids=["confirm-first", "publish-first"])
@pytest.mark.parametrize("lose", LOSSES)
async def test_lost_revocation_leaves_nothing_to_serve(
    lose: Callable[[LogServer], LogServer], publishes_first: bool
) -> None:
    """A revocation that no node had applied is gone with its server's data: what was cached before is void, too.

    Whoever reaches the server first, publishers bring its numbers up to the node's own, so that nothing but the
    generation tells the two histories apart.
    """
    s = await scene(events_before=3)
    await s.cache()
    s.session.version = 1
    s.server.append(revoked())
    s.server = s.node.log.server = lose(s.server)

    if not publishes_first:
        await s.node.follower.confirm()
        assert not s.node.lease.holds(), "the lease ends with its generation"
    for _ in range(3):
        s.server.append(changed("somebody-else"))
    await s.node.follow()
    assert await s.give() == ("origin", 1)
    assert await s.give() == ("memory", 1)
    assert number_of(s.node) == 3
    assert s.node.follower.counts["resets_generation"] == 1


@pytest.mark.parametrize("lose", LOSSES)
async def test_entries_of_a_lost_generation_are_void_in_redis_too(lose: Callable[[LogServer], LogServer]) -> None:
    """What a neighbour kept in Redis is judged by its generation, however high its number is in the old one."""
    s = await scene(events_before=3)
    other = s.another()
    await other.follow()
    await s.cache()  # as_of 3, in Redis
    s.session.version = 1
    s.server.append(revoked())
    s.server = other.log.server = lose(s.server)
    s.server.append(changed("somebody-else"))
    await other.follow()
    assert number_of(other) == 1
    answer = await other.read("token")
    assert (answer.tier, version_of(answer)) == ("origin", 1)


async def test_late_fill_of_a_lost_generation_resurrects_nothing() -> None:
    """A node that has not heard of the new generation stores into Redis: the others do not take it."""
    s = await scene(events_before=3)
    other = s.another(s.server.replica(without_last=1))
    s.origin.gate = Gate()
    reader = asyncio.create_task(s.node.read("token"))
    await s.origin.gate.arrived()
    s.session.version = 1
    other.log.server.append(revoked())  # in the new generation; the first node still has the old primary
    await other.follow()
    s.origin.gate.open()
    await reader
    assert s.node.redis.stored, "the old node keeps what its own generation allows"
    s.origin.gate = None
    answer = await other.read("token")
    assert (answer.tier, version_of(answer)) == ("origin", 1)


async def test_generation_is_never_given_twice() -> None:
    """Neither FLUSHALL nor an empty restart nor a server whose clock stepped back gives a generation once more."""
    s = await scene()
    seen = [s.server.generation]
    for lose in (flushed, restarted_empty, flushed):
        lose(s.server)
        s.server.time_us -= 3_000_000
        await s.node.follow()
        seen.append(s.server.generation)
    assert seen == sorted(set(seen))
    s.server.flushall()
    s.server.time_us += 20_000_000
    seen.append(s.server.append(changed()).generation)  # by a publisher who has seen nothing
    assert seen == sorted(set(seen))


async def test_emptied_twice_with_a_slow_clock_is_two_generations() -> None:
    """Nodes cut off in turn show the same: what the first one cached in one history is void in the other."""
    s = await scene(events_before=3)
    other = s.another()
    await other.follow()

    s.server.restart_empty()
    s.server.time_us -= 3_600_000_000
    await s.node.follow()  # the other one is cut off
    for _ in range(5):
        s.server.append(changed("somebody-else"))
    await s.node.follow()
    await s.cache()

    s.server.flushall()
    await other.follow()  # now this one is
    s.session.version = 1
    s.server.append(revoked())
    for _ in range(7):
        s.server.append(changed("somebody-else"))

    await s.node.follow()
    assert await s.give() == ("origin", 1)


async def test_lower_generation_is_as_foreign_as_a_higher_one() -> None:
    """Back on a server of an older generation nothing cached since is admitted, though the numbers are the same."""
    s = await scene()
    old, new = s.server, s.server.replica()
    for _ in range(3):
        new.append(changed("somebody-else"))
    s.node.log.server = new
    await s.node.follow()
    await s.cache()
    s.session.version = 1
    assert old.append(revoked()).number == number_of(s.node)
    s.node.log.server = old
    assert await s.node.follower.confirm()
    assert not s.node.lease.holds()
    await s.node.follow()
    assert await s.give() == ("origin", 1)


# A publisher that writes before the first confirm after a failover ---------------------------------------------------


async def test_publisher_that_writes_first_after_a_failover_is_heard() -> None:
    """The replica lost an entry, its numbers are given again, and the revocation gets the one that the node has had."""
    s = await scene(events_before=3)
    await s.cache()
    promoted = s.server.replica(without_last=1)
    s.session.version = 1
    for _ in range(2):
        promoted.append(changed("somebody-else"))
    position = promoted.append(revoked())
    assert position.number == number_of(s.node)
    s.node.log.server = promoted
    await s.node.follow()
    assert await s.give() == ("origin", 1)
    assert s.node.fence.position == position, "this is not the generation that the node was in"


async def test_node_that_confirms_first_after_a_failover_hears_the_publisher() -> None:
    """The other order: the node begins the generation, the revocation is its first entry."""
    s = await scene(events_before=3)
    await s.cache()
    s.node.log.server = promoted = s.server.replica(without_last=1)
    await s.node.follow()
    await s.cache()
    s.session.version = 1
    position = promoted.append(revoked())
    await s.node.follow()
    assert s.node.fence.position == position
    assert await s.give() == ("origin", 1)


# A position ahead of the feed ----------------------------------------------------------------------------------------


async def test_position_ahead_of_the_feed_is_a_lost_history() -> None:
    """The feed ends before what the node has applied: entries proven up to there are void."""
    s = await scene(events_before=3)
    await s.cache()  # as_of 3
    s.server.end_at(1)
    assert await s.node.follower.confirm()
    assert not s.node.lease.holds()
    assert s.node.follower.counts["resets_ahead"] == 1
    await s.node.follow()
    assert number_of(s.node) == 1
    assert await s.give() == ("origin", 0), "what was cached is void"
    s.session.version = 1
    s.server.append(revoked())  # 2
    await s.node.follow()
    assert await s.give() == ("origin", 1)


# The lease -----------------------------------------------------------------------------------------------------------


async def test_lease_counts_from_the_sending_of_the_confirm() -> None:
    """A reply that took long says how the feed was when it left: the lease has been running since the call was sent."""
    s = await scene()
    await s.cache()
    s.node.log.reply_gate = gate = Gate()
    confirming = asyncio.create_task(s.node.follower.confirm())
    await gate.arrived()
    s.session.version = 1
    s.server.append(revoked())  # after the server looked
    s.clock.advance(LEASE_SECONDS)
    gate.open()
    await confirming
    assert not s.node.lease.holds()
    assert await s.give() == ("origin", 1)


async def test_lease_outlasts_what_it_was_granted_for_by_nothing() -> None:
    """Max_staleness after a confirm was sent, less the margin for clocks, the node stops; just before it does not."""
    s = await scene()
    await s.cache()
    s.clock.advance(LEASE_SECONDS - 0.001)
    assert await s.give() == ("memory", 0)
    s.clock.advance(0.002)
    s.session.version = 1
    assert await s.give() == ("origin", 1)
    assert await s.give() == ("origin", 1), "without a lease nothing is kept, either"
    await s.node.follow()
    assert await s.give() == ("memory", 0), "the feed proves it unchanged: no event said otherwise"


async def test_failed_confirm_leaves_the_lease_as_it_is() -> None:
    """A server that is away grants nothing and takes nothing: the lease ends in its own time, the cache stays."""
    s = await scene()
    await s.cache()
    s.server.available = False
    s.clock.advance(LEASE_SECONDS / 2)
    with pytest.raises(Exception, match="away"):
        await s.node.follower.confirm()
    assert await s.give() == ("memory", 0)
    s.clock.advance(LEASE_SECONDS / 2)
    assert await s.give() == ("origin", 0)
    assert state_of(s.node) is FeedState.LOST
    s.server.available = True
    await s.node.follow()
    assert await s.give() == ("memory", 0)
    assert s.node.fence.resets == 1


async def test_no_lease_before_the_last_page() -> None:
    """A page that does not reach the feed's end proves nothing of what comes behind it."""
    s = await scene()
    await s.cache()
    s.clock.advance(LEASE_SECONDS)
    for _ in range(PAGE_ENTRIES + 3):
        s.server.append(changed("somebody-else"))
    s.session.version = 1
    s.server.append(revoked())
    assert await s.node.follower.confirm()
    assert number_of(s.node) == 2 + PAGE_ENTRIES
    assert not s.node.lease.holds(), "events are still to come"
    assert await s.give() == ("origin", 1)
    assert await s.node.follower.confirm()
    assert s.node.lease.holds()
    assert not await s.node.follower.confirm(), "nothing more to say"
    assert await s.give() == ("origin", 1)


async def test_page_with_events_is_followed_by_another_confirm() -> None:
    """The record that a confirm writes is from before its events: receipts need the next one."""
    s = await scene()
    s.server.append(revoked())
    assert await s.node.follower.confirm()
    record = next(iter(s.server.nodes.values()))
    assert record.split()[1] == b"2"
    assert not await s.node.follower.confirm()
    record = next(iter(s.server.nodes.values()))
    assert record.split()[1] == b"3"


async def test_lease_ends_at_once_with_its_generation() -> None:
    """From the confirm that brings another generation until the next complete one nothing is served from cache."""
    s = await scene()
    await s.cache()
    s.server.flushall()
    s.server.time_us += 1
    assert await s.node.follower.confirm()
    assert state_of(s.node) is FeedState.RESETTING
    assert not s.node.lease.holds()
    assert s.node.follower.seconds_since_confirmed is None
    assert (await s.node.read("token")).tier == "origin"
    assert (await s.node.read("token")).tier == "origin", "and nothing is kept"
    await s.node.follow()
    assert s.node.lease.holds()


# Two confirms that overlap -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("later_event", [False, True], ids=["same-page", "longer-page"])
async def test_reply_to_an_overtaken_confirm_proves_nothing(later_event: bool) -> None:
    """The slower of two confirms tells of a page that was applied meanwhile: it applies nothing and resets nothing."""
    s = await scene()
    await s.cache()
    s.server.append(changed("somebody-else"))
    s.node.log.reply_gate = gate = Gate()
    slow = asyncio.create_task(s.node.follower.confirm())
    await gate.arrived()
    s.node.log.reply_gate = None
    if later_event:
        s.session.version = 1
        s.server.append(revoked())
    await s.node.follow()
    applied = number_of(s.node)
    gate.open()
    assert await slow, "it asks again"
    assert number_of(s.node) == applied == (4 if later_event else 3)
    assert s.node.fence.resets == 1
    assert await s.give() == (("origin", 1) if later_event else ("memory", 0))


async def test_overtaken_confirm_of_another_generation_makes_it_no_older() -> None:
    """How long a node has followed a generation is told of that one alone: receipts trust it for the leases before."""
    s = await scene()
    s.clock.advance(1000.0)
    await s.node.follow()
    old, new = s.server, s.server.replica()
    old.append(changed("somebody-else"))
    s.node.log.server, s.node.log.reply_gate = new, Gate()
    slow = asyncio.create_task(s.node.follower.confirm())
    await s.node.log.reply_gate.arrived()
    gate, s.node.log.reply_gate, s.node.log.server = s.node.log.reply_gate, None, old
    await s.node.follow()  # the old primary still answers, and moves the node on
    gate.open()
    await slow
    s.node.log.server = new
    await s.node.follower.confirm()
    assert new.followed_us == 0, "the new generation is as old as its first confirm"
    s.clock.advance(1.0)
    await s.node.follow()
    assert new.followed_us == 1_000_000


async def test_lost_registry_makes_the_generation_young_again() -> None:
    """Who finds its own record gone knows that others' are, too: receipts must wait as if the server were new."""
    s = await scene()
    s.clock.advance(1000.0)
    await s.node.follow()
    assert s.server.followed_us == 1_000_000_000
    s.server.nodes.clear()
    s.clock.advance(0.5)
    for seconds in (0, 1, 2):
        await s.node.follower.confirm()
        assert s.server.followed_us == seconds * 1_000_000
        s.clock.advance(1.0)


async def test_lost_registry_whose_reply_was_lost_too() -> None:
    """It is said once, to one node: who did not hear it must not vouch for the others as if nothing had been."""
    s = await scene()
    s.clock.advance(1000.0)
    await s.node.follow()
    s.server.nodes.clear()
    s.node.log.reply_gate = Gate()
    confirming = asyncio.create_task(s.node.follower.confirm())
    await s.node.log.reply_gate.arrived()
    s.node.log.reply_error = FeedUnavailableError("the reply was lost")
    s.node.log.reply_gate.open()
    with pytest.raises(FeedUnavailableError):
        await confirming
    s.node.log.reply_gate = s.node.log.reply_error = None
    await s.node.follower.confirm()
    assert s.server.followed_us == 0


# A new node, and its replay backwards --------------------------------------------------------------------------------


async def neighbours(events: Sequence[list[Event]]) -> tuple[Scene, ScriptedNode]:
    """A node has filled Redis at position 2, then these events came; the other node has just started."""
    s = await scene()
    await s.cache()
    for entry in events:
        s.server.append(entry)
    other = s.another()
    await other.follow()
    assert other.fence.floor == s.server.number, "the floor of a new node is the feed's end"
    return s, other


async def give(node: ScriptedNode) -> tuple[str, int]:
    answer = await node.read("token")
    return answer.tier, version_of(answer)


async def test_new_node_admits_nothing_older_than_its_start() -> None:
    """Without the events before its start a node can judge nothing that was read before them."""
    s, other = await neighbours([revoked()])
    s.session.version = 1
    assert await give(other) == ("origin", 1)


async def test_replay_lowers_the_floor_to_what_it_has_read() -> None:
    """What the neighbours left in Redis is served once the events since then have been read, and not before."""
    _, other = await neighbours([changed("somebody-else")] * 3)
    assert (await other.read("token")).tier == "origin"  # below the floor; kept by now, so look at the old entry anew
    fresh = ScriptedNode(other.log.server, other.origin, other.clock, shared=other.redis.stored, node_id="node-3")
    await fresh.follow()
    await fresh.follower.replay()
    assert fresh.fence.floor == 1
    assert await give(fresh) == ("redis", 0)


async def test_replay_brings_the_events_that_reject() -> None:
    """Replaying lowers the floor and adds what it read: an old entry that an old event names stays dead."""
    s, other = await neighbours([revoked(), changed("somebody-else")])
    s.session.version = 1
    await other.follower.replay()
    assert await give(other) == ("origin", 1)
    assert other.fence.floor == 1


async def test_replay_never_lowers_the_floor_below_the_retained_window() -> None:
    """What was trimmed might name anything: an entry from before the oldest retained event is not admitted."""
    s, other = await neighbours([revoked(), changed("somebody-else"), changed("somebody-else")])
    s.session.version = 1
    s.server.trim_before(4)  # 3 named it
    await other.follower.replay()
    assert await give(other) == ("origin", 1)
    assert other.fence.floor == 4


async def test_replay_never_reaches_into_another_generation() -> None:
    """Positions of an older generation have no place in this one's count, even if the stream still holds them."""
    s, _ = await neighbours([])
    older = list(s.server.stream)
    s.server.restart_empty()
    s.server.time_us += 1
    s.session.version = 1
    s.server.append(changed("somebody-else"))
    s.server.append(changed("somebody-else"))
    s.server.stream = older + s.server.stream
    other = s.another()
    await other.follow()
    await other.follower.replay()
    assert await give(other) == ("origin", 1)
    assert other.fence.floor == 1


@pytest.mark.parametrize("stop", [flush(), None], ids=["flush", "unreadable"])
async def test_replay_ends_at_what_voids_everything_older(stop: list[Event] | None) -> None:
    """A flush, or an entry that this version cannot read, is as far back as a floor can go."""
    s, _ = await neighbours([])
    s.session.version = 1
    s.server.append(flush())
    s.server.append(changed("somebody-else"))
    if stop is None:
        s.server.garble(2)
    other = s.another()
    await other.follow()
    await other.follower.replay()
    assert await give(other) == ("origin", 1)
    assert other.fence.floor == 4


async def test_floor_raised_during_a_replay_stays() -> None:
    """A flush that is applied between two pages of the replay is not undone by the next page."""
    s, other = await neighbours([changed("somebody-else")])
    s.session.version = 1
    other.log.replay_gate = Gate()
    replaying = asyncio.create_task(other.follower.replay())
    await other.log.replay_gate.arrived()
    s.server.append(flush())
    await other.follow()
    other.log.replay_gate.open()
    await replaying
    assert await give(other) == ("origin", 1)
    assert other.fence.floor == s.server.number


async def test_reset_during_a_replay_ends_it() -> None:
    """A page that was read in the generation before says nothing of the new one, and must not lower its floor."""
    s, other = await neighbours([changed("somebody-else")])
    s.session.version = 1
    other.log.replay_gate = Gate()
    replaying = asyncio.create_task(other.follower.replay())
    await other.log.replay_gate.arrived()
    s.server.flushall()
    s.server.time_us += 1
    for _ in range(6):
        s.server.append(changed("somebody-else"))
    await other.follow()
    other.log.replay_gate.open()
    await replaying
    assert await give(other) == ("origin", 1)
    assert other.fence.floor == 6


async def test_replay_from_a_server_without_the_tail_lowers_nothing() -> None:
    """A replay and a confirm can reach two servers: the page must reach up to the position, without a hole."""
    s, other = await neighbours([revoked()])
    s.session.version = 1
    other.log.replay_server = s.server.replica(without_last=1)  # it has not begun its own generation yet
    await other.follower.replay()
    assert await give(other) == ("origin", 1)
    assert other.fence.floor == 3


async def test_replay_ends_at_a_hole() -> None:
    """An entry tells by number and count which one precedes it: without that one the floor stays above the hole."""
    s, other = await neighbours([revoked(), changed("somebody-else")])
    s.session.version = 1
    del s.server.stream[2]  # 3 named it
    await other.follower.replay()
    assert await give(other) == ("origin", 1)
    assert other.fence.floor == 4


async def test_second_replay_lowers_nothing_that_the_first_could_not() -> None:
    """A follower that failed and runs again replays again: the floor must not fall below the retained window."""
    s, other = await neighbours([revoked(), changed("somebody-else"), changed("somebody-else")])
    s.session.version = 1
    s.server.trim_before(4)  # 3 named it
    await other.follower.replay()
    s.server.stream.clear()  # as after a long time, when all that it could read has been trimmed
    await other.follower.replay()
    assert await give(other) == ("origin", 1)
    assert other.fence.floor == 4


async def test_replay_that_was_begun_anew_ends_the_one_before() -> None:
    """A page of the first one, read before a flush, must not lower the floor below it."""
    s = await scene()
    await s.cache()
    s.node.log.replay_gate = gate = Gate()
    first = asyncio.create_task(s.node.follower.replay())
    await gate.arrived()
    s.session.version = 1
    s.server.append(flush())
    await s.node.follow()
    s.node.log.replay_gate = None
    await s.node.follower.replay()
    gate.open()
    await first
    assert s.node.fence.floor == s.server.number
    assert await s.give() == ("origin", 1)


async def test_replay_stops_short_of_the_cap() -> None:
    """What a replay reads must not push out what the node has applied since: the floor stays higher instead."""
    s = await scene(events_before=0)
    for number in range(100):
        s.server.append(changed(f"another-{number}"))
    other = ScriptedNode(s.server, s.origin, s.clock, max_ids=64)
    await other.follow()
    await other.follower.replay()
    assert len(other.fence) <= 64
    assert 100 - 64 <= other.fence.floor < 100


# Position after fence ------------------------------------------------------------------------------------------------


class Failing(Sequence[Event]):
    """Events that cannot be taken out."""

    def __len__(self) -> int:
        return 1

    @overload
    def __getitem__(self, index: int) -> Event: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Event]: ...
    def __getitem__(self, index: int | slice) -> Event | Sequence[Event]:
        raise MemoryError


async def test_position_never_includes_what_the_fence_has_not_learnt() -> None:
    """First the events, then the position: an entry that failed halfway is asked for again, and then kills."""
    s = await scene()
    await s.cache()
    with pytest.raises(MemoryError):
        s.node.fence.apply(Position(s.server.generation, 3), Failing())
    assert await s.give() == ("memory", 0)  # stamped with the position, which is that of 2
    s.session.version = 1
    s.server.append(revoked())
    await s.node.follow()
    assert await s.give() == ("origin", 1)


# What this version cannot read ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("hears", [False, True], ids=["confirmed", "heard"])
async def test_unreadable_entry_voids_everything_older(hears: bool) -> None:
    """An event of an unknown version or type might name anything, so it raises the floor, early or confirmed."""
    s = await scene()
    await s.cache()
    s.session.version = 1
    s.server.append(changed("somebody-else"))
    s.server.garble(-1)
    if hears:
        await heard_from(s.server, Position(s.server.generation, 2), s.node)
    else:
        await s.node.follow()
    assert await s.give() == ("origin", 1)
    assert s.node.fence.floor == 3
    await s.node.follow()
    assert number_of(s.node) == 3
    await s.give()
    assert await s.give() == ("memory", 1)


# Leaving -------------------------------------------------------------------------------------------------------------


async def test_confirm_under_way_gives_a_leaving_node_no_lease() -> None:
    """Receipts do not wait for a node that has left, so the reply to its last confirm must not let it serve again."""
    s = await scene()
    await s.cache()
    s.node.log.reply_gate = gate = Gate()
    confirming = asyncio.create_task(s.node.follower.confirm())
    await gate.arrived()
    await s.node.follower.leave()
    assert s.server.nodes == {}
    s.session.version = 1
    s.server.append(revoked())
    gate.open()
    await confirming
    assert not s.node.lease.holds()
    assert await s.give() == ("origin", 1)
