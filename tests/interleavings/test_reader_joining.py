"""Who may have the result of a run that somebody else began."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from cache_node.feed.events import Event
from cache_node.sessions.answer import Answer, Wants
from cache_node.sessions.credential import Credential
from cache_node.sessions.origin import OriginAnswer
from tests.fakes import (
    Gate,
    ScriptedNode,
    ScriptedOrigin,
    changed,
    following_node,
    get_as_far_as_they_can,
    identity_changed,
    turns_until,
    version_of,
)

NO_CACHE = Wants(no_cache=True)


MOST_READERS = 1001
"""At once, in any of these tests."""


@pytest.fixture(params=["slow path", "fast lane"])
async def node(request: pytest.FixtureRequest) -> ScriptedNode:
    """On the feed, with a lease; its clients come over new connections, or over such as the fast lane knows."""
    node = await following_node()
    if request.param == "fast lane":
        node.origin.add("another")
        await asyncio.gather(*(node.read("another") for _ in range(MOST_READERS)))
        node.origin.reads = 0
    return node


async def start(node: ScriptedNode, count: int = 1, wants: Wants | None = None) -> list[asyncio.Task[Answer]]:
    """So many readers of `token`, each as far as it gets without waiting for anything outside."""
    readers = [asyncio.create_task(node.read("token", wants)) for _ in range(count)]
    await get_as_far_as_they_can()
    return readers


async def change(node: ScriptedNode) -> None:
    """The session changes at the origin, and the event is applied here."""
    node.origin.sessions[b"token"].version += 1
    node.log.server.append(changed())
    await node.follow()


async def test_a_joiner_after_the_event_gets_the_next_run(node: ScriptedNode) -> None:
    """It asked after the change, and the run under way has read the state before it."""
    node.origin.gate = gate = Gate()
    reader_a = asyncio.create_task(node.read("token"))
    await gate.arrived()
    await change(node)
    (reader_b,) = await start(node)
    node.origin.gate = None
    gate.open()

    assert version_of(await reader_a) == 0
    assert version_of(await reader_b) == 1
    assert node.origin.reads == 2


async def test_a_joiner_before_the_read_gets_its_result(node: ScriptedNode) -> None:
    """It asked before the read began, so what that read says is right for it, whatever happens afterwards."""
    node.origin.before_gate, node.origin.gate = before, gate = Gate(), Gate()
    reader_a = asyncio.create_task(node.read("token"))
    await before.arrived()
    (reader_b,) = await start(node)
    before.open()
    await gate.arrived()
    await change(node)
    gate.open()

    assert [version_of(await reader) for reader in (reader_a, reader_b)] == [0, 0]
    assert node.origin.reads == 1


async def test_a_late_joiner_shares_what_the_fence_admits(node: ScriptedNode) -> None:
    """The harmless order: without an event in between, a late joiner has the result as a cached one."""
    node.origin.gate = gate = Gate()
    (reader_a,) = await start(node)
    await gate.arrived()
    (reader_b,) = await start(node)
    gate.open()

    assert version_of(await reader_a) == version_of(await reader_b) == 0
    assert node.origin.reads == 1


async def test_a_late_joiner_does_not_share_without_a_lease(node: ScriptedNode) -> None:
    """Nothing that is cached may be given without a lease, and a result that one has not asked for is cached."""
    node.origin.gate = gate = Gate()
    (reader_a,) = await start(node)
    await gate.arrived()
    node.origin.sessions[b"token"].version = 1  # of which nobody tells this node
    node.clock.advance(2.0)
    (reader_b,) = await start(node)
    node.origin.gate = None
    gate.open()

    assert version_of(await reader_a) == 0
    assert version_of(await reader_b) == 1


async def test_a_thousand_cold_readers_cost_one_request(node: ScriptedNode) -> None:
    """All read one credential on one node; most of them join when the read has begun already."""
    node.origin.gate = gate = Gate()
    readers = await start(node, 500)
    await gate.arrived()
    readers += await start(node, 500)
    gate.open()

    assert {version_of(answer) for answer in await asyncio.gather(*readers)} == {0}
    assert node.origin.reads == 1


@pytest.mark.parametrize("event", [changed, identity_changed])
async def test_a_rejection_costs_one_request_more(node: ScriptedNode, event: Callable[[], list[Event]]) -> None:
    """No retry counter, and no extra load for a hot identity: all who joined too late share the next run."""
    node.origin.gate = gate = Gate()
    early = await start(node, 500)
    await gate.arrived()
    node.origin.sessions[b"token"].version = 1
    node.log.server.append(event())
    await node.follow()
    late = await start(node, 500)
    node.origin.gate = None
    gate.open()

    assert {version_of(answer) for answer in await asyncio.gather(*early)} == {0}
    assert {version_of(answer) for answer in await asyncio.gather(*late)} == {1}
    assert node.origin.reads == 2
    assert node.reader.counts["rejected_fills"] == 1


async def stored(node: ScriptedNode) -> None:
    """Until the run has stored its result; its readers are not awake then."""
    await turns_until(lambda: len(node.memory) == 1)


async def test_an_event_between_the_end_of_a_run_and_the_waking_of_a_late_joiner(node: ScriptedNode) -> None:
    """Fence and lease are asked after the wake-up: when the run ended, both still said yes."""
    node.origin.gate = gate = Gate()
    (reader_a,) = await start(node)
    await gate.arrived()
    (reader_b,) = await start(node)
    node.origin.gate = None
    gate.open()
    await stored(node)
    assert not reader_b.done()
    await change(node)

    assert version_of(await reader_a) == 0
    assert version_of(await reader_b) == 1


async def test_the_end_of_the_lease_between_the_end_of_a_run_and_the_waking_of_a_late_joiner(
    node: ScriptedNode,
) -> None:
    """As with an event: a node that was frozen just there gives nothing cached."""
    node.origin.gate = gate = Gate()
    (reader_a,) = await start(node)
    await gate.arrived()
    (reader_b,) = await start(node)
    node.origin.gate = None
    gate.open()
    await stored(node)
    assert not reader_b.done()
    node.origin.sessions[b"token"].version = 1
    node.clock.advance(2.0)

    assert version_of(await reader_a) == 0
    assert version_of(await reader_b) == 1


# no-cache -------------------------------------------------------------------------------------------------------------


async def test_no_cache_takes_no_run_whose_read_had_begun(node: ScriptedNode) -> None:
    """It wants what the origin says from now on: the run under way may have read before."""
    node.origin.gate = gate = Gate()
    (plain,) = await start(node)
    await gate.arrived()
    node.origin.sessions[b"token"].version = 1  # the event comes later
    (demanding,) = await start(node, 1, NO_CACHE)
    node.origin.gate = None
    gate.open()

    assert version_of(await plain) == 0
    answer = await demanding
    assert (version_of(answer), answer.tier) == (1, "origin")
    assert node.origin.reads == 2


async def test_no_cache_takes_a_run_whose_read_had_not_begun(node: ScriptedNode) -> None:
    """A read that begins after it joined is as good as its own."""
    node.origin.before_gate = gate = Gate()
    (plain,) = await start(node)
    await gate.arrived()
    (demanding,) = await start(node, 1, NO_CACHE)
    node.origin.sessions[b"token"].version = 1
    gate.open()

    assert version_of(await plain) == version_of(await demanding) == 1
    assert node.origin.reads == 1


async def test_no_cache_makes_the_run_it_joins_pass_redis_by(node: ScriptedNode) -> None:
    """It joins while Redis is being read: what lies there is not taken, and one request serves both readers."""
    a = await following_node()
    await a.read("token")
    node = a.neighbour()
    await node.follow()
    node.origin.sessions[b"token"].version = 1
    node.redis.gate = gate = Gate()
    (plain,) = await start(node)
    await gate.arrived()
    (demanding,) = await start(node, 1, NO_CACHE)
    gate.open()

    assert version_of(await demanding) == version_of(await plain) == 1
    assert node.origin.reads == 2, "A's and this one"


async def test_no_cache_readers_share_a_run(node: ScriptedNode) -> None:
    """A thousand of them that ask together cost one request, however much they distrust the cache."""
    await node.read("token")
    readers = [asyncio.create_task(node.read("token", NO_CACHE)) for _ in range(1000)]

    assert {answer.tier for answer in await asyncio.gather(*readers)} == {"origin"}
    assert node.origin.reads == 2


# Nobody waits for ever ------------------------------------------------------------------------------------------------


class _Slow(ScriptedOrigin):
    """Takes some turns of the loop for each read."""

    async def read(
        self, credential: Credential, *, on_begin: Callable[[], None], is_expected: Callable[[], bool], patient: bool
    ) -> OriginAnswer:
        answer = await super().read(credential, on_begin=on_begin, is_expected=is_expected, patient=patient)
        for _ in range(5):
            await asyncio.sleep(0)
        return answer


@pytest.mark.parametrize("status", [None, 403])
async def test_a_late_joiner_gets_the_next_run_however_many_ask_meanwhile(status: int | None) -> None:
    """Requests for one key come in every turn of the loop, and no result may be shared: nobody waits for two runs.

    Without a lease nothing is shared, and a 403 never is.
    """
    template = await following_node()
    origin = _Slow(template.clock)
    origin.add("token")
    origin.status = status
    node = ScriptedNode(template.log.server, origin, template.clock)
    if status is not None:
        await node.follow()
    readers: list[asyncio.Task[Answer]] = []
    waited: dict[asyncio.Task[Answer], int] = {}
    for _ in range(200):
        reader = asyncio.create_task(node.read("token"))
        readers.append(reader)
        reads = origin.reads

        def note(done: asyncio.Task[Answer], reads: int = reads) -> None:
            waited[done] = origin.reads - reads

        reader.add_done_callback(note)
        await asyncio.sleep(0)
    await asyncio.gather(*readers)
    await asyncio.sleep(0)

    assert len(waited) == 200
    assert max(waited.values()) <= 3, "its own run, and one that had begun before it woke up"
