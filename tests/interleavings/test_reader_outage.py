"""An origin that cannot do its work: what the feed proves unchanged answers, and nothing becomes a 401."""

from __future__ import annotations

import asyncio

import pytest

from cache_node.errors import OriginUnavailableError
from cache_node.feed.position import Position
from cache_node.sessions.answer import Wants
from tests.fakes import (
    MAX_STALENESS_SECONDS,
    Gate,
    ScriptedNode,
    changed,
    flush,
    following_node,
    get_as_far_as_they_can,
    revoked,
    version_of,
)

TTL_SECONDS = 10.0
STALE_IF_ERROR_SECONDS = 3600.0
NO_CACHE = Wants(no_cache=True)


async def node_with_an_old_entry() -> ScriptedNode:
    """Following, with an entry past its TTL, and an origin that is down."""
    node = await following_node(ttl_seconds=TTL_SECONDS)
    await node.read("token")
    node.clock.advance(TTL_SECONDS + 1.0)
    await node.follow()
    node.origin.down = True
    return node


async def unavailable(node: ScriptedNode, wants: Wants | None = None) -> str | None:
    """The cause that a reader of `token` is told; None if there is an answer."""
    try:
        await node.read("token", wants)
    except OriginUnavailableError as error:
        return error.cause
    return None


async def test_an_entry_past_its_ttl_answers_in_an_outage() -> None:
    """The feed still proves it unchanged: the TTL is a backstop only."""
    node = await node_with_an_old_entry()

    answer = await node.read("token")
    assert (answer.status, answer.tier, answer.detail, answer.age_seconds) == (200, "stale", "stale-if-error", 11.0)


async def test_who_has_an_admitted_entry_does_not_wait_for_the_origin() -> None:
    """An open breaker costs a reader whom an entry answers no time; one whose entry is dead has nothing else."""
    node = await node_with_an_old_entry()
    await node.read("token")
    assert node.origin.is_patient is False

    node.log.server.append(revoked("session-1"))
    await node.follow()
    assert await unavailable(node) == "unreachable"
    assert node.origin.is_patient is True


async def test_an_entry_past_its_ttl_is_a_miss_while_the_origin_answers() -> None:
    """The harmless case: nobody is given an old entry who could have a new one."""
    node = await node_with_an_old_entry()
    node.origin.down = False

    answer = await node.read("token")
    assert (answer.tier, answer.detail) == ("origin", "ttl")


async def test_no_stale_answer_without_a_lease() -> None:
    """Nothing proves it unchanged then: 503, never a 401."""
    node = await node_with_an_old_entry()
    node.clock.advance(MAX_STALENESS_SECONDS)

    assert await unavailable(node) == "unreachable"


async def test_no_stale_answer_after_an_event() -> None:
    """An outage brings no revoked session back."""
    node = await node_with_an_old_entry()
    node.log.server.append(revoked())
    await node.follow()

    assert await unavailable(node) == "unreachable"


async def test_no_stale_answer_below_the_floor() -> None:
    """What was flushed or forgotten is not given, whatever state the origin is in."""
    node = await node_with_an_old_entry()
    node.log.server.append(flush())
    await node.follow()

    assert await unavailable(node) == "unreachable"


async def test_no_stale_answer_past_the_sessions_end() -> None:
    """It is a miss then, and without the origin a 503: the session may have been extended."""
    node = await following_node()
    node.origin.sessions[b"token"].expires_at = "2027-01-15T08:05:00Z"  # 5 minutes after the clock's beginning
    await node.read("token")
    node.origin.down = True
    node.clock.advance(298.0)
    await node.follow()
    assert (await node.read("token", NO_CACHE)).tier == "stale"
    node.clock.advance(1.0)

    assert await unavailable(node) == "unreachable"


async def test_no_stale_answer_past_its_own_limit() -> None:
    """`stale_if_error` is counted from the end of the TTL."""
    node = await node_with_an_old_entry()
    node.clock.advance(STALE_IF_ERROR_SECONDS - 1.5)
    await node.follow()
    assert (await node.read("token")).tier == "stale"
    node.clock.advance(1.0)

    assert await unavailable(node) == "unreachable"


