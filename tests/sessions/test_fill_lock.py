"""One node of a region asks the origin, and the others wait for what it brings: not for long, and not for nothing."""

from __future__ import annotations

import asyncio

import pytest

from cache_node.errors import OriginUnavailableError
from cache_node.sessions.answer import Answer, Wants
from tests.fakes import Gate, ScriptedNode, changed, following_node, get_as_far_as_they_can, turns_until, version_of


async def two_nodes() -> tuple[ScriptedNode, ScriptedNode]:
    first = await following_node()
    first.redis.locks = {}
    return first, await neighbour_of(first)


async def neighbour_of(node: ScriptedNode, node_id: str = "node-2") -> ScriptedNode:
    neighbour = node.neighbour(node_id=node_id)
    neighbour.redis.locks = node.redis.locks
    await neighbour.follow()
    return neighbour


async def waiting(node: ScriptedNode) -> asyncio.Task[Answer]:
    """A reader whose node has been told that another one is at it, more than once."""
    gets = node.redis.gets
    reading = asyncio.create_task(node.read("token"))
    await turns_until(lambda: node.redis.gets > gets + 2)
    return reading


async def at_the_origin(node: ScriptedNode) -> tuple[Gate, asyncio.Task[Answer]]:
    gate = node.origin.gate = Gate()
    reading = asyncio.create_task(node.read("token"))
    await gate.arrived()
    node.origin.gate = None
    return gate, reading


async def test_others_get_what_one_has_read() -> None:
    """The origin is asked once, and no lock is left."""
    first, second = await two_nodes()
    gate, reading = await at_the_origin(first)
    others = [await waiting(second), asyncio.create_task(second.read("token"))]
    await get_as_far_as_they_can()
    gate.open()

    assert [(await task).tier for task in (reading, *others)] == ["origin", "redis", "redis"]
    assert first.origin.reads == 1
    assert first.redis.locks == {}


async def test_an_entry_that_an_event_has_killed_is_replaced_once() -> None:
    """What lies in Redis and may not be given keeps nobody from waiting for what may."""
    first, second = await two_nodes()
    await first.read("token")
    first.origin.sessions[b"token"].version = 1
    first.log.server.append(changed())
    await first.follow()
    await second.follow()
    gate, reading = await at_the_origin(first)
    other = await waiting(second)
    gate.open()

    assert [version_of(await task) for task in (reading, other)] == [1, 1]
    assert first.origin.reads == 2


async def test_what_one_has_read_is_judged_by_each() -> None:
    """An event that came meanwhile to the waiting node sends it to the origin, however new the entry is to others."""
    first, second = await two_nodes()
    gate, reading = await at_the_origin(first)
    other = await waiting(second)
    first.origin.sessions[b"token"].version = 1
    first.log.server.append(changed())
    await second.follow()
    gate.open()

    assert [version_of(await task) for task in (reading, other)] == [0, 1]


@pytest.mark.parametrize("how", ["403", "cookie", "down"])
async def test_nobody_waits_for_an_answer_that_may_not_be_kept(how: str) -> None:
    """Who waited asks at once, and so does, for a while, who comes later: not one node after the other."""
    first, second = await two_nodes()
    first.origin.status = 403 if how == "403" else None
    first.origin.set_cookie = how == "cookie"
    first.origin.down = how == "down"
    gate, reading = await at_the_origin(first)
    other = await waiting(second)
    both_at_once = first.origin.gate = Gate()
    gate.open()
    third = await neighbour_of(first, "node-3")
    await asyncio.wait([reading])
    late = asyncio.create_task(third.read("token"))
    await turns_until(lambda: first.origin.reads == 3)
    both_at_once.open()

    outcomes = await asyncio.gather(reading, other, late, return_exceptions=True)
    assert [isinstance(outcome, OriginUnavailableError) for outcome in outcomes] == [how == "down"] * 3


async def test_a_reader_that_asks_for_the_origin_waits_for_no_neighbour() -> None:
    """`no-cache` that joins a waiting fill takes it there at once."""
    first, second = await two_nodes()
    gate, reading = await at_the_origin(first)
    other = await waiting(second)
    demanding = asyncio.create_task(second.read("token", Wants(no_cache=True)))

    assert (await demanding).tier == (await other).tier == "origin"
    gate.open()
    await reading


async def test_a_neighbour_that_does_not_come_back_is_not_waited_for() -> None:
    """For half of the origin's time at most."""
    first, second = await two_nodes()
    gate, reading = await at_the_origin(first)
    other = await waiting(second)
    for _ in range(2):
        second.clock.advance(1.2)
        await first.follow()
        await second.follow()
    gets = second.redis.gets
    await turns_until(lambda: second.redis.gets > gets + 3)
    assert first.origin.reads == 1
    second.clock.advance(0.2)

    assert (await other).tier == "origin"
    gate.open()
    await reading


async def test_without_a_lease_nobody_waits() -> None:
    """What a neighbour brings could not be given."""
    first, second = await two_nodes()
    gate, reading = await at_the_origin(first)
    second.lease.end()

    assert (await second.read("token")).tier == "origin"
    gate.open()
    await reading
