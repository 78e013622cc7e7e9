"""The lease: without it every answer comes from the origin, and goes only to those who asked."""

from __future__ import annotations

import asyncio

from cache_node.feed.lease import Lease
from tests.fakes import (
    MAX_STALENESS_SECONDS,
    Gate,
    LogServer,
    ManualClock,
    ScriptedNode,
    ScriptedOrigin,
    changed,
    following_node,
    get_as_far_as_they_can,
    version_of,
)


async def test_no_hit_from_memory_after_a_freeze() -> None:
    """The node stood still for longer than `max_staleness`: it must confirm before it gives anything cached."""
    node = await following_node()
    await node.read("token")
    node.origin.sessions[b"token"].version = 1
    node.log.server.append(changed())
    node.clock.advance(MAX_STALENESS_SECONDS)

    answer = await node.read("token")
    assert (version_of(answer), answer.tier, answer.detail) == (1, "origin", "no-lease")


async def test_hits_until_the_lease_ends() -> None:
    """The harmless order: within it, an entry is given although its change is committed and announced already."""
    node = await following_node()
    await node.read("token")
    node.origin.sessions[b"token"].version = 1
    node.log.server.append(changed())
    node.clock.advance(MAX_STALENESS_SECONDS * 0.9)

    assert (await node.read("token")).tier == "memory"


async def test_contact_returns_and_nothing_was_dropped() -> None:
    """A continuous log proves what is cached, however long the partition was."""
    node = await following_node()
    node.origin.add("other", "session-2", "identity-2")
    await node.read("token")
    await node.read("other")
    node.log.server.append(changed("session-2"))
    node.clock.advance(60.0)
    assert (await node.read("token")).tier == "origin"
    reads = node.origin.reads
    await node.follow()

    assert (await node.read("token")).tier == "memory"
    assert node.origin.reads == reads
    assert (await node.read("other")).detail == "fenced"


async def test_a_freeze_between_read_and_write() -> None:
    """The lease is asked after the wake-up and before the write: what was read before the freeze is not kept."""
    node = await following_node()
    node.origin.gate = gate = Gate()
    reader = asyncio.create_task(node.read("token"))
    await gate.arrived()
    node.clock.advance(MAX_STALENESS_SECONDS)
    node.origin.gate = None
    gate.open()

    assert version_of(await reader) == 0, "it asked before the freeze"
    assert len(node.memory) == 0
    assert node.redis.stored == {}
    assert node.reader.counts["rejected_fills"] == 1


async def test_a_lease_renewed_between_read_and_write() -> None:
    """The harmless order: the feed was confirmed meanwhile and named nobody, so the answer is kept."""
    node = await following_node()
    node.origin.gate = gate = Gate()
    reader = asyncio.create_task(node.read("token"))
    await gate.arrived()
    node.clock.advance(MAX_STALENESS_SECONDS)
    await node.follow()
    node.origin.gate = None
    gate.open()
    await reader

    assert (await node.read("token")).tier == "memory"


async def test_a_refusal_is_not_kept_without_a_lease() -> None:
    """A 401 is a cached answer like any other."""
    node = await following_node()
    node.origin.sessions[b"token"].valid = False
    node.origin.gate = gate = Gate()
    reader = asyncio.create_task(node.read("token"))
    await gate.arrived()
    node.clock.advance(MAX_STALENESS_SECONDS)
    gate.open()

    assert (await reader).status == 401
    await node.follow()
    assert (await node.read("token")).tier == "origin"


async def test_a_kept_refusal_is_not_given_without_a_lease() -> None:
    """The session may be valid again, and nobody could tell this node."""
    node = await following_node()
    node.origin.sessions[b"token"].valid = False
    await node.read("token")
    node.origin.sessions[b"token"].valid = True
    node.clock.advance(MAX_STALENESS_SECONDS)

    assert (await node.read("token")).status == 200


async def test_before_the_first_confirm_everything_is_the_origins() -> None:
    """A node without a position keeps nothing, shares nothing, and takes nothing of its neighbours away."""
    neighbour = await following_node()
    await neighbour.read("token")
    node = neighbour.neighbour()
    node.origin.gate = gate = Gate()
    first = asyncio.create_task(node.read("token"))
    await gate.arrived()
    late = asyncio.create_task(node.read("token"))
    await get_as_far_as_they_can()
    node.origin.sessions[b"token"].version = 1
    node.origin.gate = None
    gate.open()

    assert version_of(await first) == 0
    assert version_of(await late) == 1
    assert len(node.memory) == 0
    assert len(node.redis.stored) == 1, "the neighbour's"


async def test_a_first_confirm_during_a_fill() -> None:
    """The read began without a position, so nobody knows which events it has seen: it is not kept."""
    clock = ManualClock()
    origin = ScriptedOrigin(clock)
    origin.add("token")
    node = ScriptedNode(LogServer(), origin, clock)
    origin.gate = gate = Gate()
    reader = asyncio.create_task(node.read("token"))
    await gate.arrived()
    await node.follow()
    gate.open()

    assert version_of(await reader) == 0
    assert len(node.memory) == 0


def test_a_lease_that_was_never_granted_does_not_hold() -> None:
    """Unknown is over."""
    clock = ManualClock()
    lease = Lease(clock)
    clock.steady_now = -1e9

    assert not lease.holds()
    assert lease.seconds_left() is None
