"""Fills against events: whatever order they arrive in, what was read before an event is never given after it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from cache_node.feed.events import Event
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
from tests.http.asking import NoAnswerError


async def test_fill_race_on_one_node() -> None:
    """Read the old state, revoke, apply the event, and only then does the old answer arrive: it must not be kept."""
    node = await following_node()
    origin, server = node.origin, node.log.server

    origin.gate = Gate()
    reader_a = asyncio.create_task(node.read("token"))
    await origin.gate.arrived()  # the origin has been read: version 0
    origin.sessions[b"token"].version = 1
    server.append(changed())
    await node.follow()  # the event is applied here
    origin.gate.open()

    assert version_of(await reader_a) == 0, "A's request began before the change"
    origin.gate = None
    after = await node.read("token")
    assert (version_of(after), after.tier) == (1, "origin")
    assert (await node.read("token")).tier == "memory", "what was read after the event is kept"


@pytest.mark.parametrize("event", [changed, identity_changed])
async def test_fill_race_in_the_other_order(event: Callable[[], list[Event]]) -> None:
    """The old answer arrives and is kept, and only then is the event applied: it is not given any more."""
    node = await following_node()
    session = node.origin.sessions[b"token"]

    assert version_of(await node.read("token")) == 0
    session.version = 1
    assert (await node.read("token")).tier == "memory", "nobody has told this node yet"
    node.log.server.append(event())
    await node.follow()

    after = await node.read("token")
    assert (version_of(after), after.tier, after.detail) == (1, "origin", "fenced")


async def test_a_fill_that_begins_after_the_event_is_kept() -> None:
    """The harmless order: an event before the read does not reject what was read after it."""
    node = await following_node()
    node.log.server.append(changed())
    await node.follow()

    assert (await node.read("token")).tier == "origin"
    assert (await node.read("token")).tier == "memory"
    assert node.reader.counts["rejected_fills"] == 0


async def test_as_of_is_taken_when_the_origin_is_asked() -> None:
    """An event applied while Redis was asked is older than what the origin says then: its answer may be kept."""
    node = await following_node()
    node.redis.gate = Gate()
    reader = asyncio.create_task(node.read("token"))
    await node.redis.gate.arrived()
    node.log.server.append(changed())
    await node.follow()
    node.redis.gate.open()

    assert (await reader).tier == "origin"
    assert node.reader.counts["rejected_fills"] == 0
    assert (await node.read("token")).tier == "memory"


async def test_an_event_heard_but_not_confirmed_rejects_a_fill() -> None:
    """A wake-up adds to the fence at once: the old answer is not kept, although the position has not moved."""
    node = await following_node()
    origin, server = node.origin, node.log.server
    position = node.fence.position

    origin.gate = Gate()
    reader_a = asyncio.create_task(node.read("token"))
    await origin.gate.arrived()
    origin.sessions[b"token"].version = 1
    server.append(changed())
    assert position is not None
    node.follower.hear(await node.log.wake_up(position, 0.0))
    assert node.fence.position == position
    origin.gate.open()

    assert version_of(await reader_a) == 0
    origin.gate = None
    assert len(node.memory) == 0
    after = await node.read("token")
    assert (version_of(after), after.tier) == (1, "origin")
    await node.follow()
    assert version_of(await node.read("token")) == 1
    assert (await node.read("token")).tier == "memory"


async def test_an_entry_in_use_is_named_by_an_event() -> None:
    """An entry stamped forward to the applied position is still rejected by the next event that names it."""
    node = await following_node()
    await node.read("token")
    for _ in range(3):
        node.log.server.append(changed("another-session"))
        await node.follow()
        assert (await node.read("token")).tier == "memory"
    node.origin.sessions[b"token"].version = 1
    node.log.server.append(changed())
    await node.follow()

    assert version_of(await node.read("token")) == 1


# Two nodes ------------------------------------------------------------------------------------------------------------


async def test_fill_race_across_two_nodes_through_redis() -> None:
    """B has read the old state and lags; A has applied the event; B stores what it read, and A must not take it."""
    a = await following_node()
    b = a.neighbour()
    await b.follow()
    origin = a.origin

    origin.gate = Gate()
    reader_b = asyncio.create_task(b.read("token"))
    await origin.gate.arrived()
    origin.sessions[b"token"].version = 1
    a.log.server.append(changed())
    await a.follow()  # and B does not
    origin.gate.open()
    assert version_of(await reader_b) == 0
    origin.gate = None
    assert a.redis.stored, "B has not heard of the event and keeps what it read, for others too"

    answer = await a.read("token")
    assert (version_of(answer), answer.tier) == (1, "origin")


async def test_a_lagging_node_cannot_put_the_old_answer_back() -> None:
    """A has stored the new answer; B, which lags, stores the old one over it: A goes on giving the new one."""
    a = await following_node()
    b = a.neighbour()
    await b.follow()
    origin = a.origin

    origin.gate = gate = Gate()
    reader_b = asyncio.create_task(b.read("token"))
    await gate.arrived()
    origin.sessions[b"token"].version = 1
    a.log.server.append(changed())
    await a.follow()
    origin.gate = None
    assert version_of(await a.read("token")) == 1
    gate.open()
    assert version_of(await reader_b) == 0

    assert version_of(await a.read("token")) == 1
    a.memory.discard(next(iter(a.redis.stored)))
    after = await a.read("token")
    assert (version_of(after), after.tier) == (1, "origin"), "what lies in Redis is B's, and A's fence rejects it"


async def test_a_lagging_node_takes_the_newer_entry_of_its_neighbour() -> None:
    """A's entry is newer than anything B has applied: B may give it, and goes on when the event reaches it, too."""
    a = await following_node()
    b = a.neighbour()
    await b.follow()
    a.origin.sessions[b"token"].version = 1
    a.log.server.append(changed())
    await a.follow()
    assert version_of(await a.read("token")) == 1

    answer = await b.read("token")
    assert (version_of(answer), answer.tier) == (1, "redis")
    await b.follow()
    assert (await b.read("token")).tier == "memory", "the event is older than the entry"
    assert a.origin.reads == 1


