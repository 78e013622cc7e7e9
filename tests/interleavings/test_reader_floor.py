"""The floor and the generation: what is forgotten, flushed or begun anew takes everything older with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from cache_node.sessions.answer import Wants
from tests.fakes import (
    Gate,
    LogServer,
    ScriptedNode,
    changed,
    flush,
    following_node,
    get_as_far_as_they_can,
    identity_changed,
    revoked,
    version_of,
)


async def fill_meanwhile(node: ScriptedNode, meanwhile: Callable[[LogServer], object]) -> int:
    """Read the old state, let something happen to the feed, and let the answer arrive; the version that it shows."""
    node.origin.gate = gate = Gate()
    reader = asyncio.create_task(node.read("token"))
    await gate.arrived()
    node.origin.sessions[b"token"].version += 1
    meanwhile(node.log.server)
    await node.follow()
    node.origin.gate = None
    gate.open()
    return version_of(await reader)


async def test_a_flush_during_a_fill() -> None:
    """A flush names nothing and means everything: what was read before it is not kept."""
    node = await following_node()

    assert await fill_meanwhile(node, lambda server: server.append(flush())) == 0
    assert len(node.memory) == 0
    assert node.redis.stored == {}
    after = await node.read("token")
    assert (version_of(after), after.tier) == (1, "origin")
    assert (await node.read("token")).tier == "memory"


async def test_a_bucket_dropped_during_a_fill() -> None:
    """The event that names the session is applied and forgotten again while the answer is on its way."""
    node = await following_node(max_ids=16)

    def forget(server: LogServer) -> None:
        server.append(changed())
        for number in range(20):
            server.append(changed(f"another-{number}"))

    assert await fill_meanwhile(node, forget) == 0
    assert node.fence.floor > 0, "the cap made it forget"
    assert len(node.memory) == 0
    assert version_of(await node.read("token")) == 1


async def test_a_bucket_dropped_while_its_ids_are_cached() -> None:
    """A dead entry stays dead when the event that killed it is forgotten: the floor goes up with it."""
    node = await following_node(max_ids=16)
    await node.read("token")
    node.origin.sessions[b"token"].version = 1
    node.log.server.append(changed())
    await node.follow()
    for number in range(20):
        node.log.server.append(changed(f"another-{number}"))
    await node.follow()
    assert node.fence.floor > 0

    answer = await node.read("token")
    assert (version_of(answer), answer.tier) == (1, "origin")


async def test_a_bucket_dropped_by_age() -> None:
    """The window forgets as the cap does."""
    node = await following_node(window_seconds=16.0)
    await node.read("token")
    node.origin.sessions[b"token"].version = 1
    node.log.server.append(changed())
    await node.follow()
    node.clock.advance(18.0)
    await node.follow()
    assert len(node.fence) == 0
    assert node.fence.floor == 1

    assert version_of(await node.read("token")) == 1


async def test_an_entry_in_use_survives_the_floor() -> None:
    """Each admission stamps it forward; one that nobody asks for falls below the floor, which costs a hit."""
    node = await following_node(max_ids=16)
    node.origin.add("idle", "session-2", "identity-2")
    await node.read("token")
    await node.read("idle")
    for number in range(40):
        node.log.server.append(changed(f"another-{number}"))
        await node.follow()
        assert (await node.read("token")).tier == "memory"

    assert node.origin.reads == 2
    assert (await node.read("idle")).detail == "fenced"


@pytest.mark.parametrize("vanish", [LogServer.flushall, LogServer.restart_empty])
async def test_a_new_generation_during_a_fill(vanish: Callable[[LogServer], None]) -> None:
    """A run begun before is void: its result goes to who asked before its read, and nowhere else."""
    node = await following_node()
    node.origin.gate = gate = Gate()
    reader_a = asyncio.create_task(node.read("token"))
    await gate.arrived()
    node.origin.sessions[b"token"].version = 1
    vanish(node.log.server)  # and the event with it
    await node.follow()
    reader_b = asyncio.create_task(node.read("token"))
    await get_as_far_as_they_can()
    node.origin.gate = None
    gate.open()

    assert version_of(await reader_a) == 0
    assert version_of(await reader_b) == 1
    assert version_of(await node.read("token")) == 1


@pytest.mark.parametrize("vanish", [LogServer.flushall, LogServer.restart_empty])
async def test_a_new_generation_voids_entries_in_both_tiers(vanish: Callable[[LogServer], None]) -> None:
    """A revocation may have been lost with the old one, so nothing that was cached before it is given after it."""
    node = await following_node()
    await node.read("token")
    node.origin.sessions[b"token"].version = 1
    vanish(node.log.server)
    await node.follow()

    answer = await node.read("token")
    assert (version_of(answer), answer.tier, answer.detail) == (1, "origin", "fenced")


async def test_a_new_generation_voids_refusals() -> None:
    """A 401 kept before it is not given after it."""
    node = await following_node()
    node.origin.sessions[b"token"].valid = False
    await node.read("token")
    assert (await node.read("token")).tier == "negative"
    node.origin.sessions[b"token"].valid = True
    node.log.server.restart_empty()
    await node.follow()

    assert (await node.read("token")).status == 200


async def test_a_new_generation_during_a_fill_that_is_refused() -> None:
    """A 401 read before it is not kept."""
    node = await following_node()
    node.origin.sessions[b"token"].valid = False
    node.origin.gate = gate = Gate()
    reader = asyncio.create_task(node.read("token"))
    await gate.arrived()
    node.log.server.restart_empty()
    await node.follow()
    node.origin.gate = None
    gate.open()

    assert (await reader).status == 401
    assert (await node.read("token")).tier == "origin"


async def test_a_position_of_an_older_generation_is_not_compared() -> None:
    """min-position from before is answered by the origin, whatever its number."""
    node = await following_node()
    await node.read("token")
    old = node.fence.position
    assert (await node.read("token", Wants(min_position=old))).tier == "memory"
    node.log.server.restart_empty()
    await node.follow()
    await node.read("token")

    answer = await node.read("token", Wants(min_position=old))
    assert (answer.tier, answer.detail) == ("origin", "min-position")


async def test_a_gap_after_trimming() -> None:
    """The event was trimmed away before this node saw it: all that was read before the feed's end is void."""
    node = await following_node()
    await node.read("token")
    node.origin.sessions[b"token"].version = 1
    node.log.server.append(revoked())
    node.log.server.append(identity_changed("another"))
    node.log.server.trim_before(2)
    await node.follow()

    assert node.follower.counts["resets_gap"] == 1
    answer = await node.read("token")
    assert (version_of(answer), answer.tier) == (1, "origin")
