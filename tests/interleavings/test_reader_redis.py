"""Entries of the redis tier: whoever stored them, each reader judges them by its own fence and lease after the read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from cache_node.feed.events import Event
from cache_node.sessions.credential import Credential
from cache_node.sessions.keys import KeyRing
from tests.fakes import (
    SECRET,
    Gate,
    ScriptedNode,
    changed,
    flush,
    following_node,
    identity_changed,
    revoked,
    turns_until,
    version_of,
)

EVENTS = [revoked, changed, identity_changed, flush]


async def node_beside_an_entry() -> ScriptedNode:
    """A following node with nothing in memory; its neighbour has left an entry, version 0, in Redis."""
    neighbour = await following_node()
    await neighbour.read("token")
    node = neighbour.neighbour()
    await node.follow()
    return node


async def test_what_a_neighbour_left_is_taken_and_kept() -> None:
    """The harmless case: no event, a lease; the age is counted from when the neighbour asked the origin."""
    node = await node_beside_an_entry()
    node.clock.advance(1.0)

    answer = await node.read("token")
    assert (answer.tier, answer.detail, answer.age_seconds) == ("redis", "redis", 1.0)
    assert (await node.read("token")).tier == "memory"
    assert node.origin.reads == 1


@pytest.mark.parametrize("event", EVENTS)
async def test_an_event_while_the_entry_is_being_read(event: Callable[[], list[Event]]) -> None:
    """The value has left Redis, the event is applied, and then the value arrives: it is a miss."""
    node = await node_beside_an_entry()
    node.redis.gate = gate = Gate()
    reader = asyncio.create_task(node.read("token"))
    await gate.arrived()
    node.origin.sessions[b"token"].version = 1
    node.log.server.append(event())
    await node.follow()
    gate.open()

    answer = await reader
    assert (version_of(answer), answer.tier) == (1, "origin")


@pytest.mark.parametrize("event", EVENTS)
async def test_an_event_before_the_entry_is_read(event: Callable[[], list[Event]]) -> None:
    """Nothing deletes the entry: the fence rejects it."""
    node = await node_beside_an_entry()
    node.origin.sessions[b"token"].version = 1
    node.log.server.append(event())
    await node.follow()

    answer = await node.read("token")
    assert (version_of(answer), answer.tier) == (1, "origin")


async def test_an_event_for_others_while_the_entry_is_being_read() -> None:
    """The harmless order's other half: an event that names somebody else rejects nothing."""
    node = await node_beside_an_entry()
    node.redis.gate = gate = Gate()
    reader = asyncio.create_task(node.read("token"))
    await gate.arrived()
    node.log.server.append([*changed("another"), *identity_changed("another")])
    await node.follow()
    gate.open()

    assert (await reader).tier == "redis"


async def test_what_cannot_be_read_of_the_feed_rejects_the_entry() -> None:
    """An entry of the feed that this version cannot read might name anything."""
    node = await node_beside_an_entry()
    node.redis.gate = gate = Gate()
    reader = asyncio.create_task(node.read("token"))
    await gate.arrived()
    server = node.log.server
    server.append(changed("another"))
    server.garble(-1)
    await node.follow()
    gate.open()

    assert (await reader).tier == "origin"


async def test_a_rejected_entry_is_a_miss_for_early_joiners_too() -> None:
    """Not even those who joined before Redis was asked get it: they may have asked after the event was due."""
    node = await node_beside_an_entry()
    node.redis.gate = gate = Gate()
    early = [asyncio.create_task(node.read("token")) for _ in range(2)]
    await gate.arrived()
    late = asyncio.create_task(node.read("token"))
    node.origin.sessions[b"token"].version = 1
    node.log.server.append(changed())
    await node.follow()
    gate.open()

    assert [version_of(answer) for answer in await asyncio.gather(*early, late)] == [1, 1, 1]
    assert node.origin.reads == 2, "the neighbour's, and one for all three"


async def test_an_entry_without_a_lease_is_a_miss_for_early_joiners_too() -> None:
    """The lease ended while Redis was read: whoever waits for it gets the origin's word."""
    node = await node_beside_an_entry()
    node.redis.gate = gate = Gate()
    readers = [asyncio.create_task(node.read("token")) for _ in range(2)]
    await gate.arrived()
    node.origin.sessions[b"token"].version = 1  # of which nobody tells this node
    node.clock.advance(2.0)
    gate.open()

    assert [version_of(answer) for answer in await asyncio.gather(*readers)] == [1, 1]
    assert len(node.memory) == 0, "and nothing is stored"


async def in_memory(node: ScriptedNode) -> None:
    """Until the run has kept the entry; its readers are not awake then."""
    await turns_until(lambda: len(node.memory) == 1)