# The flight belongs to all of its readers -----------------------------------------------------------------------------


async def test_a_reader_that_goes_away_does_not_end_the_fill() -> None:
    """The one who started the run is cancelled: the other still gets the answer, and it is kept."""
    node = await following_node()
    node.origin.gate = Gate()
    first = asyncio.create_task(node.read("token"))
    await node.origin.gate.arrived()
    second = asyncio.create_task(node.read("token"))
    await get_as_far_as_they_can()
    first.cancel()
    await asyncio.wait([first])
    assert first.cancelled()
    node.origin.gate.open()

    assert version_of(await second) == 0
    assert (await node.read("token")).tier == "memory"
    assert node.origin.reads == 1


async def test_a_fill_whose_readers_have_all_gone_is_kept() -> None:
    """Work that was begun is not thrown away."""
    node = await following_node()
    node.origin.gate = Gate()
    reader = asyncio.create_task(node.read("token"))
    await node.origin.gate.arrived()
    reader.cancel()
    await asyncio.wait([reader])
    node.origin.gate.open()
    await turns_until(lambda: len(node.memory) == 1)

    assert (await node.read("token")).tier == "memory"


class _Faulty(ScriptedOrigin):
    """Raises what no origin should, once."""

    has_failed = False

    async def read(
        self, credential: Credential, *, on_begin: Callable[[], None], is_expected: Callable[[], bool], patient: bool
    ) -> OriginAnswer:
        if not self.has_failed:
            self.has_failed = True
            raise RuntimeError("a bug")
        return await super().read(credential, on_begin=on_begin, is_expected=is_expected, patient=patient)


async def test_a_fill_that_raises_releases_its_key() -> None:
    """A bug in a fill costs its readers their answer, and nobody else."""
    template = await following_node()
    origin = _Faulty(template.clock)
    origin.add("token")
    node = ScriptedNode(template.log.server, origin, template.clock)
    await node.follow()

    together = await asyncio.gather(node.read("token"), node.read("token"), return_exceptions=True)
    assert [type(result) for result in together] == [NoAnswerError, NoAnswerError]
    assert version_of(await node.read("token")) == 0