async def test_an_event_while_the_origin_fails() -> None:
    """The fence is asked when the failure is known, not before."""
    node = await node_with_an_old_entry()
    node.origin.gate = gate = Gate()
    reader = asyncio.create_task(unavailable(node))
    await gate.arrived()
    node.log.server.append(changed())
    await node.follow()
    gate.open()

    assert await reader == "unreachable"


async def test_the_lease_ends_while_the_origin_fails() -> None:
    """A timeout of the origin may take longer than the lease."""
    node = await node_with_an_old_entry()
    node.origin.gate = gate = Gate()
    reader = asyncio.create_task(unavailable(node))
    await gate.arrived()
    node.clock.advance(MAX_STALENESS_SECONDS)
    gate.open()

    assert await reader == "unreachable"


async def test_an_entry_of_a_neighbour_answers_in_an_outage() -> None:
    """Even a reader who asked for the origin's word gets what lies in Redis, when there is none."""
    neighbour = await following_node()
    await neighbour.read("token")
    node = neighbour.neighbour()
    await node.follow()
    node.origin.down = True

    answer = await node.read("token", NO_CACHE)
    assert (answer.status, answer.tier) == (200, "stale")


async def test_no_cache_in_an_outage() -> None:
    """It gets the admitted entry, and without one the 503."""
    node = await following_node()
    await node.read("token")
    node.origin.down = True
    assert (await node.read("token", NO_CACHE)).tier == "stale"
    node.log.server.append(changed())
    await node.follow()

    assert await unavailable(node, NO_CACHE) == "unreachable"


async def test_min_position_in_an_outage() -> None:
    """Read your writes, or nothing: an entry that may be older than the caller's own write is not given."""
    node = await following_node()
    await node.read("token")
    node.origin.down = True
    applied = node.fence.position
    assert applied is not None
    assert (await node.read("token", Wants(no_cache=True, min_position=applied))).tier == "stale"
    ahead = Position(applied.generation, applied.number + 1)

    assert await unavailable(node, Wants(min_position=ahead)) == "unreachable"
    assert await unavailable(node, Wants(min_position=Position(0, 0))) == "unreachable"


@pytest.mark.parametrize("status", [429, 500, 502, 503])
async def test_a_failure_of_the_origin_is_passed_on_where_no_entry_answers(status: int) -> None:
    """Its own 429 and 5xx are more than we know, but less than an entry."""
    node = await following_node()
    node.origin.status = status
    answer = await node.read("token")
    assert (answer.status, answer.body, answer.tier, answer.detail) == (status, b"scripted\n", "origin", "origin-error")
    node.origin.status = None
    await node.read("token")
    node.origin.status = status

    assert (await node.read("token", NO_CACHE)).tier == "stale"
    assert (await node.read("token")).tier == "memory", "and the entry stays"


async def test_a_200_that_is_no_session_counts_as_a_failure() -> None:
    """An error page of something in between must not be given as a session, nor end one."""
    node = await following_node()
    node.origin.status = 200
    assert await unavailable(node) == "garbage"
    node.origin.status = None
    await node.read("token")
    node.origin.status = 200

    assert (await node.read("token", NO_CACHE)).tier == "stale"


async def test_a_failure_is_shared_by_all_who_wait_for_it() -> None:
    """A run that failed answers its late joiners, too: the origin in trouble is not asked once for each of them."""
    node = await following_node()
    node.origin.down = True
    node.origin.gate = gate = Gate()
    early = asyncio.create_task(unavailable(node))
    await gate.arrived()
    late = [asyncio.create_task(unavailable(node)) for _ in range(100)]
    await get_as_far_as_they_can()
    gate.open()

    assert {await early, *await asyncio.gather(*late)} == {"unreachable"}
    assert node.origin.reads == 1


async def test_the_origin_comes_back() -> None:
    """The next reader asks it; nothing of the outage is kept."""
    node = await following_node()
    node.origin.down = True
    assert await unavailable(node) == "unreachable"
    node.origin.down = False

    assert version_of(await node.read("token")) == 0
    assert (await node.read("token")).tier == "memory"