async def test_an_event_between_the_end_of_a_run_and_the_waking_of_its_readers() -> None:
    """Even the reader who began the run is asked for again: the entry was admitted, and is no more."""
    node = await node_beside_an_entry()
    node.redis.gate = gate = Gate()
    reader = asyncio.create_task(node.read("token"))
    await gate.arrived()
    gate.open()
    await in_memory(node)
    assert not reader.done()
    node.origin.sessions[b"token"].version = 1
    node.log.server.append(changed())
    await node.follow()

    answer = await reader
    assert (version_of(answer), answer.tier) == (1, "origin")


async def test_the_end_of_the_lease_between_the_end_of_a_run_and_the_waking_of_its_readers() -> None:
    """A node that was frozen just there gives nothing cached."""
    node = await node_beside_an_entry()
    node.redis.gate = gate = Gate()
    reader = asyncio.create_task(node.read("token"))
    await gate.arrived()
    gate.open()
    await in_memory(node)
    assert not reader.done()
    node.origin.sessions[b"token"].version = 1
    node.clock.advance(2.0)

    answer = await reader
    assert (version_of(answer), answer.tier) == (1, "origin")


async def test_a_new_generation_while_the_entry_is_being_read() -> None:
    """Positions of two generations are not compared: the entry is a miss, though no event names it."""
    node = await node_beside_an_entry()
    node.redis.gate = gate = Gate()
    reader = asyncio.create_task(node.read("token"))
    await gate.arrived()
    node.log.server.restart_empty()
    await node.follow()
    gate.open()

    assert (await reader).tier == "origin"


async def test_a_starting_node_takes_nothing_from_before_its_floor() -> None:
    """It knows no event older than the feed's end; the retained window, read backwards, lowers the floor."""
    node = await following_node()
    node.log.server.append(changed("another"))
    await node.follow()
    await node.read("token")  # read at position 1
    node.log.server.append(changed("another"))
    node.origin.add("other", "session-2", "identity-2")
    await node.follow()
    await node.read("other")  # read at position 2
    started = node.neighbour()
    await started.follow()

    assert (await started.read("other")).tier == "redis", "it is not older than the feed's end"
    assert (await started.read("token")).tier == "origin"


async def test_a_replayed_window_admits_what_is_not_older_and_not_named() -> None:
    """What the neighbours left is served once the events since are known; an entry that one of them names is not."""
    node = await following_node()
    node.origin.add("other", "session-2", "identity-2")
    node.log.server.append(changed("another"))
    await node.follow()
    await node.read("token")
    await node.read("other")
    node.log.server.append(changed("session-2"))
    node.origin.sessions[b"other"].version = 1
    started = node.neighbour()
    await started.follow()
    await started.follower.replay()

    assert (await started.read("token")).tier == "redis"
    answer = await started.read("other")
    assert (version_of(answer), answer.tier) == (1, "origin")


async def test_redis_is_not_asked_without_a_lease() -> None:
    """What it says could not be given; and a Redis that is away must not slow the answers down."""
    node = await node_beside_an_entry()
    node.clock.advance(2.0)

    assert (await node.read("token")).tier == "origin"
    assert node.redis.gets == 0


async def test_an_entry_put_under_another_credential_is_a_miss() -> None:
    """Whoever writes to Redis cannot give one client the answer of another: each value is bound to its key."""
    node = await following_node()
    node.origin.add("mallory", "session-2", "identity-2")
    node.origin.sessions[b"mallory"].version = 7
    await node.read("token")
    await node.read("mallory")
    names = [KeyRing([SECRET]).derive(Credential("token", token))[0].name for token in (b"token", b"mallory")]
    node.redis.stored[names[0]] = node.redis.stored[names[1]]
    reader = node.neighbour()
    await reader.follow()

    answer = await reader.read("token")
    assert (version_of(answer), answer.tier) == (0, "origin")


# Rotated secrets ------------------------------------------------------------------------------------------------------

NEW_SECRET = "another secret of at least thirty-two characters"


async def test_entries_under_an_older_secret_are_read() -> None:
    """While secrets rotate, what was written under the old one is still a hit; new entries take the first one."""
    old = await following_node()
    await old.read("token")
    node = old.neighbour(secrets=[NEW_SECRET, SECRET])
    await node.follow()

    assert (await node.read("token")).tier == "redis"
    node.log.server.append(changed())
    await node.follow()
    await node.read("token")
    newest = node.neighbour(secrets=[NEW_SECRET], node_id="node-3")
    await newest.follow()
    await newest.follower.replay()
    assert (await newest.read("token")).tier == "redis"


async def test_a_session_that_is_dead_stays_dead_under_an_older_secret() -> None:
    """The origin contradicts an entry that came from under an older secret: it is not found there again."""
    old = await following_node()
    await old.read("token")
    node = old.neighbour(secrets=[NEW_SECRET, SECRET])
    await node.follow()
    await node.read("token")
    node.origin.sessions[b"token"].valid = False  # and no event tells
    node.clock.advance(901.0)
    await node.follow()

    assert (await node.read("token")).status == 401
    assert node.redis.stored == {}
